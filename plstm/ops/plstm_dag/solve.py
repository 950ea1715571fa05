"""Parallel form: gating matrices of many graphs by one batched solve per size class."""

from dataclasses import dataclass

import torch
from torch import Tensor

from plstm.graph.line_graph import LineGraph

_SMALLEST, _GROWTH = 16, 1.5  # graphs of up to 16, 24, 36, ... edges share dense arrays


@dataclass(frozen=True)
class Bucket:
    """Graphs of similar size, and where their nodes, edges and pairs go in padded dense arrays."""

    graphs: int  # g
    nodes: int  # padded nodes per graph n
    edges: int  # padded edges per graph e
    node: Tensor  # nodes of these graphs; node_slot into (g * n)
    node_slot: Tensor
    edge: Tensor  # edges; source_slot into (g * e * n), mark_slot into (g * n * e)
    source_slot: Tensor
    mark_slot: Tensor
    pair: Tensor  # pairs; pair_slot into (g * e * e), row = outgoing, edges in topological order
    pair_slot: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.graphs, self.nodes, self.edges


def solve_plan(graph: LineGraph) -> list[Bucket]:
    """Sort the graphs that have edges into size classes."""
    node_graph, (src, dst) = graph.node_graph, graph.edge_index
    edge_graph, num_graphs = node_graph[src], graph.num_graphs
    edge_count = torch.bincount(edge_graph, minlength=num_graphs)
    node_pos = _positions(node_graph, num_graphs)
    order = torch.argsort(graph.edge_level, stable=True)
    order = order[torch.argsort(edge_graph[order], stable=True)]
    edge_pos = torch.empty_like(order)
    edge_pos[order] = _positions(edge_graph[order], num_graphs)
    (incoming, outgoing), pair_graph = graph.line_index, edge_graph[graph.line_index[0]]
    buckets = []
    for members in _size_classes(edge_count):
        local = members.cumsum(0) - 1  # number of a graph within its class
        node, edge, pair = (
            members[x].nonzero()[:, 0] for x in (node_graph, edge_graph, pair_graph)
        )
        n, e = int(node_pos[node].max()) + 1, int(edge_pos[edge].max()) + 1
        g, end, start = local[edge_graph[edge]], outgoing[pair], incoming[pair]
        bucket = Bucket(
            graphs=int(members.sum()),
            nodes=n,
            edges=e,
            node=node,
            node_slot=local[node_graph[node]] * n + node_pos[node],
            edge=edge,
            source_slot=(g * e + edge_pos[edge]) * n + node_pos[src[edge]],
            mark_slot=(g * n + node_pos[dst[edge]]) * e + edge_pos[edge],
            pair=pair,
            pair_slot=(local[pair_graph[pair]] * e + edge_pos[end]) * e + edge_pos[start],
        )
        buckets.append(bucket)
    return buckets


def solve_cost(graph: LineGraph, qk_dim: int, v_dim: int) -> int:
    """Multiply-adds of the forward pass per head, found without the plan."""
    node_graph, num_graphs = graph.node_graph, graph.num_graphs
    node_count = torch.bincount(node_graph, minlength=num_graphs)
    edge_count = torch.bincount(node_graph[graph.edge_index[0]], minlength=num_graphs)
    cost = 0
    for members in _size_classes(edge_count):
        n, e = int(node_count[members].max()), int(edge_count[members].max())
        cost += int(members.sum()) * n * (e * e // 2 + n * e + n * (qk_dim + v_dim))
    return cost


def plstm_dag_solve(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    source: Tensor,
    transition: Tensor,
    mark: Tensor,
    direct: Tensor,
    graph: LineGraph,
    scale: float,
) -> Tensor:
    """Equation (3): G = M (I - T)^-1 S, then G times (q k^T) times v; arguments as in plstm_dag."""
    out = direct[..., None] * (q * k).sum(-1, keepdim=True) * v
    for bucket in graph.cached("solve_plan", solve_plan):
        gates = _gating_matrix(source, transition, mark, bucket)
        q_, k_, v_ = (_padded(x, bucket) for x in (q, k, v))  # g H n width
        read = (gates * (q_ @ k_.transpose(-1, -2))) @ v_
        out = out.index_add(0, bucket.node, read.transpose(1, 2).flatten(0, 1)[bucket.node_slot])
    return scale * out


def _gating_matrix(source: Tensor, transition: Tensor, mark: Tensor, bucket: Bucket) -> Tensor:
    """M (I - T)^-1 S for every graph and head, (g, H, n, n)."""
    n, e = bucket.nodes, bucket.edges
    minus_t = _dense(-transition[bucket.pair], bucket.pair_slot, (bucket.graphs, e, e))
    s = _dense(source[bucket.edge], bucket.source_slot, (bucket.graphs, e, n))
    m = _dense(mark[bucket.edge], bucket.mark_slot, (bucket.graphs, n, e))
    # unitriangular: the diagonal counts as ones, so -T stands for I - T
    return m @ torch.linalg.solve_triangular(minus_t, s, upper=False, unitriangular=True)


def _dense(values: Tensor, slot: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Scatter values (count, H) into (g, H, rows, columns); equal slots add up."""
    g, rows, columns = shape
    heads, size = values.shape[1], rows * columns
    head = torch.arange(heads, device=slot.device)[:, None]
    index = (slot // size * heads + head) * size + slot % size  # H count
    flat = values.new_zeros(g * heads * size).index_add(0, index.flatten(), values.T.flatten())
    return flat.view(g, heads, rows, columns)


def _padded(x: Tensor, bucket: Bucket) -> Tensor:
    """The nodes of a bucket from x (N, H, W) in (g, H, n, W), zeros in the padding."""
    g, n, _ = bucket.shape
    dense = x.new_zeros(g * n, *x.shape[1:]).index_copy(0, bucket.node_slot, x[bucket.node])
    return dense.view(g, n, *x.shape[1:]).transpose(1, 2)


def _size_classes(edge_count: Tensor) -> list[Tensor]:
    """Masks over the graphs, one per class of edge counts; graphs without edges are in none."""
    masks, low, high = [], 0, _SMALLEST
    largest = int(edge_count.max()) if edge_count.numel() else 0
    while low < largest:
        mask = (edge_count > low) & (edge_count <= high)
        if bool(mask.any()):
            masks.append(mask)
        low, high = high, int(high * _GROWTH)
    return masks


def _positions(group: Tensor, num_groups: int) -> Tensor:
    """Position of every element in its group; `group` is ascending."""
    counts = torch.bincount(group, minlength=num_groups)
    first = counts.cumsum(0) - counts
    return torch.arange(group.numel(), device=group.device) - first[group]
