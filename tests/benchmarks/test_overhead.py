"""The cost of logging is measured on runs that differ only in logging."""

import sys
from pathlib import Path

import pytest

from benchmarks import overhead, results


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """An empty folder, and nothing of a run is left to the next."""
    monkeypatch.chdir(tmp_path)
    for name, value in {"PL_GLOBAL_SEED": "0", "WANDB_MODE": "", "WANDB_SILENT": ""}.items():
        monkeypatch.setenv(name, value)  # a run sets them; restored afterwards


def test_command(tmp_path, monkeypatch, capsys):
    arguments = ["--task=text", "--steps=2", "--epochs=1", "--rounds=1", f"--out={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["overhead", *arguments])
    ways = {way: overhead.WAYS[way] for way in (overhead.BARE, "wandb, offline, all steps logged")}
    monkeypatch.setattr(overhead, "WAYS", ways)
    overhead.main()
    rows = results.read(tmp_path / "overhead.jsonl")
    assert [row["form"] for row in rows] == list(ways)
    assert all(row["ms_per_step"] > 0 and row["steps"] == 2 for row in rows)
    assert rows[0]["overhead_ms"] == 0
    assert rows[1]["overhead_ms"] == pytest.approx(
        rows[1]["ms_per_step"] - rows[0]["ms_per_step"], abs=2e-3
    )
    assert "| text step, one sample | no logger, no callbacks " in capsys.readouterr().out


def test_bare_runs_leave_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["overhead"])
    assert len(overhead.epochs_ms("text", overhead.BARE, 1, 2)) == 2
    assert [file.name for file in Path().iterdir()] == ["text.txt"]
    overhead.epochs_ms("text", "defaults, all steps logged", 1, 1)
    (metrics,) = Path("runs").rglob("metrics.csv")
    assert "train/grad_norm" in metrics.read_text()
