"""Under autocast in bfloat16 the layers remember for as long as in float32."""

import copy

import pytest
import torch
from torch import nn

from plstm import LineGraph, PLSTM1d, PLSTM2d, PLSTMGraph
from tests.helpers import assert_close

DIM, LENGTH = 8, 512
Z = 0.7  # tanh(5 z) = 0.998, which bfloat16 rounds to 1 or 0.996


class Flat(nn.Module):
    """In place of the norm, which would hide how much was remembered."""

    def forward(self, y):
        return y.flatten(-2)


def sequence():
    layer = PLSTM1d(DIM, 2, expansion=0, conv_width=0, transition_bias=Z)
    return layer, (torch.randn(1, LENGTH, DIM),)


def grid(mode):
    return PLSTM2d(DIM, 2, mode, transition_bias=Z), (torch.randn(1, 2, LENGTH // 2, DIM),)


def path(mode):
    layer = PLSTMGraph(DIM, 2, mode, transition_bias=5 * Z, transition_std=0.0)
    if mode == "P":
        with torch.no_grad():  # t / (1/2 + t) = 0.998
            layer.gates.node_proj.bias.chunk(4)[2].fill_(250.0)
    nodes = torch.arange(LENGTH)
    return layer, (
        torch.randn(LENGTH, DIM),
        LineGraph.from_edges(torch.stack([nodes[:-1], nodes[1:]]), LENGTH),
    )


@pytest.mark.parametrize(
    ("make", "args"),
    [(sequence, ()), (grid, ("P",)), (grid, ("D",)), (path, ("P",)), (path, ("D",))],
    ids=lambda x: getattr(x, "__name__", "".join(x) if isinstance(x, tuple) else x),
)
def test_transitions_near_one(make, args):
    layer, (x, *graph) = make(*args)
    layer.norm = Flat()
    want = copy.deepcopy(layer).double()(x.double(), *graph)
    with torch.autocast("cpu", torch.bfloat16):
        got = layer(x, *graph)
    assert_close("output", got, want, 0.02)
