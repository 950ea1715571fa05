"""Graphs prepared together equal those prepared one by one."""

import numpy as np
import pytest
import torch
from torch_geometric.data import Data

from plstm.graph import ToDag, storing
from plstm.graph.batching import GraphBatcher
from plstm.graph.pyg import DagData
from plstm.graph.storing import StoredGraphs, prepare_together
from tests.graph.graphs import random_dag
from tests.graph.test_pyg import KINDS, data


def dags(edge_attr: bool) -> list[Data]:
    """Directed graphs of 1 to 9 nodes, some without edges."""
    graphs, rng = [], np.random.default_rng(0)
    for size in (4, 1, 9, 3, 7):
        edges = torch.from_numpy(random_dag(size, 0.5 * (size != 3), rng))
        graphs.append(Data(x=torch.randn(size, 3), edge_index=edges, y=torch.tensor([size])))
        if edge_attr:
            graphs[-1].edge_attr = torch.randn(edges.shape[1], 2)
    return graphs


@pytest.mark.parametrize("edge_attr", [True, False])
@pytest.mark.parametrize("order", ["bfs", "given", "random", "directed"])
def test_equals_one_by_one(order: str, edge_attr: bool, monkeypatch) -> None:
    monkeypatch.setattr(storing, "TOGETHER", 2)
    graphs = dags(edge_attr) if order == "directed" else [data(kind, edge_attr) for kind in KINDS]
    to_dag = ToDag(order, seed=3)
    together = list(prepare_together(graphs, to_dag))
    for got, want in zip(together, map(to_dag, graphs), strict=True):
        assert isinstance(got, DagData) and set(got.keys()) == set(want.keys())
        for key, value in want.items():
            assert torch.equal(got[key], value), key
    batch = GraphBatcher(StoredGraphs(together))([4, 1])
    assert batch.num_nodes == graphs[4].num_nodes + graphs[1].num_nodes
