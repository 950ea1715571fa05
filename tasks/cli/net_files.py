"""A net that is named replaces the net before it.

jsonargparse merges what it finds: arguments that the new net does not name would keep the values
of the old one, those of its mixers too, as long as the classes know such names.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import yaml
from torch import nn

from tasks.cli.config_files import CONFIG, SUFFIXES

NET = "--model.net"


class NoNet(nn.Module):
    """Stands between two nets on the command line; it shares no argument with any."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()


def replace_nets(arguments: Sequence[str]) -> list[str]:
    """A command line in which every net but the first is named after `NoNet`."""
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
    """Whether a config has a net, by its file or by its class."""
    if not Path(path).is_file():
        return False
    found = yaml.safe_load(Path(path).read_text("utf-8"))
    for key in ("model", "init_args", "net"):
        found = found.get(key) if isinstance(found, dict) else None
    return isinstance(found, str) or (isinstance(found, dict) and "class_path" in found)
