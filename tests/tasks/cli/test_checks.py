"""Trainer settings that are rejected before anything starts."""

import inspect

import pytest
from jsonargparse import Namespace
from lightning.pytorch import Trainer

from tasks.cli import main
from tasks.cli.checks import NUMBERS, check_numbers, check_processes
from tests.tasks.runs import arguments

NAN, INF = float("nan"), float("inf")
WRONG = {
    "accumulate_grad_batches": [-2, 0],
    "check_val_every_n_epoch": [0, -1],
    "devices": ["abc", -2, 0, "0", "1,a", "", "2.5", [], [0, -1]],
    "gradient_clip_val": [-1.0, NAN, INF],
    "limit_predict_batches": [-1, 1.5],
    "limit_test_batches": [-0.5, 2.0],
    "limit_train_batches": [0, 0.0, -1, 1.5, NAN],
    "limit_val_batches": [-1, 1.5],
    "log_every_n_steps": [-1],
    "max_epochs": [0, -2],
    "max_steps": [0, -2],
    "min_epochs": [-1],
    "min_steps": [-1],
    "num_nodes": [0, -1],
    "num_sanity_val_steps": [-2],
    "overfit_batches": [-1, 1.5],
    "reload_dataloaders_every_n_epochs": [-1],
    "val_check_interval": [0, 0.0, -1, 1.5, NAN],
}
RIGHT = {
    "accumulate_grad_batches": [1, 7],
    "check_val_every_n_epoch": [None, 1, 3],
    "devices": ["auto", -1, "-1", 1, "16", [0], [1, 3], "0,1", "1,"],
    "gradient_clip_val": [None, 0, 0.5, 3],
    "limit_train_batches": [None, 1, 1.0, 0.25, 100],
    "limit_val_batches": [None, 0, 0.0, 1, 0.1],
    "log_every_n_steps": [None, 0, 1],
    "max_epochs": [None, -1, 1],
    "num_sanity_val_steps": [None, -1, 0, 2],
    "overfit_batches": [0.0, 1, 0.5],
    "val_check_interval": [None, 1.0, 0.5, 300, "00:01:00:00"],
}


def check(name, value):
    check_numbers(Namespace({"devices": "auto", name: value}))


@pytest.mark.parametrize(("name", "value"), [(k, v) for k, vs in WRONG.items() for v in vs])
def test_wrong_numbers(name, value):
    with pytest.raises(ValueError, match=rf"^trainer\.{name} must be .*, got") as told:
        check(name, value)
    assert str(told.value).endswith(f"got {value}")


@pytest.mark.parametrize(("name", "value"), [(k, v) for k, vs in RIGHT.items() for v in vs])
def test_right_numbers(name, value):
    check(name, value)


def test_every_number_of_the_trainer_is_checked():
    parameters = inspect.signature(Trainer).parameters.values()
    numbers = {p.name for p in parameters if "int" in str(p.annotation).replace("_PRECISION", "")}
    others = {"precision", "fast_dev_run", "max_time", "plugins", "profiler"}  # modes, or checked
    assert numbers - others == NUMBERS.keys() | {"devices"} == WRONG.keys()


@pytest.fixture
def under_torchrun(monkeypatch):
    for name, value in {"WORLD_SIZE": 2, "RANK": 0, "LOCAL_RANK": 0, "GROUP_RANK": 0}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")


def trainer(**options):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return Trainer(accelerator="cpu", **quiet, **options)


@pytest.mark.usefixtures("under_torchrun")
def test_processes_that_would_train_alone():
    with pytest.raises(ValueError, match=r"started 2 processes, .* alone; .*trainer/ddp.yaml"):
        check_processes(trainer())


@pytest.mark.usefixtures("under_torchrun")
def test_processes_that_train_together():
    check_processes(trainer(strategy="ddp", devices=2))


@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork"])
def test_processes_that_are_copies(strategy):
    with pytest.raises(
        ValueError, match=r"must not fork or spawn this process, .*trainer/ddp.yaml"
    ):
        check_processes(trainer(strategy=strategy, devices=2))


def test_without_torchrun():
    check_processes(trainer())


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize("task", ["quickstart", "text", "tu", "words"])
def test_data_follow_the_seed_of_the_run(task):
    def seeds(*args):
        _, *rest = arguments("fit", task, *args)
        return main(rest, run=False).datamodule.seed

    assert seeds() == 0
    assert seeds("--seed_everything=5") == 5
    assert seeds("--seed_everything=5", "--data.seed=3") == 3
