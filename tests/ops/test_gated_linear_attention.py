import pytest
import torch

from plstm.ops import gated_linear_attention, plstm_1d
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

DECAYS = ["none", "scalar", "vector"]
decay_cases = pytest.mark.parametrize("decay", DECAYS)
all_backends = pytest.mark.parametrize("backend", ["naive", "chunk", "auto"])


def decay_inputs(length, decay, *, dtype=torch.float64, **options):
    """Decays near 1, so that far positions matter."""
    inputs = attention_inputs(length, **options)
    shape = {"scalar": inputs["q"].shape[:3], "vector": inputs["q"].shape}
    if decay != "none":
        generator = torch.Generator().manual_seed(1)
        inputs["log_decay"] = -0.2 * torch.rand(shape[decay], generator=generator).double()
    return require_grad(inputs, dtype)


def run(inputs, backend, **options):
    return run_with_gradients(gated_linear_attention, inputs, backend=backend, **options)


def test_naive_by_hand():
    def column(*numbers):
        return torch.tensor(numbers, dtype=torch.float64)[None, :, None]

    out, state = gated_linear_attention(
        q=column(1.0, 2.0, 3.0)[..., None],
        k=column(1.0, 4.0, 2.0)[..., None],
        v=column(5.0, 6.0, 7.0)[..., None],
        log_decay=column(0.5, 0.25, 0.1).log(),
        state=column(2.0)[..., None],
        scale=2.0,
        return_state=True,
        backend="naive",
    )
    # S: 2, then 0.5 * 2 + 1 * 5 = 6, then 0.25 * 6 + 4 * 6 = 25.5, then 2.55 + 2 * 7 = 16.55
    want = column(2 * 1 * 6, 2 * 2 * 25.5, 2 * 3 * 16.55)[..., None]
    torch.testing.assert_close(out, want, rtol=1e-14, atol=0)
    torch.testing.assert_close(state.item(), 16.55, rtol=1e-14, atol=0)


@decay_cases
def test_naive_gradcheck(decay):
    inputs = decay_inputs(4, decay, batch=1, key_width=2, value_width=1)

    def op(*args):
        arguments = dict(zip(inputs, args, strict=True))
        return gated_linear_attention(**arguments, return_state=True, backend="naive")

    assert torch.autograd.gradcheck(op, tuple(inputs.values()))


@decay_cases
@pytest.mark.parametrize("length", [*LENGTHS, 1100])
def test_chunk_equals_naive(length, decay):
    sizes = {"batch": 1, "heads": 1} if length > 1000 else {}
    inputs = decay_inputs(length, decay, **sizes)
    assert_results_close(run(inputs, "chunk"), run(inputs, "naive"))


@decay_cases
def test_chunk_equals_naive_without_state(decay):
    inputs = decay_inputs(70, decay, with_state=False)
    assert_results_close(run(inputs, "auto", scale=0.3), run(inputs, "naive", scale=0.3))


@all_backends
@decay_cases
def test_quadratic_form(decay, backend):
    inputs = decay_inputs(70, decay, with_state=False)
    q, k, v = (inputs[name] for name in "qkv")
    log_decay = inputs.get("log_decay", torch.zeros(2, 70, 2, dtype=torch.float64))
    log_decay = log_decay if log_decay.ndim == 4 else log_decay[..., None]
    total = log_decay.cumsum(1)
    weights = (total[:, :, None] - total[:, None]).exp()  # (B, t, s, H, K)
    scores = (q[:, :, None] * k[:, None] * weights).sum(-1)
    scores = scores * torch.ones(70, 70).tril()[..., None]
    want = q.shape[-1] ** -0.5 * torch.einsum("btsh,bshv->bthv", scores, v)
    assert_close("output", gated_linear_attention(**inputs, backend=backend), want)


@all_backends
def test_no_decay_is_a_cumulative_sum(backend):
    inputs = decay_inputs(70, "none", with_state=False)
    q, k, v = (inputs[name] for name in "qkv")
    states = torch.einsum("blhk,blhv->blhkv", k, v).cumsum(1)
    want = torch.einsum("blhk,blhkv->blhv", q, states)
    assert_close("output", gated_linear_attention(**inputs, scale=1.0, backend=backend), want)


@all_backends
def test_open_plstm_is_undecayed(backend):
    inputs = decay_inputs(70, "none")
    one = torch.ones(2, 70, 2, dtype=torch.float64)
    gates = dict.fromkeys(("source", "transition", "mark", "direct"), one)
    want, want_state = plstm_1d(**inputs, **gates, return_state=True, backend="naive")
    got, got_state = gated_linear_attention(**inputs, return_state=True, backend=backend)
    assert_close("output", got, want)
    assert_close("state", got_state, want_state)


@all_backends
def test_equal_channels_are_one_decay_per_head(backend):
    inputs = decay_inputs(70, "scalar")
    want = gated_linear_attention(**inputs, backend="naive")
    log_decay = inputs["log_decay"][..., None].expand(2, 70, 2, 3)
    inputs["log_decay"] = log_decay
    assert_close("output", gated_linear_attention(**inputs, backend=backend), want)


@all_backends
@decay_cases
@pytest.mark.parametrize("split", [1, 64, 99], ids=lambda n: f"at{n}")
def test_halves_with_carried_state(split, decay, backend):
    inputs = decay_inputs(100, decay)
    assert_halves_are_whole(gated_linear_attention, inputs, split, backend=backend)


@all_backends
@decay_cases
def test_causal(decay, backend):
    inputs, other = decay_inputs(70, decay), decay_inputs(70, decay, seed=1)
    assert_causal(gated_linear_attention, inputs, other, backend=backend)


@all_backends
@pytest.mark.parametrize("decay", DECAYS[1:])
@pytest.mark.parametrize("value", [-50.0, -1e4, -torch.inf])
def test_very_negative_decays(value, decay, backend):
    """Every third position forgets; float32 is as exact as without it, gradients too."""
    inputs = decay_inputs(130, decay)
    with torch.no_grad():
        inputs["log_decay"][:, ::3] = value
    want = run(inputs, "naive")
    got = run(require_grad(inputs, torch.float32), backend)
    for name in want:
        assert_close(name, got[name], want[name], 1e-5)


@all_backends
@decay_cases
def test_first_input_reaches_last_output(decay, backend):
    inputs = decay_inputs(130, decay, with_state=False)
    if decay != "none":
        inputs["log_decay"] = inputs["log_decay"] / 20
    out = gated_linear_attention(**inputs, backend=backend)
    v = inputs["v"].detach().clone()
    v[:, 0] = 0
    moved = gated_linear_attention(**inputs | {"v": v}, backend=backend) - out
    assert moved[:, -1].square().mean() > 1e-6 * out[:, -1].square().mean()


@all_backends
@decay_cases
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_low_precision(dtype, decay, backend):
    inputs = decay_inputs(130, decay, dtype=dtype)
    state = inputs.pop("state").float()
    exact = require_grad(inputs, torch.float64)
    out, last = gated_linear_attention(**inputs, state=state, return_state=True, backend=backend)
    assert out.dtype == dtype
    assert last.dtype == torch.float32
    rtol, grad_rtol = TOLERANCE[dtype]
    want = gated_linear_attention(**exact, state=state.double(), backend="naive")
    assert_close("output", out, want, rtol)
    want_grads = torch.autograd.grad(want, list(exact.values()), out.double())
    got_grads = torch.autograd.grad(out, list(inputs.values()), out)
    for name, got, want in zip(inputs, got_grads, want_grads, strict=True):
        assert got.dtype == dtype
        assert_close(f"gradient of {name}", got, want, grad_rtol)


@all_backends
@decay_cases
def test_autocast_leaves_numbers_alone(decay, backend):
    inputs = decay_inputs(70, decay, dtype=torch.float32)
    want = gated_linear_attention(**inputs, return_state=True, backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = gated_linear_attention(**inputs, return_state=True, backend=backend)
    assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": torch.ones(2, 5, 2, 9)}, r"gated_linear_attention: k must have shape \(B, L, H, K"),
        ({"log_decay": torch.ones(2, 5, 3)}, r"log_decay must have shape \(B, L, H\).*H=2"),
        ({"log_decay": torch.ones(2, 5, 2, 4)}, r"log_decay must have shape \(B, L, H, K\).*K=3"),
        ({"log_decay": 0.5}, "log_decay must be a floating-point tensor, got float"),
        ({"state": torch.ones(2, 2, 4, 3)}, "state must have shape"),
        ({"backend": "triton"}, "backend must be one of 'auto', 'naive', 'chunk', 'fla', got"),
    ],
)
def test_errors(change, message):
    with pytest.raises(ValueError, match=message):
        gated_linear_attention(**decay_inputs(5, "none") | change)


def test_empty_sequence():
    with pytest.raises(ValueError, match=r"gated_linear_attention: .*at least one position"):
        gated_linear_attention(**decay_inputs(0, "scalar"))
