"""Mixers: modules that mix positions, one per file."""

from plstm.layers.delta_net import DeltaNet, DeltaNetState
from plstm.layers.flattened_grid import FlattenedGrid
from plstm.layers.gated_delta_net import GatedDeltaNet
from plstm.layers.gla import GLA
from plstm.layers.lightnet import LightNet, LightNetState
from plstm.layers.lightning_attention import LightningAttention
from plstm.layers.linear_attention import LinearAttention
from plstm.layers.mamba2 import Mamba2, Mamba2State
from plstm.layers.mamba2d import Mamba2D
from plstm.layers.mlstm import MLSTM, MLSTMLayerState
from plstm.layers.nalaformer_attention import NaLaFormerAttention, NaLaFormerState
from plstm.layers.plstm_1d import PLSTM1d, PLSTM1dState
from plstm.layers.plstm_2d import PLSTM2d
from plstm.layers.plstm_graph import PLSTMGraph
from plstm.layers.retnet import RetNet, RetNetState
from plstm.layers.softmax_attention import AttentionState, SoftmaxAttention
from plstm.layers.vision_lstm import VisionLSTM

__all__ = [
    "GLA",
    "MLSTM",
    "AttentionState",
    "DeltaNet",
    "DeltaNetState",
    "FlattenedGrid",
    "GatedDeltaNet",
    "LightNet",
    "LightNetState",
    "LightningAttention",
    "LinearAttention",
    "MLSTMLayerState",
    "Mamba2",
    "Mamba2D",
    "Mamba2State",
    "NaLaFormerAttention",
    "NaLaFormerState",
    "PLSTM1d",
    "PLSTM1dState",
    "PLSTM2d",
    "PLSTMGraph",
    "RetNet",
    "RetNetState",
    "SoftmaxAttention",
    "VisionLSTM",
]
