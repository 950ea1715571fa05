"""What importing and packaging bring along."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from setuptools import find_packages

ROOT = Path(__file__).parents[1]
HEAVY = [
    "lightning",
    "torch_geometric",
    "wandb",
    "jsonargparse",
    "torchmetrics",
    "matplotlib",
    "sklearn",
    "tasks",
]


def modules_after(statement):
    """Names of all modules that a fresh interpreter has loaded after a statement."""
    code = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.fixture(scope="module")
def loaded():
    return modules_after("import plstm")


@pytest.mark.parametrize("heavy", HEAVY)
def test_plstm_does_not_load(heavy, loaded):
    assert "plstm.ops.plstm_2d" in loaded
    assert heavy not in loaded


def test_ops_load_no_layers():
    """Importing a submodule runs plstm/__init__, so this looks at what the files name."""
    above = {"ops": ("layers", "models"), "graph": ("layers", "models"), "layers": ("models",)}
    for folder, forbidden in above.items():
        files = list((ROOT / "plstm" / folder).rglob("*.py"))
        assert files
        for file in files:
            text = file.read_text()
            for name in (*(f"plstm.{part}" for part in forbidden), "tasks"):
                assert f"from {name}" not in text, file
                assert f"import {name}" not in text, file


def test_public_names_exist():
    import plstm

    assert len(set(plstm.__all__)) == len(plstm.__all__)
    assert all(hasattr(plstm, name) for name in plstm.__all__)


def test_wheel_holds_plstm_only():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = find_packages(ROOT, **settings["tool"]["setuptools"]["packages"]["find"])
    assert {"plstm", "plstm.ops", "plstm.ops.plstm_1d", "plstm.layers"} <= set(packages)
    assert {name.split(".")[0] for name in packages} == {"plstm"}
    folders = {file.parent for file in (ROOT / "plstm").rglob("*.py")}
    assert {".".join(folder.relative_to(ROOT).parts) for folder in folders} == set(packages)
