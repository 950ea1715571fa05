"""Boosted trees on fingerprints: predictions and output files."""

import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import fingerprints, results
from benchmarks.fingerprints import predict, scores_of
from tasks.multi_label import MultiLabel
from tasks.regression import Regression


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("column", "metrics"),
    [
        ("chlorine", {"test/roc_auc": 1.0, "test/average_precision": 1.0}),
        ("mass", {"test/rmse": 0.0, "test/mae": 0.0, "test/r2": 1.0, "test/pearson": 1.0}),
    ],
)
def test_trees_learn_what_fingerprints_show(
    tmp_path: Path, monkeypatch, capsys, column: str, metrics: dict[str, float]
) -> None:
    """Chains with a fluorine or a chlorine at the end; the second target has one class only."""
    parts = ["train"] * 80 + ["val"] * 2 + ["test"] * 10
    rows = [
        f"{'C' * (1 + i // 2)}{('F', 'Cl')[i % 2]},{i % 2},{20 + 15 * (i % 2)},1,{part}"
        for i, part in enumerate(parts)
    ]
    text = "\n".join(["smiles,chlorine,mass,one,part", "C1CC,1,2,1,train", *rows])
    (tmp_path / "table.csv").write_text(text)
    line = f"fingerprints --path {tmp_path / 'table.csv'} --targets {column} one --split part"
    line += f" --seeds 0,1 --out {tmp_path}"
    monkeypatch.setattr(sys, "argv", ["benchmarks", *line.split()])
    for _ in range(2):  # the second time takes the place of the first
        fingerprints.main()
    rows = results.read(tmp_path / "fingerprints.jsonl")
    assert [row["seed"] for row in rows] == [0, 1]
    assert rows[0]["metrics"] == pytest.approx(metrics, abs=0.01)
    assert "table.csv" in capsys.readouterr().out


def test_kinds_of_targets() -> None:
    assert scores_of(np.array([[0, 1], [np.nan, 1]])) is MultiLabel.scores
    assert scores_of(np.array([[0, 2], [np.nan, 1]])) is Regression.scores


def test_targets_that_teach_nothing() -> None:
    x = np.eye(4)
    same = predict(x, np.array([1, 1, np.nan, 1]), x[:2], MultiLabel.scores, 0)
    assert same.tolist() == [1, 1]
    none = predict(x, np.full(4, np.nan), x[:2], MultiLabel.scores, 0)
    assert np.isnan(none).all()
