"""Two processes on CPUs give the same result as one process with twice the batch size."""

import math

import pytest
import torch
from torch import nn

from tasks.cli import main
from tasks.distributed import SyncBatchNorm
from tests.helpers import assert_close, gradients
from tests.tasks.processes import outcome_of, run_on_processes
from tests.tasks.runs import CONFIGS, arguments

pytestmark = pytest.mark.usefixtures("workplace")

COMMON = ["--trainer.max_epochs=2", "--trainer.precision=64-true", "--model.net.dropout=0"]
TASKS = {  # further arguments; last batches are uneven where they are not left out
    "quickstart": ["--data.val_size=9"],
    "text": ["--data.train_windows=7"],
    "streams": ["--data.train_windows=9", "--data.train_streams=true", "--data.eval_streams=true"],
    "tu": ["--data.num_folds=3"],
}
BATCH = {"quickstart": 4, "text": 2, "streams": 2, "tu": 4}  # of each of two processes


def job(task, processes, *further, command="fit", strategy="ddp"):
    batch = f"--data.batch_size={2 * BATCH[task] // processes}"
    config = "text" if task == "streams" else task
    further = (f"--trainer.logger.name={task}", *further)
    files = [f"--config={CONFIGS}/trainer/{strategy}.yaml"] if processes > 1 else []
    devices = f"--trainer.devices={processes}"
    return arguments(command, config, *files, *COMMON, *TASKS[task], batch, devices, *further)


def fitted(place, task):
    return {file.parents[1] for file in place.glob(f"runs/{task}/*/checkpoints/last.ckpt")}


def predictions(place):
    """Those that were saved last, and the picture of their confusion matrix."""
    *_, file = sorted(place.glob("runs/tu/*/predictions.pt"), key=lambda x: x.stat().st_mtime_ns)
    picture = file.with_name("confusion.png").read_bytes()
    return torch.load(file, weights_only=True)[""], picture


KINDS = {  # of batch norm, and the shape of its input
    "1d": (nn.BatchNorm1d, (4, 3)),
    "1d of sequences": (nn.BatchNorm1d, (4, 3, 5)),
    "2d": (nn.BatchNorm2d, (2, 3, 5, 4)),
    "3d": (nn.BatchNorm3d, (2, 3, 1, 2, 3)),
}
OPTIONS = [{}, {"affine": False}, {"momentum": None}, {"track_running_stats": False}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("kind", "shape"), KINDS.values(), ids=KINDS)
def test_batch_norm_of_two_processes_with_the_same_batch(kind, shape, options, monkeypatch):
    plain, net = (nn.Sequential(kind(3, **options)).double() for _ in range(2))
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    monkeypatch.setattr("tasks.distributed.all_reduce", lambda x: 2 * x)
    SyncBatchNorm().apply(net)
    for training in (True, True, False):
        plain.train(training), net.train(training)
        x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        out, want = net(x), plain(torch.cat([x, x]))[: len(x)]
        assert_close("out", out, want)
        got, expected = gradients(out, {"x": x}), gradients(want, {"x": x})
        assert_close("gradient", got["x"], expected["x"])
        for name, value in plain.state_dict().items():
            assert_close(name, net.state_dict()[name], value)


def test_two_processes_equal_one(tmp_path):
    alone = {task: outcome_of(main(job(task, 1))) for task in TASKS}
    folders = {task: fitted(tmp_path, task) for task in TASKS}
    main(job("tu", 1, command="predict"))
    predicted, confusion = predictions(tmp_path)
    jobs = [*(job(task, 2) for task in TASKS), job("tu", 2, command="predict")]
    *together, _ = run_on_processes(jobs, 2)
    assert_close("predictions", predictions(tmp_path)[0], predicted)
    assert predictions(tmp_path)[1] == confusion  # counts of both processes
    for task, (weights, metrics) in zip(TASKS, together, strict=True):
        want, want_metrics = alone[task]
        for name, weight in want.items():
            assert_close(f"{task} {name}", weights[name], weight, 1e-9)
        for name in want_metrics:
            if name.startswith(("train/loss", "train/accuracy", "val/", "train/grad_norm")):
                assert math.isclose(metrics[name], want_metrics[name], rel_tol=1e-6), (task, name)
        (folder,) = fitted(tmp_path, task) - folders[task]  # one, not one of each
        (one,) = folders[task]
        rows = [(place / "metrics.csv").read_text().count("\n") for place in (folder, one)]
        assert rows[0] == rows[1]


@pytest.mark.slow
@pytest.mark.parametrize("task", ["quickstart", "text"])
def test_split_weights_come_to_the_same(task, tmp_path):
    single = "--trainer.precision=32-true"
    weights, metrics = outcome_of(main(job(task, 1, single)))
    fit = job(task, 2, single, strategy="fsdp")
    ((split, split_metrics),) = run_on_processes([fit], 2)
    for name, weight in weights.items():
        assert_close(name, split[name], weight, 1e-3)
    assert math.isclose(split_metrics["val/loss"], metrics["val/loss"], rel_tol=1e-4)
    file = max(tmp_path.glob("runs/*/*/checkpoints/last.ckpt"), key=lambda x: x.stat().st_mtime)
    saved = torch.load(file, weights_only=True)["state_dict"]
    for name, weight in split.items():
        assert torch.equal(saved[f"net.{name}"], weight), name
    test = job(task, 2, single, f"--ckpt_path={file}", command="test", strategy="fsdp")
    resume = [*fit, f"--resume={file.parents[1]}"]  # of a complete run: what was saved
    (tested, _), (resumed, _) = run_on_processes([test, resume], 2)
    for name, weight in split.items():
        assert torch.equal(tested[name], weight), name
        assert torch.equal(resumed[name], weight), name
