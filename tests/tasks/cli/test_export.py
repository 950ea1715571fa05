"""Trained nets in files, by the command and one by one."""

import json
import re
import sys
from functools import partial

import pytest
import torch
from torch import nn

from plstm import GraphModel, PLSTMGraph, SequenceModel, SoftmaxAttention, VisionModel
from plstm.models import Pretrained
from tasks.cli import export, main
from tests.helpers import assert_close
from tests.models.nets import GRID
from tests.tasks.runs import folder_of, run

SMALL = ["--model.net.dim=16", "--model.net.depth=1", "--data.train_windows=20"]


class Table(nn.Module):
    """A mixer for sequences of one length."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(70, 70) / 70)

    def forward(self, x):
        return self.weight @ x


@pytest.fixture
def written(tmp_path):
    """Write a net and return what is said of its files, by their names."""

    def write(net, **options):
        lines = list(export.write(net.eval(), {}, tmp_path, **options))
        return {re.search(r"model\.\w+", line)[0]: line for line in lines}

    return write


def test_command(workplace, capsys, told):
    checkpoint = folder_of(run("fit", "text", *SMALL)) / "checkpoints" / "best.ckpt"
    capsys.readouterr()
    main(["export", f"--ckpt_path={checkpoint}", "--to=out/net"])
    said = capsys.readouterr().out
    assert said.startswith("out/net: config.json, model.safetensors and task.json; at (2, 100) ")
    assert "it differs from the net by 0.0e+00" in said
    assert "out/net/model.pt2: any batch and size; at (3, 237) it differs" in said
    task = json.loads((workplace / "out/net/task.json").read_text())
    net = Pretrained.from_pretrained("out/net")
    assert len(task["data"]["vocabulary"]) == net.embed.num_embeddings
    assert task["task"] == "tasks.language_model.LanguageModel"
    weights = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert all(torch.equal(x, weights[f"net.{k}"]) for k, x in net.state_dict().items())
    with torch.no_grad():
        program = torch.export.load("out/net/model.pt2").module()
        for shape in ((1, 1), (1, 64), (5, 130)):
            x = torch.randint(len(task["data"]["vocabulary"]), shape)
            assert_close(str(shape), program(x), net(x), 1e-5)
    assert "export: --size must be the length" in told(
        "export", f"--ckpt_path={checkpoint}", "--to=out", "--size=0"
    )


@pytest.mark.parametrize(
    ("mixer", "position"),
    [("plstm", None), pytest.param("attention", (5, 7), marks=pytest.mark.slow)],
)
def test_image_net_at_other_sizes(mixer, position, written, tmp_path):
    options = {"patch_size": 4, "stem": (2,), "position_grid": position}
    net = VisionModel(1, 2, dim=8, depth=1, mixers=GRID[mixer], **options)
    said = written(net)["model.pt2"]
    assert "any batch and size; at (3, 1, 40, 32) it differs" in said
    program = torch.export.load(tmp_path / "model.pt2").module()
    with torch.no_grad():
        for shape in ((1, 1, 20, 28), (2, 1, 8, 12)):  # that of the position code, and smaller
            x = torch.rand(shape)
            assert_close(str(shape), program(x), net(x), 1e-5)


def test_sizes_that_cannot_stay_open_are_named(written, tmp_path):
    net = SequenceModel(5, 5, dim=8, depth=1, mixers=[Table])
    said = written(net, size=[70], trust=["tests"])["model.pt2"]
    assert "any batch, but 70 only (--size changes that): Constraints violated (length)!" in said
    assert "at (3, 70) it differs" in said
    x = torch.randint(5, (4, 70))
    with torch.no_grad():
        assert_close("output", torch.export.load(tmp_path / "model.pt2").module()(x), net(x), 1e-5)


def test_graph_nets_have_weights_only(written, tmp_path):
    (tmp_path / "model.pt2").write_text("of a net before")
    said = written(GraphModel(3, 2, dim=4, depth=1, mixers=[partial(PLSTMGraph, num_heads=2)]))
    assert said.keys() == {"model.safetensors", "model.pt2"}
    assert (
        said["model.pt2"] == "no model.pt2: torch.export takes tensors, and GraphModel takes graphs"
    )
    assert not (tmp_path / "model.pt2").exists()


def test_no_onnx_without_the_extra(written, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    mixers = [partial(SoftmaxAttention, num_heads=1, causal=True)]
    said = written(SequenceModel(5, 5, dim=4, depth=1, mixers=mixers, max_length=9))
    assert re.search(r'^no .*model.onnx .* pip install "plstm\[onnx\]"$', said["model.onnx"])
    assert "at (3, 9) it differs" in said["model.pt2"]


@pytest.mark.slow
@pytest.mark.parametrize("mixer", ["attention", "plstm"])
def test_onnx(mixer, written, tmp_path):
    pytest.importorskip("onnxscript")
    net = VisionModel(1, 2, dim=8, depth=1, mixers=GRID[mixer], patch_size=4)
    said = written(net)["model.onnx"]
    if mixer == "plstm":
        assert said.endswith("model.onnx: ONNX has no operator plstm.grid_gates")
    else:
        assert "model.onnx: at (3, 1, 40, 32) it differs" in said


def saved(folder, **changes):
    """A checkpoint that no run has made."""
    net = {"class_path": "plstm.SequenceModel", "init_args": {"dim": 4, "depth": 1, "mixers": []}}
    told = {"net": net, "in_dim": 5, "out_dim": 5, "net_args": {}} | changes
    torch.save({"state_dict": {}, "loops": {}, "hyper_parameters": told}, folder / "some.ckpt")
    return folder / "some.ckpt"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"net": None}, "does not say what its net is"),
        ({"net": {"class_path": "os.system"}}, "must name classes of plstm, got os.system"),
        ({}, "at least one mixer"),
        (
            {"net": {"class_path": "plstm.PLSTM1d", "init_args": {"dim": 4, "num_heads": 1}}},
            "plstm.PLSTM1d in the config: got an unexpected keyword argument 'in_dim'",
        ),
    ],
    ids=["no net", "not trusted", "no mixers", "no model"],
)
def test_wrong_checkpoints(changes, message, told, tmp_path):
    said = told("export", "--ckpt_path", saved(tmp_path, **changes), "--to", tmp_path / "out")
    assert message in said
    assert not (tmp_path / "out").exists()
