"""Options of a run that take one argument: accumulation, averaged weights."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback

from tests.helpers import assert_close
from tests.tasks.runs import CONFIGS, arguments, run

pytestmark = pytest.mark.usefixtures("workplace")


@pytest.mark.parametrize(
    ("config", "more"),
    [("text", ["--data.train_windows=24"]), ("quickstart", ["--data.train_size=24"])],
)
def test_accumulated_batches_equal_one_large_batch(config, more):
    more = [*more, "--trainer.precision=64-true"]
    large = run("fit", config, *more, "--data.batch_size=8")
    small = run("fit", config, *more, "--data.batch_size=2", "--trainer.accumulate_grad_batches=4")
    assert small.trainer.global_step == large.trainer.global_step == 3
    weights = small.model.net.state_dict()
    for name, weight in large.model.net.state_dict().items():
        assert_close(name, weights[name], weight, 1e-9)


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
