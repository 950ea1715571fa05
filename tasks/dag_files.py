"""Files of DAGs: JSON lines, neural architectures of D-VAE, PyG data sets."""

import bz2
import gzip
import json
import lzma
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data, InMemoryDataset

from plstm.graph.topology import find_cycle

OPENERS = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
EXAMPLE = '{"nodes": ["a", "b"], "edges": [[0, 1]], "target": 0.5}'
Kind = str | int


class Dag(NamedTuple):
    """One graph of a file."""

    nodes: Sequence[Kind] | Sequence[Sequence[float]]  # kinds, or features
    edges: Sequence[tuple[int, int]]  # [src, dst], node indices from 0
    target: Sequence[float] | None  # NaN if not measured


class DagFile(NamedTuple):
    """Contents of a file of DAGs."""

    graphs: list[Data]  # with x, edge_index and y (1, number of targets)
    lines: list[int]  # line number of each graph, from 1
    kinds: list[str]  # node kinds, empty if nodes have features


def read_dags(
    path: Path, kinds: Sequence[str] | None = None, targets: int | None = None
) -> DagFile:
    """Read a file of DAGs.

    A file of JSON lines, which may be compressed (.gz, .xz, .bz2), has one graph per line:

        {"nodes": ["conv", "pool"], "edges": [[0, 1]], "target": 0.73}

    Nodes are kinds (strings or integers, which become one-hot features) or lists of numbers; edges
    go from the first to the second node index, from 0; the target is a number, a list of numbers,
    or null if not measured. Lines of D-VAE, [[op], [op, bit], ...], accuracy, are converted to such
    graphs, see `architecture`. A .pt file is one written by InMemoryDataset.save of PyG, with x,
    directed edge_index, y and optional edge_attr.

    Args:
        path: The file.
        kinds: Node kinds in the order of the features; those of the file, sorted, if None.
        targets: Number of targets, which lines may then omit; that of the first line if None.

    Raises:
        ValueError: names the line and the rule it breaks.
    """
    if not path.is_file():
        raise ValueError(f"DagsData: there is no file {path}; set --data.path")
    if path.suffix == ".pt":
        graphs = _read_saved(path, targets)
        return DagFile(graphs, list(range(1, len(graphs) + 1)), [])
    dags = list(_parsed(path))
    if not dags:
        raise ValueError(f"DagsData: {path} has no graphs; a line is {EXAMPLE}")
    return _encoded(dags, kinds, targets, path)


def architecture(layers: Sequence[Sequence[int]], accuracy: float) -> Dag:
    """The DAG of a neural architecture in the format of D-VAE (arXiv 1904.11088).

    Node 0 is the input, node i + 1 the i-th layer with its operation, the last node the output;
    each node has an edge to the next one, and bit j of a layer adds an edge from node j.
    """
    names = ["input", *(str(operation) for operation, *_ in layers), "output"]
    edges = [(node, node + 1) for node in range(len(layers) + 1)]
    for node, (_, *bits) in enumerate(layers, 1):
        edges += [(earlier, node) for earlier, bit in enumerate(bits) if bit]
    return Dag(names, edges, [accuracy])


def _parsed(path: Path) -> Iterator[tuple[int, Dag]]:
    """Every graph with its line number."""
    with OPENERS.get(path.suffix, open)(path, "rt", encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    dag = _parse(line)
                    _check(dag)
                except (ValueError, TypeError, KeyError) as error:  # from JSON or our checks
                    raise _wrong(path, number, error) from error
                yield number, dag


def _wrong(path: Path, number: int, error: Exception) -> ValueError:
    what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
    return ValueError(f"DagsData: line {number} of {path}: {what}; a line is {EXAMPLE}")


def _parse(line: str) -> Dag:
    if line.lstrip().startswith("["):
        return architecture(*json.loads(f"[{line}]"))
    fields = json.loads(line)
    if unknown := fields.keys() - {"nodes", "edges", "target"}:
        raise ValueError(f"unknown {', '.join(sorted(unknown))}")
    edges = [tuple(edge) for edge in fields["edges"]]
    if "target" not in fields:
        return Dag(fields["nodes"], edges, None)
    target = fields["target"]
    numbers = target if isinstance(target, list) else [target]
    numbers = [math.nan if number is None else float(number) for number in numbers]
    return Dag(fields["nodes"], edges, numbers)


def _check(dag: Dag) -> None:
    if not isinstance(dag.nodes, list):
        raise ValueError(f"nodes must be a list, got {dag.nodes!r}")
    count = len(dag.nodes)
    if count == 0:
        raise ValueError("nodes must be one or more")
    for edge in dag.edges:
        if len(edge) != 2 or not all(type(node) is int and 0 <= node < count for node in edge):
            raise ValueError(f"an edge must be two of the nodes 0..{count - 1}, got {list(edge)}")
    if len(set(dag.edges)) < len(dag.edges):
        twice = next(edge for edge in dag.edges if dag.edges.count(edge) > 1)
        raise ValueError(f"an edge must occur once, got {list(twice)} twice")
    ascends = all(src < dst for src, dst in dag.edges)  # usual, and faster than a search for cycles
    if not ascends and (cycle := find_cycle(_edge_array(dag), count)):
        raise ValueError(f"a DAG has no cycle, got a cycle of nodes {', '.join(map(str, cycle))}")


def _edge_array(dag: Dag) -> np.ndarray:
    return np.array(dag.edges, dtype=np.int64).reshape(-1, 2).T


def _encoded(
    dags: list[tuple[int, Dag]], kinds: Sequence[str] | None, targets: int | None, path: Path
) -> DagFile:
    """Convert graphs to PyG; all nodes and targets must have the same form."""
    first = dags[0][1]
    absent = None if targets is None else [math.nan] * targets
    targets = targets or len(first.target or [])
    if isinstance(first.nodes[0], list):
        known, width = [], len(first.nodes[0])
        features = lambda dag: _numbers(dag, width)  # noqa: E731
    else:
        found = {str(node) for _, dag in dags for node in dag.nodes}
        known = list(kinds) if kinds is not None else sorted(found)
        place = {kind: number for number, kind in enumerate(known)}
        features = lambda dag: _one_hot(dag, place)  # noqa: E731
    graphs = []
    for number, dag in dags:
        try:
            graphs.append(_as_data(dag, features, dag.target or absent, targets))
        except (ValueError, TypeError) as error:
            raise _wrong(path, number, error) from error
    return DagFile(graphs, [number for number, _ in dags], known)


def _as_data(
    dag: Dag, features: Callable[[Dag], Tensor], target: Sequence[float] | None, targets: int
) -> Data:
    if not target:
        raise ValueError("the target is missing")
    if len(target) != targets:
        raise ValueError(f"every line must have as many targets, {targets}, got {target}")
    edges = torch.from_numpy(_edge_array(dag).copy())
    return Data(x=features(dag), edge_index=edges, y=torch.tensor([target]))


def _numbers(dag: Dag, width: int) -> Tensor:
    if not all(isinstance(node, list) and len(node) == width for node in dag.nodes):
        raise ValueError(f"every node must be a list of {width} numbers as in the first line")
    return torch.tensor(dag.nodes, dtype=torch.float32)


def _one_hot(dag: Dag, place: dict[str, int]) -> Tensor:
    if not all(isinstance(node, Kind) for node in dag.nodes):
        raise ValueError("every node must be a kind, text or an integer, as in the first line")
    names = [str(node) for node in dag.nodes]
    if unknown := set(names) - place.keys():
        raise ValueError(
            f"unknown kinds of nodes {', '.join(sorted(unknown))}, known are {', '.join(place)}"
        )
    numbers = torch.tensor([place[name] for name in names])
    return torch.nn.functional.one_hot(numbers, len(place)).float()


class _Saved(InMemoryDataset):
    """A data set written by InMemoryDataset.save."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.load(str(path))


def _read_saved(path: Path, targets: int | None) -> list[Data]:
    try:
        graphs = list(_Saved(path))
    except Exception as error:  # the readers raise various errors
        raise ValueError(
            f"DagsData: {path} must be a file of InMemoryDataset.save of PyG ({error})"
        ) from error
    for number, graph in enumerate(graphs):
        if cycle := find_cycle(graph.edge_index.numpy(), graph.num_nodes):
            nodes = ", ".join(map(str, cycle))
            raise ValueError(
                f"DagsData: graph {number} of {path} must have no cycle, got cycle {nodes}"
            )
        absent = targets is not None and graph.y is None
        graph.y = torch.full((1, targets), math.nan) if absent else graph.y.float().reshape(1, -1)
    return graphs
