"""Syntax check of config files, with line numbers, before they are used."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import yaml

SUFFIXES = (".yaml", ".yml")
CONFIG = ("-c", "--config")


def check_config_files(arguments: Sequence[str]) -> None:
    """Check the syntax of the files of a command line, and of files that they refer to.

    Raises:
        ValueError: a file is not YAML, with line and column; or it is the config of a class instead
            of a run.
    """
    for name, path in dict.fromkeys(_named(arguments)):
        found = _read(path)
        if name in CONFIG and isinstance(found, dict) and "class_path" in found:
            raise ValueError(
                f"{path}: a config must have keys like model, data and trainer, this file "
                f"describes one class, {found['class_path']}; pass it where that class belongs, "
                f"for example --model.net {path}"
            )


def _named(arguments: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """Arguments that are files, with the files."""
    for before, argument in pairwise(["", *arguments]):
        name, _, value = argument.partition("=") if argument[:1] == "-" else (before, "", argument)
        if value.endswith(SUFFIXES) or (value and name in CONFIG):
            yield name, Path(value)


def _read(path: Path) -> object:
    """Content of a file; None if the value is not a file, which the parser handles."""
    if not path.is_file():
        return None
    try:
        found = yaml.safe_load(path.read_text("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: a config must be a text file (UTF-8), {error.reason}") from None
    except yaml.MarkedYAMLError as error:
        mark, tab = error.problem_mark, "'\\t'" in str(error.problem)
        hint = "; indent YAML with spaces" if tab else ""
        raise ValueError(
            f"{path}, line {mark.line + 1}, column {mark.column + 1}: a config must be YAML, "
            f"{error.problem}{hint}"
        ) from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: a config must be YAML, {' '.join(str(error).split())}") from None
    for inner in _strings(found):
        if inner.endswith(SUFFIXES):
            _read(path.parent / inner)
    return found


def _strings(value: object) -> Iterator[str]:
    """All strings in the values of a config."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from _strings(part)
    elif isinstance(value, str):
        yield value
