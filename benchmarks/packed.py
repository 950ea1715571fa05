"""Sequences of unequal lengths in a mixer: packed, padded to the longest, and one by one."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.case import Case, Setting, Work, differentiated
from benchmarks.mixers import DIM, HEADS, MIXERS

NAMES = ("PLSTM1d", "GLA", "GatedDeltaNet", "MLSTM", "SoftmaxAttention")  # one per recurrence
ANCHOR = "padded"


def cases(setting: Setting) -> Iterator[Case]:
    """64 sequences, lengths uniform in 1 to 512."""
    for name in NAMES:
        yield from length_cases(setting, name, sequences=64, longest=512)


def length_cases(setting: Setting, name: str, *, sequences: int, longest: int) -> Iterator[Case]:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, longest + 1, (sequences,), generator=generator).tolist()
    group = f"{name}, {sequences} sequences of 1 to {longest} positions, width {DIM}"
    tokens = sum(lengths) // sequences
    case = partial(Case, "packed", "sequence", group, batch=sequences, tokens=tokens)
    for form, run in FORMS.items():
        make = partial(_work, setting, MIXERS[name], run, lengths)
        yield case(form, make=make, anchor=form == ANCHOR)


def _work(
    setting: Setting,
    build: Callable[[int, int], nn.Module],
    run: Callable[[nn.Module, Tensor, list[int]], Tensor],
    lengths: list[int],
) -> Work:
    """Forward of a new mixer on random x, with backward to x and all weights."""
    torch.manual_seed(0)
    mixer = build(DIM, HEADS).to(setting.device)
    x = torch.randn(1, sum(lengths), DIM, device=setting.device, requires_grad=True)

    def forward() -> Tensor:
        with setting.autocast():
            return run(mixer, x, lengths)

    return differentiated(forward, [x, *mixer.parameters()], None)


def _packed(mixer: nn.Module, x: Tensor, lengths: list[int]) -> Tensor:
    return mixer(x, cu_seqlens=torch.tensor([0, *lengths]).cumsum(0))


def _padded(mixer: nn.Module, x: Tensor, lengths: list[int]) -> Tensor:
    """Zeros after every sequence but the longest, as in a padded batch."""
    rows = nn.utils.rnn.pad_sequence(x[0].split(lengths), batch_first=True)
    y = mixer(rows)
    return torch.cat([row[:length] for row, length in zip(y, lengths, strict=True)])[None]


def _one_by_one(mixer: nn.Module, x: Tensor, lengths: list[int]) -> Tensor:
    return torch.cat([mixer(part) for part in x.split(lengths, 1)], 1)


FORMS = {"packed": _packed, "one by one": _one_by_one, ANCHOR: _padded}
