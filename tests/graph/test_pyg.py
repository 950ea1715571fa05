"""ToDag and DagData with PyTorch Geometric: batching, pickling, lazy import."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch_geometric.data import Batch, Data
from torch_geometric.datasets import TUDataset
from torch_geometric.loader import DataLoader

from plstm.graph import DagData, LineGraph, ToDag
from plstm.graph.prepared import line_graph
from tests.graph.graphs import molecule, real_tu_root

KINDS = ["ring", "node", "apart", "tree", "ring"]


def data(kind: str, edge_attr: bool = True) -> Data:
    edge_index, size = molecule(kind)
    out = Data(x=torch.randn(size, 3), edge_index=edge_index, y=torch.tensor([1]))
    if edge_attr:  # the same value in both directions
        out.edge_attr = edge_index.sum(0, keepdim=True).T.float()
    return out


@pytest.mark.parametrize("kind", sorted(set(KINDS)))
@pytest.mark.parametrize("order", ["bfs", "given", "random"])
def test_transform_keeps_data_and_prepares_a_valid_line_graph(kind: str, order: str) -> None:
    before = data(kind)
    dag = ToDag(order, seed=0)(before)
    assert isinstance(dag, DagData) and not isinstance(before, DagData)
    for key in ("x", "edge_index", "edge_attr", "y"):
        assert torch.equal(dag[key], before[key])
    assert torch.equal(dag.dag_edge_attr[:, 0], dag.dag_edge_index.sum(0).float())
    want = LineGraph.from_edges(dag.dag_edge_index, dag.num_nodes)
    got = line_graph(dag)
    for one, other in ((got, want), (got.reverse(), want.reverse())):
        assert torch.equal(one.line_index, other.line_index)
        assert torch.equal(one.edge_level, other.edge_level)
        assert torch.equal(one.multitree().line_index, other.multitree().line_index)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_loader_batches_with_offsets(num_workers: int) -> None:
    items = [ToDag()(data(kind)) for kind in KINDS]
    (batch,) = DataLoader(items, batch_size=len(items), num_workers=num_workers)
    src, dst = batch.dag_edge_index
    for pairs in (batch.line_index, batch.tree_index):
        assert torch.equal(dst[pairs[0]], src[pairs[1]])
    graph = line_graph(batch)
    checked = LineGraph(
        graph.edge_index,
        graph.line_index,
        graph.num_nodes,
        batch.batch,
        edge_level=graph.edge_level,
    )
    assert checked.num_graphs == graph.num_graphs == len(KINDS)
    want = LineGraph.from_edges(graph.edge_index, graph.num_nodes, batch.batch)
    assert torch.equal(graph.edge_level, want.edge_level)
    assert torch.equal(graph.reverse().edge_level, want.reverse().edge_level)
    tree = set(map(tuple, graph.multitree().line_index.T.tolist()))
    assert tree == set(map(tuple, want.multitree().line_index.T.tolist()))
    for item, back in zip(items, batch.to_data_list(), strict=True):
        assert isinstance(back, DagData)
        for key, value in item.items():
            assert torch.equal(back[key], value)


def test_no_edge_attributes_and_no_edges() -> None:
    dag = ToDag()(data("tree", edge_attr=False))
    assert "dag_edge_attr" not in dag
    empty = ToDag()(Data(x=torch.ones(3, 1), edge_index=torch.zeros(2, 0, dtype=torch.int64)))
    batch = Batch.from_data_list([empty, empty])
    assert batch.dag_edge_index.shape == (2, 0) and line_graph(batch).num_graphs == 2


def test_random_order_as_augmentation() -> None:
    item = data("ring")
    fresh, fixed = ToDag("random"), ToDag("random", seed=5)
    assert any(
        not torch.equal(fresh(item).dag_edge_index, fresh(item).dag_edge_index) for _ in range(5)
    )
    assert torch.equal(fixed(item).dag_edge_index, fixed(item).dag_edge_index)
    again = fresh(fixed(item))  # a prepared graph gets new arrays, consistent with each other
    assert LineGraph(again.dag_edge_index, again.line_index, 8, edge_level=again.edge_level)


def test_directed_graphs_keep_their_edges_and_get_the_reverse_ones_for_message_passing() -> None:
    edges = torch.tensor([[2, 0, 2], [0, 1, 1]])
    before = Data(x=torch.randn(3, 2), edge_index=edges, edge_attr=torch.arange(3.0)[:, None])
    dag = ToDag("directed")(before)
    assert torch.equal(dag.dag_edge_index, torch.tensor([[2, 2, 0], [0, 1, 1]]))
    assert dag.dag_edge_attr.flatten().tolist() == [0, 2, 1]
    assert torch.equal(dag.edge_index, torch.cat([edges, edges.flip(0)], 1))
    assert dag.edge_attr.flatten().tolist() == [0, 1, 2, 0, 1, 2]
    assert torch.equal(before.edge_index, edges)


def test_repr_lists_every_option_and_order_is_checked() -> None:
    assert repr(ToDag()) == "ToDag(order='bfs', seed=None)"
    assert repr(ToDag("random", seed=3)) == "ToDag(order='random', seed=3)"
    with pytest.raises(ValueError, match="ToDag: order must be one of"):
        ToDag("dfs")


def test_saves_with_weights_only_and_pickles(tmp_path: Path) -> None:
    dag = ToDag()(data("ring"))
    torch.save((dag.to_dict(), DagData), tmp_path / "dag.pt")  # as PyG caches a data set
    fields, cls = torch.load(tmp_path / "dag.pt", weights_only=True)
    assert cls is DagData and torch.equal(fields["tree_index"], dag.tree_index)
    assert torch.equal(pickle.loads(pickle.dumps(dag)).line_index, dag.line_index)


def test_plstm_does_not_import_torch_geometric() -> None:
    code = (
        "import sys, plstm, plstm.graph, plstm.models.graph, plstm.models.gnn\n"
        "assert 'torch_geometric' not in sys.modules and 'lightning' not in sys.modules\n"
        "plstm.graph.ToDag\n"
        "assert 'torch_geometric' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unprepared_data() -> None:
    with pytest.raises(ValueError, match="got Data without dag_edge_index; apply"):
        line_graph(data("ring"))


def test_unknown_name() -> None:
    import plstm.graph

    with pytest.raises(AttributeError, match="no attribute 'ToDAG'"):
        _ = plstm.graph.ToDAG


def test_real_molecules(tmp_path: Path) -> None:
    """NCI1 has 399 graphs with isolated nodes; half a thousand of its graphs in one batch."""
    root = real_tu_root("NCI1", tmp_path)
    items = [ToDag()(item) for item in TUDataset(str(root), "NCI1")[:500]]
    batch = Batch.from_data_list(items)
    graph = line_graph(batch)
    want = LineGraph.from_edges(graph.edge_index, graph.num_nodes, batch.batch)
    assert torch.equal(graph.edge_level, want.edge_level)
    assert torch.equal(graph.reverse().edge_level, want.reverse().edge_level)
    tree = set(map(tuple, graph.multitree().line_index.T.tolist()))
    assert tree == set(map(tuple, want.multitree().line_index.T.tolist()))
    undirected = {tuple(sorted(edge)) for edge in batch.edge_index.T.tolist()}
    assert len(undirected) == graph.num_edges
