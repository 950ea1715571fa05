"""Learning-rate schedulers: each does what its name says, and gets its arguments."""

from functools import partial

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.cli import ReduceLROnPlateau
from torch.optim import SGD, lr_scheduler
from torch.utils.data import DataLoader, TensorDataset

from tasks.classification import Classification
from tasks.optim import WarmupCosine
from tests.tasks.runs import run

STEPS = 4  # of an epoch


class Points(LightningDataModule):
    """Points whose class is the sign of their first coordinate."""

    out_dim = 2

    def train_dataloader(self):
        x = torch.randn(2 * STEPS, 3)
        return DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=2)

    val_dataloader = train_dataloader


class Rates(Classification):
    """Remembers the learning rate of every step."""

    def on_train_batch_start(self, batch, batch_idx):
        self.rates = [*getattr(self, "rates", []), self.optimizers().param_groups[0]["lr"]]


def fit(scheduler, epochs=2, **options):
    """Learning rates of a run whose highest rate is 1."""
    model = Rates(torch.nn.Linear, 3, 2, optimizer=partial(SGD, lr=1.0), scheduler=scheduler)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    options = {"max_epochs": epochs, "enable_checkpointing": False, **quiet, **options}
    Trainer(accelerator="cpu", num_sanity_val_steps=0, **options).fit(model, Points())
    return getattr(model, "rates", [])


pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")


def by_the_command_line(scheduler, **arguments):
    """A factory as jsonargparse makes it, which lists the defaults too."""
    return partial(made, scheduler, **arguments)


def made(scheduler, *args, **kwargs):
    return scheduler(*args, **kwargs)


@pytest.mark.parametrize("make", [partial, by_the_command_line])
def test_torch_schedulers_get_no_number_of_steps(make):
    assert fit(make(lr_scheduler.ExponentialLR, gamma=0.5)) == [0.5**n for n in range(2 * STEPS)]
    halves = [1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.25, 0.25]
    assert fit(make(lr_scheduler.StepLR, step_size=3, gamma=0.5)) == halves
    constant = make(lr_scheduler.ConstantLR, factor=0.5, total_iters=5)
    assert fit(constant) == [0.5] * 5 + [1.0] * 3


@pytest.mark.parametrize("epochs", [1, 2])
def test_number_of_steps_for_those_that_ask_for_it(epochs):
    total = STEPS * epochs
    want = fit(partial(WarmupCosine, total_steps=total), epochs)
    assert fit(WarmupCosine, epochs) == want
    assert fit(by_the_command_line(WarmupCosine, total_steps=None, warmup=0.05), epochs) == want
    assert fit(by_the_command_line(WarmupCosine, total_steps=3 * total), epochs) != want
    one_cycle = partial(lr_scheduler.OneCycleLR, max_lr=1.0, cycle_momentum=False)
    assert fit(one_cycle, epochs) == fit(partial(one_cycle, total_steps=total), epochs)


def test_constant_rate():
    assert fit(None) == [1.0] * 2 * STEPS


def test_a_run_without_end_needs_a_scheduler_without_one():
    endless = {"epochs": -1, "max_time": {"seconds": 0}}
    assert fit(None, **endless) == []
    assert fit(partial(lr_scheduler.ExponentialLR, gamma=0.5), **endless) == []
    with pytest.raises(ValueError, match=r"training has no limit; .*--model.scheduler=null"):
        fit(WarmupCosine, **endless)


@pytest.mark.parametrize("monitor", ["val/loss", "train/lr"])
def test_plateau(monitor):
    kind = partial(ReduceLROnPlateau, monitor=monitor, patience=0, factor=0.5)
    if monitor == "val/loss":
        kind = partial(lr_scheduler.ReduceLROnPlateau, patience=0, factor=0.5)
    never_better = partial(kind, threshold=1e9, threshold_mode="abs")
    rates = fit(never_better, 4)
    assert rates == [1.0] * 2 * STEPS + [0.5] * STEPS + [0.25] * STEPS
    rates = fit(never_better, 4, check_val_every_n_epoch=2)
    assert rates == [1.0] * 4 * STEPS


def test_plateau_without_validation():
    with pytest.raises(Exception, match=r"ReduceLROnPlateau .* val/loss which is not available"):
        fit(partial(lr_scheduler.ReduceLROnPlateau, patience=0), limit_val_batches=0)


@pytest.mark.parametrize("scheduler", [lr_scheduler.LRScheduler, lr_scheduler.ChainedScheduler])
def test_schedulers_that_need_more_than_an_optimizer(scheduler):
    with pytest.raises(ValueError, match="scheduler cannot be created from the optimizer alone"):
        fit(scheduler)


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize(
    ("scheduler", "last"),
    [
        (["--model.scheduler=null"], 1e-3),
        (["--model.scheduler=ExponentialLR", "--model.scheduler.gamma=0.5"], 0.5e-3),
        (["--model.scheduler.warmup=0.5", "--model.scheduler.final=1"], 1e-3),
    ],
    ids=["none", "exponential", "cosine"],
)
def test_on_the_command_line(scheduler, last):
    cli = run("fit", "text", *scheduler, "--model.sample_length=0")  # two steps
    assert float(cli.trainer.callback_metrics["train/lr"]) == pytest.approx(last)
