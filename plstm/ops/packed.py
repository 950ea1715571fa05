"""Packed sequences: several sequences of unequal lengths on the position axis of a batch of one.

To run a recurrence, sequences of similar length are padded to a common length, each in its own
batch row. So nothing of one sequence reaches another in any backend, not even NaN or infinities.
Padding follows the positions and changes no state, so outputs and states equal those of each
sequence alone. Under torch.compile, packed recurrences cause a graph break and run eagerly.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from plstm.checks import check_not_empty
from plstm.compiler import disable

# A group holds lengths down to this fraction of its longest, or this many positions below it: a
# compromise between little padding and few calls.
SHORTEST_PART = 0.75
FEWER_POSITIONS = 64


class Group(NamedTuple):
    """Sequences that are padded to the same length."""

    sequences: Tensor  # their indices, (rows,)
    length: int


@dataclass(frozen=True)
class Packing:
    """The positions of packed sequences and their padding, computed once from cu_seqlens.

    A model makes it once for all layers; every cu_seqlens argument also accepts a Packing.
    """

    cu_seqlens: Tensor  # cumulative lengths, (S + 1,)
    sequence: Tensor  # index of the sequence of every position, (total,)
    positions: Tensor  # index of every position in its sequence, (total,)
    padded: Tensor  # index of every position in the padded groups, flattened, (total,)
    groups: tuple[Group, ...]  # without empty sequences

    @property
    def num_sequences(self) -> int:
        return self.cu_seqlens.shape[0] - 1

    @property
    def lengths(self) -> Tensor:
        """Positions of every sequence, (S,)."""
        return self.cu_seqlens.diff()

    @property
    def longest(self) -> int:
        """Positions of the longest sequence."""
        return self.groups[0].length

    def pad(self, x: Tensor, fill: float | Tensor = 0.0) -> list[Tensor]:
        """x (1, total, ...) as groups (rows, length, ...), with `fill` after every sequence."""
        sizes = [len(group.sequences) * group.length for group in self.groups]
        padding = torch.as_tensor(fill, dtype=x.dtype, device=x.device)
        padded = padding.expand(sum(sizes), *x.shape[2:]).index_copy(0, self.padded, x[0])
        parts = zip(padded.split(sizes), self.groups, strict=True)
        return [part.unflatten(0, (-1, group.length)) for part, group in parts]

    def unpad(self, parts: Sequence[Tensor]) -> Tensor:
        """Inverse of `pad`: (1, total, ...)."""
        flat = torch.cat([part.flatten(0, 1) for part in parts])
        return flat.index_select(0, self.padded)[None]


CuSeqlens = Tensor | Packing  # type of cu_seqlens arguments


def as_packing(function: str, cu_seqlens: CuSeqlens | None, x: Tensor) -> Packing | None:
    """Return the packing of x, or None if cu_seqlens is None.

    Args:
        function: Name that starts every message.
        cu_seqlens: Cumulative lengths of S sequences, (S + 1,), int32 or int64, from 0 to the
            number of positions. Sequences may be empty. On the device of x, or on the CPU, which
            avoids a synchronization.
        x: Packed sequences, (1, total, ...).

    Raises:
        ValueError: cu_seqlens is invalid, x is not a batch of one, or x is empty.
    """
    if cu_seqlens is None:
        return None
    if x.shape[0] != 1:
        raise ValueError(
            f"{function}: with cu_seqlens the batch size must be 1, got {x.shape[0]}; "
            "concatenate the sequences along the position axis"
        )
    check_not_empty(function, x)
    if not isinstance(cu_seqlens, Packing):
        return _pack(function, cu_seqlens, x)
    positions = cu_seqlens.positions
    if x.shape[1] != positions.shape[0] or x.device != positions.device:
        raise ValueError(
            f"{function}: the Packing must match the sequences, {x.shape[1]} positions on "
            f"{x.device}, got one of {positions.shape[0]} on {positions.device}; give cu_seqlens"
        )
    return cu_seqlens


@disable  # the groups depend on the values
def _pack(function: str, cu_seqlens: Tensor, x: Tensor) -> Packing:
    borders = torch.tensor(_checked_borders(function, cu_seqlens, x))
    starts, lengths = borders[:-1], borders.diff()
    sequence = torch.repeat_interleave(lengths)
    positions = torch.arange(len(sequence)) - starts[sequence]
    groups, row_starts, rows = [], torch.zeros_like(lengths), 0
    for members in group_lengths(lengths.tolist()):
        group = Group(torch.tensor(members), int(lengths[members[0]]))
        row_starts[group.sequences] = rows + group.length * torch.arange(len(members))
        rows += group.length * len(members)
        groups.append(Group(group.sequences.to(x.device), group.length))
    places = row_starts[sequence] + positions
    tensors = (borders, sequence, positions, places)
    return Packing(*(tensor.to(x.device) for tensor in tensors), tuple(groups))


def _checked_borders(function: str, cu_seqlens: Tensor, x: Tensor) -> list[int]:
    rule = f"{function}: cu_seqlens must be an int32 or int64 tensor (S + 1,)"
    if not isinstance(cu_seqlens, Tensor) or cu_seqlens.dtype not in (torch.int32, torch.int64):
        got = cu_seqlens.dtype if isinstance(cu_seqlens, Tensor) else type(cu_seqlens).__name__
        raise ValueError(f"{rule}, got {got}; convert it first")
    if cu_seqlens.ndim != 1 or len(cu_seqlens) < 2:
        raise ValueError(
            f"{rule} for S sequences, S at least 1, got shape {tuple(cu_seqlens.shape)}; pass 0 and"
            " the end of every sequence"
        )
    if cu_seqlens.device not in (x.device, torch.device("cpu")):
        raise ValueError(
            f"{function}: cu_seqlens must be on the device of the sequences or on the CPU, got "
            f"{cu_seqlens.device} and sequences on {x.device}; move it with .to(device)"
        )
    borders = cu_seqlens.tolist()
    if borders[0] != 0 or borders[-1] != x.shape[1] or borders != sorted(borders):
        raise ValueError(
            f"{function}: cu_seqlens must ascend from 0 to the number of positions, {x.shape[1]}, "
            f"got {_shown(borders)}; it holds 0 and the end of every sequence"
        )
    return borders


def _shown(numbers: list[int], most: int = 8) -> str:
    """The numbers as text, shortened in the middle."""
    if len(numbers) <= most:
        return str(numbers)
    head, tail = numbers[: most // 2], numbers[-most // 2 :]
    return f"[{', '.join(map(str, head))}, ..., {', '.join(map(str, tail))}]"


def group_lengths(lengths: Sequence[int]) -> list[list[int]]:
    """Indices grouped by similar lengths, the longest first, without those of length 0."""
    groups: list[list[int]] = []
    least = float("inf")  # shortest length of the last group
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if lengths[i] == 0:
            break
        if lengths[i] < least:
            groups.append([])
            least = min(SHORTEST_PART * lengths[i], lengths[i] - FEWER_POSITIONS)
        groups[-1].append(i)
    return groups


Tensors = Tensor | tuple[Tensor, ...]  # one, or a tuple or NamedTuple of several


@disable  # shapes change with every batch
def run_packed(
    function: str,
    op: Callable[..., tuple[Tensors, Tensors]],
    cu_seqlens: CuSeqlens,
    inputs: dict[str, Tensor | None],
    state: Tensors | None = None,
    neutral: dict[str, float | Tensor] | None = None,
) -> tuple[Tensors, Tensors]:
    """Run a recurrence on packed sequences, group by group.

    Args:
        function: Name that starts every message.
        op: Called as op(**inputs, state=...) on a batch of sequences, returns output and state.
        cu_seqlens: Cumulative lengths of the S sequences, see `as_packing`.
        inputs: Arguments of `op` by name, (1, total, ...), or None.
        state: Initial state of every sequence, (S, ...); None for the default of `op`.
        neutral: By input name, the padding value that leaves states unchanged; 0 if missing.

    Returns:
        Output of every position, (1, total, ...), and the final state of every sequence, (S, ...):
        for an empty one its initial state, or zeros.

    Raises:
        ValueError: see `as_packing`; the number of states is not the number of sequences.
    """
    packing = as_packing(function, cu_seqlens, next(iter(inputs.values())))
    if state is not None:
        _each(lambda x: check_states(function, x, packing.num_sequences), state)
    neutral = neutral or {}
    padded = {
        name: packing.pad(x, neutral.get(name, 0.0)) for name, x in inputs.items() if x is not None
    }
    outs, states = [], []
    for i, group in enumerate(packing.groups):
        part = {name: groups[i] for name, groups in padded.items()}
        before = None if state is None else _rows(state, group.sequences)
        out, after = op(**part, state=before)
        outs.append(out)
        states.append(after)
    out = _each(lambda *parts: packing.unpad(parts), *outs)
    return out, _join(state, states, packing)


def _rows(state: Tensors, rows: Tensor) -> Tensors:
    return _each(lambda x: x.index_select(0, rows), state)


def _join(before: Tensors | None, states: list[Tensors], packing: Packing) -> Tensors:
    """Merge the states of the groups; empty sequences keep their initial state."""
    order = torch.cat([group.sequences for group in packing.groups])
    if before is None:
        count = packing.num_sequences
        before = _each(lambda x: x.new_zeros(count, *x.shape[1:]), states[0])

    def join(old: Tensor, *new: Tensor) -> Tensor:
        return old.to(new[0].dtype).index_copy(0, order, torch.cat(new))

    return _each(join, before, *states)


def check_states(function: str, state: Tensor, sequences: int) -> None:
    """Raise a ValueError unless there is one state per sequence, (S, ...)."""
    if state.shape[0] != sequences:
        raise ValueError(
            f"{function}: the state must have one entry per sequence, {sequences}, got "
            f"{state.shape[0]}; with cu_seqlens, count the packed sequences"
        )


def _each(function: Callable[..., Tensor | None], *tensors: Tensors) -> Tensors:
    """Apply a function to tensors, or to the first, the second, ... tensors of tuples."""
    if isinstance(tensors[0], Tensor):
        return function(*tensors)
    parts = [function(*same) for same in zip(*tensors, strict=True)]
    make = getattr(type(tensors[0]), "_make", tuple)  # of a NamedTuple
    return make(parts)
