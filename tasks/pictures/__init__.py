"""Pictures of a run: saved as PNG in its folder and sent to the logger."""

from tasks.pictures.callback import Pictures

__all__ = ["Pictures"]
