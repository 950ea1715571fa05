"""Nets built on the meta device, materialized and initialized: every net of configs/net."""

import pytest
import torch
import yaml
from torch import nn

from plstm import PLSTM2d
from plstm.models import SequenceModel, VisionModel
from tests.layers.contract import FIRST, NETS, import_class, resolve

UNBUILT = ("pna_tu",)  # PyTorch Geometric reads numbers while it builds one
FILES = [file for file in sorted(NETS.glob("*.yaml")) if file.stem not in UNBUILT]


def build(file):
    """A net with 7 inputs and outputs, as shallow as its list of mixers allows."""
    net = yaml.safe_load(file.read_text())
    args = resolve(net["init_args"])
    args["depth"] = len(args.get("mixers", [0]))
    return import_class(net["class_path"])(7, 7, **args)


def values(net):
    """Parameters and buffers by name, those that a state dict leaves out as well."""
    return dict([*net.named_parameters(), *net.named_buffers()])


def starting_values(net):
    torch.manual_seed(1)
    net.reset_parameters()
    return values(net)


def from_the_meta_device(make):
    """A net with uninitialized memory."""
    with torch.device("meta"):
        net = make()
    net.to_empty(device="cpu")
    for x in values(net).values():
        x.data.fill_(torch.nan if x.is_floating_point() else 77)
    return net


def assert_starts_alike(make):
    """`reset_parameters` overwrites all values, with the same distribution as in a new net."""
    net = make()
    new = {name: x.detach().clone() for name, x in values(net).items()}
    want, got = starting_values(net), starting_values(from_the_meta_device(make))
    assert got.keys() == want.keys() == new.keys()
    for name, x in want.items():
        assert torch.equal(got[name], x), name
        if new[name].unique().numel() == 1:
            assert torch.equal(x, new[name]), name
        elif x.is_floating_point() and x.numel() > 200:
            assert 0.7 < (x.std() / new[name].std()).item() < 1.4, name


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_nets(file):
    assert_starts_alike(lambda: build(file))


@pytest.mark.parametrize("case", FIRST, ids=lambda case: case.name)
def test_mixers(case):
    assert_starts_alike(case.build)


@pytest.mark.parametrize("case", FIRST, ids=lambda case: case.name)
def test_shapes_without_numbers(case):
    with torch.device("meta"):
        mixer = case.build()
    x = case.inputs().to("meta").requires_grad_()
    y = mixer(x)
    assert y.shape == x.shape
    y.sum().backward()
    assert x.grad.shape == x.shape


def test_layer_scale_and_position():
    def vision():
        mixers = [lambda dim: PLSTM2d(dim, 2)]
        options = {"layer_scale": 0.1, "position_grid": (2, 2)}
        return VisionModel(1, 3, dim=8, depth=1, mixers=mixers, patch_size=2, **options)

    def sequence():
        mixers = [lambda dim: nn.Identity()]
        return SequenceModel(5, 5, dim=8, depth=1, mixers=mixers, max_length=4)

    assert_starts_alike(vision)
    assert_starts_alike(sequence)
