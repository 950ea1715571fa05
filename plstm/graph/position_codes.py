"""Position encodings of nodes: random-walk return probabilities, Laplacian eigenvectors."""

import numpy as np
import torch

from plstm.extras import extra
from plstm.graph.orientation import mix, simple_both_ways
from plstm.graph.topology import IntArray

with extra("graphs", "plstm.graph.position_codes"):
    from scipy.sparse.csgraph import connected_components
    from torch_geometric.data import Data
    from torch_geometric.transforms import AddRandomWalkPE, BaseTransform

NEARLY_LARGEST = 1 - 1e-6  # tolerance, so that rounding does not choose among equal entries


class AddPositionCodes(BaseTransform):
    """Adds position encodings of nodes: data.position_code, (N, random_walk + laplacian).

    The first columns are the probabilities that a random walk returns to a node after 1, 2, ...
    steps, the last ones the entries of `laplacian_vectors`. Nodes without edges have zeros.

    Args:
        random_walk: Number of steps.
        laplacian: Number of eigenvectors.

    Raises:
        ValueError: a number is negative.

    Source: arXiv 2110.07875 (random walks), 2003.00982 (eigenvectors).
    """

    def __init__(self, random_walk: int = 0, laplacian: int = 0) -> None:
        for name, number in {"random_walk": random_walk, "laplacian": laplacian}.items():
            if number < 0:
                raise ValueError(f"AddPositionCodes: {name} must be 0 or more, got {number}")
        self.random_walk, self.laplacian = random_walk, laplacian

    @property
    def width(self) -> int:
        """Number of columns."""
        return self.random_walk + self.laplacian

    def forward(self, data: Data) -> Data:
        """Return data with position_code; edge_index must have both directions of every edge."""
        codes = torch.zeros(data.num_nodes or 0, self.width)
        if data.num_edges and self.random_walk:
            walks = AddRandomWalkPE(self.random_walk, "position_code")(data)
            codes[:, : self.random_walk] = walks.position_code
        if data.num_edges and self.laplacian:
            edges = data.edge_index.cpu().numpy()
            vectors = laplacian_vectors(edges, data.num_nodes, self.laplacian)
            codes[:, self.random_walk :] = torch.from_numpy(vectors)
        data.position_code = codes
        return data

    def __repr__(self) -> str:
        return f"AddPositionCodes(random_walk={self.random_walk}, laplacian={self.laplacian})"


def laplacian_vectors(edge_index: IntArray, num_nodes: int, count: int) -> np.ndarray:
    """Eigenvectors of the normalized Laplacian I - D^(-1/2) A D^(-1/2) of every component.

    They belong to the smallest eigenvalues except the first, which is 0, and have norm 1. If a
    component is too small, the rest is 0. The sign makes the largest entry positive; for repeated
    eigenvalues, the basis is that of the solver.

    Args:
        edge_index: Edges of an undirected graph, (2, E), in one or both directions.
        num_nodes: Number of nodes N.
        count: Number of eigenvectors.

    Returns:
        Entries of the eigenvectors, (N, count).
    """
    codes = np.zeros((num_nodes, count))
    adjacency = np.zeros((num_nodes, num_nodes))
    adjacency[tuple(simple_both_ways(edge_index, num_nodes))] = 1
    num_components, component = connected_components(adjacency, directed=False)
    for number in range(num_components):
        nodes = np.flatnonzero(component == number)
        if nodes.size > 1:
            vectors = _eigenvectors(adjacency[np.ix_(nodes, nodes)])[:, 1 : count + 1]
            codes[nodes, : vectors.shape[1]] = vectors
    return codes


def drawn_signs(seeds: IntArray, count: int) -> np.ndarray:
    """Random signs, (B, count), from a seed per graph, (B,)."""
    columns = np.arange(count, dtype=np.uint64)
    bits = mix(mix(~mix(seeds.astype(np.uint64)))[:, None] ^ columns) >> np.uint64(63)
    return 1.0 - 2.0 * bits.astype(np.float32)


def _eigenvectors(adjacency: np.ndarray) -> np.ndarray:
    """All eigenvectors of a connected graph of two or more nodes, smallest eigenvalues first."""
    scale = adjacency.sum(0) ** -0.5
    laplacian = np.eye(len(adjacency)) - scale[:, None] * adjacency * scale
    vectors = np.linalg.eigh(laplacian)[1]
    size = np.abs(vectors)
    largest = (size > NEARLY_LARGEST * size.max(0)).argmax(0)
    return vectors * np.sign(vectors[largest, np.arange(len(vectors))])
