"""User errors and their messages, on the command line and in Python."""

import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.datasets import TUDataset

import plstm
from plstm.graph import LineGraph, ToDag
from plstm.models import SequenceModel, VisionModel
from tasks import classification
from tests.tasks.runs import TU_NAME, arguments, folder_of, run

pytestmark = pytest.mark.usefixtures("workplace")

RAW = Path("tu", TU_NAME, "raw", f"{TU_NAME}_")


def config(text):
    """A config beside that of the quick start, and one that it may name."""
    Path("mine.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    Path("inner.yaml").write_text("'\n", "utf-8")
    return arguments("fit", "quickstart", "--config=mine.yaml")


WRONG_ARGUMENTS = {
    "--foo=1": "there is no argument --foo=1",
    "--trainer.max_steps=many": "trainer.max_steps must be int, got many",
    "--trainer.precision=bf17": "trainer.precision must be .*'bf16-mixed'.*, got bf17",
    "--trainer.strategy=dpp": "invalid strategy name.*dpp",
    "--trainer.logger=NoLogger": "trainer.logger must be .*the name of a class.*, got NoLogger",
    "--trainer.callbacks+=NoCallback": "trainer.callbacks must be the name of a class",
    "--trainer.accelerator=tpu": "Requirement 'torch_xla.*' not met",
    "--trainer.devices=0": "trainer.devices must be auto, a number from 1, .* got 0",
    "--trainer.devices=-1": "`devices` selected with `CPUAccelerator` should be an int > 0",
    "--data=NoData": "data must be the name of a class or a file, got NoData",
    "--data.batchsize=3": r"there is no data.batchsize; did you mean batch_size\?",
    "--data.batch_size=x": "data.batch_size must be int, got x",
    "--data.batch_size=0": "batch_size must be 1 or more, got 0",
    "--data.train_size=0": "an epoch needs a batch of 8 samples.*got 0 samples",
    "--data.image_size=34": "VisionModel: images must have .* divisible by the patch size",
    "--data.radius=[5,3]": "ArrowData: radius must be the least and the greatest .* 5.0 and 3.0",
    "--data.line_width=[0,3]": "ArrowData: line_width must be",
    "--data.seed=99999999999": "ArrowData: seed must lie in 0..4294967295",
    "--data.test_size=-1": "ArrowData: test_size must be 1 or more, got -1",
    "--data.extrapolation_sizes=[32]": r"sizes of the sets must differ, .* got \[32, 32\]",
    "--data.extrapolation_sizes=48": "data.extrapolation_sizes must be a list, got 48",
    "--data.padding=40": "ArrowData: the padded square must be wider than twice",
    "--model=TUData": "model must be the name of a class",
    "--model.net=no/file.yaml": "model.net must be .* a file, got no/file.yaml",
    "--model.net=plstm.NoNet": r"a class or a file, got plstm.NoNet \(module 'plstm' has no",
    "--model.optimizer=torch.nn.Linear": r"torch.nn.Linear \(Expected .* subclass of Optimizer\)",
    "--model.scheduler=ExponentialLR": "^train.py: model.scheduler needs gamma",
    "--model.net.depth=2.5": "model.net.depth must be int, got 2.5",
    "--model.net.depth=0": "build_blocks: need depth >= 1",
    "--model.net.dim=50": "dim must be divisible by num_heads, got dim=50 and num_heads=6",
    "--model.net.dim=-48": "VisionModel: dim must be 1 or more, got -48",
    "--model.net.patch_size=0": "VisionModel: patch_size must be 1 or more, got 0",
    "--model.net.pooling=sum": "VisionModel: pooling must be one of 'corners', .*, got 'sum'",
    "--model.net.mixers.init_args.colour=1": "there is no model.net.mixers.colour; there are dim,",
    "--model.optimizer=Adamm": "model.optimizer must be the name of a class",
    "--model.optimizer.lrr=1": "there is no model.optimizer.lrr; did you mean lr",
    "--model.optimizer.lr=-1.0": "[Ii]nvalid learning rate: -1.0",
    "--model.optimizer.lr=.nan": "[Ii]nvalid learning rate: nan",
    "--model.scheduler.warmup=1.5": r"WarmupCosine: warmup is a fraction in \[0, 1\), got 1.5",
    "--model.optimiser.lr=1": r"there is no model.optimiser.lr.*; did you mean optimizer\?",
    "--trainer.max_epochs=-1": "the learning rate depends on the number of steps",
    "--trainer.accumulate_grad_batches=-2": "accumulate_grad_batches must be 1 or more, got -2",
    "--trainer.callbacks+=FindLearningRate --trainer.callbacks.min_lr=0": (
        "FindLearningRate: needs 0 < min_lr < max_lr"
    ),
    "--last_checkpoint.minutes=-1": "LastCheckpoint: minutes must be at least 0, got -1",
    "--resume=nowhere": "--resume nowhere: no run was started there",
}


@pytest.mark.parametrize(("argument", "message"), WRONG_ARGUMENTS.items())
def test_argument(argument, message, told):
    assert re.search(message, told(*arguments("fit", "quickstart", *argument.split())))


CONFIGS_AT_FAULT = {
    "modle: 3\n": r"there is no modle; did you mean model\?",
    "trainer:\n  max_step: 3\n": r"there is no trainer.max_step; did you mean max_steps\?",
    "model: [\n": "mine.yaml, line 2, column 1: a config must be YAML, expected the node content",
    "model:\n\tnet: 3\n": r"mine.yaml, line 2, column 1: .*'\\t' .*; indent YAML with spaces",
    "model: \0\n": "mine.yaml: a config must be YAML, unacceptable character #x0000",
    b"model: \xff\n": r"mine.yaml: a config must be a text file \(UTF-8\)",
    "model:\n  init_args:\n    net: inner.yaml\n": "inner.yaml, line 2, column 1: .*unexpected end",
    "": "a config must be YAML with keys like model, data and trainer, got ''",
    "words\n": "a config must be YAML .*, got 'words'",
    "data:\n  init_args: 3\n": "data: Problem with given class_path 'tasks.arrow.ArrowData'",
}


@pytest.mark.parametrize(("text", "message"), CONFIGS_AT_FAULT.items())
def test_config(text, message, told):
    assert re.search(message, told(*config(text)))


def test_config_of_a_class(told):
    net = Path(__file__).parents[3] / "configs" / "net" / "plstm_text.yaml"
    message = told("fit", "--config", net)
    assert "plstm_text.yaml: a config must have keys like model" in message
    assert f"--model.net {net}" in message


def test_config_of_any_suffix(told):
    Path("mine.txt").write_text("a: b: c\n")
    assert "mine.txt, line 1, column 5: a config must be YAML" in told("fit", "--config=mine.txt")


def test_no_config(told):
    assert "needs fit.data, fit.model; pass the config of a task" in told("fit")


def test_missing_config(told):
    assert "none.yaml" in told("fit", "--config=none.yaml")


def test_unknown_subcommand(told):
    assert "invalid choice: 'fot' (choose from" in told("fot")


WRONG_TEXTS = {
    b"": "TextData: input.txt is empty",
    b"to be or not": "every part needs more than context=8 characters, got 1 for val",
    b"\xff\xfe\x00": "TextData: input.txt must be UTF-8 text",
}


@pytest.mark.parametrize(("text", "message"), WRONG_TEXTS.items())
def test_text(text, message, told):
    Path("input.txt").write_bytes(text)
    assert message in told(*arguments("fit", "text"))


@pytest.mark.parametrize("path", ["none.txt", "tu"])
def test_text_file(path, told):
    message = told(*arguments("fit", "text", f"--data.path={path}"))
    assert f"TextData: path must be a text file, got '{path}'" in message


def test_text_shares(told):
    message = told(*arguments("fit", "text", "--data.val_share=0.9", "--data.test_share=0.2"))
    assert "val_share and test_share must leave something to train on, got 0.9 and 0.2" in message


@pytest.mark.parametrize("name", ["context", "train_windows"])
def test_text_sizes(name, told):
    message = told(*arguments("fit", "text", f"--data.{name}=0"))
    assert f"TextData: {name} must be 1 or more, got 0" in message


def test_argument_of_a_base_class(told):
    message = told(*arguments("fit", "text", "--model.compil=true"))
    assert "there is no model.compil; did you mean compile?" in message


def test_negative_workers(told):
    assert "num_workers" in told(*arguments("fit", "text", "--data.num_workers=-1"))


WRONG_PICTURES = {
    "--data.path=none": "ImageData: path must be a folder of images .* got 'none'; there is none",
    "--data.size=null": "have 3 sizes: 6 x 9 .* set data.size, as in --data.size 64",
    "--data.size=9": "VisionModel: images must have .* divisible by the patch size 4",
    "--data.size=x": "data.size must be int or .*, got x",
    "--data.as_sequence=true": "VisionModel: images must have shape",
    "--data.val_share=1.0": "some images must be left for training, got 1.0 and 0.1",
    "--data.test_path=none": "ImageData: test_path must be a folder .* got 'none'; there is none",
}


@pytest.mark.parametrize(("argument", "message"), WRONG_PICTURES.items())
def test_pictures(argument, message, told):
    command = "test" if "test_path" in argument else "fit"
    assert re.search(message, told(*arguments(command, "images", argument)))


WRONG_TU = {
    "--data.fold=10": r"TUData: fold must lie in 0..9 with num_folds=10, got 10",
    "--data.num_folds=1": "TUData: num_folds must be 2 or more, got 1",
    "--data.num_folds=30": "num_folds must be at most 20, .* smallest class of TINY, got 30",
    "--data.order=sorted": "ToDag: order must be one of 'given', .*'directed', got 'sorted'",
}


@pytest.mark.parametrize(("argument", "message"), WRONG_TU.items())
def test_graphs(argument, message, told):
    assert re.search(message, told(*arguments("fit", "tu", argument)))


def test_unknown_data_set(told, monkeypatch):
    def download(self):
        raise FileNotFoundError("https://example.org/NCI99.zip")

    monkeypatch.setattr(TUDataset, "download", download)
    message = told(*arguments("fit", "tu", "--data.name=NCI99"))
    assert "TUData: could not download NCI99" in message
    assert "put its files into" in message


DAMAGED = {
    "A": ("1, 2\nx, 3\n", "TUData: the files of TINY in .* are damaged"),
    "A ": ("1, 2\n2, 999\n", "TUData: the files of TINY in .* are damaged"),
    "graph_indicator": ("1\n2\n", "TUData: the files of TINY in .* are damaged"),
    "graph_labels": ("0\n1\n", "TUData: the files of TINY in .* are damaged"),
    "node_labels": ("0\n", "TUData: the files of TINY in .* are damaged"),
    "node_attributes": ("nan\n", "TUData: .*not finite"),
}


@pytest.mark.parametrize(("file", "text", "message"), [(k, *v) for k, v in DAMAGED.items()])
def test_damaged_graphs(file, text, message, told):
    path = RAW.with_name(f"{RAW.name}{file.strip()}.txt")
    if file == "node_attributes":
        nodes = len(RAW.with_name(f"{RAW.name}node_labels.txt").read_text().split())
        text *= nodes
    path.write_text(text)
    assert re.search(message, told(*arguments("fit", "tu")))
    assert not list(Path("tu", TU_NAME).glob("processed_??????????/data.pt"))


class Harmful:
    """A pickle that does something when it is read."""

    def __reduce__(self):
        return os.mkdir, ("harm",)


def write_checkpoint(kind):
    """A file that is not a valid checkpoint."""
    file = Path(kind if kind == "best" else f"{kind}.ckpt")
    if kind == "cut":
        file.write_bytes(
            (folder_of(run("fit", "text")) / "checkpoints/last.ckpt").read_bytes()[:999]
        )
    elif kind == "foreign":
        torch.save({"weights": torch.zeros(3)}, file)
    elif kind == "code":
        torch.save({"state_dict": Harmful(), "loops": {}}, file)
    elif kind == "other":
        shutil.copy(folder_of(run("fit", "text")) / "checkpoints" / "last.ckpt", file)
    return file


CHECKPOINTS = {
    "best": "read_checkpoint: there is no checkpoint best",
    "absent": "read_checkpoint: there is no checkpoint absent.ckpt",
    "cut": "read_checkpoint: cut.ckpt is damaged or not a checkpoint",
    "foreign": "read_checkpoint: foreign.ckpt is not a checkpoint of a run",
    "code": r"read_checkpoint: code.ckpt holds code \(\S+mkdir\) and not only weights",
    "other": r"the checkpoint is from another net: .*net\.blocks\.0.*config.yaml of its run",
}


@pytest.mark.parametrize(("kind", "message"), CHECKPOINTS.items())
def test_checkpoint(kind, message, told):
    file = write_checkpoint(kind)
    assert re.search(message, told(*arguments("test", "quickstart", f"--ckpt_path={file}")))
    assert not Path("harm").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_more_devices_than_there_are(told):
    args = arguments("fit", "quickstart")
    args = [x for x in args if "accelerator" not in x]
    assert re.search("GPU|gpu|CUDA", told(*args, "--trainer.accelerator=gpu"))


def test_folder_that_cannot_be_written(told):
    message = told(*arguments("fit", "quickstart", "--trainer.logger.save_dir=input.txt"))
    assert "cannot write in input.txt" in message
    assert "--trainer.logger.save_dir" in message


def mixer(dim):
    return plstm.PLSTM1d(dim, 2)


def vision(**options):
    mixers = [lambda dim: plstm.PLSTM2d(dim, 2)]
    return VisionModel(3, 2, dim=8, depth=1, mixers=mixers, patch_size=4, **options)


def sequence(**options):
    return SequenceModel(5, 5, dim=8, depth=1, mixers=[mixer], **options)


def edges(*pairs):
    return torch.tensor(pairs).T


IN_PYTHON = {
    "cycle": (
        lambda: LineGraph.from_edges(edges((0, 1), (1, 2), (2, 0)), 3),
        "LineGraph: edge_index must have no directed cycle",
    ),
    "edge to nowhere": (
        lambda: LineGraph.from_edges(edges((0, 3)), 3),
        r"LineGraph: edge_index must lie in 0..2 \(3 nodes\)",
    ),
    "edges of numbers": (
        lambda: LineGraph.from_edges(edges((0, 1)).float(), 3),
        "LineGraph: edge_index must be an int64 tensor",
    ),
    "graph without features": (
        lambda: plstm.GraphModel(3, 2, dim=8, depth=1, mixers=[lambda d: plstm.PLSTMGraph(d, 2)])(
            ToDag()(Data(x=torch.zeros(2, 4), edge_index=edges((0, 1), (1, 0))))
        ),
        r"node_features: data.x must have shape \(N, 3\), got \(2, 4\)",
    ),
    "image of the wrong channels": (
        lambda: vision()(torch.zeros(1, 1, 8, 8)),
        r"VisionModel: images must have shape \(B, 3, height, width\)",
    ),
    "image not divisible": (
        lambda: vision()(torch.zeros(1, 3, 9, 8)),
        "VisionModel: images must have .* divisible by the patch size 4",
    ),
    "tokens of numbers": (
        lambda: sequence()(torch.zeros(1, 3)),
        r"SequenceModel: tokens must be integers \(B, L\)",
    ),
    "unknown token": (
        lambda: sequence()(torch.tensor([[0, 5]])),
        r"SequenceModel: tokens must lie in 0..4, got 0..5",
    ),
    "empty prompt": (
        lambda: sequence().generate(torch.zeros(1, 0, dtype=torch.long), 3),
        "SequenceModel: the sequence must have at least one position, got L = 0",
    ),
    "too long a sequence": (
        lambda: sequence(max_length=3)(torch.zeros(1, 4, dtype=torch.long)),
        "LearnedPosition1d: only 3 positions are encoded",
    ),
    "unknown mode": (
        lambda: plstm.PLSTM2d(8, 2, "Q"),
        "PLSTM2d: mode must be one of 'P', 'D', got 'Q'",
    ),
    "unknown corner": (
        lambda: plstm.PLSTM2d(8, 2, corners=("middle",)),
        "PLSTM2d: .*corner.*middle",
    ),
    "label out of range": (
        lambda: classification.cross_entropy(torch.zeros(2, 3), torch.tensor([0, 3])),
        r"Classification: targets must be classes 0..2, got 0..3",
    ),
    "label of numbers": (
        lambda: classification.cross_entropy(torch.zeros(2, 3), torch.tensor([0.5, 1.0])),
        "Classification: targets must be int64 class indices, got torch.float32",
    ),
}


@pytest.mark.parametrize(("call", "message"), IN_PYTHON.values(), ids=IN_PYTHON)
def test_in_python(call, message):
    with pytest.raises(ValueError, match=message):
        call()
