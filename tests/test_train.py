"""The command line in process: every config with every net that fits it, on a few samples."""

import hashlib
import json
import sys
from typing import ClassVar

import pytest
import torch
import wandb
import yaml
from lightning.pytorch import Callback

from tasks.cli import run_process
from tasks.cli.mistakes import MISTAKES
from tasks.cli.parser import Parser
from tests.layers.contract import import_class
from tests.tasks.runs import CONFIGS, METRICS, SMALL, folder_of, metrics_of, run

pytestmark = pytest.mark.usefixtures("workplace")


def pairs():
    """Every config with the net it names, and with those of the same ending not run before."""
    seen = set()
    for config in sorted(CONFIGS.glob("*.yaml"), reverse=True):
        own = CONFIGS / yaml.safe_load(config.read_text())["model"]["init_args"]["net"]
        ending = own.stem.rsplit("_", 1)[1]
        for net in sorted((CONFIGS / "net").glob(f"*_{ending}.yaml")):
            if net == own or net not in seen:
                yield config.stem, net
            seen.add(net)


PAIRS = list(pairs())
# The layers of other nets have a contract test.
QUICK = ("plstm_", "plstm-lanes_", "plstm-automata_", "attention_q", "attention_t", "gin_")
RUNS = [
    pytest.param(config, net, marks=() if net.stem.startswith(QUICK) else pytest.mark.slow)
    for config, net in PAIRS
]
PNG = b"\x89PNG"


def test_every_config_and_net_is_run():
    assert {config for config, _ in PAIRS} == set(SMALL)
    assert {net for _, net in PAIRS} == set((CONFIGS / "net").glob("*.yaml"))


@pytest.mark.parametrize(("config", "net"), RUNS, ids=lambda x: getattr(x, "stem", x))
def test_fit(config, net):
    cli = run("fit", config, f"--model.net={net}")
    assert cli.trainer.global_step > 0
    metrics, folder = metrics_of(cli), folder_of(cli)
    metric = METRICS.get(config, "accuracy")
    assert {"train/loss", "val/loss", f"val/{metric}"} <= metrics.keys()
    assert ("train/accuracy" in metrics) == (config not in METRICS)
    assert folder.parent.name == config

    for name in ("best", "last"):
        checkpoint = torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)
        cli.model.load_state_dict(checkpoint["state_dict"])
    pictures = {"learning_curve.png"}
    if config in METRICS:
        pictures.add("targets.png")
    if len(cli.datamodule.sizes) > 1:
        pictures.add("accuracy_by_size.png")
    assert {file.name for file in folder.glob("*.png")} == pictures
    assert all((folder / name).read_bytes().startswith(PNG) for name in pictures)
    logged = (folder / "metrics.csv").read_text()
    assert all(name in logged for name in ("train/loss", "val/loss", "train/lr"))

    saved = yaml.safe_load((folder / "config.yaml").read_text())
    named, used = yaml.safe_load(net.read_text()), saved["model"]["init_args"]["net"]
    assert import_class(used["class_path"]) is import_class(named["class_path"])
    assert used["init_args"].keys() > named["init_args"].keys()  # defaults are written out
    if config == "text":
        sample = (folder / "sample.txt").read_text()
        assert len(sample) == 21
        assert set(sample) <= set(cli.datamodule.vocabulary)


@pytest.mark.parametrize("config", ["quickstart", "text"])
def test_saved_config_repeats_the_run(config):
    first = run("fit", config, "--data.seed=3", "--model.optimizer.lr=0.01")
    again = run("fit", folder_of(first) / "config.yaml")
    assert folder_of(again) != folder_of(first)
    assert metrics_of(again) == metrics_of(first)
    other = run("fit", config, "--data.seed=4", "--model.optimizer.lr=0.01")
    assert metrics_of(other)["train/loss"] != metrics_of(first)["train/loss"]


@pytest.mark.parametrize("config", ["quickstart", "text", "tu"])
def test_checkpoint_is_what_was_validated(config):
    first = run("fit", config)
    folder = folder_of(first)
    checkpoint = f"--ckpt_path={folder / 'checkpoints' / 'last.ckpt'}"
    again = metrics_of(run("validate", folder / "config.yaml", checkpoint))
    assert again == {name: metrics_of(first)[name] for name in again}
    tested = metrics_of(run("test", folder / "config.yaml", checkpoint))
    assert {"test/loss", "test/accuracy"} <= tested.keys()
    # A net with other weights scores otherwise, so the checkpoint was read.
    assert metrics_of(run("test", folder / "config.yaml"))["test/loss"] != tested["test/loss"]


@pytest.mark.parametrize(
    "config", ["quickstart", pytest.param("images", marks=pytest.mark.slow), "text", "tu"]
)
def test_predictions_are_those_that_were_tested(config):
    folder = folder_of(run("fit", config))
    checkpoint = f"--ckpt_path={folder / 'checkpoints' / 'last.ckpt'}"
    cli = run("predict", folder / "config.yaml", checkpoint)
    saved = torch.load(folder_of(cli) / "predictions.pt", weights_only=True)
    assert list(saved) == cli.datamodule.eval_names
    tested = metrics_of(run("test", folder / "config.yaml", checkpoint))
    loaders = cli.datamodule.test_dataloader()
    loaders = loaders if isinstance(loaders, list) else [loaders]
    for (name, probabilities), loader in zip(saved.items(), loaders, strict=True):
        targets = torch.cat([batch.y if config == "tu" else batch[1] for batch in loader])
        right = (probabilities.argmax(-1) == targets).float().mean()
        assert right.item() == pytest.approx(tested[f"test/accuracy{name}"])


def test_folder_names_the_checkpoint_that_was_used():
    folder = folder_of(run("fit", "text"))
    best = folder / "checkpoints" / "best.ckpt"

    def used(command, *args):
        return json.loads((folder_of(run(command, *args)) / "checkpoint.json").read_text())

    config, sha256 = folder / "config.yaml", hashlib.sha256(best.read_bytes()).hexdigest()
    for command in ("validate", "test", "predict"):
        want = {"command": command, "checkpoint": str(best.resolve()), "sha256": sha256}
        assert used(command, config, f"--ckpt_path={best}") == want
    assert used("test", config) == {"command": "test", "checkpoint": None, "sha256": None}
    assert not (folder / "checkpoint.json").exists()


def test_runs_without_a_logger():
    cli = run("fit", "quickstart", "--trainer.logger=false")
    assert metrics_of(cli)["train/lr"] > 0


@pytest.mark.parametrize("subcommand", ["fit", "predict"])
def test_fast_dev_run_leaves_nothing(subcommand, tmp_path):
    before = set(tmp_path.rglob("*"))
    run(subcommand, "text", "--trainer.fast_dev_run=true")
    assert set(tmp_path.rglob("*")) == before


def test_runs_without_checkpoints(tmp_path):
    metrics_of(run("fit", "text", "--trainer.enable_checkpointing=false"))
    assert not list(tmp_path.rglob("*.ckpt"))


class Seen(Callback):
    """Keeps all training inputs."""

    inputs: ClassVar[list[torch.Tensor]] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.inputs.append(batch[0])


@pytest.mark.filterwarnings("ignore:You requested to overfit")
@pytest.mark.parametrize("config", ["quickstart", "text"])
def test_overfits_the_same_batch(config):
    Seen.inputs.clear()
    more = ["--trainer.overfit_batches=1", "--trainer.max_epochs=3"]
    run("fit", config, *more, f"--trainer.callbacks+={__name__}.Seen")
    first, *others = Seen.inputs
    assert len(others) == 2
    assert all(torch.equal(x, first) for x in others)


def test_evaluation_sizes_have_metrics_of_their_own():
    metrics = metrics_of(run("test", "quickstart"))
    assert {f"test/{m}{s}" for m in ("loss", "accuracy") for s in ("", "@48", "@64")} == set(
        metrics
    )


def test_resumed_run_ends_like_an_unbroken_one():
    keep = ["--trainer.max_epochs=2", "--trainer.callbacks+=ModelCheckpoint"]
    keep += ["--trainer.callbacks.filename={epoch}", "--trainer.callbacks.save_top_k=-1"]
    whole = run("fit", "text", *keep)
    halfway = folder_of(whole) / "checkpoints" / "epoch=0.ckpt"
    resumed = run("fit", "text", *keep, f"--ckpt_path={halfway}")
    assert metrics_of(resumed)["val/loss"] == metrics_of(whole)["val/loss"]
    weights = resumed.model.net.state_dict()
    for name, weight in whole.model.net.state_dict().items():
        assert torch.equal(weights[name], weight), name


@pytest.mark.parametrize("config", ["quickstart", "text", "tu"])
def test_bfloat16(config):
    slow = "--model.optimizer.lr=1e-4"  # a full step from one tiny batch would amplify rounding
    cli, full = run("fit", config, slow, "--trainer.precision=bf16-mixed"), run("fit", config, slow)
    assert all(p.dtype == torch.float32 for p in cli.model.parameters())
    close = metrics_of(full)["train/loss"]
    assert metrics_of(cli)["train/loss"] != close
    assert metrics_of(cli)["train/loss"] == pytest.approx(close, rel=0.05)


def test_tensorboard_by_one_argument():
    cli = run("fit", "quickstart", "--trainer.logger=TensorBoardLogger")
    folder = folder_of(cli)
    assert (folder / "config.yaml").is_file()
    assert (folder / "checkpoints" / "last.ckpt").is_file()
    written = b"".join(file.read_bytes() for file in folder.glob("events.out*"))
    for tag in (b"learning_curve", b"accuracy_by_size", b"val/accuracy@64"):
        assert tag in written


def test_wandb_by_one_argument(monkeypatch):
    for name, value in {"MODE": "offline", "SILENT": "true"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    try:
        cli = run(
            "fit", "quickstart", "--trainer.logger=WandbLogger", "--trainer.logger.offline=true"
        )
        logged = cli.trainer.logger.experiment
        assert logged.config["data"]["init_args"]["train_size"] == 16
        assert logged.config["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 2.5e-3
        assert "val/accuracy@64" in dict(logged.summary)
        assert "learning_curve" in dict(logged.summary)
        folder = folder_of(cli)
        assert (folder / "config.yaml").is_file()
        assert (folder / "checkpoints" / "last.ckpt").is_file()
    finally:
        wandb.finish()
        wandb.teardown()


@pytest.mark.parametrize(
    "argument",
    [
        "--model.net.colour=1",
        "--model.colour=1",
        "--data.colour=1",
        "--trainer.colour=1",
        "--data.batch_size=many",
        "--model.net.mixers.init_args.colour=1",
        "--model.net=none.yaml",
    ],
)
def test_wrong_arguments_are_refused(argument, capsys):
    with pytest.raises(SystemExit) as stopped:
        run("fit", "quickstart", argument)
    assert stopped.value.code == 2
    assert argument.split("=")[0].split(".")[-1] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.path=none.txt"], "TextData: path must be a text file, got 'none.txt'"),
        (["--data.path=input.txt", "--data.context=600"], "TextData: every part needs more than"),
        (["--data.path=input.txt", "--trainer.logger.save_dir=input.txt"], "cannot write in"),
        (
            ["--data.path=input.txt", "--resume=nowhere"],
            "--resume nowhere: no run was started there",
        ),
    ],
    ids=str,
)
def test_mistakes_are_told_in_two_lines(arguments, message, monkeypatch, capsys):
    line = ["train.py", "fit", f"--config={CONFIGS}/text.yaml", "--trainer.accelerator=cpu"]
    monkeypatch.setattr(sys, "argv", [*line, *arguments])
    with pytest.raises(SystemExit) as stopped:
        run_process()
    assert stopped.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert any(line.startswith("train.py: ") and message in line for line in lines)
    assert not any(line.startswith("Traceback") for line in lines)
    monkeypatch.setattr(sys, "argv", [*line, *arguments, "--debug"])
    with pytest.raises(MISTAKES):
        run_process()
    assert not Parser.debug  # --debug is for one command


def test_print_config_is_a_config(capsys, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        run("fit", "quickstart", "--print_config")
    assert stopped.value.code == 0
    printed = tmp_path / "printed.yaml"
    printed.write_text(capsys.readouterr().out)
    assert metrics_of(run("fit", printed)) == metrics_of(run("fit", "quickstart"))


FURTHER = sorted([*CONFIGS.glob("trainer/*.yaml"), *CONFIGS.glob("logger/*.yaml")])


@pytest.mark.parametrize("file", FURTHER, ids=lambda file: file.stem)
def test_every_further_config_goes_with_a_task(file, capsys):
    with pytest.raises(SystemExit) as stopped:
        run("fit", "quickstart", f"--config={file}", "--print_config")
    assert stopped.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    for part, value in yaml.safe_load(file.read_text())["trainer"].items():
        assert printed["trainer"][part] is not None, value


@pytest.mark.slow
def test_compiled_run_has_the_same_checkpoint():
    small = ["--model.net.depth=1", "--model.sample_length=0"]
    cli, plain = run("fit", "text", *small, "--model.compile=true"), run("fit", "text", *small)
    assert cli.model.state_dict().keys() == plain.model.state_dict().keys()
    # Fused kernels round differently, and two steps of AdamW magnify it.
    assert metrics_of(cli)["val/loss"] == pytest.approx(metrics_of(plain)["val/loss"], rel=1e-2)
