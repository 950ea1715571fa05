"""pLSTM: linear recurrent networks with source, transition and mark gates on the edges of a DAG."""

from plstm.graph import LineGraph
from plstm.layers import PLSTM1d, PLSTM2d, SoftmaxAttention
from plstm.models import SequenceModel, VisionModel
from plstm.ops import plstm_1d, plstm_2d

__all__ = [
    "LineGraph",
    "PLSTM1d",
    "PLSTM2d",
    "SequenceModel",
    "SoftmaxAttention",
    "VisionModel",
    "plstm_1d",
    "plstm_2d",
]
