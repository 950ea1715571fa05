"""A net on the command line replaces the previous net.

jsonargparse merges them: arguments that the new net does not set would keep the values of the old
one, including those of its mixers, if the classes have such arguments.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import yaml
from torch import nn

from tasks.cli.config_files import CONFIG, SUFFIXES

NET = "--model.net"


class NoNet(nn.Module):
    """A placeholder between two nets on the command line, without common arguments."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()


def replace_nets(arguments: Sequence[str]) -> list[str]:
    """Insert `NoNet` before every net of a command line but the first."""
    return list(_replaced(arguments))


def _replaced(arguments: Sequence[str]) -> Iterator[str]:
    named = False
    for argument, after in pairwise([*arguments, ""]):
        name, equals, value = argument.partition("=")
        value = value if equals else after
        if (name == NET and value.endswith(SUFFIXES)) or (name in CONFIG and _names_a_net(value)):
            if named:
                yield f"{NET}={NoNet.__module__}.{NoNet.__name__}"
            named = True
        yield argument


def _names_a_net(path: str) -> bool:
    """Whether a config sets a net, by file or class."""
    if not Path(path).is_file():
        return False
    found = yaml.safe_load(Path(path).read_text("utf-8"))
    for key in ("model", "init_args", "net"):
        found = found.get(key) if isinstance(found, dict) else None
    return isinstance(found, str) or (isinstance(found, dict) and "class_path" in found)
