"""Every sequence mixer, including projections and gates, beside softmax attention."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import nn

from benchmarks.case import Case, Setting, Work, differentiated
from plstm.layers import (
    GLA,
    MLSTM,
    DeltaNet,
    GatedDeltaNet,
    LightNet,
    LightningAttention,
    LinearAttention,
    Mamba2,
    NaLaFormerAttention,
    PLSTM1d,
    RetNet,
    SoftmaxAttention,
)

DIM, HEADS, BATCH = 192, 3, 4
ANCHOR = "SoftmaxAttention"
MIXERS: dict[str, Callable[[int, int], nn.Module]] = {  # called with DIM and HEADS
    "PLSTM1d": PLSTM1d,
    "LinearAttention": LinearAttention,
    "LightningAttention": LightningAttention,
    "RetNet": RetNet,
    "LightNet": LightNet,
    "NaLaFormerAttention": partial(NaLaFormerAttention, causal=True, lepe=False),
    "GLA": GLA,
    "Mamba2": Mamba2,
    "MLSTM": MLSTM,
    "DeltaNet": DeltaNet,
    "GatedDeltaNet": GatedDeltaNet,
    ANCHOR: partial(SoftmaxAttention, causal=True, rotary=True),
}


def cases(setting: Setting) -> Iterator[Case]:
    """Every mixer at both lengths; the anchor is last."""
    for length in (1024, 4096):
        yield from length_cases(setting, batch=BATCH, length=length)


def length_cases(setting: Setting, *, batch: int, length: int) -> Iterator[Case]:
    group = f"mixer, {batch} x {length} positions, width {DIM}, {HEADS} heads"
    case = partial(Case, "mixers", "sequence", group, batch=batch, tokens=length)
    for name, build in MIXERS.items():
        make = partial(_work, setting, build, (batch, length, DIM))
        yield case(name, make=make, anchor=name == ANCHOR)


def _work(setting: Setting, build: Callable[[int, int], nn.Module], shape: tuple[int, ...]) -> Work:
    """Forward of a new mixer on random x, with backward to x and all weights."""
    torch.manual_seed(0)
    mixer = build(DIM, HEADS).to(setting.device)
    x = torch.randn(shape, device=setting.device, requires_grad=True)

    def forward() -> torch.Tensor:
        with setting.autocast():
            return mixer(x)

    work = differentiated(forward, [x, *mixer.parameters()], None)
    return work._replace(state_size=state_size(mixer, shape[1]))


def state_size(mixer: nn.Module, length: int) -> int:
    """State elements per sequence after `length` positions; for attention, keys and values."""
    if isinstance(mixer, SoftmaxAttention):
        return length * mixer.num_heads * (mixer.qk_dim + mixer.v_dim)
    return mixer.state_size()
