"""Models: embedding, blocks of any mixer, head."""

from plstm.models.gnn import GNNModel
from plstm.models.graph import GraphModel
from plstm.models.pretrained import Pretrained
from plstm.models.sequence import SequenceModel, SequenceState
from plstm.models.state import state_size
from plstm.models.vision import VisionModel

__all__ = [
    "GNNModel",
    "GraphModel",
    "Pretrained",
    "SequenceModel",
    "SequenceState",
    "VisionModel",
    "state_size",
]
