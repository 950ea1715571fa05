"""Comparisons of nets: two nets, one seed, a small text, and the reports."""

import logging
import statistics
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import timer
from matplotlib.collections import PathCollection
from torch import nn

from benchmarks import __main__ as command
from benchmarks import compare, quickstart, results
from benchmarks.compare_report import METRICS, picture, report
from benchmarks.quiet import NAMES
from benchmarks.state_sizes import state_picture
from tasks.classification import Classification
from tests.tasks.runs import SMALL, TU_NAME

pytestmark = pytest.mark.usefixtures("workplace")

PNG = b"\x89PNG"
TINY = [f"--data.{name}={value}" for name, value in SMALL["text"].items() if name != "path"]
ARGUMENTS = ["--task=text", "--nets=plstm,attention", "--seeds=0", "--path=input.txt", "--out=out"]


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["benchmarks", "compare", *arguments])
    command.main()


def cells(table, net):
    (line,) = (line for line in table.splitlines() if line.startswith(f"| {net} "))
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_runs_are_written_and_not_made_again(workplace, monkeypatch, capsys):
    levels = [logging.getLogger(name).level for name in NAMES]
    call(monkeypatch, *ARGUMENTS, "--max_steps=3", *TINY)
    assert [logging.getLogger(name).level for name in NAMES] == levels
    assert "[2/2] attention, seed 0" in capsys.readouterr().out
    file = workplace / "out" / "compare_text.jsonl"
    rows, text = results.read(file), file.read_text()
    assert [(row["net"], row["seed"], row["budget"]) for row in rows] == [
        ("plstm", 0, "3 steps"),
        ("attention", 0, "3 steps"),
    ]
    for row in rows:
        assert row["steps"] == 3
        assert row["samples_per_s"] > 0
        assert row["torch"] == torch.__version__
        assert row["command"].startswith("python -m benchmarks compare --task=text")
        assert {"processor", "date", "commit", "device", "seconds"} <= row.keys()
    memory = 4 * (256 * 32 + 3 * 256)  # per block 8 heads of 32 x 32 and a window of 3 positions
    assert [row["state_size"] for row in rows] == [memory, None]
    table = (workplace / "out" / "compare_text.md").read_text()
    for row in rows:
        got = cells(table, row["net"])
        assert got[1:4] == ["config", "1", f"{row['metrics']['test/bits_per_char']:.4f}"]
        assert got[4] == str(row["parameters"])
    assert (workplace / "out" / "compare_text.png").read_bytes().startswith(PNG)

    call(monkeypatch, *ARGUMENTS, "--max_steps=3", *TINY)
    assert "[2/2] attention, seed 0, exists" in capsys.readouterr().out
    assert file.read_text() == text


def test_learning_rate_is_the_one_that_validates_best_with_the_first_seed(workplace, monkeypatch):
    arguments = [*ARGUMENTS, "--nets=plstm", "--seeds=0,1,2", "--max_steps=3", *TINY]
    call(monkeypatch, *arguments, "--lrs=1e-9,1e-2,1e-8")
    rows = results.read(workplace / "out" / "compare_text.jsonl")
    assert [(row["seed"], row["lr"]) for row in rows] == [
        *((0, lr) for lr in (1e-9, 1e-2, 1e-8)),
        *((seed, 1e-2) for seed in (1, 2)),
    ]
    assert rows[1]["validation"] == min(row["validation"] for row in rows[:3])
    kept = [row["metrics"]["test/bits_per_char"] for row in (rows[1], rows[3], rows[4])]
    got = cells((workplace / "out" / "compare_text.md").read_text(), "plstm")
    assert got[1:3] == ["0.01", "3"]
    assert got[3].startswith(f"{statistics.mean(kept):.4f}")


def test_another_budget_or_argument_is_another_run(workplace, monkeypatch):
    common = [*ARGUMENTS, "--nets=plstm"]
    call(monkeypatch, *common, "--max_steps=2", *TINY)
    call(monkeypatch, *common, "--max_steps=1", *TINY)
    call(monkeypatch, *common, "--max_steps=1", *TINY, "--model.optimizer.lr=0.1")
    rows = results.read(workplace / "out" / "compare_text.jsonl")
    assert [row["steps"] for row in rows] == [2, 1, 1]
    assert len({compare.key(row) for row in rows}) == 3
    assert rows[1]["metrics"] != rows[2]["metrics"]
    table = (workplace / "out" / "compare_text.md").read_text()
    assert table.count("## text, 1 steps") == 2


def test_seeds_change_weights_and_repeat(workplace, monkeypatch):
    for out in ("first", "again"):
        arguments = ["--nets=plstm", "--seeds=0,1", f"--out={out}", "--max_steps=1"]
        call(monkeypatch, *ARGUMENTS, *arguments, *TINY)
    first, again = (
        [row["metrics"] for row in results.read(workplace / out / "compare_text.jsonl")]
        for out in ("first", "again")
    )
    assert first == again
    assert first[0] != first[1]


@pytest.mark.parametrize("task", ["words", "languages", "recall", "listops", "pixels"])
def test_tasks_of_sequences_share_their_nets(task):
    args, _ = compare.parse([f"--task={task}", "--max_steps=1"])
    nets = [
        "attention",
        "gated_delta_net",
        "mamba2",
        "mlstm",
        "plstm",
        "plstm-automata",
        "plstm-lanes",
    ]
    assert args.nets == nets


def test_metrics_of_all_lengths_are_written(workplace, monkeypatch):
    small = [f"--data.{name}={value}" for name, value in SMALL["languages"].items()]
    arguments = ["--task=languages", "--nets=attention", "--seeds=0", "--out=out", "--max_steps=1"]
    call(monkeypatch, *arguments, "--model.net.dim=8", "--model.net.depth=1", *small)
    (row,) = results.read(workplace / "out" / "compare_languages.jsonl")
    assert {"test/scaled_accuracy", "test/scaled_accuracy@9"} <= row["metrics"].keys()
    head = (workplace / "out" / "compare_languages.md").read_text().splitlines()[2]
    assert "test/scaled_accuracy@9" in head


@pytest.fixture
def quarters(monkeypatch):
    """A clock that advances by a quarter of a second per training step, and not otherwise."""
    now, training_step = 0.0, Classification.training_step

    def timed(*args):
        nonlocal now
        now += 0.25
        return training_step(*args)

    clock = SimpleNamespace(monotonic=lambda: now, perf_counter=lambda: now)
    monkeypatch.setattr(Classification, "training_step", timed)
    monkeypatch.setattr(timer, "time", clock)
    monkeypatch.setattr(compare, "time", clock)


def test_time_is_a_budget_too(workplace, monkeypatch, quarters):
    arguments = ["--task=tu", "--nets=gin", "--seeds=0", "--root=tu", "--out=out", "--seconds=1"]
    call(monkeypatch, *arguments, f"--data.name={TU_NAME}")
    (row,) = results.read(workplace / "out" / "compare_tu.jsonl")
    assert row["budget"] == "1 s"
    assert row["steps"] == 4
    assert row["seconds"] == 1


def test_learning_rate_falls_with_time(monkeypatch):
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    schedule = compare.TimedCosine(optimizer, seconds=10)
    rates = []
    for now in (0.25, 0.5, 5.25, 10.0, 11.0):  # noqa: B007, read by the clock
        optimizer.step()
        schedule.step()
        rates.append(schedule.get_last_lr()[0])
    assert rates == pytest.approx([0.5, 1.0, 0.5, 0.0, 0.0], abs=1e-2)


def test_first_step_and_pauses_do_not_count(monkeypatch):
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    speed, batch = compare.Speed(), (torch.zeros(8, 2), torch.zeros(8))
    speed.on_train_epoch_start()
    now = 5.0
    speed.on_train_batch_end(Steps(1), None, None, batch, 0)
    now = 7.0
    speed.on_train_batch_end(Steps(2), None, None, batch, 1)
    now = 50.0
    speed.on_train_epoch_start()
    now = 51.0
    speed.on_train_batch_end(Steps(3), None, None, batch, 0)
    assert (speed.samples, speed.seconds) == (16, 3.0)


class Steps:
    """A trainer that knows its steps."""

    def __init__(self, global_step):
        self.global_step = global_step


def made_rows(task, values):
    where = dict.fromkeys(("processor", "threads", "torch", "python", "date", "commit", "command"))
    return [
        {
            "net": net,
            "seed": seed,
            "lr": None,
            "validation": None,
            "budget": "5 steps",
            "arguments": "",
            "metrics": {METRICS[task][0]: value, f"{METRICS[task][0]}@48": value / 2},
            "parameters": 10,
            "state_size": None,
            "steps": 5,
            "samples_per_s": 10.0 * (seed + 1),
            **where,
        }
        for net, numbers in values.items()
        for seed, value in enumerate(numbers)
    ]


@pytest.mark.parametrize("task", METRICS)
def test_table_is_computed_from_the_rows(task):
    values = {"middle": [0.5, 0.75, 0.25], "high": [0.9], "low": [0.125, 0.25]}
    rows = made_rows(task, values)
    table = report(task, rows)
    for net, numbers in values.items():
        got = cells(table, net)
        want = [f"{statistics.mean(numbers):.4f}", f"{statistics.mean(numbers) / 2:.4f}"]
        if len(numbers) > 1:
            deviation = statistics.stdev(numbers)
            want = [f"{want[0]} ± {deviation:.4f}", f"{want[1]} ± {deviation / 2:.4f}"]
        assert got[1:5] == ["config", str(len(numbers)), *want]
        assert got[-1] == f"{5 * (len(numbers) + 1):.1f}"  # median of 10, 20, ...
    order = [line.split()[1] for line in table.splitlines() if line.startswith("| ")][2:]
    higher_is_better = METRICS[task][1]
    assert order == (["high", "middle", "low"] if higher_is_better else ["low", "middle", "high"])


def test_picture_shows_every_net_and_run():
    left, right = picture("quickstart", made_rows("quickstart", {"a": [0.5, 1], "b": [1]})).axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["b", "a"]
    dots = [marks for marks in left.collections if isinstance(marks, PathCollection)]
    assert [len(marks.get_offsets()) for marks in dots] == [3, 3]  # for both sizes
    assert [bar.get_width() for bar in right.patches] == [10, 15]


def test_picture_without_speeds_has_one_panel():
    rows = [row | {"samples_per_s": None} for row in made_rows("text", {"a": [0.5], "b": [1]})]
    assert len(picture("text", rows).axes) == 1


def test_picture_of_the_quick_start_shows_the_longest_runs():
    short = made_rows("quickstart", {"plstm": [0.5], "attention": [0.6]})
    long = made_rows("quickstart", {"plstm": [0.8, 1.0], "vit": [1.0]})
    rows = [row | {"arguments": quickstart.ARGUMENTS} for row in short]
    rows += [row | {"arguments": quickstart.ARGUMENTS, "steps": 9} for row in long]
    rows += [row | {"steps": 20} for row in long]  # of another command
    shown = quickstart.longest(rows)
    assert [(row["net"], row["seed"], row["steps"]) for row in shown] == [
        ("plstm", 0, 9),
        ("plstm", 1, 9),
    ]
    *examples, axes = quickstart.picture(shown).axes
    assert len(examples) == 2 * quickstart.EXAMPLES
    (line,) = axes.containers
    assert line.lines[0].get_xdata().tolist() == [32, 48]
    assert line.lines[0].get_ydata() == pytest.approx([0.9, 0.45])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task=text", "--max_steps=1", "--nets=plstm,what"], "no net what: text has"),
        (["--task=text"], "one of the arguments --max_steps --seconds is required"),
        (["--task=text", "--max_steps=1", "--seconds=1"], "not allowed with"),
        (["--task=chess", "--max_steps=1"], "invalid choice: 'chess'"),
    ],
)
def test_wrong_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit):
        compare.parse(arguments)
    assert message in capsys.readouterr().err


def test_all_nets_of_the_task_by_default():
    args, rest = compare.parse(["--task=tu", "--max_steps=1", "--data.name=NCI1"])
    assert {"plstm", "gin"} <= set(args.nets)
    assert args.seeds == [0, 1, 2]
    assert rest == ["--data.name=NCI1"]


def test_accuracy_against_state_size(tmp_path):
    """Rows that differ only in arguments of the net share a plot."""
    rows = []
    for width, size in ((32, 8), (64, 16)):
        for pairs in (4, 8):
            arguments = f"--data.pairs={pairs} --model.net.dim={width}"
            made = made_rows("recall", {"plstm": (width / 100, width / 200), "attention": (0.9,)})
            sizes = {"plstm": size, "attention": None}
            rows += [
                row | {"arguments": arguments, "state_size": sizes[row["net"]]} for row in made
            ]
    compare.write_reports(tmp_path, "recall", rows, compare.setting(rows[0]))
    assert (tmp_path / "compare_recall_state.png").read_bytes().startswith(PNG)
    kin = [row for row in rows if compare.family(row) == compare.family(rows[0])]
    assert {row["arguments"].split()[0] for row in kin} == {"--data.pairs=4"}
    groups = [kin[: len(kin) // 2], kin[len(kin) // 2 :]]
    axes = state_picture("recall", groups).axes[0]
    (points,) = (bars.lines[0] for bars in axes.containers)
    assert points.get_xydata().tolist() == [[8, 0.24], [16, 0.48]]
    assert axes.get_legend_handles_labels()[1] == ["attention (state grows)", "plstm"]


def test_one_state_size_makes_no_such_picture(tmp_path):
    rows = made_rows("recall", {"plstm": (0.5,), "attention": (0.9,)})
    compare.write_reports(tmp_path, "recall", rows, compare.setting(rows[0]))
    assert not (tmp_path / "compare_recall_state.png").exists()
