"""Every mixer of the comparison of speeds, at a small size."""

import pytest
import torch

from benchmarks import mixers
from benchmarks.case import Setting
from plstm import layers
from plstm.layers import PLSTM1d, SoftmaxAttention


def test_every_sequence_mixer_is_compared():
    """A mixer that decodes step by step is one line in benchmarks.mixers."""
    exported = (getattr(layers, name) for name in layers.__all__)
    assert {cls.__name__ for cls in exported if hasattr(cls, "step")} == set(mixers.MIXERS)


@pytest.mark.parametrize("name", mixers.MIXERS)
def test_forward_and_backward(name):
    (case,) = (
        case for case in mixers.length_cases(Setting(), batch=1, length=5) if case.form == name
    )
    work = case.make()
    assert work.forward().shape == (1, 5, mixers.DIM)
    work.total()  # raises for a weight that is not used
    assert work.state_size > 0
    assert case.anchor == (name == "SoftmaxAttention")


def test_state_of_attention_grows_with_the_length():
    attention = SoftmaxAttention(12, 3, causal=True)
    _, state = attention(torch.randn(1, 5, 12), return_state=True)
    assert mixers.state_size(attention, 5) == state.k.numel() + state.v.numel()
    assert mixers.state_size(PLSTM1d(12, 3), 5) == mixers.state_size(PLSTM1d(12, 3), 50)
    assert mixers.state_size(PLSTM1d(12, 3), 5) == 3 * 8 * 8 + 3 * 24  # memory and window
