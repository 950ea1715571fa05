"""plstm without the packages of its extras, and what is said where one is missing."""

import pkgutil
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import plstm

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
EXAMPLE = re.search(r"```python\n(import torch\nfrom plstm .*?)```", README, re.DOTALL)[1]
SHOW = "print(tuple(y_next.shape))"
NEED_GRAPHS = [f"plstm.graph.{name}" for name in ("batching", "position_codes", "pyg", "storing")]
NEED_EXTRAS = {
    *NEED_GRAPHS,
    *(f"plstm.modules.gnns.{name}" for name in ("attentive_fp", "gps", "mpnn", "pna")),
    *(f"plstm.ops.plstm_{n}d.triton{part}" for n in (1, 2) for part in ("", "_kernels")),
}
# Finds only what `pip install plstm` installs; torch brings the second line along.
BARE = """
import sys
from importlib.machinery import PathFinder

THERE = {"plstm", "tasks", "einops", "numpy", "torch", "torchgen", "functorch"}
THERE |= {"filelock", "fsspec", "jinja2", "markupsafe", "mpmath", "networkx", "sympy"}
THERE |= {"typing_extensions", *sys.stdlib_module_names}

class Bare(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        there = name.startswith("_") or name.partition(".")[0] in THERE
        return super().find_spec(name, path, target) if there else None

    @classmethod
    def find_distributions(cls, context):
        return super().find_distributions(context) if context.name in THERE else ()

sys.meta_path[sys.meta_path.index(PathFinder)] = Bare
"""


def run_bare(code):
    """Run code in a fresh interpreter that finds the packages of no extra."""
    command = [sys.executable, "-W", "ignore", "-c", BARE + code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_layers_run_without_extras():
    modules = {module.name for module in pkgutil.walk_packages(plstm.__path__, "plstm.")}
    assert modules > NEED_EXTRAS
    load = f"import importlib\nfor name in {modules - NEED_EXTRAS}: importlib.import_module(name)\n"
    assert run_bare(load + EXAMPLE + SHOW) == "(8, 192)\n"


def test_missing_extras_are_named():
    parts = dict.fromkeys((f"import {name}" for name in NEED_GRAPHS), ("plstm.graph.", "graphs"))
    parts["from plstm.graph import ToDag"] = ("plstm.graph.pyg", "graphs")
    for gnn in ("GIN", "PNA"):
        make = f"import plstm; plstm.GNNModel(2, 2, dim=4, depth=1, gnn={gnn!r})"
        parts[make] = (f"GNNModel with gnn={gnn!r}", "graphs")
    parts["import tasks.arrow"] = ("tasks", "train")
    parts["import runpy; runpy.run_path('train.py', run_name='__main__')"] = ("train.py", "train")
    said = run_bare(
        f"import io\nfor part in {list(parts)}:\n"
        "    try:\n        sys.stderr = io.StringIO()\n        exec(part)\n"
        "    except ModuleNotFoundError as error:\n        print(error)\n"
        "    except SystemExit as stop:\n        print(sys.stderr.getvalue() * (stop.code == 2))"
    )
    lines = said.splitlines()
    for line, (part, extra) in zip(filter(None, lines), parts.values(), strict=True):
        assert re.fullmatch(
            rf"{re.escape(part)}\S* needs (torch_geometric|scipy|lightning), which is not "
            rf'installed; pip install "plstm\[{extra}\]"',
            line,
        )


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_wheel_runs_in_a_bare_environment(tmp_path):
    def pip(python, *args):
        command = [python, "-m", "pip", *args]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if re.search("No matching distribution|Could not (find a version|fetch)", done.stderr):
            pytest.skip("needs a package index")
        assert done.returncode == 0, done.stderr

    venv.create(tmp_path / "bare", with_pip=True)
    python = tmp_path / "bare" / "bin" / "python"
    pip(python, "wheel", "-q", "--no-deps", "--wheel-dir", tmp_path, ".")
    (wheel,) = tmp_path.glob("plstm-*.whl")
    pip(python, "install", "-q", "-c", "constraints.txt", wheel)
    command = [python, "-c", EXAMPLE + SHOW]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "(8, 192)\n", done.stderr
