"""Random inputs and comparisons shared by the tests of the baseline recurrences."""

import torch

from tests.helpers import assert_close, gradients
from tests.ops.inputs import require_grad

LENGTHS = [1, 5, 63, 64, 67, 130]


def attention_inputs(
    length,
    *,
    gates=(),
    batch=2,
    heads=2,
    key_width=3,
    value_width=4,
    with_state=True,
    dtype=torch.float64,
    seed=0,
):
    """q, k, v, normal gates (B, L, H) of the given names and a state, all requiring gradients."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=g, dtype=torch.float64)

    positions = (batch, length, heads)
    inputs = {
        "q": normal(*positions, key_width),
        "k": normal(*positions, key_width),
        "v": normal(*positions, value_width),
        **{name: normal(*positions) for name in gates},
    }
    if with_state:
        inputs["state"] = normal(batch, heads, key_width, value_width)
    return require_grad(inputs, dtype)


def run_with_gradients(op, inputs, **options):
    """Output, state and the gradient of every input under one cotangent of both."""
    out, state = op(**inputs, return_state=True, **options)
    both = torch.cat([out.flatten(), state.flatten()])
    grads = {f"gradient of {name}": grad for name, grad in gradients(both, inputs).items()}
    return {"output": out, "state": state} | grads


def assert_results_close(got, want, rtol=1e-10):
    for name in want:
        assert_close(name, got[name], want[name], rtol)


def assert_halves_are_whole(op, inputs, split, **options):
    """Two parts with the state carried between them, against one pass."""
    state = inputs.pop("state")
    out, last = op(**inputs, state=state, return_state=True, **options)
    outs = []
    for part in (slice(split), slice(split, None)):
        half = {name: x[:, part] for name, x in inputs.items()}
        y, state = op(**half, state=state, return_state=True, **options)
        outs.append(y)
    assert_close("output", torch.cat(outs, 1), out)
    assert_close("state", state, last)


def assert_causal(op, inputs, other, **options):
    """Inputs from a position on move the output there, and none before it."""
    out = op(**inputs, **options)
    for position in (0, 31, inputs["q"].shape[1] - 1):
        changed = {
            name: x
            if name == "state"
            else torch.cat([x[:, :position], other[name][:, position:]], 1)
            for name, x in inputs.items()
        }
        got = op(**changed, **options)
        assert_close("before", got[:, :position], out[:, :position])
        assert not torch.allclose(got[:, position], out[:, position])
