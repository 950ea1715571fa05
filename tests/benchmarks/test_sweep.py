"""Sweeps of the learning rate are read back and drawn."""

import copy
import math
from pathlib import Path

import pytest
import yaml
from matplotlib.collections import PathCollection

from benchmarks import sweep
from benchmarks.sweep import Trial
from tasks.cli import trial
from tests.tasks.runs import CONFIGS, arguments

NETS = sorted((CONFIGS / "net").glob("*.yaml"))


def write_run(folder, net, lr, seed, rows):
    """What train.py leaves of a run with the CSV logger, as far as it is read."""
    folder.mkdir(parents=True)
    init_args = {"net": net, "optimizer": {"class_path": "AdamW", "init_args": {"lr": lr}}}
    config = {"seed_everything": seed, "model": {"init_args": init_args}}
    config["data"] = {"class_path": "tasks.text.TextData", "init_args": {}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "metrics.csv").write_text("\n".join(["step,val/loss,diverged", *rows, ""]))


OWN = {"class_path": "my.Net", "init_args": {}}
FINISHED = {  # (net, lr, seed): rows of metrics.csv
    ("a", 0.01, 0): ["0,0.9,", "1,,", "2,0.5,"],
    ("a", 0.01, 1): ["0,0.9,", "2,0.7,"],
    ("a", 0.1, 0): ["0,0.9,", "2,,1.0"],
    ("a", 0.1, 1): ["0,0.4,"],
    ("b", 0.01, 0): ["0,0.8,"],
    ("b", 0.1, 0): ["0,nan,"],
}


@pytest.fixture
def finished(tmp_path):
    for number, ((net, lr, seed), rows) in enumerate(FINISHED.items()):
        write_run(tmp_path / f"version_{number}", OWN | {"class_path": net}, lr, seed, rows)
    write_run(tmp_path / "killed", OWN, 0.1, 0, ["0,,"])
    return tmp_path


def test_runs_are_read(finished):
    found = sweep.read(finished, "val/loss")
    assert found.pop(finished / "killed" / "metrics.csv") == Trial("my.Net", 0.1, 0, None)
    want = [0.5, 0.7, math.inf, 0.4, 0.8, math.inf]
    assert list(found.values()) == [
        Trial(*key, value) for key, value in zip(FINISHED, want, strict=True)
    ]


def test_command(finished, capsys):
    sweep.main([str(finished)])
    text = capsys.readouterr().out
    assert f"skipped {finished / 'killed'}: no val/loss" in text
    cells = {
        row[1]: row[2:4]
        for line in text.splitlines()
        if len(row := [x.strip() for x in line.split("|")]) == 5
    }
    assert cells["val/loss"] == ["0.01", "0.1"]
    assert cells["a"] == ["**0.6000 ± 0.1414**", "0.4000, 1 of 2 diverged"]
    assert cells["b"] == ["**0.8000**", "1 of 1 diverged"]
    assert (finished / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_an_empty_folder_is_told(tmp_path, capsys):
    with pytest.raises(SystemExit):
        sweep.main([str(tmp_path)])
    assert "no run with val/loss in" in capsys.readouterr().err


def test_picture():
    trials = [Trial("a", 0.1, 0, 0.5), Trial("a", 0.1, 1, 0.7), Trial("a", 1.0, 0, math.inf)]
    (axes,) = sweep.picture(trials, "val/loss").axes
    (line,) = axes.lines
    assert line.get_xydata().tolist() == [[0.1, pytest.approx(0.6)]]
    dots, crosses = (x for x in axes.collections if isinstance(x, PathCollection))
    assert dots.get_offsets().tolist() == [[0.1, 0.5], [0.1, 0.7]]
    assert crosses.get_offsets().tolist() == [[1.0, 0.97]]
    assert axes.get_xscale() == "log"


@pytest.mark.parametrize("file", NETS, ids=lambda file: file.stem)
def test_nets_are_known_by_their_files(file):
    task = {"sequences": "words"}.get(ending := file.stem.rsplit("_", 1)[1], ending)
    config = yaml.safe_load((sweep.CONFIGS / f"{task}.yaml").read_text())
    data = config["data"]["class_path"]
    resolved = yaml.safe_load(file.read_text())
    assert sweep.net_name(resolved, data) == file.stem
    other = copy.deepcopy(resolved)
    other["init_args"]["more"] = None  # a default that is written out
    assert sweep.net_name(other, data) == file.stem
    other["class_path"] = f"plstm.models.{other['class_path'].rsplit('.', 1)[1]}"  # shorter
    assert sweep.net_name(other, data) == file.stem
    other["class_path"] = "my.Net"
    assert sweep.net_name(other, data) == "my.Net"


def test_a_trial_that_diverges_is_a_result(workplace, capsys):
    trial.main(arguments("fit", "quickstart", "--model.optimizer.lr=1e30"))
    assert "This run diverged." in capsys.readouterr().out
    (found,) = sweep.read(Path("runs"), "val/loss").values()
    assert found == Trial("plstm_quickstart", 1e30, 0, math.inf)
