import pytest
import torch
from torch.nn.functional import logsigmoid

from plstm.ops import MLSTMState, mlstm
from plstm.ops.mlstm.stabilizer import running_stabilizer
from tests.helpers import TOLERANCE, assert_close, gradients
from tests.ops.inputs import require_grad
from tests.ops.recurrence import LENGTHS, assert_causal, assert_results_close, attention_inputs

all_backends = pytest.mark.parametrize("backend", ["naive", "chunk", "auto"])


def mlstm_inputs(length, *, with_state=True, dtype=torch.float64, **options):
    """Open forget gates, so that far positions matter; input gates on both sides of 1."""
    gates = ("input_gate", "forget_gate")
    inputs = attention_inputs(length, gates=gates, with_state=with_state, **options)
    inputs["input_gate"] = 3 * inputs["input_gate"]
    inputs["forget_gate"] = inputs["forget_gate"] + 4
    if with_state:
        memory = inputs.pop("state")
        inputs |= {"memory": memory, "normalizer": memory[..., 0] + 1}
        inputs["stabilizer"] = memory[..., 0, 0].exp()
    return require_grad(inputs, dtype)


def run(inputs, backend, **options):
    """Output and state of `mlstm`, with the parts of the state among the inputs."""
    inputs = dict(inputs)
    if "memory" in inputs:
        parts = (inputs.pop(name) for name in MLSTMState._fields)
        options["state"] = MLSTMState(*parts)
    return mlstm(**inputs, return_state=True, backend=backend, **options)


def output(backend="auto", **inputs):
    return run(inputs, backend)[0]


def run_with_gradients(inputs, backend, **options):
    out, state = run(inputs, backend, **options)
    both = torch.cat([x.flatten() for x in (out, *state)])
    grads = {f"gradient of {name}": grad for name, grad in gradients(both, inputs).items()}
    return {"output": out} | state._asdict() | grads


def test_naive_by_hand():
    def column(*numbers):
        return torch.tensor(numbers, dtype=torch.float64)[None, :, None]

    out, state = mlstm(
        q=column(2.0, 0.1)[..., None],
        k=column(1.0, 5.0)[..., None],
        v=column(3.0, 7.0)[..., None],
        input_gate=column(2.0, 3.0).log(),
        forget_gate=column(0.0, 0.0),  # a half
        scale=1.0,
        return_state=True,
        backend="naive",
    )
    # C: 6, then 3 + 105 = 108; n: 2, then 1 + 15 = 16; |n q|: 4, then 1.6
    torch.testing.assert_close(
        out.flatten(), column(12 / 4, 10.8 / 1.6).flatten(), rtol=1e-14, atol=0
    )
    grown = state.stabilizer.exp()
    torch.testing.assert_close((grown * state.memory.flatten()).item(), 108.0, rtol=1e-14, atol=0)
    torch.testing.assert_close((grown * state.normalizer.flatten()).item(), 16.0)


def test_small_weights_are_divided_by_one():
    ones = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    gate = ones[..., 0].log()
    out = mlstm(0.25 * ones, ones, 6 * ones, gate, gate)
    assert_close("output", out, 1.5 * ones)


def test_naive_gradcheck():
    """The stabilizer is constant: of the state, only the unstabilized numbers are functions."""
    inputs = mlstm_inputs(4, batch=1, key_width=2, value_width=1)
    stabilizer = inputs.pop("stabilizer").detach()

    def op(*args):
        arguments = dict(zip(inputs, args, strict=True)) | {"stabilizer": stabilizer}
        out, (memory, normalizer, m) = run(arguments, "naive")
        return out, m.exp()[..., None, None] * memory, m.exp()[..., None] * normalizer

    assert torch.autograd.gradcheck(op, tuple(inputs.values()))


@pytest.mark.parametrize("length", LENGTHS)
def test_chunk_equals_naive(length):
    inputs = mlstm_inputs(length)
    assert_results_close(run_with_gradients(inputs, "chunk"), run_with_gradients(inputs, "naive"))


def test_chunk_equals_naive_without_state():
    inputs = mlstm_inputs(70, with_state=False)
    got, want = (run_with_gradients(inputs, name, scale=0.3) for name in ("auto", "naive"))
    assert_results_close(got, want)


@all_backends
def test_quadratic_form(backend):
    inputs = mlstm_inputs(70, with_state=False)
    q, k, v, input_gate, forget_gate = (x.transpose(1, 2) for x in inputs.values())
    total = logsigmoid(forget_gate).cumsum(-1)
    log_weights = total[..., :, None] - total[..., None, :] + input_gate[..., None, :]
    weights = (q @ k.mT) / 3**0.5 * log_weights.exp().tril()
    want = weights @ v / weights.sum(-1, keepdim=True).abs().clamp(min=1)
    assert_close("output", run(inputs, backend)[0], want.transpose(1, 2))


@pytest.mark.parametrize("length", LENGTHS)
def test_running_stabilizer(length):
    gates, forget = 5 * torch.randn(2, 2, length, 3).double()
    forget, initial = logsigmoid(forget), torch.randn(2, 3).double()
    forget[:, ::4] = -torch.inf
    gates[:, ::3] = -torch.inf
    want, m = [], initial
    for t in range(length):
        m = torch.maximum(forget[:, t] + m, gates[:, t]).clamp(min=0)
        want.append(m)
    got = running_stabilizer(gates, forget, initial)
    torch.testing.assert_close(got, torch.stack(want, 1), rtol=1e-12, atol=1e-12)


@all_backends
@pytest.mark.parametrize("shift", [-30.0, 40.0, 200.0])
def test_output_is_independent_of_the_stabilizer(shift, backend):
    inputs = mlstm_inputs(70)
    want = output(**inputs, backend=backend)
    factor = torch.tensor(-shift, dtype=torch.float64).exp()
    for name in ("memory", "normalizer"):
        inputs[name] = inputs[name] * factor
    inputs["stabilizer"] = inputs["stabilizer"] + shift
    assert_close("output", output(**inputs, backend=backend), want)


@all_backends
@pytest.mark.parametrize("split", [1, 64, 99], ids=lambda n: f"at{n}")
def test_halves_with_carried_state(split, backend):
    """Gradients too: those of the first half come through the state."""
    inputs = mlstm_inputs(100, with_state=False)
    want, last = run(inputs, backend)
    state, outs = None, []
    for part in (slice(split), slice(split, None)):
        half = {name: x[:, part] for name, x in inputs.items()}
        out, state = run(half, backend, state=state)
        outs.append(out)
    got = torch.cat(outs, 1)
    assert_close("output", got, want)
    for name in MLSTMState._fields:
        assert_close(name, getattr(state, name), getattr(last, name))
    assert_results_close(gradients(got, inputs), gradients(want, inputs))


@all_backends
def test_causal(backend):
    inputs, other = (mlstm_inputs(70, with_state=False, seed=seed) for seed in (0, 1))
    assert_causal(output, inputs, other, backend=backend)


@all_backends
@pytest.mark.parametrize("value", [-50.0, -1e4, -torch.inf])
@pytest.mark.parametrize("gate", ["input_gate", "forget_gate"])
def test_shut_gates(gate, value, backend):
    inputs = mlstm_inputs(130)
    with torch.no_grad():
        inputs[gate][:, ::3] = value
    want = run_with_gradients(inputs, "naive")
    got = run_with_gradients(require_grad(inputs, torch.float32), backend)
    for name in want:
        assert_close(name, got[name], want[name], 1e-4)


@all_backends
@pytest.mark.parametrize("value", [100.0, 1e4, -1e4])
def test_large_input_gates_stay_finite(value, backend):
    inputs = mlstm_inputs(130, dtype=torch.float32)
    with torch.no_grad():
        inputs["input_gate"] += value
    for name, x in run_with_gradients(inputs, backend).items():
        assert torch.isfinite(x).all(), name


@all_backends
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_low_precision(dtype, backend):
    """Weights of both signs may cancel in the divisor, and outputs grow; keys here are positive."""
    inputs = mlstm_inputs(130, with_state=False)
    inputs["q"], inputs["k"] = inputs["q"].abs(), inputs["k"].abs()
    inputs = require_grad(inputs, dtype)
    exact = require_grad(inputs, torch.float64)
    out, state = run(inputs, backend)
    assert out.dtype == dtype
    assert all(x.dtype == torch.float32 for x in state)
    rtol, grad_rtol = TOLERANCE[dtype]
    want = run(exact, "naive")[0]
    assert_close("output", out, want, rtol)
    got_grads, want_grads = gradients(out, inputs), gradients(want, exact)
    for name in inputs:
        assert got_grads[name].dtype == dtype
        assert_close(f"gradient of {name}", got_grads[name], want_grads[name], grad_rtol)


@all_backends
def test_autocast_leaves_numbers_alone(backend):
    inputs = mlstm_inputs(70, dtype=torch.float32)
    want, want_state = run(inputs, backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, state = run(inputs, backend)
    for g, w in zip((got, *state), (want, *want_state), strict=True):
        assert torch.equal(g, w)


STATE = MLSTMState(torch.ones(2, 2, 3, 4), torch.ones(2, 2, 3), torch.ones(2, 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": torch.ones(2, 5, 2, 9)}, r"mlstm: k must have shape \(B, L, H, K\)"),
        ({"input_gate": torch.ones(2, 5, 3)}, r"input_gate must have shape \(B, L, H\).*H=2"),
        ({"forget_gate": torch.ones(2, 5, 2, 3)}, "forget_gate must have shape"),
        ({"forget_gate": 0.5}, "forget_gate must be a floating-point tensor, got float"),
        ({"state": STATE.memory}, "state must be an MLSTMState.*got Tensor; pass what"),
        ({"state": STATE._replace(memory=torch.ones(2, 2, 4, 3))}, "memory must have shape"),
        ({"state": STATE._replace(stabilizer=torch.ones(2))}, "stabilizer must have shape"),
        ({"backend": "triton"}, "backend must be one of 'auto', 'naive', 'chunk', got 'triton'"),
    ],
)
def test_errors(change, message):
    with pytest.raises(ValueError, match=message):
        mlstm(**mlstm_inputs(5, with_state=False, dtype=torch.float32) | change)


def test_empty_sequence():
    with pytest.raises(ValueError, match=r"mlstm: .*at least one position"):
        mlstm(**mlstm_inputs(0, with_state=False))
