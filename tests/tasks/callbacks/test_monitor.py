"""Facts and metrics of a run, in files and in wandb."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.wandb_file import WandbFile
from plstm.ops.flops import FORMULAS
from tasks.callbacks import monitor
from tasks.callbacks.monitor import Monitor, gradient_norm, is_compiled
from tasks.runs import run_folder
from tests.tasks.runs import CONFIGS, SMALL, end_wandb, folder_of, metrics_of, run

ALONE = "--standard_callbacks=false"
WANDB = f"--config={CONFIGS / 'logger' / 'wandb.yaml'}"
PNG = b"\x89PNG"


class Linear(LightningModule):
    """Three features, two classes."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(3, 2)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Clock(Callback):
    """Time that passes in steps and in validation only; keeps the norms of all gradients."""

    def __init__(self):
        self.now, self.norms = 0.0, []

    def perf_counter(self):
        return self.now

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.now += 100.0 if not self.norms and batch_idx == 0 else 2.0

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        squares = [p.grad.double().square().sum() for p in pl_module.parameters()]
        self.norms.append(sum(squares).sqrt().item())

    def on_validation_start(self, trainer, pl_module):
        self.now += 1000.0


def fit(folder, monkeypatch, *callbacks, samples=22, batch_size=4, **options):
    """Train `Linear`; the clock it went by and the rows of its metrics."""
    clock = Clock()
    monkeypatch.setattr(monitor, "time", clock)
    data = TensorDataset(torch.randn(samples, 3) * 10, torch.arange(samples) % 2)
    trainer = Trainer(
        accelerator="cpu",
        logger=CSVLogger(folder, name="run", flush_logs_every_n_steps=1),
        callbacks=[clock, Monitor(), *callbacks],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        gradient_clip_val=0.1,
        num_sanity_val_steps=1,
        **options,
    )
    loader = DataLoader(data, batch_size)
    trainer.fit(Linear(), loader, DataLoader(data, samples))
    with (folder / "run" / "version_0" / "metrics.csv").open() as file:
        return clock, list(csv.DictReader(file))


def column(rows, name):
    return {int(row["step"]): float(row[name]) for row in rows if row.get(name)}


@pytest.mark.filterwarnings("ignore:The .*_dataloader. does not have many workers")
@pytest.mark.filterwarnings("ignore:The number of training batches")
class TestNumbers:
    def test_gradient_norm_is_that_before_clipping(self, tmp_path, monkeypatch):
        clock, rows = fit(tmp_path, monkeypatch, max_epochs=2, log_every_n_steps=1)
        logged = column(rows, "train/grad_norm")
        assert list(logged) == list(range(12))
        assert list(logged.values()) == pytest.approx(clock.norms, rel=1e-5)
        assert min(clock.norms) > 0.1

    def test_throughput_leaves_out_validation_and_the_first_batch(self, tmp_path, monkeypatch):
        _, rows = fit(
            tmp_path, monkeypatch, max_epochs=2, log_every_n_steps=3, val_check_interval=2
        )
        speeds = column(rows, "train/samples_per_s")
        # Batches of 4 take 2 s each; the last one of an epoch has 2 samples.
        assert speeds == pytest.approx({2: 8 / 4, 5: 10 / 6, 8: 12 / 6, 11: 10 / 6})
        (facts,) = tmp_path.rglob("facts.json")
        facts = json.loads(facts.read_text())
        # Logits, the gradient of the weight; the inputs need none.
        assert facts == {"parameters": 8, "state_size": None, "flop_per_sample": 2 * 2 * 3 * 2}
        flops = column(rows, "train/flop_per_s")
        assert flops == pytest.approx({step: 24 * speed for step, speed in speeds.items()})

    def test_accumulated_batches_are_one_step(self, tmp_path, monkeypatch):
        clock, rows = fit(
            tmp_path,
            monkeypatch,
            max_epochs=1,
            log_every_n_steps=1,
            accumulate_grad_batches=3,
        )
        assert list(column(rows, "train/grad_norm").values()) == pytest.approx(clock.norms)
        assert len(clock.norms) == 2
        speeds = list(column(rows, "train/samples_per_s").values())
        assert speeds == pytest.approx([8 / 4, 10 / 6])


def test_counting_ends_with_an_exception():
    observer, trainer = Monitor(), SimpleNamespace()
    observer.on_train_batch_start(trainer, nn.Linear(1, 1), None, 0)
    assert _get_current_dispatch_mode() is not None
    observer.on_exception(trainer, nn.Linear(1, 1), RuntimeError())
    assert _get_current_dispatch_mode() is None


def test_compiled_nets_are_not_counted():
    net = nn.Sequential(nn.Linear(1, 1))
    assert not is_compiled(net)
    net[0].compile()
    assert is_compiled(net)
    observer = Monitor()
    observer.on_train_batch_start(SimpleNamespace(), net, None, 0)
    assert _get_current_dispatch_mode() is None


def test_gradient_norm_of_no_gradients():
    assert gradient_norm(nn.Linear(2, 2)) == 0


def test_only_the_first_process_has_a_folder(tmp_path):
    loggers = [CSVLogger(tmp_path)]
    assert (
        run_folder(SimpleNamespace(loggers=loggers, is_global_zero=False, fast_dev_run=0)) is None
    )
    assert list(tmp_path.iterdir()) == []
    folder = run_folder(SimpleNamespace(loggers=loggers, is_global_zero=True, fast_dev_run=0))
    assert folder == tmp_path / "lightning_logs" / "version_0"
    assert folder.is_dir()


@pytest.fixture
def workplace(workplace, monkeypatch):
    """Runs of wandb stay there, and end with the test."""
    for name, value in {"MODE": "offline", "SILENT": "true"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    yield workplace
    end_wandb()


@pytest.mark.parametrize("config", ["quickstart", "text", "tu"])
def test_monitoring_changes_nothing(config, workplace):
    watched, alone = (
        metrics_of(run("fit", config, ALONE, f"--trainer.callbacks=[{callback}]"))
        for callback in ("tasks.callbacks.monitor.Monitor", "")
    )
    assert watched.pop("train/grad_norm") > 0
    assert watched == alone


def test_operations_are_those_of_a_training_step(workplace):
    cli = run("fit", "text", ALONE, "--trainer.callbacks=[tasks.callbacks.monitor.Monitor]")
    facts = json.loads((folder_of(cli) / "facts.json").read_text())
    x, targets = next(iter(cli.datamodule.train_dataloader()))
    with FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
        nn.functional.cross_entropy(cli.model(x).flatten(0, 1), targets.flatten()).backward()
    assert facts["flop_per_sample"] == counter.get_total_flops() / len(x)
    assert facts["parameters"] == sum(p.numel() for p in cli.model.net.parameters())
    assert facts["state_size"] == sum(b.mixer.state_size() for b in cli.model.net.blocks)


def wandb_folder(cli):
    """Wandb's own folder of a run that goes on."""
    return Path(cli.trainer.logger.experiment.dir).parent


def test_wandb_keeps_what_it_should(workplace):
    first = run("fit", "quickstart", WANDB, "--data.train_size=32")
    folders = [wandb_folder(first)]
    second = run("fit", "text", WANDB)  # in the same process
    folders.append(wandb_folder(second))
    end_wandb()
    image, text = (WandbFile(folder) for folder in folders)
    assert image.path != text.path
    assert [image.exit_code, text.exit_code] == [0, 0]

    for cli, kept in ((first, image), (second, text)):
        saved = kept.config["model"]["init_args"]
        assert saved["optimizer"]["init_args"]["weight_decay"] > 0  # as resolved from the file
        assert saved["net"]["init_args"]["depth"] == len(cli.model.net.blocks)
        assert kept.config["parameters"] == sum(p.numel() for p in cli.model.net.parameters())
        assert kept.config["flop_per_sample"] > 0
        steps = cli.trainer.global_step
        for name in ("train/loss", "train/lr", "train/grad_norm"):
            assert len(kept.logged(name)) == steps
        for name in ("train/samples_per_s", "train/flop_per_s"):
            assert len(kept.logged(name)) == steps - 1
            assert min(kept.logged(name)) > 0
        assert kept.logged("val/accuracy")
        run_id = kept.path.stem.removeprefix("run-")
        assert (Path("runs") / "plstm" / run_id / "config.yaml").is_file()
        assert (Path("runs") / "plstm" / run_id / "checkpoints" / "last.ckpt").is_file()
        assert Path("runs", "plstm", run_id) == Path(cli.trainer.checkpoint_callback.dirpath).parent
        names = {"learning_curve"} | ({"accuracy_by_size"} if cli is first else set())
        for name in names:
            ((picture,),) = kept.logged(f"{name}.filenames")
            assert (kept.path.parent / "files" / picture).read_bytes().startswith(PNG)
    assert image.config["state_size"] is None
    assert text.config["state_size"] > 0
    assert image.logged("val/accuracy@64")


@pytest.mark.slow
def test_two_processes_are_one_run_of_wandb(workplace):
    train = [sys.executable, str(CONFIGS.parent / "train.py"), "fit", WANDB]
    sizes = [f"--data.{name}={value}" for name, value in SMALL["text"].items()]
    sizes.append("--data.train_windows=16")
    more = ["--trainer.max_epochs=1", "--trainer.log_every_n_steps=1", "--trainer.accelerator=cpu"]
    two = ["--trainer.devices=2", "--trainer.strategy=ddp"]
    train[3:3] = [f"--config={CONFIGS / 'text.yaml'}"]
    subprocess.run([*train, *sizes, *more, *two], check=True, timeout=280)
    (kept,) = (WandbFile(folder) for folder in Path("runs", "wandb").glob("offline-run-*"))
    assert len(kept.logged("train/grad_norm")) == 4
    assert kept.logged("train/samples_per_s")
    assert [folder.name for folder in Path("runs", "plstm").iterdir()] == [
        kept.path.stem.removeprefix("run-")
    ]
