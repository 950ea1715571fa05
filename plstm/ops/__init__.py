"""Recurrences: functions of tensors, without parameters."""

from plstm.ops.plstm_1d import plstm_1d
from plstm.ops.plstm_2d import plstm_2d
from plstm.ops.plstm_dag import plstm_dag

__all__ = ["plstm_1d", "plstm_2d", "plstm_dag"]
