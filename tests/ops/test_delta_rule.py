import pytest
import torch

from plstm.ops import delta_rule
from tests.helpers import TOLERANCE, assert_close
from tests.ops.inputs import require_grad
from tests.ops.recurrence import (
    LENGTHS,
    assert_causal,
    assert_halves_are_whole,
    assert_results_close,
    attention_inputs,
    run_with_gradients,
)

all_backends = pytest.mark.parametrize("backend", ["naive", "chunk", "auto"])
gated_cases = pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])


def delta_inputs(length, gated=True, *, dtype=torch.float64, **options):
    """Keys of norm 1, beta in (0, 2), decays near 1."""
    inputs = attention_inputs(length, gates=("beta", "log_decay")[: 1 + gated], **options)
    inputs["k"] = torch.nn.functional.normalize(inputs["k"], dim=-1)
    inputs["beta"] = 2 * inputs["beta"].sigmoid()
    if gated:
        inputs["log_decay"] = -0.1 * inputs["log_decay"].sigmoid()
    return require_grad(inputs, dtype)


def run(inputs, backend, **options):
    return run_with_gradients(delta_rule, inputs, backend=backend, **options)


def test_naive_by_hand():
    def column(*numbers):
        return torch.tensor(numbers, dtype=torch.float64)[None, :, None]

    out, state = delta_rule(
        q=column(1.0, 2.0)[..., None],
        k=column(2.0, 3.0)[..., None],
        v=column(5.0, 7.0)[..., None],
        beta=column(0.5, 0.1),
        log_decay=column(0.25, 0.5).log(),
        state=column(4.0)[..., None],
        scale=2.0,
        return_state=True,
        backend="naive",
    )
    # S: 4, decays to 1, then 1 + 0.5 * 2 * (5 - 2) = 4; decays to 2, then 2 + 0.1 * 3 * (7 - 6)
    torch.testing.assert_close(out.flatten(), column(8.0, 9.2).flatten(), rtol=1e-14, atol=0)
    torch.testing.assert_close(state.item(), 2.3, rtol=1e-14, atol=0)


@gated_cases
def test_naive_gradcheck(gated):
    inputs = delta_inputs(4, gated, batch=1, key_width=2, value_width=1)

    def op(*args):
        arguments = dict(zip(inputs, args, strict=True))
        return delta_rule(**arguments, return_state=True, backend="naive")

    assert torch.autograd.gradcheck(op, tuple(inputs.values()))


@gated_cases
@pytest.mark.parametrize("length", LENGTHS)
def test_chunk_equals_naive(length, gated):
    inputs = delta_inputs(length, gated)
    assert_results_close(run(inputs, "chunk"), run(inputs, "naive"))


@gated_cases
def test_chunk_equals_naive_without_state(gated):
    inputs = delta_inputs(70, gated, with_state=False)
    assert_results_close(run(inputs, "auto", scale=0.3), run(inputs, "naive", scale=0.3))


@all_backends
def test_product_of_matrices(backend):
    """S_t = a_t (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T, multiplied out."""
    inputs = delta_inputs(70)
    q, k, v, beta, log_decay, state = inputs.values()
    outs = []
    for t in range(70):
        key, b = k[:, t, ..., None], beta[:, t, :, None, None]
        shrink = torch.eye(3, dtype=torch.float64) - b * key @ key.mT
        state = log_decay[:, t].exp()[..., None, None] * shrink @ state
        state = state + b * key * v[:, t, ..., None, :]
        outs.append(torch.einsum("bhk,bhkv->bhv", q[:, t], state))
    got = delta_rule(**inputs, scale=1.0, backend=backend)
    assert_close("output", got, torch.stack(outs, 1))


@all_backends
def test_decay_of_one_changes_nothing(backend):
    inputs = delta_inputs(70)
    inputs["log_decay"] = torch.zeros_like(inputs["log_decay"])
    got = delta_rule(**inputs, backend=backend)
    assert_close("output", got, delta_rule(**inputs | {"log_decay": None}, backend="naive"))


@all_backends
def test_orthonormal_keys_retrieve_exactly(backend):
    k = torch.linalg.qr(torch.randn(80, 80, dtype=torch.float64)).Q[None, :, None]
    v = torch.randn(1, 80, 1, 5, dtype=torch.float64)
    beta = torch.ones(1, 80, 1, dtype=torch.float64)
    out, state = delta_rule(k, k, v, beta, scale=1.0, return_state=True, backend=backend)
    assert_close("own value", out, v)
    assert_close("all values", k[0, :, 0] @ state[0, 0], v[0, :, 0])


@all_backends
def test_writing_a_key_twice_returns_the_last_value(backend):
    """Where linear attention returns the sum of both values."""
    key = torch.nn.functional.normalize(torch.randn(1, 1, 1, 4, dtype=torch.float64), dim=-1)
    k = key.expand(1, 70, 1, 4)
    v = torch.randn(1, 70, 1, 5, dtype=torch.float64)
    beta = torch.ones(1, 70, 1, dtype=torch.float64)
    assert_close("output", delta_rule(k, k, v, beta, scale=1.0, backend=backend), v)


@all_backends
def test_state_stays_bounded(backend):
    """The norm of the state grows at most by the values written, at beta |k|^2 < 2."""
    inputs = delta_inputs(300, gated=False, with_state=False)
    _, state = delta_rule(**inputs, return_state=True, backend=backend)
    written = (inputs["beta"][..., None] * inputs["v"]).norm(dim=-1).sum(1)  # (B, H)
    assert (state.norm(dim=(-2, -1)) < written).all()


@all_backends
@gated_cases
@pytest.mark.parametrize("split", [1, 64, 99], ids=lambda n: f"at{n}")
def test_halves_with_carried_state(split, gated, backend):
    assert_halves_are_whole(delta_rule, delta_inputs(100, gated), split, backend=backend)


@all_backends
@gated_cases
def test_causal(gated, backend):
    inputs, other = delta_inputs(70, gated), delta_inputs(70, gated, seed=1)
    assert_causal(delta_rule, inputs, other, backend=backend)


@all_backends
@pytest.mark.parametrize("value", [-50.0, -1e4, -torch.inf])
def test_very_negative_decays(value, backend):
    """Every third position forgets; float32 is as exact as without it, gradients too."""
    inputs = delta_inputs(130)
    with torch.no_grad():
        inputs["log_decay"][:, ::3] = value
    want = run(inputs, "naive")
    got = run(require_grad(inputs, torch.float32), backend)
    for name in want:
        assert_close(name, got[name], want[name], 1e-5)


@all_backends
@gated_cases
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_low_precision(dtype, gated, backend):
    inputs = delta_inputs(130, gated, dtype=dtype)
    state = inputs.pop("state").float()
    exact = require_grad(inputs, torch.float64)
    out, last = delta_rule(**inputs, state=state, return_state=True, backend=backend)
    assert out.dtype == dtype
    assert last.dtype == torch.float32
    rtol, grad_rtol = TOLERANCE[dtype]
    want = delta_rule(**exact, state=state.double(), backend="naive")
    assert_close("output", out, want, rtol)
    want_grads = torch.autograd.grad(want, list(exact.values()), out.double())
    got_grads = torch.autograd.grad(out, list(inputs.values()), out)
    for name, got, want in zip(inputs, got_grads, want_grads, strict=True):
        assert got.dtype == dtype
        assert_close(f"gradient of {name}", got, want, grad_rtol)


@all_backends
def test_autocast_leaves_numbers_alone(backend):
    inputs = delta_inputs(70, dtype=torch.float32)
    want = delta_rule(**inputs, return_state=True, backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = delta_rule(**inputs, return_state=True, backend=backend)
    assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": torch.ones(2, 5, 2, 9)}, r"delta_rule: k must have shape \(B, L, H, K\)"),
        ({"beta": torch.ones(2, 5, 2, 1)}, r"beta must have shape \(B, L, H\).*B=2, L=5, H=2"),
        ({"log_decay": torch.ones(2, 5, 2, 3)}, r"log_decay must have shape \(B, L, H\)"),
        ({"beta": 0.5}, "beta must be a floating-point tensor, got float"),
        ({"state": torch.ones(2, 2, 4, 3)}, "state must have shape"),
        ({"backend": "triton"}, "backend must be one of 'auto', 'naive', 'chunk', 'fla', got"),
    ],
)
def test_errors(change, message):
    with pytest.raises(ValueError, match=message):
        delta_rule(**delta_inputs(5, dtype=torch.float32) | change)


def test_empty_sequence():
    with pytest.raises(ValueError, match=r"delta_rule: .*at least one position"):
        delta_rule(**delta_inputs(0))
