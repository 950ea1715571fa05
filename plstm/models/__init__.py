"""Models: an embedding, blocks of any mixer, a head."""

from plstm.models.sequence import SequenceModel
from plstm.models.vision import VisionModel

__all__ = ["SequenceModel", "VisionModel"]
