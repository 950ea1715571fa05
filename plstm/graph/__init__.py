"""Graphs for pLSTM; the parts that need PyTorch Geometric load on first use."""

from typing import TYPE_CHECKING

from plstm.graph.line_graph import LineGraph

if TYPE_CHECKING:
    from plstm.graph.pyg import DagData, ToDag

__all__ = ["DagData", "LineGraph", "ToDag"]


def __getattr__(name: str) -> object:
    if name in ("DagData", "ToDag"):
        from plstm.graph import pyg

        return getattr(pyg, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
