import torch

from plstm.modules.tpe import ToeplitzPosition
from tests.helpers import assert_close


def build(axes, heads=2):
    code = ToeplitzPosition(6, heads, axes).double()
    with torch.no_grad():
        for parameter in code.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return code


def decays(code, axis):
    heads = code.num_heads
    return code.theta[axis * heads : (axis + 1) * heads].sigmoid().repeat_interleave(6 // heads)


def test_impulse_response_is_geometric():
    code = build(1)
    x = torch.zeros(1, 7, 6).double()
    x[:, 2] = torch.randn(6)
    sums, _ = code.scan(x, 0)
    gain = (code.q * code.k).sum(-1)[0].repeat_interleave(3)
    for t in range(7):
        want = gain * decays(code, 0) ** (t - 2) * x[0, 2] if t >= 2 else torch.zeros(6)
        assert_close(f"position {t}", sums[0, t], want)


def by_hand(code, x, axis):
    """W norm(s) along the last but one axis of x, by the Toeplitz matrix."""
    length = x.shape[-2]
    steps = torch.arange(length)[:, None] - torch.arange(length)
    toeplitz = (decays(code, axis)[:, None, None] ** steps.clamp(min=0)).tril()
    gain = (code.q[axis] * code.k[axis]).sum(-1).repeat_interleave(6 // code.num_heads)
    sums = gain * torch.einsum("dts,...sd->...td", toeplitz, x)
    normed = sums / (sums.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return normed * code.norms[axis].weight @ code.projs[axis].weight.T


def test_sequence_by_hand():
    code, x = build(1), torch.randn(2, 5, 6).double()
    assert_close("output", code(x), x + by_hand(code, x, 0))


def test_axes_add_up():
    code, x = build(3), torch.randn(2, 3, 4, 2, 6).double()
    want = x
    for axis in range(3):
        want = want + by_hand(code, x.movedim(axis + 1, -2), axis).movedim(-2, axis + 1)
    assert_close("output", code(x), want)


def test_halves_with_carried_state():
    code, x = build(1, heads=3), torch.randn(2, 9, 6).double()
    first, state = code.forward_with_state(x[:, :4], None)
    second, _ = code.forward_with_state(x[:, 4:], state)
    assert state.shape == (2, 3, 1, 2)
    assert_close("output", torch.cat([first, second], 1), code(x))


def test_initial_values():
    code = ToeplitzPosition(300, 100, 1)
    for parameter in (code.q, code.k, code.theta):
        assert abs(parameter.std() - 1) < 0.2
