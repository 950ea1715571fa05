"""LineGraphs of prepared data, and plans in batches; does not need PyTorch Geometric."""

from typing import Any

from plstm.graph.line_graph import LineGraph
from plstm.graph.plans import ReachPlan

PLAN_PREFIXES = ("line", "tree")
PLANNED_WIDTHS = 24, 24  # key and value width per head at which a plan must pay to be added
HOST_KEYS = tuple(f"{prefix}_sizes" for prefix in PLAN_PREFIXES)  # read on the CPU, stay there


def line_graph(data: Any) -> LineGraph:
    """The LineGraph of a DagData or of a batch of them, without computation.

    Args:
        data: Object with the fields of DagData; for a batch also `batch` and `num_graphs`.

    Raises:
        ValueError: the data are not prepared.
    """
    if getattr(data, "dag_edge_index", None) is None:
        raise ValueError(
            f"line_graph: data must be a DagData or a batch of them, got "
            f"{type(data).__name__} without dag_edge_index; apply plstm.graph.ToDag first"
        )
    batch = getattr(data, "batch", None)
    graph, tree = (
        LineGraph.prepared(
            data.dag_edge_index,
            line_index,
            count_nodes(data),
            batch,
            edge_level=data.edge_level,
            num_graphs=1 if batch is None else getattr(data, "num_graphs", None),
        )
        for line_index in (data.line_index, data.tree_index)
    )
    graph.take_multitree(tree)
    if getattr(data, "planned", False):
        for prefix, part in zip(PLAN_PREFIXES, (graph, tree), strict=True):
            part.take_reach_plan(_carried_plan(data, prefix), *PLANNED_WIDTHS)
    return graph


def count_nodes(data: Any) -> int:
    """Number of nodes of a PyG Data, from a shape if possible, for torch.compile."""
    for name in ("x", "batch"):
        rows = getattr(data, name, None)
        if rows is not None:
            return rows.shape[0]
    return data.num_nodes


def add_plans(data: Any) -> Any:
    """Add the reach plans that pay to a batch of DagData, for use by `line_graph`."""
    graph = line_graph(data)
    for prefix, part in zip(PLAN_PREFIXES, (graph, graph.multitree()), strict=True):
        plan = part.paying_reach_plan(*PLANNED_WIDTHS)
        if plan is not None:
            for name, tensor in plan._asdict().items():
                data[f"{prefix}_{name}"] = tensor
    data.planned = True
    return data


def _carried_plan(data: Any, prefix: str) -> ReachPlan | None:
    if getattr(data, f"{prefix}_sizes", None) is None:
        return None
    return ReachPlan(*(getattr(data, f"{prefix}_{name}") for name in ReachPlan._fields))
