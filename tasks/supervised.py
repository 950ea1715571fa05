"""Base LightningModule of all tasks: net, optimizer, evaluation per set."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import IO, ClassVar, Self

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.model_helpers import _restricted_classmethod
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchmetrics import Metric

from tasks.checkpoint_file import read_checkpoint
from tasks.data import DataModule
from tasks.optim import SchedulerFactory, WarmupCosine, parameter_groups, wants_total_steps

NetFactory = Callable[[int, int], nn.Module]  # called with (in_dim, out_dim) from the data


class Supervised(LightningModule, ABC):
    """Supervised learning with any kind of targets, which subclasses define.

    Batches are (inputs, targets) or a PyG batch with targets `y`; the net maps inputs to outputs
    with out_dim values on the last axis.

    Args:
        net: Factory called with in_dim and out_dim.
        in_dim: Size of one input; comes from the data.
        out_dim: Number of outputs; comes from the data.
        net_args: Other arguments of the factory; come from the data.
        optimizer: Factory called with the parameter groups.
        scheduler: Factory called with the optimizer, and with the number of steps of the run as
            `total_steps` if it has such an argument that is not set. It runs per optimizer step;
            ReduceLROnPlateau runs per validated epoch and monitors val/loss. None keeps the
            learning rate constant.
        compile: Compile the net with torch.compile.

    Raises:
        ValueError: the net cannot process the first batch.
    """

    main_metric: ClassVar[str]  # metric shown in plots
    outputs: ClassVar[str]  # description of the outputs, for messages

    def __init__(
        self,
        net: NetFactory,
        in_dim: int,
        out_dim: int,
        net_args: dict[str, int | bool] | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        scheduler: SchedulerFactory | None = WarmupCosine,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.make_net, self.net_args = net, net_args or {}
        self.in_dim, self.out_dim = in_dim, out_dim
        self.check_sizes()
        self.optimizer, self.scheduler, self.compile_net = optimizer, scheduler, compile
        self.net: nn.Module | None = None
        self._net_fits = False  # set after the first batch
        self.metrics = nn.ModuleDict()

    def check_sizes(self) -> None:
        """Raise a ValueError if the sizes of the data are degenerate."""

    def configure_model(self) -> None:
        if self.net is None:
            self.net = self._make_net()
            if self.device_mesh is not None:  # with configs/trainer/fsdp.yaml
                for part in [*getattr(self.net, "blocks", []), self.net]:
                    fully_shard(part, mesh=self.device_mesh["data_parallel"])
            if self.compile_net:
                self.net.compile()  # in place, so that checkpoints keep their names

    def _make_net(self) -> nn.Module:
        try:
            return self.make_net(self.in_dim, self.out_dim, **self.net_args)
        except TypeError as error:
            sizes = [self.in_dim, self.out_dim, *(f"{k}={v}" for k, v in self.net_args.items())]
            raise ValueError(
                f"{type(self).__name__}: the net cannot be built with the sizes of these data, "
                f"({', '.join(map(str, sizes))}): {error}; is it a net for such data?"
            ) from error

    def setup(self, stage: str) -> None:
        self.eval_names = getattr(self.trainer.datamodule, "eval_names", [""])
        for name in self.eval_names:
            for metric, new in self.new_metrics().items():
                self.metrics[f"{metric}{name}"] = new

    @abstractmethod
    def new_metrics(self) -> dict[str, Metric]:
        """Metrics of an evaluation set by name, without values."""

    @abstractmethod
    def output_shape(self, targets: Tensor) -> tuple[int, ...]:
        """Expected shape of the outputs for a batch with these targets."""

    @abstractmethod
    def labelled(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs and targets where there are labels, in the form that `loss` takes."""

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
        """Loss of labelled outputs; one value per output with reduction "none"."""

    @abstractmethod
    def measure(self, outputs: Tensor, targets: Tensor) -> dict[str, tuple[Tensor, ...]]:
        """Arguments for updating the metrics, from outputs and targets of a batch."""

    @abstractmethod
    def predicted(self, outputs: Tensor) -> Tensor:
        """Convert outputs to predictions for the user."""

    @abstractmethod
    def describe(self, predicted: Tensor, target: Tensor, data: DataModule) -> str:
        """Describe the target and the prediction of an example.

        Args:
            predicted: A row of the result of `predicted`, (out_dim,).
            target: Its target, or targets.
            data: The data, with their names.
        """

    def training_metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Metrics of labelled outputs of a training batch, in addition to the loss."""
        return {}

    def forward(self, inputs: object) -> Tensor:
        """Compute the outputs of a batch; builds the net on the first call if necessary."""
        if self.net is None:
            self.configure_model()
            self.net.to(self.device, self.dtype)
        return self.net(inputs)

    def on_train_batch_start(self, batch: object, batch_idx: int) -> None:
        """Seed every batch separately, so that a resumed run draws the same random numbers."""
        torch.manual_seed(self.batch_seed())

    def batch_seed(self) -> int:
        """Seed of the current batch, from the seed of the run, the batch index and the process."""
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        batches = self.trainer.fit_loop.total_batch_idx
        return hash((seed, batches, self.global_rank)) & (2**63 - 1)

    def training_step(self, batch: object, batch_idx: int) -> Tensor:
        outputs, targets = self.labelled(*self._predict(batch))
        size = len(targets)
        weight = self._share(size)
        loss = weight * self.loss(outputs, targets)
        self._log("train/loss", loss, size, prog_bar=True, sync_dist=True)
        self._log("train/lr", self.optimizers().param_groups[0]["lr"], size)
        for name, value in self.training_metrics(outputs, targets).items():
            self._log(f"train/{name}", weight * value, size, sync_dist=True)
        return loss

    def _share(self, size: int) -> Tensor | float:
        """`size` divided by its mean over processes, which weights all samples equally."""
        if self.trainer.world_size == 1:
            return 1.0
        sizes = torch.tensor(float(size), device=self.device)
        mean = self.trainer.strategy.reduce(sizes, reduce_op="mean")
        return size / mean.clamp(min=1 / self.trainer.world_size)  # there may be no labels

    def validation_step(self, batch: object, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate("val", batch, dataloader_idx)

    def test_step(self, batch: object, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate("test", batch, dataloader_idx)

    def predict_step(self, batch: object, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Predictions for a batch, see `predicted`."""
        return self.predicted(self._predict(batch)[0].float())

    def _evaluate(self, split: str, batch: object, dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """Update and log the metrics of a set; outputs and targets of the batch."""
        outputs, targets = self._predict(batch)
        outputs, size, name = outputs.float(), len(targets), self.eval_names[dataloader_idx]
        for metric, values in self.measure(outputs, targets).items():
            self.metrics[f"{metric}{name}"](*values)
            self._log(
                f"{split}/{metric}{name}", self.metrics[f"{metric}{name}"], size, prog_bar=True
            )
        return outputs, targets

    def _predict(self, batch: object) -> tuple[Tensor, Tensor]:
        inputs, targets = inputs_and_targets(batch)
        try:
            outputs = self.net(inputs)
        except (AttributeError, LookupError, TypeError, RuntimeError) as error:
            if self._net_fits or is_out_of_memory(error):
                raise
            raise ValueError(
                f"{type(self).__name__}: {type(self.net).__name__} cannot process a batch of these "
                f"data, {_describe(inputs)}: {error!r}; is it a net for such data?"
            ) from error
        want = self.output_shape(targets)
        if not isinstance(outputs, Tensor) or outputs.shape != want:
            raise ValueError(
                f"{type(self).__name__}: {type(self.net).__name__} must return {self.outputs} "
                f"{want}, got {_describe(outputs)}"
            )
        self._net_fits = True
        return outputs, targets

    def _log(self, name: str, value: object, size: int, **options: object) -> None:
        self.log(name, value, batch_size=size, add_dataloader_idx=False, **options)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.optimizer(parameter_groups(self))
        if self.scheduler is None:
            return optimizer
        steps = {"total_steps": self._total_steps()} if wants_total_steps(self.scheduler) else {}
        try:
            scheduler = self.scheduler(optimizer, **steps)
        except (TypeError, NotImplementedError) as error:
            raise ValueError(
                f"{type(self).__name__}: the scheduler cannot be created from the optimizer alone "
                f"({error!r}); choose one that --help lists, or null for a constant rate"
            ) from error
        if not isinstance(scheduler, ReduceLROnPlateau):
            return [optimizer], [{"scheduler": scheduler, "interval": "step"}]
        every = self.trainer.check_val_every_n_epoch
        plateau = {
            "scheduler": scheduler,
            "monitor": getattr(scheduler, "monitor", "val/loss"),  # Lightning's subclass has it
            "frequency": every or 1,
            "strict": every is not None,  # otherwise an epoch may have no validation
        }
        return [optimizer], [plateau]

    def _total_steps(self) -> int:
        steps = self.trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise ValueError(
                f"{type(self).__name__}: the learning rate depends on the number of steps, and "
                "training has no limit; set --trainer.max_steps or --trainer.max_epochs, or a "
                "constant rate, --model.scheduler=null"
            )
        return int(steps)

    @_restricted_classmethod
    def load_from_checkpoint(
        cls, checkpoint_path: str | Path | IO[bytes], **options: object
    ) -> Self:
        """Load the trained module from a checkpoint, with its net.

        Args:
            checkpoint_path: The file; a local file is checked first.
            options: Options of LightningModule.load_from_checkpoint, or constructor arguments.

        Raises:
            ValueError: the file is missing, damaged, or not a checkpoint of a run.
        """
        if isinstance(checkpoint_path, (str, Path)) and "://" not in str(checkpoint_path):
            read_checkpoint(checkpoint_path)
        return super().load_from_checkpoint(checkpoint_path, **options)

    def on_load_checkpoint(self, checkpoint: dict[str, object]) -> None:
        """Reject the weights of another net, with a shorter message than PyTorch.

        Raises:
            ValueError: names or shapes of weights differ.
        """
        if "state_dict" not in checkpoint:  # with configs/trainer/fsdp.yaml, already loaded
            return
        saved, own = checkpoint["state_dict"], self.state_dict()
        differences = [
            f"{name} is {tuple(saved[name].shape)} there, {tuple(weight.shape)} here"
            for name, weight in own.items()
            if name in saved and saved[name].shape != weight.shape
        ]
        differences += [f"{name} is missing" for name in own if name not in saved]
        differences += [f"{name} is not in this net" for name in saved if name not in own]
        if differences:
            rest = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
            raise ValueError(
                f"{type(self).__name__}: the checkpoint is from another net: "
                f"{', '.join(differences[:3])}{rest}; use the config.yaml of its run"
            )

    def on_save_checkpoint(self, checkpoint: dict[str, object]) -> None:
        """Keep only plain values, so that the file loads with weights_only=True."""
        saved = checkpoint.get("hyper_parameters", {})
        checkpoint["hyper_parameters"] = {k: v for k, v in saved.items() if _is_plain(v)}
        if arguments := getattr(self.trainer.datamodule, "checkpoint_arguments", None):
            checkpoint["data_arguments"] = arguments


def inputs_and_targets(batch: object) -> tuple[object, Tensor]:
    """Split a batch into inputs and targets: a pair, or a PyG batch with targets `y`."""
    return batch if isinstance(batch, (tuple, list)) else (batch, batch.y)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that a device, or the machine, is out of memory."""
    kinds = (torch.OutOfMemoryError, MemoryError)
    return isinstance(error, kinds) or "can't allocate memory" in str(error)


def _describe(value: object) -> str:
    """Describe inputs or outputs of a net in a few words."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return type(value).__name__


def _is_plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(isinstance(k, str) and _is_plain(v) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return all(_is_plain(v) for v in value)
    return value is None or isinstance(value, (str, int, float, bool))
