"""The formulas for operations give what the kernels do."""

from math import prod

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

from plstm.graph import LineGraph
from plstm.ops import native, plstm_1d, plstm_2d, plstm_dag
from plstm.ops.flops import FORMULAS
from plstm.ops.kernels import HAS_TRITON, INTERPRETED
from plstm.ops.plstm_1d import chunk
from plstm.ops.plstm_2d import CORNERS, cpu, dense, scan
from tests.ops.inputs import grid_inputs, sequence_inputs
from tests.ops.test_plstm_dag import random_inputs

needs_compiler = pytest.mark.skipif(
    not native.available(scan.SOURCE), reason="needs a C++ compiler"
)
needs_triton = pytest.mark.skipif(
    not (HAS_TRITON and INTERPRETED), reason="needs the interpreter of Triton"
)
INPUTS = grid_inputs(3, 5, 2, batch=2, heads=3, key_width=4, value_width=7)


def counted(function):
    with FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
        out = function()
    return counter.get_total_flops(), out


def forward_and_backward(function):
    forward, out = counted(function)
    backward, _ = counted(out.sum().backward)
    return forward, backward


@needs_compiler
def test_dense_form():
    """What PyTorch counts of the products inside, and what the formula says."""
    nodes, problems = 15, 6
    q, k, v = (torch.randn(2, 3, 3, 5, width) for width in (4, 4, 7))
    gates = (torch.randn(2, 3, 2, 3, 5, *edges) for edges in ((2,), (2, 2), (2,)))
    operands = (q, k, v, *gates, torch.randn(2, 3, 3, 5), 0b0100, 0.5)
    for operator, inside, arguments in (
        (cpu._grid, dense.forward, operands),
        (cpu._grid_backward, dense.backward, (torch.ones_like(v), *operands)),
    ):
        want, _ = counted(lambda f=inside, x=arguments: f(*x))
        assert want > 0
        assert counted(lambda f=operator, x=arguments: f(*x, "dense"))[0] == want
    got = forward_and_backward(lambda: plstm_2d(**INPUTS, corners=CORNERS[:2], backend="dense"))
    assert got[0] == 2 * problems * nodes**2 * (4 + 7)
    assert got[1] == 2 * problems * nodes**2 * (3 * 4 + 2 * 7)


@needs_compiler
def test_scan():
    """Eight multiply-adds forwards and 22 backwards."""
    got = forward_and_backward(lambda: plstm_2d(**INPUTS, corners=CORNERS[:2], backend="scan"))
    states = prod((2, 3, 5, 3, 4)) * 2 * 7
    assert got == (16 * states, 44 * states)


@needs_compiler
@pytest.mark.parametrize(("work", "form"), [(7, "dense"), (0, "scan")])
def test_the_form_that_runs_is_counted(work, form, monkeypatch):
    monkeypatch.setattr(cpu, "DENSE_WORK", work)
    auto, named = (
        forward_and_backward(lambda b=b: plstm_2d(**INPUTS, corners=CORNERS[:2], backend=b))
        for b in ("auto", form)
    )
    assert auto == named


def test_sequence(monkeypatch):
    """Inside the operator the states are moved along the chunks too, by products of gates."""
    monkeypatch.setattr(chunk, "CHUNK_SIZES", (4,))
    inputs = sequence_inputs(11, batch=2, heads=3, key_width=5, value_width=7)
    chunks, problems, size, state = 3, 6, 4, 5 * 7  # one position more than there are
    operands = (*inputs.values(), 0.5)
    inside, (out, last, states) = counted(lambda: chunk._chunkwise._init_fn(*operands))
    forward = 2 * problems * chunks * size * (size * (5 + 7) + 2 * state)
    along_chunks = 2 * problems * (chunks + 1) ** 2 * state
    assert inside == forward + along_chunks

    operands = (out, last, *operands[:7], states, 0.5)
    inside, _ = counted(lambda: chunk._chunkwise_backward._init_fn(*operands))
    backward = 2 * problems * chunks * size * (size * (3 * 5 + 2 * 7) + 4 * state)
    of_transitions = 2 * problems * chunks * (size + 1) ** 3
    assert inside == backward + along_chunks + of_transitions
    assert forward_and_backward(lambda: plstm_1d(**inputs)) == (forward, backward)


def test_graphs():
    """Pairs of nodes with themselves for "reach"; pairs of edges for "levels"."""
    graph = LineGraph.grid((3, 4))
    inputs = random_inputs(graph, heads=2, qk_dim=3, v_dim=5)
    pairs = 2 * (12 + graph.reach_plan().nodes.shape[1])  # and heads
    got = forward_and_backward(lambda: plstm_dag(**inputs, graph=graph, backend="reach"))
    assert got == (2 * pairs * (3 + 5), 2 * pairs * (3 * 3 + 2 * 5))
    moves, reads = 2 * graph.num_pairs * 3 * 5, 2 * graph.num_edges * 3 * 5
    got = forward_and_backward(lambda: plstm_dag(**inputs, graph=graph, backend="levels"))
    assert got == (2 * (moves + reads), 2 * (2 * moves + 2 * reads))


def counted_without_running(op, inputs, **options):
    """A formula sees shapes alone, so that fake tensors do."""
    with FakeTensorMode() as mode:
        fakes = {name: mode.from_tensor(x) for name, x in inputs.items()}
        return forward_and_backward(lambda: op(**fakes, **options))


@needs_triton
def test_sequence_in_triton():
    """Of 40 positions in float32, two chunks of 32."""
    inputs = sequence_inputs(40, key_width=5, value_width=7, dtype=torch.float32)
    got = counted_without_running(plstm_1d, inputs, backend="triton")
    positions, scores, state = 2 * 2 * 64, 32 * 5, 5 * 7
    values, transitions = 32 * 7, 32 * 32
    assert got[0] == 2 * positions * (scores + values + 2 * state)
    assert got[1] == 2 * positions * (4 * scores + 3 * values + transitions + 4 * state)


@needs_triton
@pytest.mark.parametrize("corners", [CORNERS[:2], CORNERS[1:3]], ids="+".join)
def test_grid_in_triton(corners):
    """Both corners of the first case see the rows above, those of the second all rows between."""
    got = counted_without_running(plstm_2d, INPUTS, corners=corners, backend="triton")
    above = (5 + 10 + 15) * 5  # nodes in the rows up to that of each of 5 nodes
    pairs = 2 * 3 * above * (1 if corners == CORNERS[:2] else 2)
    assert got == (2 * pairs * (4 + 7), 6 * pairs * (4 + 7))


def test_attention_on_a_cpu():
    """As many as the plain form forwards, and the scores once more backwards."""
    q, k, v = (torch.randn(2, 3, n, 8, requires_grad=True) for n in (5, 7, 7))
    flash = forward_and_backward(lambda: scaled_dot_product_attention(q, k, v))
    with sdpa_kernel(SDPBackend.MATH):
        plain = forward_and_backward(lambda: scaled_dot_product_attention(q, k, v))
    scores = 2 * 2 * 3 * 5 * 7 * 8
    assert plain == (2 * scores, 4 * scores)
    assert flash == (2 * scores, 5 * scores)
