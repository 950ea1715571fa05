"""Saving and loading models, also on the Hugging Face Hub, as safetensors and JSON.

`config.json` has the class of a model and all its arguments, in the format of configs/net/*.yaml,
with mixers by `class_path` and `init_args`. Loading executes only the classes it names, which must
be from plstm unless the caller trusts other packages.
"""

import importlib
import inspect
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

from torch import nn

from plstm.extras import MissingExtra, extra

CONFIG, WEIGHTS = "config.json", "model.safetensors"
KEYS = ("class_path", "init_args")
TRUSTED = ("plstm",)  # packages with classes that a config may use
PAPER = "https://arxiv.org/abs/2506.11997"

Config = dict[str, Any]


class Pretrained:
    """Base of models that can be saved to and loaded from a folder or the Hugging Face Hub."""

    def __new__(cls, *args: object, **kwargs: object) -> Self:
        net = super().__new__(cls)
        try:  # plain values, so that any model can be copied and pickled
            net._config = _encode_class(cls, args, kwargs)
        except (TypeError, ValueError) as error:
            net._config = str(error)  # raised when it is saved
        return net

    @property
    def config(self) -> Config:
        """Class and arguments of the model, including defaults, as in config.json.

        Raises:
            ValueError: an argument is not a plain value, a class, or functools.partial of one.
        """
        if isinstance(self._config, str):
            raise ValueError(f"{type(self).__name__}: not possible in config.json: {self._config}")
        return self._config

    def save_pretrained(self, folder: str | Path, **hub: Any) -> None:
        """Write config.json, model.safetensors and a model card to a folder.

        Args:
            folder: Output folder, created if missing.
            hub: Arguments of `huggingface_hub.PyTorchModelHubMixin.save_pretrained`: with
                `push_to_hub=True, repo_id="user/name"` the folder is also uploaded to the Hub.

        Raises:
            ValueError: the config cannot be written; nothing is written.
            MissingExtra: huggingface_hub or safetensors is not installed.
        """
        config = self.config
        with extra("hub", f"{type(self).__name__}.save_pretrained"):
            import safetensors.torch  # noqa: F401  # used by the mixin
            from huggingface_hub import PyTorchModelHubMixin

        class Saved(PyTorchModelHubMixin, library_name="plstm", paper_url=PAPER):
            """The model under the name that the mixin expects."""

            def __init__(self, module: nn.Module) -> None:
                self.module = module

        Saved(self).save_pretrained(folder, config=config, **hub)

    @classmethod
    def from_pretrained(
        cls, source: str | Path, *, trusted: Sequence[str] = TRUSTED, **download: Any
    ) -> Self:
        """Load a model saved by `save_pretrained`, on the CPU and in evaluation mode.

        Only safetensors are read, never a pickle.

        Args:
            source: A folder, or the id of a model on the Hub, such as "user/name".
            trusted: Packages whose classes may be built; add your own package to load models with
                your own mixers. Other classes are rejected before they are imported.
            download: Arguments of `huggingface_hub.hf_hub_download`: revision, token, ...

        Raises:
            ValueError: no such folder or model; the config does not describe a model of this class,
                or uses untrusted classes, other objects or unknown arguments; the weights differ.
            MissingExtra: huggingface_hub or safetensors is not installed.
        """
        with extra("hub", f"{cls.__name__}.from_pretrained"):
            from safetensors import SafetensorError
            from safetensors.torch import load_file, load_model

        net = build_net(_read_json(_file(source, CONFIG, download)), trusted, cls)
        weights = _file(source, WEIGHTS, download)
        try:
            dtypes = {x.dtype for x in load_file(weights).values() if x.is_floating_point()}
            if len(dtypes) == 1:
                net.to(dtypes.pop())
            load_model(net, weights)
        except (SafetensorError, RuntimeError) as error:
            raise ValueError(
                f"from_pretrained: {weights} must have the weights of the model in {CONFIG}, as "
                f"save_pretrained writes them: {' '.join(str(error).split())}"
            ) from error
        return net.eval()


def build_net(
    config: object, trusted: Sequence[str] = TRUSTED, kind: type[nn.Module] = nn.Module
) -> nn.Module:
    """Build the model of a config, with new weights.

    Args:
        config: class_path and init_args.
        trusted: Packages whose classes may be built.
        kind: Required base class of the model.

    Raises:
        ValueError: the config is invalid or not trusted.
    """
    if not isinstance(config, dict) or KEYS[0] not in config:
        raise ValueError(
            f"build_net: the config must be an object with {' and '.join(KEYS)}, got "
            f"{str(config)[:80]}; save_pretrained writes such a {CONFIG}"
        )
    make = _decode(config, trusted)
    if not issubclass(make.func, kind):
        raise ValueError(
            f"build_net: the config must describe a {kind.__name__}, got {make.func.__name__}; "
            f"call {make.func.__name__}.from_pretrained"
        )
    try:
        return make()
    except MissingExtra:
        raise
    except Exception as error:  # a wrong argument may fail anywhere
        raise ValueError(
            f"build_net: {make.func.__name__} cannot be built with the arguments of the config: "
            f"{error}"
        ) from error


def _encode_class(cls: type, args: Sequence[object], kwargs: dict[str, object]) -> Config:
    if "<locals>" in cls.__qualname__:
        raise ValueError(f"{cls.__name__} is defined in a function; define it in a module")
    signature = inspect.signature(cls)
    bound = signature.bind_partial(*args, **kwargs)
    bound.apply_defaults()
    init_args = {}
    for name, value in bound.arguments.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            init_args |= value
        elif kind is not inspect.Parameter.VAR_POSITIONAL:
            init_args[name] = value
    path = f"{cls.__module__}.{cls.__qualname__}"
    return {"class_path": path, "init_args": {k: _encode(v) for k, v in init_args.items()}}


def _encode(value: object) -> object:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [_encode(x) for x in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _encode(x) for key, x in value.items()}
    function, args, kwargs = value, (), {}
    if isinstance(value, partial):
        function, args, kwargs = value.func, value.args, value.keywords
    if args and not inspect.isclass(function):  # LightningCLI passes the class to a function
        function, *args = args
    if not inspect.isclass(function) or args:
        raise ValueError(
            f"{value!r} is neither a plain value, a class, nor functools.partial of a class "
            "with keyword arguments"
        )
    return _encode_class(function, (), kwargs)


def _decode(value: object, trusted: Sequence[str]) -> Any:
    """Replace every class_path in a value by a factory."""
    if isinstance(value, list):
        return [_decode(x, trusted) for x in value]
    if not isinstance(value, dict):
        return value
    if KEYS[0] not in value:
        return {key: _decode(x, trusted) for key, x in value.items()}
    path, init_args = value[KEYS[0]], value.get(KEYS[1], {})
    if value.keys() - set(KEYS) or not isinstance(init_args, dict):
        raise ValueError(
            f"build_net: the config must describe a class by {' and '.join(KEYS)}, its arguments "
            f"by name, and nothing else, got {str(value)[:80]}"
        )
    cls = _find_class(path, trusted)
    arguments = {key: _decode(x, trusted) for key, x in init_args.items()}
    try:
        inspect.signature(cls).bind_partial(**arguments)
    except TypeError as error:
        raise ValueError(f"build_net: {path} in the config: {error}") from error
    return partial(cls, **arguments)


def _find_class(path: object, trusted: Sequence[str]) -> type[nn.Module]:
    module, _, name = path.rpartition(".") if isinstance(path, str) else ("", "", "")
    if not _is_within(module, trusted):
        raise ValueError(
            f"build_net: the config must name classes of {', '.join(trusted)}, got {path}; if you "
            "trust that code, add its package to trusted"
        )
    try:
        found = getattr(importlib.import_module(module), name, None)
    except MissingExtra:
        raise
    except ImportError:
        found = None
    # Objects that a module imports do not belong to its package.
    ours = inspect.isclass(found) and _is_within(found.__module__, trusted)
    if not ours or not issubclass(found, nn.Module):
        raise ValueError(f"build_net: the config must name subclasses of nn.Module, got {path}")
    return found


def _is_within(module: str, packages: Sequence[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def _file(source: str | Path, name: str, download: dict[str, Any]) -> Path:
    """Path of a file in a folder, or of its copy from the Hub."""
    if Path(source).is_dir():
        if not (Path(source) / name).is_file():
            raise ValueError(
                f"from_pretrained: there is no {name} in {source}; save_pretrained writes one"
            )
        return Path(source) / name
    with extra("hub", "from_pretrained"):
        from huggingface_hub import hf_hub_download
    try:
        return Path(hf_hub_download(str(source), name, **download))
    except (OSError, ValueError) as error:  # of the Hub, the network, or the format of the id
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"from_pretrained: there is no folder {source}, and the Hub has no {name} of a model "
            f"of this name: {reason}"
        ) from error


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"from_pretrained: {path} is not JSON: {error}") from error
