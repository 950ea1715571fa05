"""What training on several processes needs beyond Lightning."""

from typing import TypeVar

import torch
from lightning.pytorch.plugins.layer_sync import LayerSync
from torch import Tensor, distributed, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm

T = TypeVar("T")


def gather(own: T) -> list[T]:
    """What every process hands in, by rank; all of them must call it."""
    if not distributed.is_initialized():
        return [own]
    parts = [own] * distributed.get_world_size()
    distributed.all_gather_object(parts, own)
    return parts


class SyncBatchNorm(LayerSync):
    """Batch norms with the statistics of the batches of all processes together.

    Unlike torch.nn.SyncBatchNorm they run on CPUs too.
    """

    def apply(self, model: nn.Module) -> nn.Module:
        """Let all batch norms of a model share their statistics."""
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                # The same module, so that whoever holds it, and checkpoints, see no other one.
                module.__class__ = type("Synced", (_Synced, type(module)), {})
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """Take back `apply`."""
        for module in model.modules():
            if isinstance(module, _Synced):
                module.__class__ = type(module).__mro__[2]
        return model


class _Synced(_BatchNorm):
    """y = (x - mean) / sqrt(var + eps) * weight + bias, sums over all rows of all processes."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or distributed.get_world_size() == 1:
            return super().forward(x)
        rows = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        local = torch.cat([rows.sum(0), rows.new_tensor([len(rows)])])
        *sums, count = all_reduce(local).split([x.shape[1], 1])
        mean = sums[0] / count
        centred = rows - mean
        var = all_reduce(centred.square().sum(0)) / count
        if count > 1:
            self._remember(mean.detach(), var.detach() * count / (count - 1))
        else:
            centred, var = rows - self.running_mean, self.running_var
        y = centred * (var + self.eps).rsqrt() * self.weight + self.bias
        return y.to(x.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, var: Tensor) -> None:
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(var.to(self.running_var.dtype), self.momentum)
