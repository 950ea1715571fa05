"""python -m benchmarks fingerprints: boosted trees on molecular fingerprints.

    python -m benchmarks fingerprints --path data/BBBP.csv --targets p_np --seeds 0,1,2

ECFP4 with 2048 bits and scikit-learn's histogram gradient boosting with default settings, one model
per target; splits and metrics are those of the nets. A seed sets the trees and random splits.
Targets with only zeros and ones are classes, others are real numbers.

Writes fingerprints.jsonl with one row per run; a new row replaces the old row of the same run.
"""

import argparse
import json
import shlex
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

from benchmarks import results
from benchmarks.measure import ROOT, commit, conditions
from benchmarks.results import Row, markdown
from tasks.molecules import MoleculesData
from tasks.multi_label import MultiLabel
from tasks.regression import Regression
from tasks.smiles import fingerprint
from tasks.targets import Cells, Score, by_target

RESULTS = ROOT / "benchmarks" / "results"
KEY = ("data", "targets", "split", "seed")  # identifies a run


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks fingerprints",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--path", type=Path, required=True, help="CSV file, as for MoleculesData")
    parser.add_argument("--targets", nargs="+", required=True, help="columns of the targets")
    parser.add_argument("--smiles", default="smiles", help="column with SMILES strings")
    parser.add_argument("--split", default="scaffold", help="scaffold, random or a column name")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--out", type=Path, default=RESULTS, help="output folder")
    args = parser.parse_args(arguments)
    args.seeds = [int(seed) for seed in args.seeds.split(",")]
    return args


def scores_of(targets: np.ndarray) -> dict[str, Score]:
    """Metrics for targets (n, T): for classes if all measured values are 0 or 1."""
    measured = targets[~np.isnan(targets)]
    return MultiLabel.scores if np.isin(measured, (0, 1)).all() else Regression.scores


def test_metrics(data: MoleculesData, seed: int) -> dict[str, float]:
    """Test metrics, averaged over targets, with the names that runs of nets log."""
    smiles, dataset = data.table.column(data.hparams.smiles), data.dataset
    x = np.stack([fingerprint(smiles[row]) for row in dataset.rows])
    y = data.targets.double().numpy()
    train, test = data.splits["train"], data.splits["test"]
    scores = scores_of(y)
    columns = [predict(x[train], column[train], x[test], scores, seed) for column in y.T]
    cells = Cells(torch.from_numpy(np.stack(columns, 1)), torch.from_numpy(y[test]))
    values = {name: by_target(score, cells).nanmean() for name, score in scores.items()}
    return {f"test/{name}": round(float(value), 5) for name, value in values.items()}


def predict(
    x: np.ndarray, y: np.ndarray, asked: np.ndarray, scores: dict[str, Score], seed: int
) -> np.ndarray:
    """Predict probabilities or values for `asked` by trees trained on measured targets."""
    x, y = x[~np.isnan(y)], y[~np.isnan(y)]
    if len(np.unique(y)) < 2:  # trees need two classes or values
        return np.full(len(asked), y[0] if len(y) else np.nan)
    if scores is Regression.scores:
        return HistGradientBoostingRegressor(random_state=seed).fit(x, y).predict(asked)
    trees = HistGradientBoostingClassifier(random_state=seed).fit(x, y)
    return trees.predict_proba(asked)[:, 1]


def report(rows: Sequence[Row]) -> str:
    """Mean and standard deviation over seeds of every metric."""
    names = list(rows[0]["metrics"])
    cells = [_mean([row["metrics"][name] for row in rows]) for name in names]
    head = ["data", "split", "seeds", *names]
    return markdown(head, [[rows[0]["data"], rows[0]["split"], str(len(rows)), *cells]])


def _mean(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{spread}"


def main() -> None:
    """Run the command line."""
    args = parse(sys.argv[2:])
    command = shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])
    rows = []
    for seed in args.seeds:
        start = time.perf_counter()
        data = MoleculesData(
            str(args.path), args.targets, smiles=args.smiles, split=args.split, seed=seed
        )
        row = {"data": args.path.name, "targets": args.targets, "split": args.split, "seed": seed}
        row["metrics"] = test_metrics(data, seed)
        row["seconds"] = round(time.perf_counter() - start, 1)
        rows.append(row | conditions("cpu") | {"commit": commit(), "command": command})
    write(args.out / "fingerprints.jsonl", rows)
    print(report(rows))


def write(file: Path, rows: Sequence[Row]) -> None:
    """Add rows to a file; a new row replaces the old row of the same run."""
    known = results.read(file) if file.exists() else []
    merged = {tuple(map(str, (row[name] for name in KEY))): row for row in [*known, *rows]}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in merged.values()), "utf-8")
