"""Default callbacks of every run, and the files of a run."""

from pathlib import Path

import pytest
import torch

from tasks.callbacks.best import BestCheckpoint
from tasks.callbacks.checkpoints import LastCheckpoint
from tasks.callbacks.guard import StopIfNotFinite
from tasks.callbacks.monitor import Monitor
from tasks.callbacks.pictures import Pictures
from tasks.callbacks.predictions import SavePredictions
from tasks.cli import main
from tests.tasks.runs import arguments, folder_of, run

pytestmark = pytest.mark.usefixtures("workplace")
STANDARD = {BestCheckpoint, StopIfNotFinite, Monitor, Pictures, SavePredictions}


def callbacks(*args):
    """Callback types of a run that is not started."""
    _, *rest = arguments("fit", "text", *args)
    return [type(callback) for callback in main(rest, run=False).trainer.callbacks]


@pytest.mark.parametrize("own", ["[LearningRateMonitor]", "LearningRateMonitor", "null", "[]"])
def test_own_callbacks_remove_nothing(own):
    Path("mine.yaml").write_text(f"trainer:\n  callbacks: {own}\n")
    found = callbacks("--config=mine.yaml")
    assert STANDARD | {LastCheckpoint} <= set(found)
    assert ("LearningRateMonitor" in own) == any(x.__name__ == "LearningRateMonitor" for x in found)
    checkpoints = [x for x in found if x in (BestCheckpoint, LastCheckpoint)]
    assert checkpoints == [BestCheckpoint, LastCheckpoint]  # trainer.checkpoint_callback is best


@pytest.mark.parametrize(
    ("argument", "missing"),
    [
        ("--standard_callbacks=false", STANDARD),
        ("--trainer.limit_val_batches=0", {BestCheckpoint}),
        ("--trainer.logger=false", {BestCheckpoint, LastCheckpoint}),
        ("--trainer.enable_checkpointing=false", {BestCheckpoint, LastCheckpoint}),
    ],
)
def test_what_leaves_them_out(argument, missing):
    assert (
        set(callbacks(argument)) & (STANDARD | {LastCheckpoint})
        == (STANDARD | {LastCheckpoint}) - missing
    )


def test_a_run_without_a_logger_leaves_nothing(tmp_path):
    before = set(tmp_path.rglob("*"))
    run("fit", "text", "--trainer.logger=false")
    assert set(tmp_path.rglob("*")) == before
    run("fit", "text", "--trainer.logger=false", f"--trainer.default_root_dir={tmp_path / 'own'}")
    assert {x.name for x in (tmp_path / "own" / "checkpoints").iterdir()} == {
        "best.ckpt",
        "last.ckpt",
    }


def test_a_run_shorter_than_an_epoch(recwarn, capsys):
    cli = run("fit", "text", "--data.train_windows=10", "--trainer.max_steps=2")
    assert cli.trainer.global_step == 2
    folder = folder_of(cli)
    best = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["global_step"] == 2
    assert "val/accuracy" in cli.trainer.callback_metrics
    assert (folder / "learning_curve.png").is_file()
    assert not [x for x in recwarn if "monitor" in str(x.message)]


def test_a_run_that_ends_with_an_epoch_is_validated_once():
    cli = run("fit", "text", "--data.train_windows=4", "--trainer.max_steps=2")
    rows = (folder_of(cli) / "metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("val/loss")
    assert sum(row.split(",")[column] != "" for row in rows[1:]) == 1


def test_the_metric_of_the_best_checkpoint():
    default = BestCheckpoint()
    assert (default.monitor, default.mode) == ("val/loss", "min")
    chosen = ["--best_checkpoint.monitor=val/accuracy", "--best_checkpoint.mode=max"]
    _, *rest = arguments("fit", "text", *chosen)
    best = main(rest, run=False).trainer.checkpoint_callback
    assert (type(best), best.monitor, best.mode) == (BestCheckpoint, "val/accuracy", "max")
