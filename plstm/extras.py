"""Packages that only some parts need, by the extra that installs them."""

from collections.abc import Iterator
from contextlib import contextmanager


class MissingExtra(ModuleNotFoundError):
    """A package that a part needs is not installed; the message names the extra that has it."""


@contextmanager
def extra(name: str, part: str) -> Iterator[None]:
    """Around imports: name the extra where one of them is not installed.

    Args:
        name: The extra, for example "graphs".
        part: What needs it, for example "plstm.graph.ToDag".

    Raises:
        MissingExtra: a module is not there.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingExtra(
            f'{part} needs {error.name}, which is not installed; pip install "plstm[{name}]"',
            name=error.name,
        ) from error
