"""Distributed training: gathering objects, and synchronized batch norm on any device."""

from typing import TypeVar

import torch
from lightning.pytorch.plugins.layer_sync import LayerSync
from torch import Tensor, distributed, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm

T = TypeVar("T")


def gather(own: T) -> list[T]:
    """Gather an object from every process, by rank; all processes must call it."""
    if not distributed.is_initialized():
        return [own]
    parts = [own] * distributed.get_world_size()
    distributed.all_gather_object(parts, own)
    return parts


class SyncBatchNorm(LayerSync):
    """Batch norms with statistics over the batches of all processes.

    Unlike torch.nn.SyncBatchNorm, it supports CPUs.
    """

    def apply(self, model: nn.Module) -> nn.Module:
        """Synchronize the statistics of all batch norms of a model."""
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                # In place, so that references and checkpoints are unaffected.
                module.__class__ = type("Synced", (_Synced, type(module)), {})
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """Undo `apply`."""
        for module in model.modules():
            if isinstance(module, _Synced):
                module.__class__ = type(module).__mro__[2]
        return model


class _Synced(_BatchNorm):
    """y = (x - mean) / sqrt(var + eps) * weight + bias, for every channel of x (N, C, ...).

    Mean and variance are those of all positions in the batches of all processes.
    """

    def forward(self, x: Tensor) -> Tensor:
        of_the_batch = self.training or self.running_mean is None
        if not of_the_batch or distributed.get_world_size() == 1:
            return super().forward(x)
        self._check_input_dim(x)
        axes = [axis for axis in range(x.ndim) if axis != 1]
        shape = [-1 if axis == 1 else 1 for axis in range(x.ndim)]  # shape of values per channel
        wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        local = torch.cat([wide.sum(axes), wide.new_tensor([x.numel() // x.shape[1]])])
        sums, count = all_reduce(local).split([x.shape[1], 1])
        mean = sums / count
        centred = wide - mean.view(shape)
        var = all_reduce(centred.square().sum(axes)) / count
        if count == 1 and self.running_mean is not None:  # which has no variance
            centred, var = wide - self.running_mean.view(shape), self.running_var
        elif self.training and self.running_mean is not None:
            self._remember(mean.detach(), var.detach() * count / (count - 1))
        y = centred * (var + self.eps).rsqrt().view(shape)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(x.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, var: Tensor) -> None:
        self.num_batches_tracked += 1
        # Without a momentum the running statistics are means over all batches.
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(var.to(self.running_var.dtype), share)
