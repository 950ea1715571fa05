"""Checks of trainer settings that would train differently than intended."""

import math
import os
import re
from collections.abc import Callable

from jsonargparse import Namespace
from lightning.fabric.plugins.environments import TorchElasticEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher

Number = int | float


def _batches(value: Number) -> bool:
    return 0 < value <= 1 if isinstance(value, float) else value >= 1


SHARE = "a number of batches, 1 or more, or a fraction of them, such as 0.5"
NONE_OR_SHARE = f"0 for none, {SHARE}"
END = "1 or more, or -1 for no limit"
NUMBERS: dict[str, tuple[str, Callable[[Number], bool]]] = {
    "accumulate_grad_batches": ("1 or more", lambda x: x >= 1),
    "check_val_every_n_epoch": ("1 or more", lambda x: x >= 1),
    "gradient_clip_val": ("0 for no clipping, or more", lambda x: 0 <= x < math.inf),
    "limit_predict_batches": (NONE_OR_SHARE, lambda x: x == 0 or _batches(x)),
    "limit_test_batches": (NONE_OR_SHARE, lambda x: x == 0 or _batches(x)),
    "limit_train_batches": (SHARE, _batches),
    "limit_val_batches": (NONE_OR_SHARE, lambda x: x == 0 or _batches(x)),
    "log_every_n_steps": ("0 for never, or more", lambda x: x >= 0),
    "max_epochs": (END, lambda x: x == -1 or x >= 1),
    "max_steps": (END, lambda x: x == -1 or x >= 1),
    "min_epochs": ("0 or more", lambda x: x >= 0),
    "min_steps": ("0 or more", lambda x: x >= 0),
    "num_nodes": ("1 or more", lambda x: x >= 1),
    "num_sanity_val_steps": ("0 or more, or -1 for all", lambda x: x >= -1),
    "overfit_batches": (NONE_OR_SHARE, lambda x: x == 0 or _batches(x)),
    "reload_dataloaders_every_n_epochs": ("0 for never, or more", lambda x: x >= 0),
    "val_check_interval": (SHARE, _batches),
}
DEVICES = re.compile(r"auto|-1|0*[1-9]\d*|\d+(, ?\d+)*,?\s*|\[\d+(, ?\d+)*\]")


def check_numbers(trainer: Namespace) -> None:
    """Reject values that Lightning accepts, but that are meaningless or misleading.

    Raises:
        ValueError: a setting is invalid; the message has the setting, the rule and the value.
    """
    for name, (rule, holds) in NUMBERS.items():
        value = trainer.get(name)
        if isinstance(value, (int, float)) and not holds(value):
            raise ValueError(f"trainer.{name} must be {rule}, got {value}")
    devices = str(trainer.get("devices"))
    if devices == "0" or not DEVICES.fullmatch(devices):
        raise ValueError(
            "trainer.devices must be auto, a number from 1, -1 for all GPUs, or a list of GPU "
            f"indices such as [0, 1], got {devices}"
        )


def check_processes(trainer: Trainer) -> None:
    """Reject settings where every process of torchrun, or copies of a process, train the same net.

    DDP is not enabled automatically, because it would enlarge the batch of a step.

    Raises:
        ValueError: torchrun started more processes than train together; the strategy forks or
            spawns this process, which is not supported.
    """
    if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
        raise ValueError(
            "trainer.strategy must not fork or spawn this process, as those with spawn, fork or "
            "notebook in their names do; use --config configs/trainer/ddp.yaml"
        )
    if not TorchElasticEnvironment.detect():
        return
    started = int(os.environ["WORLD_SIZE"])
    if started != trainer.world_size:
        raise ValueError(
            f"torchrun started {started} processes, and each would train alone; to "
            "train together, add --config configs/trainer/ddp.yaml after the config of the task "
            f"and --trainer.devices {started} (per node), or start one process"
        )
