"""Options of a run that take one argument: accumulation, averaged weights, a search of the rate."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback

from tasks.callbacks.lr_finder import SETTLED, fastest_fall
from tests.helpers import assert_close
from tests.tasks.runs import CONFIGS, arguments, folder_of, metrics_of, run

pytestmark = pytest.mark.usefixtures("workplace")

FIND = [
    "--trainer.callbacks+=FindLearningRate",
    "--trainer.callbacks.num_training_steps=20",
    "--trainer.callbacks.min_lr=1e-5",
]


def assert_same_weights(got, want, rtol):
    got, want = (cli.model.net.state_dict() for cli in (got, want))
    assert got.keys() == want.keys()
    for name, weight in want.items():
        assert_close(name, got[name], weight, rtol)


@pytest.mark.parametrize(
    ("config", "more"),
    [("text", ["--data.train_windows=24"]), ("quickstart", ["--data.train_size=24"])],
)
def test_accumulated_batches_equal_one_large_batch(config, more):
    more = [*more, "--trainer.precision=64-true"]
    large = run("fit", config, *more, "--data.batch_size=8")
    small = run("fit", config, *more, "--data.batch_size=2", "--trainer.accumulate_grad_batches=4")
    assert small.trainer.global_step == large.trainer.global_step == 3
    assert_same_weights(small, large, 1e-9)


class Record(Callback):
    """Keeps the weights after every step, and those that were validated."""

    def on_train_start(self, trainer, pl_module):
        Record.trained, Record.validated = [], []

    def on_train_batch_end(self, trainer, pl_module, *args):
        Record.trained.append(copy.deepcopy(pl_module.net.state_dict()))

    def on_validation_epoch_start(self, trainer, pl_module):
        if not trainer.sanity_checking:
            Record.validated.append(copy.deepcopy(pl_module.net.state_dict()))


@pytest.mark.filterwarnings("ignore:You're using the WeightAveraging callback")
@pytest.mark.parametrize(
    ("config", "more"), [("text", "--data.train_windows=6"), ("tu", "--data.batch_size=8")]
)  # tu has batch norms
def test_averaged_weights_are_validated_and_kept(config, more):
    average = ["--trainer.callbacks+=EMAWeightAveraging", "--trainer.callbacks.decay=0.5"]
    record = f"--trainer.callbacks+={Record.__module__}.Record"
    cli = run("fit", config, more, *average, record)
    assert len(Record.trained) >= 3
    (validated,) = Record.validated
    for name, weight in cli.model.net.state_dict().items():
        if weight.is_floating_point():
            want, *later = (weights[name] for weights in Record.trained)
            for trained in later:
                want = 0.5 * want + 0.5 * trained
            assert_close(name, weight, want, 1e-6)
            assert torch.equal(validated[name], weight), name


@pytest.mark.parametrize("more", [[], ["--trainer.accumulate_grad_batches=4"]])
def test_found_learning_rate_counts_as_that_of_the_optimizer(more):
    found = run("fit", "text", *FIND, *more)  # an epoch has two batches
    (finder,) = (x for x in found.trainer.callbacks if type(x).__name__ == "FindLearningRate")
    results = finder.optimal_lr.results
    lr = fastest_fall(results["lr"][SETTLED:], results["loss"][SETTLED:])
    assert 1e-5 < lr < 1
    given = run("fit", "text", f"--model.optimizer.lr={lr}", *more)
    assert_same_weights(found, given, 0.0)
    assert metrics_of(found) == metrics_of(given)
    assert (folder_of(found) / "learning_rate.png").is_file()
    assert not (folder_of(given) / "learning_rate.png").exists()
    assert not list(Path().glob(".lr_find*"))


def test_resumed_run_keeps_the_found_rate():
    found = run("fit", "text", *FIND)
    lr = found.trainer.lr_scheduler_configs[0].scheduler.base_lrs
    resumed = run("fit", "text", *FIND, f"--resume={folder_of(found)}", "--trainer.max_epochs=2")
    assert resumed.trainer.global_step == 4
    assert resumed.trainer.lr_scheduler_configs[0].scheduler.base_lrs == lr


def test_fastest_fall():
    rates = [1e-4, 1e-3, 1e-2, 1e-1, 1.0]
    assert fastest_fall(rates, [2.0, 1.9, 1.0, 0.95, 3.0]) == 1e-3
    assert fastest_fall(rates, [2.0, 1.9, 1.7, 1.0, 0.1]) == 1.0


@pytest.mark.parametrize("losses", [[], [1.0], [1.0, 1.0, 2.0], [float("nan")] * 3])
def test_loss_that_falls_nowhere(losses):
    with pytest.raises(ValueError, match=r"FindLearningRate: the loss must fall.*for longer"):
        fastest_fall([0.1, 0.2, 0.4][: len(losses)], losses)


@pytest.mark.slow
@pytest.mark.parametrize("config", ["quickstart", "text", "tu"])
def test_two_processes_end_with_the_same_bits(config):
    script = CONFIGS.parent / "train.py"
    saved = []
    for _ in range(2):
        subprocess.run([sys.executable, script, *arguments("fit", config)], check=True)
        file = max(Path("runs", config).glob("*/checkpoints/last.ckpt"), key=str)
        saved.append(torch.load(file, weights_only=True)["state_dict"])
    assert saved[0].keys() == saved[1].keys()
    assert all(torch.equal(x, saved[1][name]) for name, x in saved[0].items())
