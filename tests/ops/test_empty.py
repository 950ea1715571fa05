"""Sizes of 0: no sample, no head, no key or no value; every backend agrees with naive."""

import pytest
import torch

from plstm.graph import LineGraph
from plstm.ops import (
    delta_rule,
    gated_linear_attention,
    mamba2d,
    mlstm,
    native,
    plstm_1d,
    plstm_2d,
    plstm_dag,
)
from plstm.ops.kernels import HAS_TRITON, INTERPRETED
from plstm.ops.plstm_2d import CORNERS, scan
from tests.helpers import assert_close, gradients
from tests.ops.inputs import grid_inputs, require_grad, sequence_inputs
from tests.ops.recurrence import attention_inputs

SIZES = {
    "no sample": {"batch": 0},
    "no head": {"heads": 0},
    "no key": {"key_width": 0},
    "no value": {"value_width": 0},
    "nothing": {"batch": 0, "heads": 0, "key_width": 0, "value_width": 0},
}
SEQUENCE = ("auto", "chunk")
CORNER_PAIR = CORNERS[1:3]


def attention(*gates):
    return lambda **sizes: attention_inputs(5, gates=gates, **sizes)


def per_channel(**sizes):
    inputs = attention_inputs(5, **sizes)
    return inputs | {"log_decay": inputs["k"].detach().clone().requires_grad_()}


def mlstm_inputs(**sizes):
    return attention_inputs(5, gates=("input_gate", "forget_gate"), with_state=False, **sizes)


def dag(batch=1, heads=2, key_width=3, value_width=4):
    """A batch of 0 samples is a graph of 0 nodes."""
    edge_index = torch.tensor([[0, 1, 0], [1, 2, 2]])[:, : 3 * batch]
    graph = LineGraph.from_edges(edge_index, 3 * batch)
    edges, pairs, nodes = graph.num_edges, graph.line_index.shape[1], graph.num_nodes
    rows = {"source": edges, "transition": pairs, "mark": edges, "direct": nodes}
    inputs = {name: torch.randn(count, heads) for name, count in rows.items()}
    for name, width in (("q", key_width), ("k", key_width), ("v", value_width)):
        inputs[name] = torch.randn(nodes, heads, width)
    return require_grad(inputs, torch.float64) | {"graph": graph}


def mamba2d_inputs(batch=2, heads=2, key_width=3, value_width=4):
    """Channels correspond to heads and values, state dimensions to keys."""
    nodes, width = (batch, 2, 3), heads * value_width
    wide = {name: torch.randn(*nodes, width) for name in ("x", "dt_left", "dt_top")}
    rates = {name: torch.randn(width, key_width) for name in ("a_left", "a_top")}
    vectors = {name: torch.randn(*nodes, key_width) for name in ("b_left", "b_top", "c")}
    return require_grad(wide | rates | vectors, torch.float64)


CASES = {
    "plstm_1d": (plstm_1d, lambda **sizes: sequence_inputs(5, **sizes), (*SEQUENCE, "triton")),
    "lanes": (plstm_1d, lambda **sizes: sequence_inputs(5, (2, 1, 2), **sizes), SEQUENCE),
    "plstm_2d": (
        plstm_2d,
        lambda **sizes: grid_inputs(2, 3, 2, **sizes) | {"corners": CORNER_PAIR},
        ("auto", "rows", "chunk", "dense", "scan"),
    ),
    "plstm_dag": (plstm_dag, dag, ("auto", "levels", "reach")),
    "no decay": (gated_linear_attention, attention(), SEQUENCE),
    "decay": (gated_linear_attention, attention("log_decay"), SEQUENCE),
    "decays": (gated_linear_attention, per_channel, SEQUENCE),
    "delta_rule": (delta_rule, attention("beta", "log_decay"), SEQUENCE),
    "mlstm": (mlstm, mlstm_inputs, SEQUENCE),
    "mamba2d": (mamba2d, mamba2d_inputs, ("auto", "diagonals")),
}


def run(op, make, sizes, backend):
    """Output and gradients by name."""
    torch.manual_seed(0)
    inputs = make(**sizes)
    out = op(**inputs, backend=backend)
    tensors = {name: x for name, x in inputs.items() if isinstance(x, torch.Tensor)}
    return {"output": out} | gradients(out, tensors)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize(
    ("name", "backend"),
    [(name, backend) for name, (*_, backends) in CASES.items() for backend in backends],
)
def test_equals_naive(name, backend, sizes):
    if backend in ("dense", "scan") and not native.available(scan.SOURCE):
        pytest.skip("needs a C++ compiler")
    if backend == "triton" and not (HAS_TRITON and INTERPRETED):
        pytest.skip("needs the interpreter of Triton")
    op, make, _ = CASES[name]
    want, got = (run(op, make, sizes, choice) for choice in ("naive", backend))
    for key in want:
        assert_close(key, got[key], want[key])
