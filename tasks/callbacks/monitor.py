"""Size of the net, gradient norm and throughput."""

import json
import time

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer
from torch.utils.flop_counter import FlopCounterMode

from plstm.models import state_size
from plstm.ops.flops import FORMULAS
from tasks.optim import describe
from tasks.runs import log_facts, run_folder


class Monitor(Callback):
    """Logs the gradient norm, samples per second and FLOP per second.

    - train/grad_norm: over all parameters, before clipping.
    - train/samples_per_s: since the previous logging step, over all processes; includes loading,
      but not validation and the first batch.
    - train/flop_per_s: the same times the operations per sample.

    Parameters, state size and operations per sample go to `facts.json` in the folder of the run and
    to the logger. Operations are counted in the first training batch: matrix products and the
    recurrences of `plstm.ops.flops`, forward and backward, without elementwise operations. They are
    unknown if the net is compiled, and omit Triton kernels and those of fla-core.
    """

    def __init__(self) -> None:
        self.facts: dict[str, float | None] = {}
        self._started, self._due = False, False  # past the first batch; this step is logged
        self._counter: FlopCounterMode | None = None
        self._samples, self._seconds, self._last = 0, 0.0, 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        size, parameters = state_size(pl_module.net), sum(p.numel() for p in pl_module.parameters())
        state = "no state of fixed size" if size is None else f"a state of {size:,} elements"
        rank_zero_info(f"The net has {parameters:,} parameters and {state}.")
        for optimizer in trainer.optimizers:
            rank_zero_info(describe(optimizer))
        self._started = False
        if trainer.ckpt_path is None:  # a resumed run keeps its count
            self.facts = {}
        self._learn(trainer, {"parameters": parameters, "state_size": size})

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last = time.perf_counter()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int
    ) -> None:
        self._due = False
        counted = self._started or "flop_per_sample" in self.facts
        if not counted and not is_compiled(pl_module):
            self._counter = FlopCounterMode(display=False, custom_mapping=FORMULAS)
            self._counter.__enter__()

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        self._due = trainer._logger_connector.should_update_logs
        if self._due:
            pl_module.log("train/grad_norm", gradient_norm(pl_module))

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        if not self._started:
            self._end_first_batch(trainer, batch)
            return
        now = time.perf_counter()
        self._samples += batch_size(batch)
        self._seconds += now - self._last
        self._last = now
        if self._due:
            self._log_throughput(pl_module)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._stop_counting()

    def state_dict(self) -> dict[str, float | None]:
        return self.facts

    def load_state_dict(self, state_dict: dict[str, float | None]) -> None:
        self.facts = dict(state_dict)

    def _end_first_batch(self, trainer: Trainer, batch: object) -> None:
        flops = self._stop_counting()
        if flops is not None:
            self._learn(trainer, {"flop_per_sample": flops / batch_size(batch)})
        self._started, self._samples, self._seconds = True, 0, 0.0
        self._last = time.perf_counter()

    def _stop_counting(self) -> int | None:
        """Operations since the start of the batch, None if not counted."""
        if self._counter is None:
            return None
        counter, self._counter = self._counter, None
        counter.__exit__(None, None, None)
        return counter.get_total_flops()

    def _log_throughput(self, pl_module: LightningModule) -> None:
        rates = {"train/samples_per_s": self._samples / self._seconds}
        if "flop_per_sample" in self.facts:
            rates["train/flop_per_s"] = rates["train/samples_per_s"] * self.facts["flop_per_sample"]
        pl_module.log_dict(rates, sync_dist=True, reduce_fx="sum")
        self._samples, self._seconds = 0, 0.0

    def _learn(self, trainer: Trainer, facts: dict[str, float | None]) -> None:
        """Write facts to the file; only the first process has a folder."""
        self.facts |= facts
        folder = run_folder(trainer)
        if folder is not None:
            (folder / "facts.json").write_text(json.dumps(self.facts, indent=2) + "\n", "utf-8")
            for logger in trainer.loggers:
                log_facts(logger, self.facts)


def gradient_norm(module: nn.Module) -> Tensor:
    """Euclidean norm of all gradients."""
    norm = get_total_norm([p.grad for p in module.parameters() if p.grad is not None])
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # sharded parameters


def batch_size(batch: object) -> int:
    """Number of samples of a batch: graphs of a PyG batch, or targets of (inputs, targets)."""
    return len(batch[1]) if isinstance(batch, (tuple, list)) else batch.num_graphs


def is_compiled(module: nn.Module) -> bool:
    """Whether any module is compiled by torch.compile."""
    return any(part._compiled_call_impl is not None for part in module.modules())
