"""Graphs prepared together and kept in memory."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from plstm.extras import extra
from plstm.graph.orientation import node_rank
from plstm.graph.pyg import PAIR_KEYS, DagData, ToDag, both_ways, prepare

with extra("graphs", "plstm.graph.storing"):
    from torch_geometric.data import Data, InMemoryDataset

TOGETHER = 256  # graphs per pack; larger packs take more memory and save no time


class StoredGraphs(InMemoryDataset):
    """Prepared graphs in the in-memory format of PyG, for GraphBatcher."""

    def __init__(self, graphs: Sequence[Data]) -> None:
        super().__init__()
        self.data, self.slices = self.collate(list(graphs))


def prepare_together(graphs: Sequence[Data], to_dag: ToDag) -> Iterator[DagData]:
    """Apply to_dag to every graph, in a fraction of the time.

    Args:
        graphs: Graphs with edge_index.
        to_dag: The transform.
    """
    for start in range(0, len(graphs), TOGETHER):
        part = graphs[start : start + TOGETHER]
        for graph, fields in zip(part, _dag_fields(part, to_dag), strict=True):
            dag = DagData.from_dict(graph.to_dict() | fields)
            yield both_ways(dag) if to_dag.order == "directed" else dag


def _dag_fields(graphs: Sequence[Data], to_dag: ToDag) -> list[dict[str, Tensor]]:
    """The fields that ToDag adds to each graph: computed for one pack, then split."""
    counts = torch.tensor([graph.num_nodes for graph in graphs])
    first, owner = counts.cumsum(0) - counts, torch.arange(len(graphs)).repeat_interleave(counts)
    edges = [g.edge_index + start for g, start in zip(graphs, first, strict=True)]
    packed = Data(edge_index=torch.cat(edges, 1), batch=owner, num_nodes=len(owner))
    if graphs[0].edge_attr is not None:
        packed.edge_attr = torch.cat([graph.edge_attr for graph in graphs])
    ranks = [  # computed per graph
        node_rank(g.edge_index.numpy(), g.num_nodes, to_dag.order, to_dag.seed) + int(start)
        for g, start in zip(graphs, first, strict=True)
    ]
    out = prepare(packed, np.concatenate(ranks))
    edge_owner = owner[out.dag_edge_index[0]]
    first_edge = torch.searchsorted(edge_owner, torch.arange(len(graphs)))
    out.dag_edge_index = out.dag_edge_index - first[edge_owner]
    owners = dict.fromkeys(("dag_edge_index", "edge_level", "dag_edge_attr"), edge_owner)
    for key in PAIR_KEYS:
        owners[key] = edge_owner[out[key][0]]
        out[key] = out[key] - first_edge[owners[key]]
    fields = {
        key: out[key].split(
            torch.bincount(of, minlength=len(graphs)).tolist(), out.__cat_dim__(key, out[key])
        )
        for key, of in owners.items()
        if key in out
    }
    return [dict(zip(fields, row, strict=True)) for row in zip(*fields.values(), strict=True)]
