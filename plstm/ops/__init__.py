"""Recurrences: functions of tensors, without parameters."""

from plstm.ops.delta_rule import delta_rule
from plstm.ops.gated_linear_attention import gated_linear_attention
from plstm.ops.mamba2d import mamba2d
from plstm.ops.mlstm import MLSTMState, mlstm
from plstm.ops.plstm_1d import plstm_1d
from plstm.ops.plstm_2d import plstm_2d
from plstm.ops.plstm_dag import plstm_dag

__all__ = [
    "MLSTMState",
    "delta_rule",
    "gated_linear_attention",
    "mamba2d",
    "mlstm",
    "plstm_1d",
    "plstm_2d",
    "plstm_dag",
]
