"""What the LightningModules of all tasks share: a net, an optimiser, evaluation by sets."""

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

NetFactory = Callable[[int, int], nn.Module]  # (in_dim, out_dim), sizes that the data knows


class Supervised(LightningModule, ABC):
    """Learns from inputs with targets; says nothing of what targets are.

    Batches are (inputs, targets) or a PyG batch with targets `y`; the net maps inputs to outputs
    with out_dim numbers on the last axis.

    Args:
        net: Factory called with in_dim and out_dim.
        in_dim: Size of one input; comes from the data.
        out_dim: Number of outputs; comes from the data.
        net_args: Further sizes for the factory; come from the data.
        optimizer: Factory called with the parameter groups.
        scheduler: Factory called with the optimiser, and with the number of steps of the run as
            `total_steps` if it has an argument of that name that is not set. It counts steps of the
            optimiser; ReduceLROnPlateau counts validated epochs and follows val/loss. None keeps
            the learning rate constant.
        compile: Compile the net with torch.compile.

    Raises:
        ValueError: the first batch shows that the net is not one for such data.
    """

    main_metric: ClassVar[str]  # of an evaluation set, for pictures
    outputs: ClassVar[str]  # what the net returns, in messages

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
        self._net_fits = False  # it has computed a batch
        self.metrics = nn.ModuleDict()

    def check_sizes(self) -> None:
        """Raise a ValueError for sizes of the data from which nothing can be learned."""

    def configure_model(self) -> None:
        if self.net is None:
            self.net = self._make_net()
            if self.device_mesh is not None:  # of configs/trainer/fsdp.yaml
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
        """Shape of the net's outputs for a batch with such targets."""

    @abstractmethod
    def labelled(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs and targets of everything that has a label, as `loss` takes them."""

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
        """Loss of labelled outputs; one number for each of them with reduction "none"."""

    @abstractmethod
    def measure(self, outputs: Tensor, targets: Tensor) -> dict[str, tuple[Tensor, ...]]:
        """What every metric is updated with by outputs and targets of a batch."""

    @abstractmethod
    def predicted(self, outputs: Tensor) -> Tensor:
        """What the net says, as a user wants to read it."""

    @abstractmethod
    def describe(self, predicted: Tensor, target: Tensor, data: DataModule) -> str:
        """What is known and predicted of an example, in words.

        Args:
            predicted: A row of what `predicted` returns, (out_dim,).
            target: Its target, or targets.
            data: The data, with their names.
        """

    def training_metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Metrics of labelled outputs of a training batch, beside the loss; means over them."""
        return {}

    def forward(self, inputs: object) -> Tensor:
        """Outputs of a batch of inputs; the first call makes the net, if nothing has yet."""
        if self.net is None:
            self.configure_model()
            self.net.to(self.device, self.dtype)
        return self.net(inputs)

    def on_train_batch_start(self, batch: object, batch_idx: int) -> None:
        """Draw the random numbers of a batch from its own seed, as a resumed run will."""
        torch.manual_seed(self.batch_seed())

    def batch_seed(self) -> int:
        """Seed of the current batch: of the run, the batches before it, and the process."""
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
        """`size` over its mean over processes, whose means then count every sample alike."""
        if self.trainer.world_size == 1:
            return 1.0
        sizes = torch.tensor(float(size), device=self.device)
        mean = self.trainer.strategy.reduce(sizes, reduce_op="mean")
        return size / mean.clamp(min=1 / self.trainer.world_size)  # nothing may have a label

    def validation_step(self, batch: object, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate("val", batch, dataloader_idx)

    def test_step(self, batch: object, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate("test", batch, dataloader_idx)

    def predict_step(self, batch: object, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """What `predicted` makes of the outputs."""
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
                f"{type(self).__name__}: {type(self.net).__name__} cannot compute a batch of these "
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
                f"{type(self).__name__}: the scheduler cannot be made of the optimizer alone "
                f"({error!r}); choose one that --help lists, or null for a constant rate"
            ) from error
        if not isinstance(scheduler, ReduceLROnPlateau):
            return [optimizer], [{"scheduler": scheduler, "interval": "step"}]
        every = self.trainer.check_val_every_n_epoch
        plateau = {
            "scheduler": scheduler,
            "monitor": getattr(scheduler, "monitor", "val/loss"),  # Lightning's own kind has one
            "frequency": every or 1,
            "strict": every is not None,  # otherwise an epoch may pass without a validation
        }
        return [optimizer], [plateau]

    def _total_steps(self) -> int:
        steps = self.trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise ValueError(
                f"{type(self).__name__}: the learning rate follows the share of all steps, and "
                "there is no end to them; set --trainer.max_steps or --trainer.max_epochs, or a "
                "constant rate, --model.scheduler=null"
            )
        return int(steps)

    @_restricted_classmethod
    def load_from_checkpoint(
        cls, checkpoint_path: str | Path | IO[bytes], **options: object
    ) -> Self:
        """The trained module of a checkpoint, with its net.

        Args:
            checkpoint_path: The file; a local one is checked first.
            options: Those of LightningModule.load_from_checkpoint, or other constructor arguments.

        Raises:
            ValueError: the file is absent, damaged, or no checkpoint of a run.
        """
        if isinstance(checkpoint_path, (str, Path)) and "://" not in str(checkpoint_path):
            read_checkpoint(checkpoint_path)
        return super().load_from_checkpoint(checkpoint_path, **options)

    def on_load_checkpoint(self, checkpoint: dict[str, object]) -> None:
        """Refuse the weights of another net, in fewer words than PyTorch.

        Raises:
            ValueError: other names or shapes of weights.
        """
        if "state_dict" not in checkpoint:  # of configs/trainer/fsdp.yaml, which has loaded it
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
                f"{type(self).__name__}: the checkpoint is of another net: "
                f"{', '.join(differences[:3])}{rest}; use the config.yaml of its run"
            )

    def on_save_checkpoint(self, checkpoint: dict[str, object]) -> None:
        """Keep plain values only, so that the file loads with weights_only=True."""
        saved = checkpoint.get("hyper_parameters", {})
        checkpoint["hyper_parameters"] = {k: v for k, v in saved.items() if _is_plain(v)}
        if arguments := getattr(self.trainer.datamodule, "checkpoint_arguments", None):
            checkpoint["data_arguments"] = arguments


def inputs_and_targets(batch: object) -> tuple[object, Tensor]:
    """The two parts of a batch: a pair, or a PyG batch with targets `y`."""
    return batch if isinstance(batch, (tuple, list)) else (batch, batch.y)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or the machine, has too little memory."""
    kinds = (torch.OutOfMemoryError, MemoryError)
    return isinstance(error, kinds) or "can't allocate memory" in str(error)


def _describe(value: object) -> str:
    """What a net takes or gives, in a few words."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return type(value).__name__


def _is_plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(isinstance(k, str) and _is_plain(v) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return all(_is_plain(v) for v in value)
    return value is None or isinstance(value, (str, int, float, bool))
