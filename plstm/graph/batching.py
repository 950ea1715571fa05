"""Batches of graphs from a stored data set, without a Python loop over graphs."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from plstm.extras import extra
from plstm.graph.orientation import drawn_rank
from plstm.graph.position_codes import drawn_signs
from plstm.graph.prepared import add_plans
from plstm.graph.pyg import DAG_KEYS, PAIR_KEYS, DagData, prepare

with extra("graphs", "plstm.graph.batching"):
    from torch_geometric.data import InMemoryDataset


class GraphBatcher:
    """Packs graphs with the given indices into one DagData; a `collate_fn` for lists of indices.

    All tensors equal those of PyG's Batch.from_data_list; several times faster.

    Args:
        dataset: Graphs prepared by ToDag as pre_transform, in the in-memory format of PyG; not an
            index_select of it.
        plans: Add the plans of plstm_dag to batches, computed by the loader.
        signed: Number of trailing columns of position_code with arbitrary signs.
    """

    def __init__(self, dataset: InMemoryDataset, plans: bool = False, signed: int = 0) -> None:
        self.plans, self.signed = plans, signed
        self.data, self.slices = dataset._data, dataset.slices
        self.keys = [k for k in self.slices if isinstance(self.data[k], Tensor)]
        if "x" in self.slices:
            self.num_nodes = self.slices["x"].diff()
        else:
            self.num_nodes = torch.tensor([dataset.get(i).num_nodes for i in range(dataset.len())])

    def __call__(
        self,
        numbers: Sequence[int],
        order_seeds: Sequence[int] | None = None,
        sign_seeds: Sequence[int] | None = None,
    ) -> DagData:
        """Pack one batch, with `batch` (N,) and `num_graphs`.

        Args:
            numbers: Indices of B graphs.
            order_seeds: A seed per graph, for a new DAG with a random node order; None keeps the
                DAGs of the data set.
            sign_seeds: A seed per graph, for the signs of its position encodings; None keeps those
                of the data set.
        """
        graphs = torch.as_tensor(numbers)
        counts = self.num_nodes[graphs]
        out = DagData(num_nodes=int(counts.sum()), num_graphs=len(numbers))
        out.batch = torch.arange(len(numbers)).repeat_interleave(counts)
        for key in self.keys:
            if order_seeds is None or key not in DAG_KEYS:
                out[key] = self._cut(key, graphs)
        if order_seeds is not None:
            nodes = _ranges(torch.zeros_like(counts), counts).numpy()
            out = prepare(out, drawn_rank(np.asarray(order_seeds)[out.batch.numpy()], nodes))
        if self.signed and sign_seeds is not None:
            signs = torch.from_numpy(drawn_signs(np.asarray(sign_seeds), self.signed))
            out.position_code[:, -self.signed :] *= signs[out.batch]
        return add_plans(out) if self.plans else out

    def _cut(self, key: str, graphs: Tensor) -> Tensor:
        """Concatenate the entries of all graphs, with indices offset per graph."""
        start, count = self._bounds(key, graphs)
        axis = self.data.__cat_dim__(key, self.data[key])
        value = self.data[key].index_select(axis, _ranges(start, count))
        if key in PAIR_KEYS:
            return value + _before(self._bounds("dag_edge_index", graphs)[1], count)
        return value + _before(self.num_nodes[graphs], count) if "index" in key else value

    def _bounds(self, key: str, graphs: Tensor) -> tuple[Tensor, Tensor]:
        slices = self.slices[key]
        return slices[graphs], slices[graphs + 1] - slices[graphs]


def _before(sizes: Tensor, count: Tensor) -> Tensor:
    """Total size of the previous graphs, for every entry."""
    return (sizes.cumsum(0) - sizes).repeat_interleave(count)


def _ranges(start: Tensor, count: Tensor) -> Tensor:
    """Concatenate arange(start, start + count) of all graphs."""
    shift = (start - (count.cumsum(0) - count)).repeat_interleave(count)
    return shift + torch.arange(shift.numel())
