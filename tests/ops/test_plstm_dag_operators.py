"""The forms of plstm_dag as operators: compiled, exported, on the meta device."""

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim, export
from torch.library import opcheck

from plstm.graph import LineGraph
from plstm.graph.plans import ReachPlan
from plstm.ops.plstm_dag import levels, plstm_dag, reach
from tests.helpers import assert_close, gradients
from tests.ops.test_plstm_dag import random_graph, random_inputs

WIDTH = 16


class OnTensors(nn.Module):
    """plstm_dag as a function of tensors alone: its inputs, a graph, and maybe its plan."""

    def __init__(self, backend: str = "auto") -> None:
        super().__init__()
        self.backend = backend

    def forward(
        self,
        inputs: dict[str, Tensor],
        edge_index: Tensor,
        line_index: Tensor,
        edge_level: Tensor,
        plan: tuple[Tensor, ...] | None = None,
    ) -> Tensor:
        nodes = inputs["q"].shape[0]
        graph = LineGraph.prepared(edge_index, line_index, nodes, edge_level=edge_level)
        if plan is not None:
            graph.take_reach_plan(ReachPlan(*plan), WIDTH, WIDTH)
        return plstm_dag(**inputs, graph=graph, backend=self.backend)


def arguments(nodes: int, planned: bool) -> tuple[object, ...]:
    graph = random_graph([nodes], 0.5, seed=nodes)
    inputs = random_inputs(graph, qk_dim=WIDTH, v_dim=WIDTH)
    tensors = (inputs, graph.edge_index, graph.line_index, graph.edge_level)
    return (*tensors, tuple(graph.reach_plan())) if planned else tensors


def test_operators_are_registered_well() -> None:
    """Their fake kernels and gradients, at dynamic sizes too."""
    graph = random_graph([6, 1, 4])
    inputs = random_inputs(graph)
    q, k, v, transition = (inputs[name] for name in ("q", "k", "v", "transition"))
    opcheck(levels._sorted_by_level, (graph.line_index[1], graph.edge_level))
    order, sizes = levels._level_plan(graph)
    x = torch.randn(graph.num_edges, 2, 3, 5, dtype=torch.float64, requires_grad=True)
    opcheck(levels._propagate, (x, transition, *graph.line_index, order, sizes, False))
    entries, products, nodes, sizes = graph.reach_plan()
    opcheck(reach._paths, (transition, entries, products, sizes))
    gates = torch.randn(nodes.shape[1], 2, dtype=torch.float64, requires_grad=True)
    opcheck(reach._read, (q, k, v, gates, nodes))


@pytest.mark.parametrize("planned", [False, True])
def test_compiles_once_for_all_sizes(planned: bool) -> None:
    """One graph without breaks, made again once when the sizes turn out to change."""
    plain, counter = OnTensors(), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(plain, backend=counter, fullgraph=True)
    for nodes in (9, 11, 14):
        inputs, *graph = arguments(nodes, planned)
        want = plstm_dag(**inputs, graph=random_graph([nodes], 0.5, nodes), backend="naive")
        want_grads = gradients(want, inputs)
        got = compiled(inputs, *graph)
        assert_close("out", got, want)
        for name, grad in gradients(got, inputs).items():
            assert_close(f"gradient of {name}", grad, want_grads[name])
    assert counter.frame_count == 2
    operators = {str(node.target) for node in counter.graphs[-1].graph.nodes}
    used = {"plstm.dag_paths.default", "plstm.dag_read.default"}
    assert used <= operators if planned else "plstm.dag_levels.default" in operators


@pytest.mark.parametrize("backend", ["levels", "reach"])
def test_exports_with_dynamic_sizes(backend: str) -> None:
    plain, planned = OnTensors(backend), backend == "reach"
    first, last = {0: Dim.DYNAMIC}, {1: Dim.DYNAMIC}
    inputs, *_ = args = arguments(9, planned)
    shapes = (dict.fromkeys(inputs, first), last, last, first)
    shapes += ((last, last, last, first),) if planned else ()
    program = export(plain, args, dynamic_shapes=shapes)
    for nodes in (5, 13):
        args = arguments(nodes, planned)
        assert_close("out", program.module()(*args), plain(*args))


@pytest.mark.parametrize("backend", ["auto", "levels"])
def test_meta_device(backend: str) -> None:
    graph = random_graph([6, 3])
    inputs = {name: x.detach().to("meta") for name, x in random_inputs(graph).items()}
    out = plstm_dag(**inputs, graph=graph.to("meta"), backend=backend)
    assert out.shape == (9, 2, 5) and out.device.type == "meta"
