"""The mixers of configs/net, read from the files, and options that no file uses."""

import importlib
from functools import partial
from pathlib import Path

import torch
import yaml
from torch import Tensor, nn

NETS = Path(__file__).parents[2] / "configs" / "net"
POSITIONS = {"VisionModel": (4, 5), "SequenceModel": (7,)}  # graph nets have tests of their own


def import_class(path: str) -> type:
    """Class at a dotted path."""
    module, name = path.rsplit(".", 1)
    return getattr(importlib.import_module(module), name)


def resolve(value: object) -> object:
    """A value of a config with every class_path in it replaced by a factory, as the CLI does."""
    if isinstance(value, dict) and "class_path" in value:
        return partial(import_class(value["class_path"]), **resolve(value.get("init_args", {})))
    if isinstance(value, dict):
        return {key: resolve(item) for key, item in value.items()}
    return [resolve(item) for item in value] if isinstance(value, list) else value


OPTIONS = [  # class, arguments, positions
    ("plstm_1d.PLSTM1d", {"num_heads": 2, "lanes": 2, "conv_width": 3}, (7,)),
    (
        "plstm_1d.PLSTM1d",
        {"num_heads": 3, "expansion": 0, "conv_width": 0, "qk_dim": 5, "v_dim": 6, "lanes": 3},
        (7,),
    ),
    ("plstm_1d.PLSTM1d", {"num_heads": 2, "v_dim": 8, "qk_dim": 4, "block_width": 2}, (7,)),
    ("plstm_2d.PLSTM2d", {"num_heads": 2, "mode": "D", "chirality": "R", "v_dim": 5}, (4, 5)),
    (
        "flattened_grid.FlattenedGrid",
        {
            "corner": "bottom_right",
            "mixer": {
                "class_path": "plstm.layers.plstm_1d.PLSTM1d",
                "init_args": {"num_heads": 2},
            },
        },
        (4, 5),
    ),
    (
        "plstm_2d.PLSTM2d",
        {"num_heads": 1, "corners": ["top_left", "top_right"], "qk_dim": 5},
        (4, 5),
    ),
    ("softmax_attention.SoftmaxAttention", {"num_heads": 2, "causal": True, "qk_dim": 5}, (7,)),
    ("linear_attention.LinearAttention", {"num_heads": 2, "causal": False, "v_dim": 5}, (4, 5)),
    (
        "lightning_attention.LightningAttention",
        {"num_heads": 3, "schedule": "transnormer_from_zero", "qk_dim": 5, "v_dim": 2},
        (7,),
    ),
    ("retnet.RetNet", {"num_heads": 2, "rotary": False, "qk_dim": 5, "v_dim": 3}, (7,)),
    ("gla.GLA", {"num_heads": 3, "gate_rank": 2, "gate_normalizer": 1.0}, (7,)),
    ("mamba2.Mamba2", {"num_heads": 2, "qk_dim": 5, "expand": 3, "conv_width": 2}, (7,)),
]


class Case:
    """One mixer with its arguments, and the position axes of its input."""

    def __init__(self, file: str, mixer: dict, dim: int, positions: tuple[int, ...]) -> None:
        self.dim, self.positions = dim, positions
        self.cls, kwargs = import_class(mixer["class_path"]), mixer.get("init_args", {})
        self.kwargs = resolve(kwargs)
        words = [self.cls.__name__, *(f"{k}={_shown(v)}" for k, v in kwargs.items())]
        self.name = "-".join([file, *words]).replace(" ", "")
        self.ends = (0, -1)  # index, on every axis, of the first and of the last position read
        if kwargs.get("corner") == "bottom_right":
            self.ends = (-1, 0)

    def build(self, seed: int | None = None) -> nn.Module:
        """Build the mixer; with a seed add random offsets to all parameters, so that all matter."""
        if seed is None:
            return self.cls(self.dim, **self.kwargs)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            mixer = self.cls(self.dim, **self.kwargs)
            with torch.no_grad():
                for parameter in mixer.parameters():
                    parameter += 0.1 * torch.randn_like(parameter)
        return mixer

    def inputs(self, batch: int = 2, seed: int = 0) -> Tensor:
        """Random input (B, *positions, dim)."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(batch, *self.positions, self.dim, generator=generator)


def _shown(value: object) -> object:
    """A mixer inside a mixer by the name of its class alone."""
    return value["class_path"].rsplit(".", 1)[1] if isinstance(value, dict) else value


def _cases() -> list[Case]:
    cases, seen = [], []
    for file in sorted(NETS.glob("*.yaml")):
        net = yaml.safe_load(file.read_text())
        positions = POSITIONS.get(net["class_path"].rsplit(".", 1)[1])
        for mixer in net["init_args"].get("mixers", []) if positions else []:
            if (mixer, positions) not in seen:
                seen.append((mixer, positions))
                cases.append(Case(file.stem, mixer, net["init_args"]["dim"], positions))
    for path, kwargs, positions in OPTIONS:
        mixer = {"class_path": f"plstm.layers.{path}", "init_args": kwargs}
        cases.append(Case("options", mixer, 12, positions))
    return cases


CASES = _cases()
CAUSAL = [case for case in CASES if len(case.positions) == 1]
FIRST = list({case.cls: case for case in reversed(CASES)}.values())  # of each class
LANES = [case for case in CASES if "lanes" in case.kwargs]
