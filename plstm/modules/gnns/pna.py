"""PNA of PyTorch Geometric that counts the node degrees of the training set itself."""

from typing import Any

import torch
from torch import Tensor
from torch_geometric.nn import models
from torch_geometric.utils import degree

from plstm.modules.graph import count

MAX_DEGREE = 255  # higher degrees are counted as this


class PNA(models.PNA):
    """Several aggregations over neighbors, each scaled by several functions of the degree d.

    scalers: 1,  log(d + 1) / delta,  delta / log(d + 1),  with delta the mean of log(d + 1)

    PyTorch Geometric requires the degree histogram of the training set as an argument. Here it is a
    buffer that counts the nodes of every batch in training mode: after one epoch, delta is that of
    the training set. Evaluation does not change it, and configs need no data-set statistics.

    Args:
        in_channels: Width of the node features.
        hidden_channels: Width of every layer.
        num_layers: Number of layers.
        aggregators: Names of aggregations.
        scalers: Names of scalers.
        kwargs: Other arguments of torch_geometric.nn.models.PNA, except deg.

    Source: arXiv 2004.05718.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        num_layers: int,
        *,
        aggregators: tuple[str, ...] = ("mean", "min", "max", "std"),
        scalers: tuple[str, ...] = ("identity", "amplification", "attenuation"),
        **kwargs: Any,
    ) -> None:
        super().__init__(
            in_channels,
            hidden_channels,
            num_layers,
            aggregators=list(aggregators),
            scalers=list(scalers),
            deg=torch.tensor([0, 1]),  # degree 1 until training starts
            **kwargs,
        )
        self.register_buffer("degrees", torch.zeros(MAX_DEGREE + 1, dtype=torch.int64))

    def reset_parameters(self) -> None:
        """Initialize the parameters and reset the counts."""
        super().reset_parameters()
        self.degrees.zero_()

    def forward(self, x: Tensor, edge_index: Tensor, **kwargs: Any) -> Tensor:
        """Map nodes x (N, in_channels) to (N, hidden_channels)."""
        if self.training:
            self._count(degree(edge_index[1], x.shape[0]))
        return super().forward(x, edge_index, **kwargs)

    def _count(self, degrees: Tensor) -> None:
        counts = count(degrees.long().clamp(max=MAX_DEGREE), MAX_DEGREE + 1)
        self.degrees = self.degrees + counts
        share = self.degrees / self.degrees.sum()
        values = torch.arange(MAX_DEGREE + 1, device=degrees.device, dtype=torch.float32)
        for name, value in (("avg_deg_lin", values), ("avg_deg_log", (values + 1).log())):
            mean = (share * value).sum()
            mean = torch.where(mean > 0, mean, value[1])  # without edges, avoid a division by 0
            for conv in self.convs:
                scaler = conv.aggr_module
                # Not in place: the backward of an earlier forward may need the old one. A copy for
                # each layer: safetensors stores shared memory once.
                setattr(scaler, name, mean.view(1).to(getattr(scaler, name).dtype, copy=True))
