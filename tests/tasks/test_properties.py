"""Distances in random graphs against networkx; the data as a function of seed and index."""

import math
from types import SimpleNamespace

import networkx as nx
import pytest
import torch
from torch_geometric.data import Data

from tasks.properties import TARGETS, PropertiesData, draw_property, log10_mse

SIZES = {"num_nodes": (4, 9), "rewired": 0.05}


def as_networkx(data: Data) -> nx.Graph:
    graph = nx.Graph(data.edge_index.T.tolist())
    assert graph.number_of_nodes() == data.num_nodes
    assert 2 * graph.number_of_edges() == data.num_edges  # both directions, once
    return graph


def make(**options: object) -> PropertiesData:
    sizes = {"train_size": 6, "val_size": 3, "test_size": 4, "batch_size": 2}
    return PropertiesData(**{**sizes, **SIZES, **options})


@pytest.mark.parametrize("index", range(12))
def test_targets_are_those_of_networkx(index: int) -> None:
    data = {target: draw_property(3, 1, index, target=target, **SIZES) for target in TARGETS}
    graph = as_networkx(data["diameter"])
    assert 4 <= len(graph) <= 9
    assert (8 * data["diameter"].y).tolist() == pytest.approx([nx.diameter(graph)])
    eccentricity = nx.eccentricity(graph)
    want = [eccentricity[node] for node in range(len(graph))]
    assert (8 * data["eccentricity"].y).tolist() == pytest.approx(want)
    identifier, source = data["shortest_paths"].x.T
    assert sorted(source.tolist()) == [0] * (len(graph) - 1) + [1]
    distance = nx.single_source_shortest_path_length(graph, int(source.argmax()))
    want = [distance[node] for node in range(len(graph))]
    assert (8 * data["shortest_paths"].y).tolist() == pytest.approx(want)
    assert torch.equal(data["eccentricity"].x, identifier[:, None])
    assert len(identifier.unique()) == len(graph)
    assert identifier.min() >= 0 and identifier.max() < 1


def test_graphs_are_a_function_of_seed_split_and_index() -> None:
    def drawn(seed: int, split: int, index: int) -> list:
        data = draw_property(seed, split, index, target="eccentricity", **SIZES)
        return [data.x.tolist(), data.edge_index.tolist(), data.y.tolist()]

    assert drawn(0, 0, 5) == drawn(0, 0, 5)
    others = [(1, 0, 5), (0, 1, 5), (0, 0, 6), (0, 5, 0)]
    assert all(drawn(*other) != drawn(0, 0, 5) for other in others)


@pytest.mark.parametrize("target", TARGETS)
def test_data(target: str) -> None:
    data = make(target=target, laplacian=2)
    per_node = target != "diameter"
    assert (data.in_dim, data.out_dim) == (1 + (target == "shortest_paths"), 1)
    assert data.net_args == {"edge_dim": 0, "encoding_dim": 2, "per_node": per_node}
    assert [len(data.splits[name]) for name in ("train", "val", "test")] == [6, 3, 4]
    seen, targets = 0, []
    for batch in data.train_dataloader():
        seen += batch.num_graphs
        assert len(batch.y) == (batch.num_nodes if per_node else batch.num_graphs)
        assert batch.dag_edge_index.shape[1] == batch.edge_index.shape[1] // 2
        targets.append(batch.y)
    assert seen == 6
    assert torch.equal(torch.cat(targets).sort().values, data.training_targets.sort().values)
    first = draw_property(data.seed, 2, 0, target=target, **SIZES)
    assert torch.equal(next(iter(data.test_dataloader())).y[: len(first.y)], first.y)


def test_a_longer_set_begins_with_the_shorter_one_and_splits_differ() -> None:
    short, long = make().dataset, make(train_size=9).dataset
    assert all(torch.equal(short[i].x, long[i].x) for i in range(6))
    val = [long[9 + i].x for i in range(3)]
    assert all(torch.equal(short[6 + i].x, x) for i, x in enumerate(val))
    first = [short[i].x.flatten()[0].item() for i in range(13)]
    assert len(set(first)) == 13


def test_several_processes_cannot_predict_nodes() -> None:
    data = make()
    data.trainer = SimpleNamespace(distributed_sampler_kwargs={"rank": 0, "num_replicas": 2})
    with pytest.raises(ValueError, match=r"one process must predict nodes, .* got 2; set"):
        data.predict_dataloader()


def test_log10_mse() -> None:
    got = log10_mse(torch.tensor([0.0, 0.2]), torch.tensor([0.0, 0.0]))
    assert got.item() == pytest.approx(math.log10(0.02))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "radius"}, "target must be one of 'diameter', .* got 'radius'"),
        ({"num_nodes": (9, 4)}, r"num_nodes must be .* both in 3\.\.300, got 9 and 4"),
        ({"num_nodes": (2, 4)}, "got 2 and 4"),
        ({"rewired": 0.7}, "rewired must be a fraction from 0 to 0.5, got 0.7"),
        ({"val_size": 0}, "PropertiesData: val_size must be 1 or more, got 0"),
        ({"laplacian": -1}, "laplacian must be 0 or more, got -1"),
        ({"order": "dfs"}, "order must be one of"),
    ],
    ids=str,
)
def test_bad_arguments(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)
