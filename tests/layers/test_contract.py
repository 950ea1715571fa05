"""The contract of every mixer of configs/net; new net files are included automatically."""

import copy
import re

import pytest
import torch

from tests.helpers import TOLERANCE, assert_close, gradients
from tests.layers.contract import CASES, CAUSAL, FIRST, LANES

all_mixers = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
causal_mixers = pytest.mark.parametrize("case", CAUSAL, ids=lambda case: case.name)
few_mixers = pytest.mark.parametrize("case", [*FIRST, LANES[0]], ids=lambda case: case.name)


def state_tensors(state):
    return [x for x in state if isinstance(x, torch.Tensor)]


def test_mixers_found():
    assert {"PLSTM1d", "PLSTM2d", "SoftmaxAttention"} <= {case.cls.__name__ for case in CASES}
    assert CAUSAL


@all_mixers
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_shape_and_dtype(case, dtype):
    mixer = case.build().to(dtype)
    x = case.inputs().to(dtype)
    y = mixer(x)
    assert y.shape == x.shape
    assert y.dtype == dtype
    assert y.isfinite().all()


@all_mixers
def test_wrong_inputs(case):
    mixer, x = case.build(), case.inputs()
    name = re.escape(case.cls.__name__)
    for wrong in (x[..., :-1], x[:, 0, ..., 0]):
        shapes = rf"\(B, .*{x.shape[-1]}\), got {re.escape(str(tuple(wrong.shape)))}"
        with pytest.raises(ValueError, match=rf"^{name}: x must have shape {shapes}"):
            mixer(wrong)
    message = f"^{name}: x must be a floating-point tensor, got torch.int64"
    with pytest.raises(ValueError, match=message):
        mixer(x.long())


@all_mixers
def test_one_position(case):
    mixer, x = case.build(seed=1), case.inputs()
    x = x[:, :1] if x.ndim == 3 else x[:, :1, :1]
    assert mixer(x).isfinite().all()


@few_mixers
def test_no_sample(case):
    mixer, x = case.build(), case.inputs()[:0].requires_grad_()
    y = mixer(x)
    assert y.shape == x.shape
    y.sum().backward()
    assert x.grad.shape == x.shape


@few_mixers
def test_no_position(case):
    """A mixer without positions returns an empty output, or raises an error with its name."""
    mixer, x = case.build(), case.inputs()[:, :0]
    try:
        assert mixer(x).shape == x.shape
    except ValueError as error:
        assert re.match(r"\w+: the .*(at least one position|not be empty)", str(error))


@all_mixers
def test_every_linear_is_called(case):
    """Linear layers are called as modules, for hooks, adapters and quantization."""
    mixer, called = case.build(), set()
    linears = {module for module in mixer.modules() if isinstance(module, torch.nn.Linear)}
    for linear in linears:
        linear.register_forward_hook(lambda module, *_: called.add(module))
    mixer(case.inputs())
    assert called == linears


@all_mixers
def test_gradient_of_every_parameter(case):
    mixer, x = case.build(seed=1), case.inputs().requires_grad_()
    y = mixer(x)
    (y * torch.randn_like(y)).sum().backward()
    for name, parameter in [*mixer.named_parameters(), ("x", x)]:
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.norm() > 0, name


@all_mixers
def test_new_mixer_has_finite_gradients(case):
    mixer = case.build()
    mixer(case.inputs()).square().sum().backward()
    for name, parameter in mixer.named_parameters():
        assert parameter.grad.isfinite().all(), name


@all_mixers
def test_input_is_left_alone(case):
    mixer, x = case.build(seed=1), case.inputs()
    mixer(x)
    assert torch.equal(x, case.inputs())


@all_mixers
def test_every_position_uses_others(case):
    """Changing the first position changes the last output, except in a control."""
    mixer, x = case.build(seed=1), case.inputs()
    first, last = ((slice(None), *[end] * len(case.positions)) for end in case.ends)
    moved = x.clone()
    moved[first] += 1
    closed = case.kwargs.get("mark_bias") == -1000
    assert ((mixer(moved) - mixer(x))[last].norm() > 1e-6) != closed


@all_mixers
def test_samples_are_independent(case):
    mixer, x = case.build(seed=1), case.inputs(batch=3)
    assert_close("one by one", torch.cat([mixer(one[None]) for one in x]), mixer(x), 1e-5)


@all_mixers
def test_state_dict_round_trip(case):
    mixer, other, x = case.build(seed=1), case.build(seed=2), case.inputs()
    assert not torch.allclose(mixer(x), other(x))
    other.load_state_dict(mixer.state_dict())
    assert torch.equal(mixer(x), other(x))


@all_mixers
def test_deepcopy(case):
    mixer, x = case.build(seed=1), case.inputs()
    twin, y = copy.deepcopy(mixer), mixer(x)
    assert torch.equal(twin(x), y)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.zero_()
    assert torch.equal(twin(x), y)


@all_mixers
def test_same_seed_same_start(case):
    starts = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        starts.append(case.build())
    first, second, third = (torch.nn.utils.parameters_to_vector(m.parameters()) for m in starts)
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    torch.manual_seed(0)
    third = starts[2]
    third.reset_parameters()
    assert third.state_dict().keys() == starts[0].state_dict().keys()


@all_mixers
def test_autocast(case):
    mixer, x = case.build(seed=1), case.inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = mixer(x)
    # Rounded q, k, v and gates too, hence more than one rounding of the output.
    assert_close("output", y, mixer(x), 4 * TOLERANCE[torch.bfloat16][0])
    y.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in mixer.parameters())


@few_mixers
def test_compile(case):
    torch._dynamo.reset()
    mixer, x = case.build(seed=1), case.inputs()
    compiled = torch.compile(mixer, backend="aot_eager", fullgraph=True)
    y, want, parameters = compiled(x), mixer(x), dict(mixer.named_parameters())
    assert_close("output", y, want, 1e-5)
    want = gradients(want, parameters)
    for name, grad in gradients(y, parameters).items():
        assert_close(f"gradient of {name}", grad, want[name], 1e-4)


@pytest.mark.slow
@few_mixers
def test_compile_with_inductor(case):
    torch._dynamo.reset()
    mixer, x = case.build(seed=1), case.inputs()
    assert_close("output", torch.compile(mixer)(x), mixer(x), 1e-5)


@causal_mixers
def test_causal(case):
    mixer, x = case.build(seed=1), case.inputs()
    y = mixer(x)
    for position in range(1, x.shape[1]):
        changed = x.clone()
        changed[:, position:] += 1
        assert_close("before", mixer(changed)[:, :position], y[:, :position], 1e-5)


@causal_mixers
def test_steps_equal_forward(case):
    mixer, x = case.build(seed=1).double(), case.inputs().double()
    y, last = mixer(x, return_state=True)
    state, outs = None, []
    for position in range(x.shape[1]):
        out, state = mixer.step(x[:, position], state)
        outs.append(out)
    assert_close("output", torch.stack(outs, 1), y)
    for got, want in zip(state_tensors(state), state_tensors(last), strict=True):
        assert_close("state", got, want)


@causal_mixers
@pytest.mark.parametrize("split", [1, 3, 6])
def test_halves_with_carried_state(case, split):
    mixer, x = case.build(seed=1).double(), case.inputs().double()
    y, last = mixer(x, return_state=True)
    first, state = mixer(x[:, :split], return_state=True)
    second, state = mixer(x[:, split:], state=state, return_state=True)
    assert_close("output", torch.cat([first, second], 1), y)
    for got, want in zip(state_tensors(state), state_tensors(last), strict=True):
        assert_close("state", got, want)


@causal_mixers
def test_state_size(case):
    mixer, x = case.build(), case.inputs(batch=1)
    if not hasattr(mixer, "state_size"):
        pytest.skip("the state grows with the sequence")
    _, state = mixer(x, return_state=True)
    numbers = [x for x in state_tensors(state) if x.is_floating_point()]  # not counts of positions
    assert mixer.state_size() == sum(x.numel() for x in numbers)


@all_mixers
def test_unknown_keyword(case):
    with pytest.raises(TypeError, match="no_such_option"):
        case.cls(case.dim, **case.kwargs, no_such_option=1)
