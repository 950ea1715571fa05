"""A training step of every model in configs/net: forward, loss, backward and optimizer."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from benchmarks.case import Case, Setting, Work
from tasks.cli import CLI
from tasks.cli import main as command_line
from tasks.optim import parameter_groups

CONFIGS = Path(__file__).parents[1] / "configs"
CHARACTERS = "".join(chr(code) for code in range(32, 97))  # 65, as in tinyshakespeare
TASKS = {  # config: kind, description of a batch, examples, tokens per example
    "quickstart": ("grid", "128 images of 32 x 32 pixels, patch 4", 128, 64),
    "arrow": ("grid", "128 images of 192 x 192 pixels, patch 16", 128, 144),
    "text": ("sequence", "12 windows of 64 characters", 12, 64),
}


def cases(setting: Setting) -> Iterator[Case]:
    """Every task with generated data, with both of its nets; graphs are in graphs.py."""
    for config, (kind, batch_words, batch, tokens) in TASKS.items():
        group = f"{config} step, {batch_words}"
        long = config == "arrow"  # twelve blocks take seconds per step
        case = partial(Case, "steps", kind, group, batch=batch, tokens=tokens, long=long)
        yield case("pLSTM", make=partial(_step, setting, config, "plstm"))
        yield case(
            "softmax attention", make=partial(_step, setting, config, "attention"), anchor=True
        )


def _step(setting: Setting, config: str, net: str) -> Work:
    with TemporaryDirectory() as folder:
        arguments = []
        if config == "text":
            text = Path(folder, "text.txt")
            text.write_text(CHARACTERS * 100, "utf-8")
            arguments = [f"--data.path={text}"]
        cli = build(config, f"{net}_{config}", *arguments)
        batch = next(iter(cli.datamodule.train_dataloader()))
    return training_step(setting, cli, to_device(batch, setting.device))


def build(config: str, net: str, *arguments: str) -> CLI:
    """Net, data and optimizer of a config, built by the training command line."""
    files = [f"--config={CONFIGS / config}.yaml", f"--model.net={CONFIGS / 'net' / net}.yaml"]
    plain = ["--trainer.accelerator=cpu", "--trainer.logger=false", "--standard_callbacks=false"]
    plain += ["--trainer.enable_checkpointing=false", "--trainer.enable_model_summary=false"]
    cli = command_line([*files, *plain, *arguments], run=False)
    cli.model.configure_model()
    return cli


def training_step(setting: Setting, cli: CLI, batch: object) -> Work:
    """Repeated steps on one batch."""
    net = cli.model.net.to(setting.device)
    step = make_step(setting, cli, net)

    def forward() -> None:
        with torch.no_grad():
            loss(setting, net, batch)

    return Work(forward, partial(step, batch))


def make_step(setting: Setting, cli: CLI, net: nn.Module) -> Callable[[object], None]:
    """Return a function that trains the net on a batch with the optimizer of the config."""
    optimizer = cli.model.optimizer(parameter_groups(net))

    def step(batch: object) -> None:
        optimizer.zero_grad()
        loss(setting, net, batch).backward()
        optimizer.step()

    return step


def loss(setting: Setting, net: nn.Module, batch: object) -> Tensor:
    """Cross-entropy of a batch, as in tasks.classification."""
    inputs, targets = batch if isinstance(batch, (tuple, list)) else (batch, batch.y)
    with setting.autocast():
        logits = net(inputs).flatten(0, -2)
        return nn.functional.cross_entropy(logits, targets.flatten())


def to_device(batch: object, device: str) -> object:
    """Move a PyG batch or a pair (inputs, targets) to a device."""
    if isinstance(batch, (tuple, list)):
        return [x.to(device) for x in batch]
    return batch.to(device)
