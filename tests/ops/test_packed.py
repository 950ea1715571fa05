"""Packed sequences: each equals itself alone, and nothing of one reaches another."""

import re

import pytest
import torch

from plstm.ops import MLSTMState, delta_rule, gated_linear_attention, mlstm, plstm_1d
from plstm.ops.kernels import HAS_TRITON, INTERPRETED
from plstm.ops.packed import FEWER_POSITIONS, SHORTEST_PART, as_packing, group_lengths
from tests.helpers import TOLERANCE, assert_close, gradients
from tests.ops.inputs import require_grad, sequence_inputs
from tests.ops.recurrence import attention_inputs

LENGTHS = [5, 0, 70, 1, 130, 64, 0, 33]  # two groups, and two in none
FEW = [3, 0, 66, 1, 7]
CU = {sum(lengths): torch.tensor([0, *lengths]).cumsum(0) for lengths in (LENGTHS, FEW)}


def attention(*gates):
    """Inputs of a recurrence with logarithms of decays below 0 and weights of a correction."""

    def make(length, sequences):
        inputs = attention_inputs(length, gates=gates, batch=1, with_state=False)
        for name in gates:
            inputs[name] = -inputs[name].exp() if name == "log_decay" else inputs[name].sigmoid()
        inputs["k"] = torch.nn.functional.normalize(inputs["k"], dim=-1)
        inputs["state"] = torch.randn(sequences, 2, 3, 4)
        return require_grad(inputs, torch.float64)

    return make


def per_channel(length, sequences):
    inputs = attention()(length, sequences)
    return inputs | require_grad({"log_decay": -inputs["q"].exp()}, torch.float64)


def mlstm_inputs(length, sequences):
    inputs = attention("input_gate", "forget_gate")(length, sequences)
    shapes = [(sequences, 2, 3, 4), (sequences, 2, 3), (sequences, 2)]
    state = MLSTMState(*(torch.rand(shape).double().requires_grad_() for shape in shapes))
    return inputs | {"state": state}


def plstm_inputs(lanes=None):
    def make(length, sequences):
        inputs = sequence_inputs(length, lanes, batch=1)
        rows = inputs.pop("state")
        state = {"state": torch.randn(sequences, *rows.shape[1:])}
        return inputs | require_grad(state, torch.float64)

    return make


CASES = {
    "plstm_1d": (plstm_1d, plstm_inputs()),
    "lanes": (plstm_1d, plstm_inputs((3, 1, 2))),
    "no decay": (gated_linear_attention, attention()),
    "decay": (gated_linear_attention, attention("log_decay")),
    "decays": (gated_linear_attention, per_channel),
    "delta_rule": (delta_rule, attention("beta")),
    "delta_rule with decay": (delta_rule, attention("beta", "log_decay")),
    "mlstm": (mlstm, mlstm_inputs),
}
all_ops = pytest.mark.parametrize(("op", "make"), CASES.values(), ids=CASES)
backends = pytest.mark.parametrize("backend", ["naive", "chunk", "auto"])


def parts(state):
    """Tensors of a state by name."""
    return state._asdict() if isinstance(state, tuple) else {"state": state}


def apply(function, state):
    return type(state)(*map(function, state)) if isinstance(state, tuple) else function(state)


def packed(op, inputs, cu_seqlens, **options):
    return op(**inputs, return_state=True, cu_seqlens=cu_seqlens, **options)


def one_by_one(op, inputs, cu_seqlens, **options):
    """Every sequence alone; an empty one hands on the state it got."""
    inputs, outs, states = dict(inputs), [], []
    state = inputs.pop("state", None)
    for i, (start, end) in enumerate(cu_seqlens.unfold(0, 2, 1).tolist()):
        before = None if state is None else apply(lambda x, i=i: x[i : i + 1], state)
        if start == end:
            states.append(before)
            continue
        part = {name: x[:, start:end] for name, x in inputs.items()}
        out, after = op(**part, state=before, return_state=True, **options)
        outs.append(out)
        states.append(after)
    nothing = apply(torch.zeros_like, next(state for state in states if state is not None))
    states = [nothing if state is None else state for state in states]
    joined = {
        name: torch.cat([parts(state)[name] for state in states]) for name in parts(states[0])
    }
    return torch.cat(outs, 1), joined


def results(out, state, inputs):
    """Output, states and the gradients of all inputs under a cotangent of both."""
    leaves = dict(inputs)
    leaves |= parts(leaves.pop("state")) if "state" in leaves else {}
    both = torch.cat([out.flatten(), *(x.flatten() for x in parts(state).values())])
    named = {f"gradient of {name}": grad for name, grad in gradients(both, leaves).items()}
    return {"output": out} | parts(state) | named


def assert_equal_one_by_one(op, inputs, cu_seqlens, rtol=1e-12, **options):
    got = results(*packed(op, inputs, cu_seqlens, **options), inputs)
    out, joined = one_by_one(op, inputs, cu_seqlens, **options)
    state = type(inputs["state"])(*joined.values()) if len(joined) > 1 else joined["state"]
    for name, want in results(out, state, inputs).items():
        assert_close(name, got[name], want, rtol)


@all_ops
@backends
def test_equals_one_by_one(op, make, backend):
    lengths = FEW if backend == "naive" else LENGTHS
    inputs = make(sum(lengths), len(lengths))
    assert_equal_one_by_one(op, inputs, CU[sum(lengths)], backend=backend)


@all_ops
def test_without_a_state(op, make):
    inputs = make(sum(FEW), len(FEW))
    del inputs["state"]
    out, state = packed(op, inputs, CU[sum(FEW)])
    want, states = one_by_one(op, inputs, CU[sum(FEW)])
    assert_close("output", out, want, 1e-12)
    for name, got in parts(state).items():
        assert_close(name, got, states[name], 1e-12)
        assert not got[FEW.index(0)].any()


@pytest.mark.skipif(not (HAS_TRITON and INTERPRETED), reason="needs the interpreter of Triton")
def test_triton():
    """The kernels take rows like every backend; a NaN in one leaves the other."""
    inputs = {name: x.detach().float() for name, x in plstm_inputs()(5, 3).items()}
    inputs["v"][:, :2] = float("nan")
    cu_seqlens = torch.tensor([0, 2, 2, 5])
    out, state = packed(plstm_1d, inputs, cu_seqlens, backend="triton")
    want, states = one_by_one(plstm_1d, inputs, cu_seqlens, backend="chunk")
    assert_close("output", out[:, 2:], want[:, 2:], TOLERANCE[torch.float32][0])
    assert_close("state", state[1:], states["state"][1:], TOLERANCE[torch.float32][0])


@all_ops
@backends
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_stay_in_their_sequence(op, make, backend, number):
    inputs, cu_seqlens = make(sum(FEW), len(FEW)), CU[sum(FEW)]
    sick = slice(*cu_seqlens[2:4])
    others = torch.ones(sum(FEW), dtype=torch.bool)
    others[sick] = False

    def run(inputs):
        out, state = packed(op, inputs, cu_seqlens, backend=backend)
        named = results(out, state, inputs)
        last = parts(state)
        rows = torch.arange(len(FEW)) != 2
        return {
            name: x[rows] if name.removeprefix("gradient of ") in last else x[:, others]
            for name, x in named.items()
        }

    want = run(inputs)
    spoiled = {
        name: x if name == "state" else x.detach().clone().requires_grad_()
        for name, x in inputs.items()
    }
    with torch.no_grad():
        for name in spoiled.keys() - {"state"}:
            spoiled[name][:, sick] = number
    got = run(spoiled)
    for name in want:
        assert_close(name, got[name], want[name], 1e-12)


@all_ops
def test_neighbors_would_show(op, make):
    """Without borders the sequences are one, and differ."""
    inputs = make(sum(FEW), len(FEW))
    del inputs["state"]
    out, _ = packed(op, inputs, CU[sum(FEW)])
    assert not torch.allclose(op(**inputs), out, rtol=1e-3)


def test_dtypes():
    """Borders in int32; a packing made before; states of another dtype."""
    inputs = plstm_inputs()(sum(FEW), len(FEW))
    want, state = packed(plstm_1d, inputs, CU[sum(FEW)])
    packing = as_packing("test", CU[sum(FEW)], inputs["q"])
    for cu_seqlens in (CU[sum(FEW)].int(), packing):
        assert torch.equal(packed(plstm_1d, inputs, cu_seqlens)[0], want)
    half = {name: x.detach().bfloat16() for name, x in inputs.items()}
    out, low = packed(plstm_1d, half, packing)
    assert (out.dtype, low.dtype) == (torch.bfloat16, torch.float32)
    assert_close("output", out, want, 0.1)
    assert_close("empty", low[1], state[1], TOLERANCE[torch.bfloat16][0])


@pytest.mark.parametrize("count", [1, 5, 200])
def test_groups(count):
    """Every sequence that is not empty in one group, and little padding."""
    lengths = torch.randint(513, (count,)).tolist()
    groups = group_lengths(lengths)
    members = [i for group in groups for i in group]
    assert sorted(members) == [i for i, length in enumerate(lengths) if length > 0]
    for group in groups:
        longest = lengths[group[0]]
        least = min(SHORTEST_PART * longest, longest - FEWER_POSITIONS)
        assert all(least <= lengths[i] <= longest for i in group)
    assert len(groups) <= 9


def test_padding_is_invertible():
    x = torch.randn(1, sum(LENGTHS), 2)
    packing = as_packing("test", CU[sum(LENGTHS)], x)
    padded = packing.pad(x, 7.0)
    assert torch.equal(packing.unpad(padded), x)
    assert sum((part[..., 0] == 7).sum() for part in padded) == sum(
        part[..., 0].numel() for part in padded
    ) - sum(LENGTHS)
    assert packing.positions.tolist() == [i for length in LENGTHS for i in range(length)]
    assert packing.sequence.bincount(minlength=len(LENGTHS)).tolist() == LENGTHS
    assert packing.longest == max(LENGTHS)


WRONG = {
    "no tensor": ([0, 77], "must be an int32 or int64 tensor (S + 1,), got list"),
    "floats": (torch.tensor([0.0, 77.0]), "int32 or int64 tensor (S + 1,), got torch.float32"),
    "no sequence": (torch.tensor([0]), "S at least 1, got shape (1,)"),
    "two axes": (torch.tensor([[0, 77]]), "S at least 1, got shape (1, 2)"),
    "start": (torch.tensor([1, 77]), "ascend from 0 to the number of positions, 77, got [1, 77]"),
    "end": (torch.tensor([0, 51]), "ascend from 0 to the number of positions, 77, got [0, 51]"),
    "order": (torch.tensor([0, 9, 8, 77]), "77, got [0, 9, 8, 77]; it holds 0 and the end"),
    "many": (torch.tensor([*range(20), 77, 3]), "got [0, 1, 2, 3, ..., 18, 19, 77, 3]"),
    "device": (torch.tensor([0, 77], device="meta"), "or on the CPU, got meta and sequences on"),
}


@pytest.mark.parametrize(("cu_seqlens", "message"), WRONG.values(), ids=WRONG)
def test_wrong_borders(cu_seqlens, message):
    inputs = sequence_inputs(sum(FEW), batch=1, with_state=False)
    with pytest.raises(ValueError, match="^plstm_1d: .*" + re.escape(message)):
        plstm_1d(**inputs, cu_seqlens=cu_seqlens)


@all_ops
def test_wrong_sequences(op, make):
    name, cu_seqlens = op.__name__, CU[sum(FEW)]
    inputs = make(sum(FEW), len(FEW) + 1)
    with pytest.raises(ValueError, match=f"^{name}: .* one entry per sequence, 5, got 6"):
        op(**inputs, cu_seqlens=cu_seqlens)
    del inputs["state"]
    pair = {key: x.expand(2, *x.shape[1:]) for key, x in inputs.items()}
    with pytest.raises(ValueError, match=f"^{name}: .* the batch size must be 1, got 2"):
        op(**pair, cu_seqlens=cu_seqlens)
    short = {key: x[:, :9] for key, x in inputs.items()}
    packing = as_packing("test", cu_seqlens, inputs["q"])
    with pytest.raises(ValueError, match=f"^{name}: the Packing must match .* 9 positions on cpu"):
        op(**short, cu_seqlens=packing)
    none = {key: x[:, :0] for key, x in inputs.items()}
    with pytest.raises(ValueError, match=f"^{name}: the sequence must have at least one position"):
        op(**none, cu_seqlens=torch.tensor([0, 0]))
