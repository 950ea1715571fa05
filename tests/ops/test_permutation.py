"""Samples and heads of a recurrence are independent: permuted inputs give permuted outputs."""

import pytest
import torch

from plstm.ops import kernels
from plstm.ops.delta_rule import delta_rule
from plstm.ops.gated_linear_attention import gated_linear_attention
from plstm.ops.kernels import INTERPRETED
from plstm.ops.mlstm import mlstm
from plstm.ops.plstm_1d import plstm_1d
from plstm.ops.plstm_2d import FORMS, plstm_2d
from tests.helpers import assert_close
from tests.ops.inputs import grid_inputs, sequence_inputs
from tests.ops.recurrence import attention_inputs

SIZES = {"batch": 3, "heads": 4}
BATCH, HEADS = torch.tensor([2, 0, 1]), torch.tensor([1, 3, 0, 2])
CORNERS = ("top_right", "bottom_left")


def gla(gates):
    inputs = attention_inputs(37, gates=gates, with_state=False, **SIZES)
    return {name: -x.exp() if name == "log_decay" else x for name, x in inputs.items()}


SEQUENCES = {
    "plstm_1d": (plstm_1d, sequence_inputs(37, with_state=False, **SIZES)),
    "plstm_1d lanes": (plstm_1d, sequence_inputs(37, (2, 1, 2), with_state=False, **SIZES)),
    "linear attention": (gated_linear_attention, gla(())),
    "decay": (gated_linear_attention, gla(("log_decay",))),
    "mlstm": (mlstm, gla(("input_gate", "forget_gate"))),
    "delta_rule": (delta_rule, gla(("beta",))),
    "gated delta_rule": (delta_rule, gla(("beta", "log_decay"))),
}


def permuted(x, batch_axis, head_axis):
    return x.index_select(batch_axis, BATCH).index_select(head_axis, HEADS)


@pytest.mark.parametrize("backend", ["naive", "auto"])
@pytest.mark.parametrize("name", SEQUENCES)
def test_sequences(name, backend):
    op, inputs = SEQUENCES[name]
    out = op(**inputs, backend=backend)
    got = op(**{name: permuted(x, 0, 2) for name, x in inputs.items()}, backend=backend)
    assert not torch.allclose(got, out)
    assert_close("output", got, permuted(out, 0, 2), 1e-10)


@pytest.mark.parametrize("backend", FORMS)
def test_grids(backend, monkeypatch):
    if backend == "triton":
        if not INTERPRETED:
            pytest.skip("needs Triton's interpreter")
        monkeypatch.setattr(kernels, "SMALLEST_BLOCK", 1)  # large tiles take a minute there
    sides = (2, 3) if backend == "triton" else (4, 5)
    inputs = grid_inputs(*sides, len(CORNERS), **SIZES)
    out = plstm_2d(**inputs, corners=CORNERS, backend=backend)
    per_corner = ("source", "transition", "mark")
    moved = {
        name: permuted(x, 1, 4) if name in per_corner else permuted(x, 0, 3)
        for name, x in inputs.items()
    }
    got = plstm_2d(**moved, corners=CORNERS, backend=backend)
    assert not torch.allclose(got, out)
    assert_close("output", got, permuted(out, 0, 3), 1e-10)
