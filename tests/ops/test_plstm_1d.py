import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plstm.ops import plstm_1d
from plstm.ops.plstm_1d import chunk
from plstm.ops.plstm_1d.chunk_lanes import NARROW
from tests.helpers import TOLERANCE, assert_close, gradients
from tests.ops.inputs import require_grad, sequence_inputs

BACKENDS = ["chunk", "auto"]
LANES = {"scalar": None, "222": (2, 2, 2), "123": (1, 2, 3), "312": (3, 1, 2)}
lanes_cases = pytest.mark.parametrize("lanes", LANES.values(), ids=LANES)
all_backends = pytest.mark.parametrize("backend", ["naive", *BACKENDS])


def output_and_state(inputs, backend, **options):
    return plstm_1d(**inputs, return_state=True, backend=backend, **options)


def assert_backends_agree(inputs, backend, **options):
    results = {}
    for name in ("naive", backend):
        out, state = output_and_state(inputs, name, **options)
        both = torch.cat([out.flatten(), state.flatten()])
        results[name] = {"output": out, "state": state} | {
            f"gradient of {key}": grad for key, grad in gradients(both, inputs).items()
        }
    for name, want in results["naive"].items():
        assert_close(name, results[backend][name], want)


def gating_matrix(inputs):
    """G[t, o, t', i]: the sum over the one path from t' to t, product by product."""
    lanes = inputs["v"].ndim == 5
    s, t, m, d = (
        inputs[name] if lanes else inputs[name][..., None, None]
        for name in ("source", "transition", "mark", "direct")
    )
    length = s.shape[1]
    rows = []
    for to in range(length):
        row = []
        for start in range(length):
            gate = torch.zeros_like(d[:, 0])
            if start == to:
                gate = d[:, to]
            elif start < to:
                gate = s[:, start]
                for between in range(start + 1, to):
                    gate = t[:, between] @ gate
                gate = m[:, to] @ gate
            row.append(gate)  # (B, H, O, I)
        rows.append(torch.stack(row, 3))
    return torch.stack(rows, 2)  # (B, H, L, O, L, I)


def test_naive_by_hand():
    column = torch.tensor([2.0, 3.0, 5.0], dtype=torch.float64)[None, :, None]
    out, state = plstm_1d(
        q=column[..., None],
        k=torch.ones(1, 3, 1, 1, dtype=torch.float64),
        v=10 * column[..., None],
        source=column.new_tensor([[[1.0], [2.0], [4.0]]]),
        transition=column.new_tensor([[[7.0], [0.5], [-1.0]]]),
        mark=column.new_tensor([[[9.0], [3.0], [2.0]]]),
        direct=column.new_tensor([[[0.1], [0.2], [0.3]]]),
        state=column.new_tensor([[[[1.0]]]]),
        scale=2.0,
        return_state=True,
        backend="naive",
    )
    # C: 1, then 7 * 1 + 1 * 20 = 27, then 0.5 * 27 + 2 * 30 = 73.5, then -73.5 + 4 * 50 = 126.5
    want = [2 * (9 * 1 * 2 + 0.1 * 2 * 20), 2 * (3 * 27 * 3 + 0.2 * 3 * 30)]
    want.append(2 * (2 * 73.5 * 5 + 0.3 * 5 * 50))
    torch.testing.assert_close(out.flatten(), column.new_tensor(want), rtol=1e-14, atol=0)
    assert state.item() == 126.5


@lanes_cases
def test_naive_gradcheck(lanes):
    inputs = sequence_inputs(4, lanes, batch=1, key_width=2, value_width=1)

    def run(*args):
        return output_and_state(dict(zip(inputs, args, strict=True)), "naive")

    assert torch.autograd.gradcheck(run, tuple(inputs.values()))


@pytest.mark.parametrize("backend", BACKENDS)
@lanes_cases
@pytest.mark.parametrize("length", [1, 5, 15, 16, 17, 63, 64, 65, 127, 200])
def test_equals_naive(length, lanes, backend):
    assert_backends_agree(sequence_inputs(length, lanes), backend)


@pytest.mark.parametrize("length", [63, 64, 65, 150])
def test_equals_naive_with_long_chunks(length):
    inputs = sequence_inputs(length, batch=1, key_width=70, value_width=60)
    assert chunk.largest_chunk(70, 60) == 64
    assert_backends_agree(inputs, "chunk")


@pytest.mark.parametrize("length", [1, 2, 3, 4, 16, 17, 63, 150])
@pytest.mark.parametrize("widths", [(1, 1), (2, 4), (1, 7)])
def test_equals_naive_with_narrow_memories(length, widths):
    assert math.prod(widths) <= NARROW
    inputs = sequence_inputs(length, (3, 1, 2), key_width=widths[0], value_width=widths[1])
    assert_backends_agree(inputs, "chunk")


@pytest.mark.parametrize("length", [3, 4, 24, 25, 47])
@pytest.mark.parametrize("chunks", [1, 2, 3])
def test_equals_naive_in_pieces(length, chunks, monkeypatch):
    """Several chunks at a time, where only the states between them are kept."""
    inputs = sequence_inputs(length)
    monkeypatch.setattr(chunk, "CHUNK_SIZES", (4,))
    monkeypatch.setattr(chunk, "MAX_CHUNKS", chunks)
    pieces = list(chunk._pieces(inputs["q"], inputs["v"]))
    assert len(pieces) == -(-length // (4 * chunks))
    assert_backends_agree(inputs, "chunk")


def test_chunk_refuses_second_derivatives():
    inputs = sequence_inputs(5)
    out = plstm_1d(**inputs, backend="chunk")
    (grad,) = torch.autograd.grad(out.square().sum(), inputs["q"], create_graph=True)
    with pytest.raises(RuntimeError, match=r"^plstm_1d: .* first derivatives only"):
        grad.sum().backward()


@pytest.mark.parametrize("backend", BACKENDS)
@lanes_cases
def test_equals_naive_without_state(lanes, backend):
    assert_backends_agree(sequence_inputs(70, lanes, with_state=False), backend, scale=0.3)


@pytest.mark.parametrize("backend", BACKENDS)
@given(
    length=st.integers(1, 80),
    lanes=st.none() | st.tuples(*[st.integers(1, 3)] * 3),
    batch=st.integers(1, 3),
    heads=st.integers(1, 3),
    key_width=st.integers(1, 5),
    value_width=st.integers(1, 5),
    with_state=st.booleans(),
)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_equals_naive_at_any_size(backend, length, lanes, **sizes):
    assert_backends_agree(sequence_inputs(length, lanes, **sizes), backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("factor", [1e-30, -1e-3, 0.0])
def test_long_decay_underflows_cleanly(factor, backend):
    inputs = sequence_inputs(300, dtype=torch.float32)
    with torch.no_grad():
        inputs["transition"].fill_(factor)
    got, want = output_and_state(inputs, backend), output_and_state(inputs, "naive")
    for name, g, w in zip(("output", "state"), got, want, strict=True):
        assert_close(name, g, w, 1e-6)
    got, want = gradients(got[0], inputs), gradients(want[0], inputs)
    for name in inputs:
        assert_close(f"gradient of {name}", got[name], want[name], 1e-5)


@all_backends
@lanes_cases
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_low_precision(dtype, lanes, backend):
    inputs = sequence_inputs(130, lanes, dtype=dtype)
    exact = require_grad(inputs, torch.float64)
    (out, state), (want, want_state) = (
        output_and_state(inputs, backend),
        output_and_state(exact, "naive"),
    )
    assert out.dtype == dtype
    assert state.dtype == torch.float32
    rtol, grad_rtol = TOLERANCE[dtype]
    assert_close("output", out, want, rtol)
    assert_close("state", state, want_state, rtol)
    got, want = gradients(out, inputs), gradients(want, exact)
    for name in inputs:
        assert got[name].dtype == dtype
        assert_close(f"gradient of {name}", got[name], want[name], grad_rtol)


@all_backends
def test_autocast_leaves_numbers_alone(backend):
    inputs = sequence_inputs(70, dtype=torch.float32)
    want = output_and_state(inputs, backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = output_and_state(inputs, backend)
    for g, w in zip(got, want, strict=True):
        assert g.dtype == torch.float32
        assert torch.equal(g, w)


@all_backends
@lanes_cases
@pytest.mark.parametrize("split", [1, 64, 99], ids=lambda n: f"at{n}")
def test_halves_with_carried_state(split, lanes, backend):
    inputs = sequence_inputs(100, lanes)
    state = inputs.pop("state")
    out, last = plstm_1d(**inputs, state=state, return_state=True, backend=backend)
    outs = []
    for part in (slice(split), slice(split, None)):
        half = {name: x[:, part] for name, x in inputs.items()}
        y, state = plstm_1d(**half, state=state, return_state=True, backend=backend)
        outs.append(y)
    assert_close("output", torch.cat(outs, 1), out)
    assert_close("state", state, last)


@all_backends
def test_open_gates_are_linear_attention(backend):
    inputs = sequence_inputs(70, with_state=False)
    gates = ("source", "transition", "mark", "direct")
    inputs |= {name: torch.ones_like(inputs[name]) for name in gates}
    q, k, v = (inputs[name].transpose(1, 2) for name in "qkv")
    want = ((q @ k.mT).tril() @ v).transpose(1, 2) / q.shape[-1] ** 0.5
    assert_close("output", plstm_1d(**inputs, backend=backend), want)


@all_backends
@lanes_cases
def test_sum_over_paths(lanes, backend):
    inputs = sequence_inputs(17, lanes, with_state=False)
    q, k, v = (inputs[name] for name in "qkv")
    v = v if lanes else v[..., None]
    scores = torch.einsum("blhk,bmhk->bhlm", q, k)
    gating = gating_matrix(inputs)
    want = 0.7 * torch.einsum("bhlm,bhlomi,bmhvi->blhvo", scores, gating, v)
    got = plstm_1d(**inputs, scale=0.7, backend=backend)
    assert_close("output", got if lanes else got[..., None], want)


@all_backends
@lanes_cases
@pytest.mark.parametrize("axis", ["batch", "heads"])
def test_permutation(axis, lanes, backend):
    inputs = sequence_inputs(70, lanes, batch=3, heads=3)
    order = torch.tensor([2, 0, 1])

    def permuted(x, is_state=False):
        return x[order] if axis == "batch" else x.index_select(1 if is_state else 2, order)

    out, state = output_and_state(inputs, backend)
    moved = {name: permuted(x, name == "state") for name, x in inputs.items()}
    got, got_state = output_and_state(moved, backend)
    assert_close("output", got, permuted(out))
    assert_close("state", got_state, permuted(state, is_state=True))


@all_backends
@lanes_cases
def test_causal(lanes, backend):
    inputs, other = sequence_inputs(70, lanes), sequence_inputs(70, lanes, seed=1)
    out = plstm_1d(**inputs, backend=backend)
    for position in (0, 31, 69):
        changed = {  # everything from `position` on; the state comes before
            name: x
            if name == "state"
            else torch.cat([x[:, :position], other[name][:, position:]], 1)
            for name, x in inputs.items()
        }
        got = plstm_1d(**changed, backend=backend)
        assert_close("before", got[:, :position], out[:, :position])
        assert not torch.allclose(got[:, position], out[:, position])


@all_backends
@lanes_cases
def test_source_and_transition_act_later_only(lanes, backend):
    """The mark reads what arrives: own source and transition leave an output alone."""
    inputs, other = sequence_inputs(8, lanes), sequence_inputs(8, lanes, seed=1)
    out = plstm_1d(**inputs, backend=backend)
    for name in ("source", "transition"):
        x = inputs[name].detach().clone()
        x[:, 5] = other[name][:, 5]
        got = plstm_1d(**inputs | {name: x}, backend=backend)
        assert_close(name, got[:, :6], out[:, :6])
        assert not torch.allclose(got[:, 6], out[:, 6])


@all_backends
@lanes_cases
def test_first_input_reaches_last_output(lanes, backend):
    inputs = sequence_inputs(100, lanes, with_state=False)
    j = inputs["transition"].shape[-1]
    with torch.no_grad():  # no position forgets everything
        blocked = (
            (inputs["transition"].flatten(3) == 0).all(-1) if lanes else inputs["transition"] == 0
        )
        inputs["transition"][blocked] = torch.eye(j, dtype=torch.float64) if lanes else 1.0
    out = plstm_1d(**inputs, backend=backend)
    v = inputs["v"].detach().clone()
    v[:, 0] = 0
    moved = (plstm_1d(**inputs | {"v": v}, backend=backend) - out)[:, -1].square().mean().sqrt()
    assert moved > 1e-4 * out[:, -1].square().mean().sqrt()


@all_backends
def test_lanes_track_parity(backend):
    """A swap of two lanes per 1 bit: what no diagonal transition in (0, 1) can represent."""
    bits = torch.randint(2, (1, 300))
    swap, stay = torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.eye(2)
    transition = torch.where(bits[..., None, None] == 1, swap, stay)[:, :, None]
    one, zero = torch.ones(1, 300, 1, 1), torch.zeros(1, 300, 1, 2, 2)
    # The first state is (1, 0); lane 1 holds the 1 after an odd number of swaps.
    out = plstm_1d(
        q=one,
        k=one,
        v=torch.zeros(1, 300, 1, 1, 2),
        source=zero,
        transition=transition,
        mark=stay.expand(1, 300, 1, 2, 2),
        direct=zero,
        state=torch.tensor([1.0, 0.0])[None, None, None, None],
        backend=backend,
    )
    before = (bits.cumsum(1) - bits) % 2
    assert torch.equal(out[0, :, 0, 0, 1], before[0].float())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"k": torch.ones(2, 5, 2, 9)},
            r"plstm_1d: k must have shape \(B, L, H, K\), got \(2, 5, 2, 9\)",
        ),
        ({"mark": torch.ones(2, 5, 3)}, r"mark must have shape \(B, L, H\).*H=2"),
        ({"transition": torch.ones(2, 5, 2, 1, 1)}, "transition must have shape"),
        ({"v": torch.ones(2, 5, 2, 4, 2)}, "transition must have shape"),
        ({"state": torch.ones(2, 2, 4, 3)}, "state must have shape"),
        (
            {"q": torch.ones(2, 5, 2, 3, dtype=torch.long)},
            r"q must be .*floating-point.* torch.int64",
        ),
        ({"direct": 1.0}, "direct must be a floating-point tensor, got float"),
        ({"v": torch.ones(2, 5, 2, 4, device="meta")}, "must be on one device.*v on meta"),
        ({"backend": "fast"}, "backend must be one of 'auto', 'naive', 'chunk'.*got 'fast'"),
    ],
    ids=lambda case: "-".join(case) if isinstance(case, dict) else None,
)
def test_errors(change, message):
    with pytest.raises(ValueError, match=message):
        plstm_1d(**sequence_inputs(5, dtype=torch.float32) | change)


def test_empty_sequence():
    with pytest.raises(ValueError, match="at least one position"):
        plstm_1d(**sequence_inputs(0))


@pytest.mark.parametrize("name", ["k", "v", "q"])
@pytest.mark.parametrize("lanes", [None, (2, 1, 2)], ids=["one_lane", "lanes"])
@pytest.mark.parametrize("backend", ["naive", "chunk"])
def test_numbers_that_are_not_finite(backend, lanes, name):
    """They affect what they affect in the loop, and at most earlier outputs of their head."""
    inputs = {key: x.detach() for key, x in sequence_inputs(200, lanes).items()}
    inputs[name][0, 150, 1] = torch.nan
    naive = plstm_1d(**inputs, backend="naive").isfinite()
    out = plstm_1d(**inputs, backend=backend).isfinite()
    assert not out[~naive].any()
    assert not naive[0, 150:, 1].all() and naive[0, :150, 1].all()
    out[0, :, 1] = True
    assert out.all()
