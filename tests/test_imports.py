"""What importing and packaging bring along."""

import ast
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
    "scipy",
    "networkx",
    "huggingface_hub",
    "safetensors",
    "sympy",  # torch has both, and imports them where something compiles, for a second or two
    "torch._dynamo",
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


# Folders and files from the top down: each imports from those below it only.
ORDER = [
    "tests",
    "benchmarks",
    "train.py",
    "examples",
    "tasks/cli",
    "tasks/callbacks",
    "tasks",
    "plstm",
    "plstm/models",
    "plstm/layers",
    "plstm/modules",
    "plstm/ops",
    "plstm/graph",
    "plstm/checks.py",
    "plstm/compiler.py",
    "plstm/extras.py",
]
ABOVE = {place: ORDER[:n] for n, place in enumerate(ORDER)}


def place_of(file):
    """The innermost place of the order that a file is in."""
    inside = [place for place in ABOVE if file.is_relative_to(ROOT / place)]
    return max(inside, key=len, default=None)


def imported(file):
    """Absolute names of all modules and of all names that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def file_of(name):
    """File of a module, or of the module that a name is in; None if it is not in this project."""
    path = ROOT / name.replace(".", "/")
    files = [x for p in (path, path.parent) for x in (p / "__init__.py", p.with_suffix(".py"))]
    return next(filter(Path.is_file, files), None)


@pytest.mark.parametrize("place", ORDER[1:])
def test_imports_point_one_way(place):
    """Importing a submodule runs the __init__ above it, so this looks at what the files name."""
    path = ROOT / place
    files = [path] if path.is_file() else [x for x in path.rglob("*.py") if place_of(x) == place]
    names = [(file, name) for file in files for name in imported(file)]
    assert names
    for file, name in names:
        assert (found := file_of(name)) is None or place_of(found) not in ABOVE[place], (file, name)


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
