"""Optional packages, and the extras that install them."""

from collections.abc import Iterator
from contextlib import contextmanager


class MissingExtra(ModuleNotFoundError):
    """An optional package is not installed; the message names its extra."""


@contextmanager
def extra(name: str, part: str) -> Iterator[None]:
    """Context for imports that names the extra of a missing package.

    Args:
        name: The extra, for example "graphs".
        part: What needs it, for example "plstm.graph.ToDag".

    Raises:
        MissingExtra: a module is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingExtra(
            f'{part} needs {error.name}, which is not installed; pip install "plstm[{name}]"',
            name=error.name,
        ) from error
