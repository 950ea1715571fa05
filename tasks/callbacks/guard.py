"""Stops a run when gradients are not finite, before they reach the weights."""

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from tasks.callbacks.monitor import gradient_norm
from tasks.distributed import gather


class NotFinite(ArithmeticError):
    """A gradient is NaN or infinite."""


class StopIfNotFinite(Callback):
    """Ends training before an optimizer step if the gradient is not finite.

    The message names the step, the batch, its seed and the first module of the net with an output
    that is not finite, found by computing the batch again with the same random numbers (the last
    batch, if several make one step). The metric `diverged` is logged. Weights and checkpoints stay
    unchanged. In 16-mixed precision the loss scaling of PyTorch handles such steps.

    Raises:
        NotFinite: a gradient is not finite; raised on all processes, which share it.
    """

    def __init__(self) -> None:
        self._batch: tuple[object, int] | None = None

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int
    ) -> None:
        self._batch = batch, batch_idx

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            return
        if torch.isfinite(gradient_norm(pl_module)):
            return
        part, report = self._look(trainer, pl_module)
        reports = gather((part is None, report))
        for logger in trainer.loggers:
            logger.log_metrics({"diverged": 1.0}, trainer.global_step)
            logger.save()
        raise NotFinite(
            f"StopIfNotFinite: the gradient of step {trainer.global_step} is not finite: "
            f"{min(reports)[1]}; weights and checkpoints are unchanged. "
            "Check its data, lower the learning rate, or use 32-bit precision"
        )

    def _look(self, trainer: Trainer, pl_module: LightningModule) -> tuple[str | None, str]:
        """Describe the batch, and the module of the net where it starts, if any."""
        pl_module.on_train_batch_start(*self._batch)  # seeds
        part = first_not_finite(pl_module, *self._batch)
        process = f" of process {trainer.global_rank}" if trainer.world_size > 1 else ""
        return part, (
            f"{self._where(pl_module, part)}. That is batch {self._batch[1]}{process} in epoch "
            f"{trainer.current_epoch}, with torch.manual_seed({pl_module.batch_seed()})"
        )

    def _where(self, pl_module: LightningModule, part: str | None) -> str:
        if part is not None:
            return f"the first such output is from {part}"
        names = [
            name
            for name, p in pl_module.named_parameters()
            if p.grad is not None and not torch.isfinite(p.grad).all()
        ]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        return f"all outputs are finite, the gradients of {', '.join(names[:3])}{more} are not"


@torch.no_grad()
def first_not_finite(pl_module: LightningModule, batch: object, batch_idx: int) -> str | None:
    """Name of the innermost module whose output is the first with NaN or infinity."""
    found: list[str] = []

    def watch(name: str, module: nn.Module) -> object:
        def look(module: nn.Module, inputs: object, output: object) -> None:
            tensors = (x for x in tree_leaves(output) if isinstance(x, Tensor))
            if not found and not all(bool(torch.isfinite(x).all()) for x in tensors):
                found.append(f"{name} ({type(module).__name__})")

        return module.register_forward_hook(look)

    hooks = [watch(name, part) for name, part in pl_module.net.named_modules() if name]
    context = pl_module.trainer.precision_plugin.forward_context()
    try:
        with context, torch.compiler.set_stance("force_eager"):  # compiled code does not call hooks
            pl_module._predict(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None
