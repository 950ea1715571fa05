"""Pictures of a run: saved as PNG in its folder and sent to the logger."""

from tasks.callbacks.pictures.callback import Pictures

__all__ = ["Pictures"]
