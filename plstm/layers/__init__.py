"""Mixers: modules that mix positions, one per file."""

from plstm.layers.plstm_1d import PLSTM1d, PLSTM1dState
from plstm.layers.plstm_2d import PLSTM2d
from plstm.layers.plstm_graph import PLSTMGraph
from plstm.layers.softmax_attention import AttentionState, SoftmaxAttention

__all__ = [
    "AttentionState",
    "PLSTM1d",
    "PLSTM1dState",
    "PLSTM2d",
    "PLSTMGraph",
    "SoftmaxAttention",
]
