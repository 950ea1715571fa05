"""GraphBatcher: the same tensors as PyG's own batches, and augmentation of whole batches."""

import pytest
import torch
from torch_geometric.data import Batch, Data, InMemoryDataset

from plstm.graph import LineGraph, ToDag
from plstm.graph.batching import GraphBatcher
from plstm.graph.prepared import add_plans, line_graph
from plstm.graph.pyg import DagData
from tests.graph.test_pyg import KINDS, data


class Memory(InMemoryDataset):
    """Prepared graphs, kept as PyG keeps a data set."""

    def __init__(self, items: list[Data]) -> None:
        super().__init__()
        self.data, self.slices = self.collate(items)


def prepared(order: str = "bfs", edge_attr: bool = True) -> Memory:
    return Memory([ToDag(order)(data(kind, edge_attr)) for kind in KINDS])


@pytest.mark.parametrize("edge_attr", [True, False])
@pytest.mark.parametrize("numbers", [[0], [1], [3, 1, 0, 4], [2, 2]], ids=str)
def test_equals_batches_of_pyg(numbers: list[int], edge_attr: bool) -> None:
    dataset = prepared(edge_attr=edge_attr)
    got = GraphBatcher(dataset)(numbers)
    want = Batch.from_data_list([dataset[i] for i in numbers])
    assert isinstance(got, DagData) and got.num_graphs == want.num_graphs
    keys = set(want.keys()) - {"ptr"}
    assert keys <= set(got.keys())
    for key in keys:
        assert torch.equal(got[key], want[key]), key


def test_graphs_without_features() -> None:
    items = []
    for kind in KINDS:
        item = data(kind, edge_attr=False)
        items.append(ToDag()(Data(edge_index=item.edge_index, num_nodes=item.num_nodes)))
    batch = GraphBatcher(Memory(items))([3, 1])
    assert batch.num_nodes == batch.batch.numel() == 7 and batch.x is None


def test_drawn_orders_prepare_the_whole_batch() -> None:
    dataset = prepared()
    numbers = [4, 1, 2, 3]
    batch = GraphBatcher(dataset)(numbers, order_seeds=[3, 1, 4, -5])
    graph = line_graph(batch)
    want = LineGraph.from_edges(graph.edge_index, graph.num_nodes, batch.batch)
    assert graph.num_graphs == want.num_graphs == len(numbers)
    for one, other in ((graph, want), (graph.reverse(), want.reverse())):
        assert torch.equal(one.line_index, other.line_index)
        assert torch.equal(one.edge_level, other.edge_level)
        assert torch.equal(one.multitree().line_index, other.multitree().line_index)
    assert {frozenset(e) for e in batch.edge_index.T.tolist()} == {
        frozenset(e) for e in graph.edge_index.T.tolist()
    }
    stored = GraphBatcher(dataset)(numbers)  # as data() makes them: sums of local node numbers
    first = torch.bincount(batch.batch).cumsum(0) - torch.bincount(batch.batch)
    local = graph.edge_index - first[batch.batch[graph.edge_index[0]]]
    assert torch.equal(batch.dag_edge_attr[:, 0], local.sum(0).float())
    assert torch.equal(batch.x, stored.x) and torch.equal(batch.y, stored.y)


@pytest.mark.parametrize("order_seeds", [None, [3, 1, 4, 5]])
def test_batches_carry_plans(order_seeds: list[int] | None, monkeypatch) -> None:
    """Nothing is left to plan, in either mode and direction, and pairs of entries are the same."""
    numbers, dataset = [4, 1, 2, 3], prepared()
    plain = line_graph(GraphBatcher(dataset)(numbers, order_seeds))
    want = [graph.reach_plan() for graph in (plain, plain.multitree())]
    batch = GraphBatcher(dataset, plans=True)(numbers, order_seeds)
    monkeypatch.setattr("plstm.graph.line_graph.make_reach_plan", None)
    graph = line_graph(batch)
    for part, plan in zip((graph, graph.multitree().reverse()), want, strict=True):
        assert all(map(torch.equal, part.paying_reach_plan(24, 24), plan))


def test_a_plan_that_does_not_pay_is_not_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = torch.arange(300)
    path = Data(edge_index=torch.stack([nodes[:-1], nodes[1:]]), num_nodes=300)
    batch = add_plans(ToDag("given")(path))
    assert "line_entries" not in batch and batch.planned
    monkeypatch.setattr("plstm.graph.line_graph.make_reach_plan", None)
    assert line_graph(batch).paying_reach_plan(24, 24) is None


def test_plans_move_with_the_batch_and_sizes_stay() -> None:
    batch = GraphBatcher(prepared(), plans=True)([0, 4])
    moved = batch.clone().to("meta", non_blocking=True)
    assert moved.x.is_meta and moved.line_entries.is_meta and moved.tree_products.is_meta
    assert torch.equal(moved.line_sizes, batch.line_sizes)
    graph = line_graph(moved)
    assert graph.reach_plan().nodes.is_meta and not graph.multitree().reach_plan().sizes.is_meta


def test_drawn_order_of_a_graph_depends_on_its_seed_alone() -> None:
    batcher = GraphBatcher(prepared())

    def first(numbers: list[int], seeds: list[int]) -> list[list[int]]:
        batch = batcher(numbers, order_seeds=seeds)
        own = batch.batch[batch.dag_edge_index[0]] == 0
        return batch.dag_edge_index[:, own].tolist()

    alone = first([4], [7])
    assert first([4, 0], [7, 1]) == first([4, 1, 3], [7, 8, 9]) == alone
    assert len({str(first([4], [seed])) for seed in range(8)}) > 1
