"""Position encodings against their definitions and PyG's transforms, on odd graphs too."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_geometric.data import Batch, Data
from torch_geometric.transforms import AddLaplacianEigenvectorPE, Compose

from plstm.graph import ToDag
from plstm.graph.batching import GraphBatcher
from plstm.graph.position_encodings import AddPositionEncodings, drawn_signs, laplacian_vectors
from plstm.graph.storing import StoredGraphs
from tests.graph.graphs import molecule

KINDS = ["ring", "node", "apart", "tree"]


def graph(kind: str) -> Data:
    edge_index, size = molecule(kind)
    return Data(edge_index=edge_index, num_nodes=size)


def codes(data: Data, **options: int) -> Tensor:
    return AddPositionEncodings(**options)(data).position_encoding


@pytest.mark.parametrize("kind", KINDS)
def test_walks_return_with_the_powers_of_the_transition_matrix(kind: str) -> None:
    data = graph(kind)
    adjacency = torch.zeros(data.num_nodes, data.num_nodes, dtype=torch.float64)
    adjacency[tuple(data.edge_index)] = 1
    step = adjacency / adjacency.sum(1, keepdim=True).clamp(min=1)
    powers = [torch.matrix_power(step, n).diagonal() for n in range(1, 6)]
    torch.testing.assert_close(codes(data, random_walk=5), torch.stack(powers, 1).float())


def test_eigenvectors_are_those_of_pyg() -> None:
    """For a connected graph with distinct eigenvalues, up to the sign."""
    data = graph("ring")
    data.edge_index = torch.cat([data.edge_index, torch.tensor([[0, 2], [2, 0]])], 1)
    want = AddLaplacianEigenvectorPE(5, attr_name="code", is_undirected=True)(data).code
    got = codes(data, laplacian=5)
    torch.testing.assert_close(got.abs(), want.abs().float(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_eigenvectors_of_components(kind: str) -> None:
    """Components are independent; missing eigenvectors are 0."""
    edges, size = (x.numpy() if isinstance(x, Tensor) else x for x in molecule(kind))
    vectors = laplacian_vectors(edges, size, 9)
    adjacency = np.zeros((size, size))
    adjacency[tuple(edges)] = 1
    scale = np.maximum(adjacency.sum(0), 1) ** -0.5
    laplacian = np.diag((adjacency.sum(0) > 0) * 1.0) - scale[:, None] * adjacency * scale
    sizes = {"ring": [8], "tree": [6], "apart": [2, 3, 1, 1], "node": [1]}[kind]
    parts = np.split(np.arange(size), np.cumsum(sizes)[:-1])
    for nodes in parts:
        own = vectors[nodes]
        inside = laplacian[np.ix_(nodes, nodes)]
        values = np.linalg.eigvalsh(inside)[1:10]
        assert not own[:, len(values) :].any()
        own = own[:, : len(values)]
        np.testing.assert_allclose(own.T @ own, np.eye(len(values)), atol=1e-12)
        np.testing.assert_allclose(inside @ own, own * values, atol=1e-12)
        assert (own.max(0) >= -own.min(0) * (1 - 1e-5)).all()  # the largest entry is positive


def test_a_component_is_coded_as_if_it_were_alone() -> None:
    edges, size = molecule("tree")
    alone = laplacian_vectors(edges.numpy(), size, 4)
    beside = laplacian_vectors(np.concatenate([edges.numpy() + 3, [[0], [1]]], 1), size + 3, 4)
    np.testing.assert_array_equal(beside[3:], alone)


def test_loops_directions_and_repeated_edges_change_no_eigenvector() -> None:
    edges, size = molecule("ring")
    once = edges[:, : edges.shape[1] // 2].numpy()
    more = np.concatenate([once, [[1, 1], [1, 2]]], 1)
    want = laplacian_vectors(edges.numpy(), size, 3)
    np.testing.assert_array_equal(laplacian_vectors(more, size, 3), want)


@pytest.mark.parametrize("data", [Data(num_nodes=3), Data(num_nodes=0), graph("node")], ids=str)
def test_graphs_without_edges(data: Data) -> None:
    assert torch.equal(codes(data, random_walk=2, laplacian=3), torch.zeros(data.num_nodes, 5))


def test_the_transform_keeps_what_is_given_and_names_its_options() -> None:
    transform, data = AddPositionEncodings(2, 3), graph("ring")
    assert repr(transform) == "AddPositionEncodings(random_walk=2, laplacian=3)"
    assert transform(data).position_encoding.shape == (8, 5) and "position_encoding" not in data
    with pytest.raises(ValueError, match="AddPositionEncodings: laplacian must be 0 or more"):
        AddPositionEncodings(2, -1)


def test_signs_follow_from_the_seed_of_each_graph() -> None:
    signs = drawn_signs(np.arange(-500, 500), 4)
    assert set(np.unique(signs)) == {-1.0, 1.0}
    assert (np.abs(signs.mean(0)) < 0.15).all()
    assert np.array_equal(drawn_signs(np.array([7, 3]), 2), drawn_signs(np.array([3, 7]), 2)[::-1])


def test_batches_draw_signs_of_the_last_columns() -> None:
    prepare = Compose([ToDag(), AddPositionEncodings(2, 3)])
    stored = StoredGraphs([prepare(graph(kind)) for kind in KINDS])
    batcher, numbers = GraphBatcher(stored, signed=3), [3, 0, 0]
    want = Batch.from_data_list([stored[i] for i in numbers]).position_encoding
    assert torch.equal(batcher(numbers).position_encoding, want)
    seeds = [5, -9, 4]
    signs = torch.from_numpy(drawn_signs(np.asarray(seeds), 3))
    assert len(signs.unique(dim=0)) > 1
    batch = batcher(numbers, sign_seeds=seeds)
    assert torch.equal(batch.position_encoding[:, :2], want[:, :2])
    assert torch.equal(batch.position_encoding[:, 2:], want[:, 2:] * signs[batch.batch])
    assert torch.equal(batcher(numbers).position_encoding, want)  # those of the data set stay
