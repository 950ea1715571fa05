"""Argument parser with readable help, and errors in one line.

The patterns match messages of jsonargparse 4.53, which pyproject.toml requires; a message that
matches none of them is shown unchanged, in one line.
"""

import difflib
import inspect
import pydoc
import re
import sys
from argparse import Action, _SubParsersAction
from collections.abc import Iterable, Sequence
from typing import NoReturn

from jsonargparse import DefaultHelpFormatter
from lightning.pytorch.cli import LightningArgumentParser

from plstm import models
from tasks.cli.net_files import replace_nets

KEY = re.compile(r'Parser key "([^"]+)":')
REFUSED = re.compile(r"(?:(?:Group '([^']+)'|Subcommand \S+) does not accept o|O)ption '([^']+)'")
CLASS = re.compile(r"class_path[= ]'([\w.]+)'")
EXPECTED = re.compile(r"Expected an? (?:<class '(?:[\w]+\.)*(\w+)'>|typing\.Literal\[(.*?)\])")
GOT = [
    re.compile(r"Expected a path but (.+?) either"),
    re.compile(r"Got value: (?!Namespace|NestedArg)(.+?)(?:\. Got value.*)?$", re.MULTILINE),
    re.compile(r"Given value: NestedArg\(.*val='?(.*?)'?\)$", re.MULTILINE),
    re.compile(r"Given value: (?!Namespace|NestedArg)(.+?)(?:\. Got value.*)?$", re.MULTILINE),
]
NO_CLASS = re.compile(r"expects a function or a callable class: (?!Parser key)(.+?)\.+ Got value")
SHOWN = 16  # maximum subclasses listed in the help of an argument
LISTED = 40  # maximum arguments listed for an unknown one without a similar name
# Abstract schedulers, and those composed of other schedulers.
NOT_BY_NAME = {"LRScheduler", "SequentialLR", "ChainedScheduler"}
KNOWN_NETS = (
    "known nets: the files of configs/net, "
    + ", ".join(f"plstm.models.{x}" for x in models.__all__ if x.endswith("Model"))
    + ", or your own class"
)
NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
FROM_ELSEWHERE = ("in_dim", "out_dim", "net_args", "params")  # set by the data or the model
NAMES = dict.fromkeys(("Sequence", "Iterable", "list", "tuple"), "a list")


class HelpFormatter(DefaultHelpFormatter):
    """Keeps the lines of descriptions; lists only our classes if there are too many."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "".join(f"{indent}{line}" for line in text.splitlines(keepends=True))

    def _get_help_string(self, action: Action) -> str:
        text = super()._get_help_string(action)
        if action.dest.split(".")[-1] == "net":
            return re.sub(r"known subclasses: [\w., ]+", KNOWN_NETS, text)
        return re.sub(r"known subclasses: ([\w., ]+)", _chosen, text)


def _chosen(match: re.Match[str]) -> str:
    names = [name for name in match[1].split(", ") if name.split(".")[-1] not in NOT_BY_NAME]
    ours = [name for name in names if re.fullmatch(r"plstm\.\w+", name)]
    if len(names) <= SHOWN or not ours:
        return f"known subclasses: {', '.join(names)}"
    return f"known subclasses: {', '.join(ours)} and {len(names) - len(ours)} more"


class Parser(LightningArgumentParser):
    """Reports an invalid argument in two lines on standard error, and exits with code 2.

    With `debug`, it raises a ValueError with the full message instead.
    """

    debug = False

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, formatter_class=HelpFormatter, **kwargs)

    def parse_args(
        self, args: Sequence[str] | None = None, *others: object, **kw: object
    ) -> object:
        """Parse a command line, where a net replaces the previous one."""
        args = sys.argv[1:] if args is None else args
        return super().parse_args(replace_nets(args), *others, **kw)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # an alternative within another parser
            super().error(message, ex)
        if self.debug:
            raise ValueError(message) from ex
        options = [name for action in self._actions for name in _option_names(action)]
        hint = "--help lists the arguments, --debug shows the traceback"
        print(f"train.py: {explain(message, options)}\n({hint})", file=sys.stderr)
        sys.exit(2)


def _option_names(action: Action) -> list[str]:
    """Names of an option, or of all options of the subcommands."""
    parsers = action.choices.values() if isinstance(action, _SubParsersAction) else []
    return [
        *action.option_strings,
        *(x for p in parsers for a in p._actions for x in a.option_strings),
    ]


def explain(message: str, options: Iterable[str] = ()) -> str:
    """Extract the reason from an error message of jsonargparse, in one line.

    Args:
        message: Its error message: keys and classes that lead to the argument, then the expected
            type for every alternative.
        options: Names of all arguments, for suggestions.
    """
    key = ".".join(KEY.findall(message))
    if refused := REFUSED.search(message):
        inner, dot, option = ".".join(filter(None, [refused[1] or key, refused[2]])).rpartition(".")
        key = inner + dot
        return f"there is no {key}{option}{_meant(option, _names(message, key, options))}"
    if unknown := re.search(r"unrecognized arguments: --([^\s=]+)(.*)", message):
        if not key:
            return f"there is no argument --{unknown[1]}{unknown[2]}{_meant(unknown[1], options)}"
        name, names = unknown[1].split(".")[0], _parameters(CLASS.findall(message)[-1])
        return f"there is no {key}.{unknown[1]}{_meant(name, names)}"
    if missing := re.search(r"arguments are required: (.*)", message):
        if key:
            return f"{key} needs {missing[1]}"
        return f"needs {missing[1]}; pass the config of a task: --config configs/quickstart.yaml"
    if wrong := re.match(r"Unexpected config: *(.*)", message):
        return f"a config must be YAML with keys like model, data and trainer, got {wrong[1]!r}"
    if key and (kinds := _kinds(message)):
        got = next((found[1] for pattern in GOT if (found := pattern.search(message))), None)
        why = f" ({_plain(wrong[1])})" if (wrong := NO_CLASS.search(message)) else ""
        return f"{key} must be {' or '.join(kinds)}" + (f", got {got}{why}" if got else "")
    return _flat(message)


def _names(message: str, key: str, options: Iterable[str]) -> list[str]:
    """Arguments of the class or group that rejected one."""
    start = REFUSED.search(message).start()
    line_end = message.find("\n", start)
    inner = CLASS.search(message, start, line_end if line_end > 0 else len(message))
    before = CLASS.findall(message[:start])
    path = inner[1] if inner else before[-1] if before else None
    if path is not None:
        return _parameters(path)
    within = [name[2:] for name in options if name.startswith(f"--{key}")]
    return sorted({name.removeprefix(key).split(".")[0].rstrip("+") for name in within})


def _parameters(path: str) -> list[str]:
    """Arguments of a class, and of its bases if it passes on keyword arguments."""
    found: dict[str, None] = {}
    for base in inspect.getmro(pydoc.locate(path)):
        parameters = inspect.signature(base).parameters.values()
        found |= {p.name: None for p in parameters if p.kind in NAMED}
        if all(p.kind != inspect.Parameter.VAR_KEYWORD for p in parameters):
            break
    return [name for name in found if name not in FROM_ELSEWHERE]


def _meant(name: str, names: Iterable[str]) -> str:
    names = list(names)
    if close := difflib.get_close_matches(name, names, 1):
        return f"; did you mean {close[0]}?"
    return f"; there are {', '.join(names)}" if 0 < len(names) <= LISTED else ""


def _kinds(message: str) -> list[str]:
    """Expected types of the argument, in the order of the alternatives."""
    reason = message[[found.end() for found in KEY.finditer(message)][-1] :]
    found = EXPECTED.findall(reason)
    kinds = [NAMES.get(name, name) or f"one of {choices}" for name, choices in found]
    no_class = ("dot import path", "Unexpected import path", "callable class")
    if any(text in reason for text in no_class):
        kinds.append("the name of a class")
    if "Expected a path" in reason and not {"int", "float"} & set(kinds):
        kinds.append("a file")
    return [kind for kind in dict.fromkeys(kinds) if kind != "NoneType"]


def _plain(reason: str) -> str:
    """A reason with short class names."""
    return re.sub(r"<class '(\w+\.)*(\w+)'>", r"\2", reason)


def _flat(message: str) -> str:
    """A message in one line, without uninformative parts."""
    empty = ("Does not validate", "Subtypes:", "Errors:", "Given value", "Expected a <class 'None")
    lines = [line.strip().removeprefix("- ") for line in KEY.sub(r"\1:", message).splitlines()]
    return " ".join(line for line in lines if line and not line.startswith(empty))
