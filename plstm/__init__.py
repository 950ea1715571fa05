"""pLSTM: linear recurrent networks with source, transition and mark gates on the edges of a DAG."""

from plstm.graph import LineGraph
from plstm.layers import (
    GLA,
    MLSTM,
    DeltaNet,
    GatedDeltaNet,
    LightningAttention,
    LinearAttention,
    Mamba2,
    PLSTM1d,
    PLSTM2d,
    PLSTMGraph,
    RetNet,
    SoftmaxAttention,
)
from plstm.models import GNNModel, GraphModel, SequenceModel, VisionModel
from plstm.ops import (
    MLSTMState,
    delta_rule,
    gated_linear_attention,
    mlstm,
    plstm_1d,
    plstm_2d,
    plstm_dag,
)

__all__ = [
    "GLA",
    "MLSTM",
    "DeltaNet",
    "GNNModel",
    "GatedDeltaNet",
    "GraphModel",
    "LightningAttention",
    "LineGraph",
    "LinearAttention",
    "MLSTMState",
    "Mamba2",
    "PLSTM1d",
    "PLSTM2d",
    "PLSTMGraph",
    "RetNet",
    "SequenceModel",
    "SoftmaxAttention",
    "VisionModel",
    "delta_rule",
    "gated_linear_attention",
    "mlstm",
    "plstm_1d",
    "plstm_2d",
    "plstm_dag",
]
