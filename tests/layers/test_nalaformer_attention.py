import pytest
import torch

from plstm import NaLaFormerAttention
from plstm.layers.nalaformer_attention import norm_aware_features
from plstm.modules.rotary import coordinates
from tests.helpers import assert_close


def perturbed(dim=16, **kwargs):
    layer = NaLaFormerAttention(dim, 2, **kwargs).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
    return layer


def kernel(q, k):
    """sum_i 1[sign q_i = sign k_i] (|q_i| / r)^p |k_i|^3 of all pairs of q (N, K) and k (M, K)."""
    r = (q.square().sum(-1, keepdim=True) + 1e-6).sqrt()
    left = (q.abs() / r) ** (1.5 + 3 * r.tanh())
    same = (q[:, None].sign() == k.sign()).double()
    return (same * left[:, None] * k.abs() ** 3).sum(-1)


def weights(q, k):
    """Rows of normalized weights, without rotation."""
    f, g = norm_aware_features(q, k)
    scores = f @ g.T
    return scores / (scores.sum(-1, keepdim=True) + 1e-6 * len(k))


def turn(features, positions):
    """Rotary code of both halves by its definition: positions (N, axes)."""
    half, axes = features.shape[-1] // 2, positions.shape[1]
    pairs, out = half // (2 * axes), features.clone()
    for n, position in enumerate(positions):
        for start in (0, half):
            for axis in range(axes):
                for i in range(pairs):
                    angle = position[axis] * 10_000.0 ** -(i / max(1, pairs - 1))
                    a = start + axis * 2 * pairs + i
                    b = a + pairs
                    x, y = features[n, a], features[n, b]
                    out[n, a] = x * angle.cos() - y * angle.sin()
                    out[n, b] = x * angle.sin() + y * angle.cos()
    return out


def by_hand(layer, x, positions, lepe=0):
    """The N x N form, head by head; x (N, dim)."""
    q, k, v, gate = layer.in_proj(x).chunk(4, -1)
    heads = []
    for q_h, k_h, v_h in zip(*(part.chunk(2, -1) for part in (q, k, v)), strict=True):
        total, scores = kernel(q_h, k_h), kernel(q_h, k_h)
        if layer.rope:
            f, g = (turn(part, positions) for part in norm_aware_features(q_h, k_h))
            scores = f @ g.T
        eps = 1e-6 if layer.causal else 1e-6 * len(x)
        if layer.causal:
            total, scores = total.tril(), scores.tril()
        heads.append(scores @ v_h / (total.sum(-1, keepdim=True) + eps))
    y = layer.norm(torch.cat(heads, -1) + lepe)
    return layer.out_proj(y * gate * gate.sigmoid())


@pytest.mark.parametrize("rope", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_sequence_by_hand(causal, rope):
    layer, x = perturbed(causal=causal, rope=rope, lepe=False), torch.randn(7, 16).double()
    positions = torch.arange(7.0).double()[:, None]
    assert_close("output", layer(x[None])[0], by_hand(layer, x, positions))


@pytest.mark.parametrize("lepe", [False, True])
def test_grid_by_hand(lepe):
    layer, x = perturbed(lepe=lepe), torch.randn(1, 3, 4, 16).double()
    positions = torch.cartesian_prod(torch.arange(3.0), torch.arange(4.0)).double()
    local = 0
    if lepe:
        v = layer.in_proj(x).chunk(4, -1)[2]
        local = layer.lepe(v.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).flatten(0, 2)
    want = by_hand(layer, x.flatten(0, 2), positions, local)
    assert_close("output", layer(x).flatten(0, 2), want)


def test_closed_form_of_the_kernel():
    q, k = torch.randn(2, 9, 6).double()
    f, g = norm_aware_features(q, k)
    assert_close("kernel", f @ g.T, kernel(q, k))


def test_weights_are_a_distribution():
    w = weights(*torch.randn(2, 9, 8).double())
    assert (w >= 0).all()
    assert_close("sums", w.sum(-1), torch.ones(9), 1e-4)  # short of 1 by 1e-6 over small sums


def test_longer_queries_are_sharper():
    """Entropy falls with the norm of the query, and levels off as tanh does."""
    q, k = torch.randn(2, 10, 8, generator=torch.Generator().manual_seed(0)).double()
    entropy = []
    for scale in (0.1, 0.5, 1, 2, 5):
        w = weights(scale * q, k)
        entropy.append(-torch.special.xlogy(w, w).sum(-1).mean())
    drops = -torch.stack(entropy).diff()
    assert (drops > 0).all()
    assert drops[-1] < 0.1 * drops[0]


def test_norm_of_the_keys():
    """All keys scaled together change nothing; one of them counts with the third power."""
    q, k = torch.randn(2, 9, 8).double()
    assert_close("all", weights(q, 2 * k), weights(q, k), 1e-4)  # up to the 1e-6
    one = k.clone()
    one[4] *= 2
    f, g = norm_aware_features(q, one)
    assert_close("one", (f @ g.T)[:, 4], 8 * kernel(q, k)[:, 4])


def test_signs():
    q, k = torch.randn(2, 9, 8).double()
    flip = torch.tensor([1, -1, -1, 1, 1, -1, 1, -1])
    assert_close("flipped", weights(flip * q, flip * k), weights(q, k))
    f, g = norm_aware_features(q, -3 * q)
    assert (f * g).sum(-1).abs().max() == 0


@pytest.mark.parametrize("causal", [False, True])
def test_zero_queries_are_finite(causal):
    layer = perturbed(causal=causal, lepe=False)
    with torch.no_grad():
        layer.in_proj.weight[:16] = 0
        layer.in_proj.bias[:16] = 0
    x = torch.randn(1, 5, 16).double().requires_grad_()
    y = layer(x)
    y.square().sum().backward()
    assert y.isfinite().all()
    assert x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("scale", [0.0, 1e-8, 1e4])
def test_features_of_any_size_are_finite(scale):
    q, k = (scale * torch.randn(2, 9, 8)).requires_grad_(), torch.randn(2, 9, 8)
    for part in norm_aware_features(q[0], q[1]):
        assert part.isfinite().all()
    f, _ = norm_aware_features(q, k)
    (grad,) = torch.autograd.grad(f.sum(), q)
    assert grad.isfinite().all()


def test_order_matters_with_rotation_only():
    x, order = torch.randn(1, 6, 16).double(), torch.tensor([3, 0, 5, 1, 4, 2])
    for rope in (False, True):
        layer = perturbed(rope=rope, lepe=False)
        assert torch.allclose(layer(x[:, order]), layer(x)[:, order]) != rope


def test_rotation_sees_differences_only():
    layer = perturbed(lepe=False)
    f, g = torch.rand(2, 1, 12, 2, 16).double()

    def scores(start):
        positions = start + coordinates((3, 4), f.device)
        turned = (layer._turn(part, positions) for part in (f, g))
        return torch.einsum("bthk,bshk->bhts", *turned)

    assert_close("shifted", scores(5), scores(0))
    assert not torch.allclose(scores(0), torch.einsum("bthk,bshk->bhts", f, g))


def test_pieces():
    layer, x = perturbed(causal=True, lepe=False), torch.randn(2, 80, 16).double()
    state, outs = None, []
    for piece in x.split([1, 2, 70, 7], 1):
        y, state = layer(piece, state=state, return_state=True)
        outs.append(y)
    assert state.seen.tolist() == [80, 80]
    assert_close("output", torch.cat(outs, 1), layer(x))


def test_initial_values():
    layer = NaLaFormerAttention(64, 2)
    bound = 1 / 8  # of PyTorch's linear maps: 1 / sqrt(64)
    for linear in (layer.in_proj, layer.out_proj):
        assert 0.95 * bound < linear.weight.abs().max() <= bound
        assert linear.bias.abs().max() <= bound
    assert 0.018 < layer.lepe.weight.std() < 0.022
    assert not layer.lepe.bias.any()


def test_whole_carries_nothing():
    assert NaLaFormerAttention(16, 2).state_size() == 0


@pytest.mark.parametrize(
    ("kwargs", "shape", "message"),
    [
        ({"num_heads": 5}, (2, 2), "NaLaFormerAttention: dim must be divisible by num_heads"),
        ({"causal": True}, (3,), "lepe=True looks ahead"),
        ({}, (3,), "lepe needs two position axes, got 1"),
        ({"num_heads": 8}, (2, 2), "rope needs a width per head divisible by 4"),
        ({"causal": True, "lepe": False}, (2, 2), "one position axis"),
    ],
    ids=str,
)
def test_errors(kwargs, shape, message):
    with pytest.raises(ValueError, match=message):
        NaLaFormerAttention(16, **{"num_heads": 2} | kwargs)(torch.zeros(1, *shape, 16))
