"""Config files that are no YAML: named, with the line, before anything is read from them."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import yaml

SUFFIXES = (".yaml", ".yml")


def check_config_files(arguments: Sequence[str]) -> None:
    """Look at the syntax of the files of a command line, and of those they name.

    Raises:
        ValueError: the file, line and column of what is no YAML.
    """
    for path in dict.fromkeys(_named(arguments)):
        _check(path)


def _named(arguments: Sequence[str]) -> Iterator[Path]:
    for before, argument in pairwise(["", *arguments]):
        value = argument.partition("=")[2] if argument.startswith("-") else argument
        if value and (value.endswith(SUFFIXES) or before in ("-c", "--config")):
            yield Path(value)


def _check(path: Path) -> None:
    if not path.is_file():
        return  # the parser knows what a value may be that is no file
    try:
        found = yaml.safe_load(path.read_text("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: a config must be a text file (UTF-8), {error.reason}") from None
    except yaml.MarkedYAMLError as error:
        mark, tab = error.problem_mark, "'\\t'" in str(error.problem)
        hint = "; YAML is indented with spaces" if tab else ""
        raise ValueError(
            f"{path}, line {mark.line + 1}, column {mark.column + 1}: a config must be YAML, "
            f"{error.problem}{hint}"
        ) from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: a config must be YAML, {' '.join(str(error).split())}") from None
    for inner in _strings(found):
        if inner.endswith(SUFFIXES):
            _check(path.parent / inner)


def _strings(value: object) -> Iterator[str]:
    """All strings among the values of a config."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from _strings(part)
    elif isinstance(value, str):
        yield value
