"""The chunk forms as operators of PyTorch: one node of a graph for every batch and length."""

from functools import partial

import pytest
import torch
from torch.export import Dim

from plstm import PLSTM1d, SequenceModel
from plstm.ops import plstm_1d
from plstm.ops.plstm_1d import chunk, chunk_lanes
from tests.helpers import assert_close, gradients
from tests.ops.inputs import sequence_inputs

SHAPES = [(3, 100), (2, 2), (4, 16), (2, 17), (3, 64), (5, 65), (2, 300)]  # batch, length
LANES = (3, 1, 2)


@pytest.mark.parametrize(
    ("operator", "lanes", "key_width"),
    [
        (chunk._chunkwise, None, 3),
        (chunk_lanes._operator, LANES, 3),
        (chunk_lanes._operator, LANES, 2),
    ],
    ids=["one_lane", "lanes", "narrow_lanes"],
)
def test_registration(operator, lanes, key_width):
    inputs = sequence_inputs(35, lanes, batch=1, key_width=key_width)
    torch.library.opcheck(operator, (*inputs.values(), 0.5))


@pytest.mark.parametrize("lanes", [None, LANES], ids=["one_lane", "lanes"])
def test_compiles_to_one_graph(lanes):
    torch._dynamo.reset()
    compiled = torch.compile(plstm_1d, backend="aot_eager", fullgraph=True)
    for shape in SHAPES:
        inputs = sequence_inputs(shape[1], lanes, batch=shape[0])
        for name, x in inputs.items():
            torch._dynamo.mark_dynamic(x, 0)  # an error where the graph needs one size
            if name != "state":
                torch._dynamo.mark_dynamic(x, 1)
        with torch.compiler.set_stance("default" if shape == SHAPES[0] else "fail_on_recompile"):
            got = compiled(**inputs, return_state=True)
        want = plstm_1d(**inputs, return_state=True, backend="naive")
        got, want = (torch.cat([x.flatten() for x in both]) for both in (got, want))
        assert_close(f"output and state {shape}", got, want)
        want = gradients(want, inputs)
        for name, grad in gradients(got, inputs).items():
            assert_close(f"gradient of {name}, {shape}", grad, want[name])


def test_model_exports_with_open_batch_and_length():
    torch.manual_seed(0)
    mixers = [
        partial(PLSTM1d, num_heads=2, **options) for options in ({}, {"lanes": 2, "conv_width": 3})
    ]
    net = SequenceModel(11, 11, dim=8, depth=2, mixers=mixers).double()
    sizes = {0: Dim("batch"), 1: Dim("length")}
    tokens = torch.randint(11, (3, 70))
    exported = torch.export.export(net, (tokens,), dynamic_shapes=(sizes,)).module()
    for shape in SHAPES:
        tokens = torch.randint(11, shape)
        assert_close(f"output {shape}", exported(tokens), net(tokens))
