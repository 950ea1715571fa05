"""Recurrences with several lanes, beside one lane with the same state size."""

from collections.abc import Iterator
from functools import partial

from benchmarks.case import Case, Inputs, Setting, Work, differentiated
from plstm.ops import plstm_1d


def cases(setting: Setting) -> Iterator[Case]:
    """All cases by group; the one-lane form is last in each group."""
    yield from lane_cases(setting, batch=4, length=1024, heads=4, key_width=32, value_width=32)
    yield from lane_cases(setting, batch=4, length=1024, heads=8, key_width=16, value_width=48)
    yield from lane_cases(setting, batch=64, length=128, heads=8, key_width=1, value_width=12)


def lane_cases(
    setting: Setting, *, batch: int, length: int, heads: int, key_width: int, value_width: int
) -> Iterator[Case]:
    shape = (batch, length, heads, key_width, value_width)
    group = (
        f"1-d op, {batch} x {length} positions, {heads} heads with {key_width} x {value_width} "
        "state elements over all lanes"
    )
    case = partial(Case, "lanes", "sequence", group, batch=batch, tokens=length)
    for lanes in (2, 3, 4):
        if value_width % lanes == 0:
            yield case(f"{lanes} lanes", make=partial(_lanes, setting, *shape, lanes))
    yield case("1 lane", make=partial(_one_lane, setting, *shape), anchor=True)


def _lanes(
    setting: Setting,
    batch: int,
    length: int,
    heads: int,
    key_width: int,
    value_width: int,
    lanes: int,
) -> Work:
    inputs, places = Inputs(setting), (batch, length, heads)
    inputs.normal(*places, key_width)
    inputs.normal(*places, key_width)
    inputs.normal(*places, value_width // lanes, lanes)
    for _ in ("source", "transition", "mark", "direct"):
        inputs.between(-1 / lanes, 1 / lanes, *places, lanes, lanes)
    return differentiated(lambda: plstm_1d(*inputs, backend="chunk"), inputs, None)


def _one_lane(
    setting: Setting, batch: int, length: int, heads: int, key_width: int, value_width: int
) -> Work:
    inputs, places = Inputs(setting), (batch, length, heads)
    for width in (key_width, key_width, value_width):
        inputs.normal(*places, width)
    for _ in ("source", "transition", "mark", "direct"):
        inputs.between(-1, 1, *places)
    return differentiated(lambda: plstm_1d(*inputs, backend="chunk"), inputs, None)
