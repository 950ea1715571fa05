"""The search of a learning rate: on problems whose right rate is known, and what it leaves."""

import os
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from tqdm.auto import tqdm

from tasks.callbacks.lr_finder import BELOW, FindLearningRate, lowest, smooth
from tests.tasks.runs import folder_of, metrics_of, run

FIND = [
    "--trainer.callbacks+=FindLearningRate",
    "--trainer.callbacks.num_training_steps=20",
    "--trainer.callbacks.min_lr=1e-5",
]


def test_mean_of_neighbors():
    losses = [4.0, 2.0, 0.0, 6.0]
    assert smooth(losses) == [3.0, 2.0, pytest.approx(8 / 3), 3.0]
    many = smooth([1.0] * 99 + [12.0])  # three neighbors on either side
    assert many[95:] == [1.0, *(pytest.approx(1 + 11 / n) for n in (7, 6, 5, 4))]


def test_lowest_mean():
    rates = [10.0**n for n in range(-8, 1)]
    losses = [2.0] * 3 + [1.0, 1.0, 0.9] + [3.0] * 3
    # Means of three: 2, 2, 5/3, 4/3, 0.97, 1.6, ...
    assert lowest(rates, losses) == rates[4]
    assert lowest(rates[:6], losses[:6]) == rates[5]  # it does not rise
    assert lowest(rates, [*losses[:6], float("nan"), 0.0, 0.0]) == rates[5]


def test_noise_before_the_fall_and_a_lower_loss_after_the_rise_do_not_count():
    generator = torch.Generator().manual_seed(0)
    curve = [0.85] * 30 + [0.68] * 30 + [1.2] * 20 + [0.6] * 20
    losses = (torch.tensor(curve) + 0.02 * torch.randn(100, generator=generator)).tolist()
    rates = [10 ** (-6 + 0.06 * i) for i in range(100)]
    assert rates[30] < lowest(rates, losses) < rates[60]


@pytest.mark.parametrize("losses", [[], [1.0], [1.0, 1.0, 2.0], [float("nan")] * 3])
def test_loss_that_falls_nowhere(losses):
    with pytest.raises(ValueError, match=r"FindLearningRate: the loss must decrease.* more steps"):
        lowest([0.1, 0.2, 0.4][: len(losses)], losses)


class LinearFit(LightningModule):
    """Noisy targets of one linear map, by gradient descent.

    The mean squared error has the curvature 2 E[x^2] in every direction, and descent diverges at
    rates above 1 / E[x^2].
    """

    def __init__(self):
        super().__init__()
        self.net, self.optimizer = nn.Linear(4, 1, bias=False), partial(torch.optim.SGD, lr=1.0)
        nn.init.zeros_(self.net.weight)

    def training_step(self, batch, batch_idx):
        return (self.net(batch[0]) - batch[1]).square().mean()

    def configure_optimizers(self):
        return self.optimizer(self.parameters())


def found_rate(folder, model, scale=1.0):
    x, noise = torch.randn(2048, 4), torch.randn(2048, 1)
    y = x @ torch.tensor([[3.0], [-2.0], [1.0], [2.0]]) + 0.3 * noise
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        callbacks=[FindLearningRate(1e-6 / scale**2, 1e2 / scale**2)],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        max_steps=1,
        default_root_dir=folder,
    )
    try:
        trainer.fit(model, DataLoader(TensorDataset(scale * x, y), 64, shuffle=True))
    finally:
        assert not tqdm._instances  # bars that the garbage collector closes write at any moment
    assert list(folder.iterdir()) == []
    return trainer.optimizers[0].param_groups[0]["lr"]


@pytest.mark.filterwarnings("ignore:The .*_dataloader. does not have many workers")
@pytest.mark.filterwarnings("ignore:The number of training batches")
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_found_rate_is_somewhat_below_the_edge_of_stability(scale, tmp_path):
    edge = 1 / scale**2
    assert 0.02 * edge < found_rate(tmp_path, LinearFit(), scale) < 0.5 * edge


class Killed(LinearFit):
    """SIGTERM comes in the third step of the search."""

    def training_step(self, batch, batch_idx):
        if self.trainer.global_step == 2:
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
            os.kill(os.getpid(), signal.SIGTERM)
        return super().training_step(batch, batch_idx)


@pytest.mark.filterwarnings("ignore:The .*_dataloader. does not have many workers")
@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_a_killed_search_leaves_no_file(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        found_rate(tmp_path, Killed())
    assert stopped.value.code == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) == before


def rates_of(cli):
    return cli.trainer.lr_scheduler_configs[0].scheduler.base_lrs


@pytest.mark.parametrize("more", [[], ["--trainer.accumulate_grad_batches=4"]])
def test_found_learning_rate_counts_as_that_of_the_optimizer(more, workplace):
    found = run("fit", "text", *FIND, *more)  # an epoch has two batches
    lr, *others = rates_of(found)
    assert others == [lr]
    assert 1e-5 < lr <= 1 / BELOW
    given = run("fit", "text", f"--model.optimizer.lr={lr}", *more)
    for name, weight in given.model.net.state_dict().items():
        assert torch.equal(found.model.net.state_dict()[name], weight), name
    assert metrics_of(found) == metrics_of(given)
    assert (folder_of(found) / "learning_rate.png").is_file()
    assert not (folder_of(given) / "learning_rate.png").exists()
    assert not list(Path().rglob(".lr_find*"))


def test_resumed_run_keeps_the_found_rate(workplace):
    found = run("fit", "text", *FIND)
    resumed = run("fit", "text", *FIND, f"--resume={folder_of(found)}", "--trainer.max_epochs=2")
    assert resumed.trainer.global_step == 4
    assert rates_of(resumed) == rates_of(found)


@pytest.mark.slow
def test_the_rate_of_the_quick_start_is_found(workplace):
    """Its config has 2.5e-3, the best of a comparison of 1.25e-3, 2.5e-3 and 5e-3."""
    sizes = ["--data.train_size=12800", "--data.batch_size=128", "--trainer.max_steps=1"]
    cli = run("fit", "quickstart", "--trainer.callbacks+=FindLearningRate", *sizes)
    assert 5e-4 < rates_of(cli)[0] < 5e-3
