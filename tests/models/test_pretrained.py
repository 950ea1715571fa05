"""Nets saved to a folder and built from there, and what is refused."""

import copy
import json
import pickle
from functools import partial

import pytest
import torch
import yaml
from torch import nn

from plstm import FlattenedGrid, GNNModel, GraphModel, PLSTM1d, SequenceModel, VisionModel
from plstm.extras import MissingExtra
from plstm.models.pretrained import Pretrained, build_net
from tests.layers.contract import NETS, resolve
from tests.models.nets import GRID, SEQUENCE

SIZES = {"dim": 4, "depth": 2}


class Shift(nn.Module):
    """A mixer that is not of plstm."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return x + self.shift


def graph_net(cls, **kwargs):
    pyg = pytest.importorskip("torch_geometric")
    from plstm.graph import ToDag

    edges = torch.tensor([[0, 1, 2], [1, 2, 3]])
    data = pyg.data.Data(x=torch.randn(4, 3), edge_index=edges)
    return cls(3, 2, **SIZES, **kwargs), ToDag()(data)


def nets():
    """Name, and a net with an input, of every model and every kind of mixer."""
    for name, mixers in SEQUENCE.items():
        yield (
            name,
            lambda m=mixers: (
                SequenceModel(5, 5, **SIZES, mixers=m, max_length=9),
                torch.randint(5, (2, 9)),
            ),
        )
    flat = [partial(FlattenedGrid, mixer=partial(PLSTM1d, num_heads=2), corner="bottom_right")]
    for name, mixers in (GRID | {"flattened": flat}).items():
        options = {"patch_size": 4, "stem": (4,), "position_grid": (2, 3), "layer_scale": 0.1}
        yield (
            f"{name}-grid",
            lambda m=mixers, o=options: (
                VisionModel(1, 2, **(SIZES | {"dim": 8}), mixers=m, **o),
                torch.randn(2, 1, 8, 12),
            ),
        )
    from plstm import PLSTMGraph

    yield "graph", lambda: graph_net(GraphModel, mixers=[partial(PLSTMGraph, num_heads=2)])
    for gnn in ("GIN", "PNA", "DMPNN"):
        yield gnn, lambda g=gnn: graph_net(GNNModel, gnn=g)


NETS_BY_NAME = dict(nets())


def saved_config(folder, **changes):
    """Change fields of the config.json of a folder."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def folder(tmp_path):
    SequenceModel(5, 5, **SIZES, mixers=SEQUENCE["plstm"]).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", NETS_BY_NAME)
def test_round_trip(name, tmp_path):
    net, x = NETS_BY_NAME[name]()
    net.train()
    if not isinstance(x, torch.Tensor):
        net(x)  # batch statistics and degrees
    net.eval().save_pretrained(tmp_path)
    back = type(net).from_pretrained(tmp_path)
    assert not back.training
    assert torch.equal(back(x), net(x))
    assert back.config == net.config


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_weights_keep_their_dtype(dtype, tmp_path):
    net, _ = NETS_BY_NAME["plstm"]()
    net.to(dtype).save_pretrained(tmp_path)
    back = SequenceModel.from_pretrained(tmp_path)
    assert back.head.weight is back.embed.weight
    for name, x in net.state_dict().items():
        assert torch.equal(back.state_dict()[name], x), name
        assert back.state_dict()[name].dtype == dtype


@pytest.mark.parametrize("file", sorted(NETS.glob("*.yaml")), ids=lambda file: file.stem)
def test_configs_build_the_same_net(file):
    """Those of configs/net, without memory: what a net says of itself is what was asked for."""
    described = yaml.safe_load(file.read_text())
    asked = described["init_args"] | {"depth": len(described["init_args"].get("mixers", [0]))}
    if file.stem == "pna_tu":
        pytest.skip("PyTorch Geometric reads numbers while it builds one")
    with torch.device("meta"):
        net = build_net(described | {"init_args": {"in_dim": 7, "out_dim": 7} | asked})
        again = build_net(json.loads(json.dumps(net.config)))
        by_hand = type(net)(7, 7, **resolve(asked))
    assert again.config == net.config == by_hand.config
    shapes = {name: x.shape for name, x in net.state_dict().items()}
    assert {name: x.shape for name, x in again.state_dict().items()} == shapes
    assert all(net.config["init_args"][k] == v for k, v in asked.items() if k != "mixers")


def test_copies_keep_the_config():
    net, x = NETS_BY_NAME["plstm"]()
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert twin.config == net.config
        assert torch.equal(twin(x), net(x))


def test_nets_that_no_config_describes(tmp_path):
    for mixer in (lambda dim: PLSTM1d(dim, 2), partial(lambda dim: PLSTM1d(dim, 2))):
        net = SequenceModel(5, 5, **SIZES, mixers=[mixer])
        with pytest.raises(
            ValueError, match=r"SequenceModel: not possible in config.json: .*lambda"
        ):
            net.save_pretrained(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_own_mixers_are_built_where_they_are_trusted(tmp_path):
    net = SequenceModel(5, 5, **SIZES, mixers=[Shift])
    net.save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"must name classes of plstm, got tests\.models.*Shift; if"
    ):
        SequenceModel.from_pretrained(tmp_path)
    back = SequenceModel.from_pretrained(tmp_path, trusted=["plstm", "tests"])
    x = torch.randint(5, (1, 3))
    assert torch.equal(back(x), net.eval()(x))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("os.system", "must name classes of plstm"),
        ("plstmx.Net", "must name classes of plstm"),
        ("torch.nn.Linear", "must name classes of plstm"),
        ("plstm", "must name classes of plstm"),
        (7, "must name classes of plstm"),
        ("plstm.models.pretrained.importlib.import_module", "must name subclasses of nn.Module"),
        ("plstm.models.pretrained.json", "must name subclasses of nn.Module"),
        ("plstm.models.pretrained.Path", "must name subclasses of nn.Module"),
        ("plstm.models.gnn.importlib", "must name subclasses of nn.Module"),
        ("plstm.graph.LineGraph", "must name subclasses of nn.Module"),
        ("plstm.ops.plstm_1d", "must name subclasses of nn.Module"),
        ("plstm.models.Nothing", "must name subclasses of nn.Module"),
        ("plstm.nothing.Net", "must name subclasses of nn.Module"),
    ],
)
def test_refused_classes(path, message, folder):
    saved_config(folder, class_path=path)
    with pytest.raises(ValueError, match=f"build_net: the config {message}"):
        SequenceModel.from_pretrained(folder)


def test_a_refused_module_is_not_imported(folder, monkeypatch):
    (folder / "stranger.py").write_text("raise SystemExit('ran')")
    monkeypatch.syspath_prepend(folder)
    mixers = [{"class_path": "stranger.Mixer", "init_args": {}}]
    saved_config(folder, init_args={"in_dim": 5, "out_dim": 5, **SIZES, "mixers": mixers})
    with pytest.raises(ValueError, match=r"must name classes of plstm, got stranger\.Mixer"):
        SequenceModel.from_pretrained(folder)


FULL = {"in_dim": 5, "out_dim": 5, **SIZES, "mixers": []}
NESTED = {"class_path": "plstm.PLSTM1d", "init_args": {"num_heads": 2, "speed": 3}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_args": FULL | {"width": 3}}, "SequenceModel.*unexpected keyword argument 'width'"),
        (
            {"init_args": FULL | {"mixers": [NESTED]}},
            "PLSTM1d.*unexpected keyword argument 'speed'",
        ),
        ({"init_args": {"in_dim": 5}}, "SequenceModel cannot be built .*: .*missing"),
        ({"init_args": FULL | {"dim": "wide"}}, "SequenceModel cannot be built with the arguments"),
        ({"init_args": FULL | {"mixers": ["relu"]}}, "SequenceModel cannot be built"),
        ({"init_args": FULL}, "at least one mixer"),
        ({"init_args": [1]}, "must describe a class by class_path and init_args"),
        ({"code": "print()"}, "must describe a class by class_path and init_args"),
    ],
    ids=["unknown", "unknown in a mixer", "missing", "type", "no class", "value", "list", "field"],
)
def test_wrong_fields(changes, message, folder):
    saved_config(folder, **changes)
    with pytest.raises(ValueError, match=f"^build_net: .*{message}"):
        SequenceModel.from_pretrained(folder)


@pytest.mark.parametrize("text", ["", "{", "[1]", "{}", "[" * 100_000], ids=lambda text: text[:9])
def test_no_config(text, folder):
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json is not JSON|the config must be an object"):
        SequenceModel.from_pretrained(folder)


def test_other_models_weights_and_folders(folder, tmp_path_factory):
    with pytest.raises(ValueError, match=r"got SequenceModel; call SequenceModel\.from_pretrained"):
        VisionModel.from_pretrained(folder)
    assert isinstance(Pretrained.from_pretrained(folder), SequenceModel)
    saved = json.loads((folder / "config.json").read_text())["init_args"]
    saved_config(folder, init_args=saved | {"depth": 3})
    with pytest.raises(ValueError, match=r"must have the weights of the model .*Missing key"):
        SequenceModel.from_pretrained(folder)
    saved_config(folder, init_args=saved)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(ValueError, match="must have the weights of the model"):
        SequenceModel.from_pretrained(folder)
    weights.rename(folder / "pytorch_model.bin")  # a pickle is not looked for
    with pytest.raises(ValueError, match=r"there is no model\.safetensors in"):
        SequenceModel.from_pretrained(folder)
    with pytest.raises(ValueError, match=r"there is no config\.json in"):
        SequenceModel.from_pretrained(tmp_path_factory.mktemp("empty"))


def test_no_folder_and_no_network(tmp_path):
    for source in (tmp_path / "absent", "user/name"):
        with pytest.raises(ValueError, match=r"there is no folder .*, and the Hub has no config"):
            SequenceModel.from_pretrained(source, local_files_only=True, cache_dir=tmp_path)


def test_missing_extra_is_named(tmp_path, monkeypatch):
    net, _ = NETS_BY_NAME["plstm"]()
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(MissingExtra, match=r'save_pretrained needs .* pip install "plstm\[hub\]"'):
        net.save_pretrained(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
    monkeypatch.setitem(__import__("sys").modules, "safetensors", None)
    with pytest.raises(MissingExtra, match=r'from_pretrained needs .* pip install "plstm\[hub\]"'):
        SequenceModel.from_pretrained(tmp_path)
