"""Recurrences: functions of tensors, without parameters."""

from plstm.ops.plstm_1d import plstm_1d
from plstm.ops.plstm_2d import plstm_2d

__all__ = ["plstm_1d", "plstm_2d"]
