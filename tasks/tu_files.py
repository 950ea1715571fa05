"""Checks of the raw files of a TU data set; PyG reads some invalid files silently."""

from pathlib import Path

import numpy as np

NEEDED = ("A", "graph_indicator", "graph_labels")
PER_EDGE = ("edge_labels", "edge_attributes")
PER_NODE = ("node_labels", "node_attributes")


def check_files(folder: Path, name: str) -> None:
    """Check that the files of a data set are consistent.

    Args:
        folder: Folder of the files.
        name: Name of the data set, the prefix of the file names.

    Raises:
        ValueError: a file is missing, or its number of lines is not that of nodes, edges or graphs;
            its last line is not terminated; nodes are out of range, unordered, or joined between
            graphs.
    """
    lines = {}
    for what in (*NEEDED, *PER_EDGE, *PER_NODE):
        file = folder / f"{name}_{what}.txt"
        if file.is_file():
            lines[what] = _count_lines(file)
        elif what in NEEDED:
            raise ValueError(f"{file.name} is missing")
    edges = np.loadtxt(folder / f"{name}_A.txt", np.int64, delimiter=",", ndmin=2)
    graph = np.loadtxt(folder / f"{name}_graph_indicator.txt", np.int64, ndmin=1)
    if (np.diff(graph) < 0).any():
        raise ValueError(f"{name}_graph_indicator.txt must not decrease")
    if edges.min() < 1 or edges.max() > len(graph):
        raise ValueError(f"{name}_A.txt has nodes outside 1..{len(graph)}")
    if (graph[edges[:, 0] - 1] != graph[edges[:, 1] - 1]).any():
        raise ValueError(f"{name}_A.txt joins nodes of different graphs")
    for names, count, of in (
        (("graph_labels",), graph[-1], "graphs"),
        (PER_EDGE, len(edges), "edges"),
        (PER_NODE, len(graph), "nodes"),
    ):
        for what in names:
            if lines.get(what, count) != count:
                raise ValueError(f"{name}_{what}.txt has {lines[what]} lines for {count} {of}")


def _count_lines(file: Path) -> int:
    text = file.read_bytes()
    if text and not text.endswith(b"\n"):  # PyG drops it
        raise ValueError(f"the last line of {file.name} must end in a line break")
    return text.count(b"\n")
