"""Packed sequences through the causal mixers of configs/net: each equals itself alone."""

import pytest
import torch

from plstm.layers import (
    LightNet,
    LinearAttention,
    NaLaFormerAttention,
    PLSTM1d,
    SoftmaxAttention,
)
from plstm.modules.conv import CausalConv1d
from plstm.modules.position import LearnedPosition1d
from plstm.ops.packed import as_packing
from tests.helpers import assert_close, gradients
from tests.layers.contract import CAUSAL, FIRST

LENGTHS = [5, 0, 66, 1]  # two groups; longer than any convolution, and shorter
CU = torch.tensor([0, *LENGTHS]).cumsum(0)
TOTAL, SEQUENCES = sum(LENGTHS), len(LENGTHS)
SPANS = [slice(start, end) for start, end in CU.unfold(0, 2, 1).tolist()]
causal_mixers = pytest.mark.parametrize("case", CAUSAL, ids=lambda case: case.name)
few_mixers = pytest.mark.parametrize(
    "case", [case for case in FIRST if case in CAUSAL], ids=lambda case: case.name
)


def inputs(case, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, TOTAL, case.dim, generator=generator, dtype=torch.float64)
    return x.requires_grad_()


def rows(state, index):
    """A part of a state along the sequences."""
    return type(state)(*(x if x is None else x[index] for x in state))


@causal_mixers
def test_equals_one_by_one(case):
    """Two pieces of every sequence, then a step, and the gradients through both pieces."""
    mixer, first, second = case.build(seed=1).double(), inputs(case, 1), inputs(case, 2)
    y, state = mixer(first, return_state=True, cu_seqlens=CU)
    z, state = mixer(second, state, return_state=True, cu_seqlens=CU)
    nexts = torch.randn(SEQUENCES, case.dim, dtype=torch.float64)
    step, _ = mixer.step(nexts, state)

    outs = []
    for i, span in enumerate(SPANS):
        alone = None
        if LENGTHS[i]:
            a, alone = mixer(first[:, span], return_state=True)
            b, alone = mixer(second[:, span], alone, return_state=True)
            outs.append(torch.cat([a, b]))
        assert_close("step", step[i : i + 1], mixer.step(nexts[i : i + 1], alone)[0], 1e-12)
    got, want = torch.cat([y, z]), torch.cat(outs, 1)
    assert_close("output", got, want, 1e-12)
    leaves = {"first": first, "second": second, **dict(mixer.named_parameters())}
    expected = gradients(want, leaves)
    for name, grad in gradients(got, leaves).items():
        assert_close(f"gradient of {name}", grad, expected[name], 1e-12)


@causal_mixers
def test_nan_stays_in_its_sequence(case):
    mixer, x = case.build(seed=1).double(), inputs(case, 1)
    others = torch.ones(TOTAL, dtype=torch.bool)
    others[SPANS[2]] = False
    sick = x.detach().masked_fill(~others[None, :, None], float("nan")).requires_grad_()

    def run(x):
        y, state = mixer(x, return_state=True, cu_seqlens=CU)
        after, _ = mixer.step(torch.ones(SEQUENCES, case.dim, dtype=torch.float64), state)
        return y, after, gradients(torch.cat([y[0], after]), {"x": x})["x"]

    healthy = torch.tensor([0, 1, 3])
    for name, got, want in zip(("output", "step", "gradient"), run(sick), run(x), strict=True):
        index = healthy if name == "step" else (slice(None), others)
        assert_close(name, got[index], want[index], 1e-12)


@causal_mixers
def test_neighbors_would_show(case):
    mixer, x = case.build(seed=1).double(), inputs(case, 1)
    packed, joined = mixer(x, cu_seqlens=CU), mixer(x)
    assert_close("first", packed[:, SPANS[0]], joined[:, SPANS[0]])
    assert not torch.allclose(packed[:, SPANS[2]], joined[:, SPANS[2]], rtol=1e-3)


@few_mixers
def test_wrong_sequences(case):
    mixer, x = case.build().double(), inputs(case, 1)
    with pytest.raises(ValueError, match="the batch size must be 1, got 2"):
        mixer(x.expand(2, -1, -1), cu_seqlens=CU)
    with pytest.raises(ValueError, match="must ascend from 0 to the number of positions, 72"):
        mixer(x, cu_seqlens=CU[:-1])
    _, state = mixer(x, return_state=True, cu_seqlens=CU)
    with pytest.raises(ValueError, match="one entry per sequence, 2, got 3"):
        mixer(x, rows(state, slice(3)), cu_seqlens=CU[[0, 1, -1]])


@pytest.mark.parametrize(
    "layer",
    [LightNet, LinearAttention, SoftmaxAttention, NaLaFormerAttention],
    ids=lambda layer: layer.__name__,
)
def test_causal_only(layer):
    options = {"lepe": False} if layer is NaLaFormerAttention else {}
    mixer = layer(8, 2, causal=False, **options)
    with pytest.raises(ValueError, match=f"{layer.__name__}: packed sequences need causal=True"):
        mixer(torch.randn(1, TOTAL, 8), cu_seqlens=CU)


def test_windows_of_sequences_shorter_than_the_convolution():
    conv = CausalConv1d(2, 4).double()
    x, window = torch.randn(1, TOTAL, 2).double(), torch.randn(SEQUENCES, 3, 2).double()
    mixed, after = conv(x, window, CU)
    for i, span in enumerate(SPANS):
        if LENGTHS[i]:
            alone, last = conv(x[:, span], window[i : i + 1])
            assert_close("output", mixed[:, span], alone, 1e-12)
            assert torch.equal(after[i : i + 1], last)
        else:
            assert torch.equal(after[i], window[i])


def test_learned_positions_start_anew():
    code, x = LearnedPosition1d(2, 66), torch.zeros(1, TOTAL, 2)
    positions = as_packing("test", CU, x).positions
    y = code(x, positions)
    for span in SPANS:
        assert torch.equal(y[:, span], code(x[:, span]))
    short = LearnedPosition1d(2, 65)
    with pytest.raises(ValueError, match=r"only 65 positions are encoded, .* up to position 66"):
        short(x, positions)


# Dynamo looks at .grad of tensors that come back from parts it leaves alone.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled():
    """The recurrence is left out of the graphs; other lengths need no new ones."""
    torch._dynamo.reset()
    mixer = PLSTM1d(4, 1, conv_width=2)
    compiled, x = torch.compile(mixer, backend="aot_eager"), torch.randn(1, TOTAL, 4)
    for lengths in (LENGTHS, LENGTHS[::-1]):
        cu_seqlens = torch.tensor([0, *lengths]).cumsum(0)
        want = mixer(x, cu_seqlens=cu_seqlens)
        assert_close("output", compiled(x, cu_seqlens=cu_seqlens), want, 1e-5)
