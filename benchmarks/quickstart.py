"""python -m benchmarks.quickstart: the quick start with both of its nets, and a picture."""

import json
import time
from pathlib import Path

from lightning.pytorch import Trainer
from matplotlib.figure import Figure

from benchmarks.measure import conditions
from tasks.arrow import ArrowData
from tasks.cli import main as train

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "quickstart.yaml"
NETS = {"pLSTM": "plstm_quickstart", "softmax attention": "attention_quickstart"}
RESULTS = ROOT / "benchmarks" / "results"
EXAMPLES = 4  # images drawn per size


def run(name: str) -> tuple[dict[str, object], ArrowData]:
    """Train a net as the quick start does; accuracy of its best checkpoint on the test sets."""
    net = CONFIG.parent / "net" / f"{NETS[name]}.yaml"
    start = time.perf_counter()
    cli = train(["fit", f"--config={CONFIG}", f"--model.net={net}"])
    seconds = time.perf_counter() - start
    row = {
        "net": name,
        "parameters": sum(p.numel() for p in cli.model.net.parameters()),
        "seconds": round(seconds),
        "accuracy": test_accuracies(cli.trainer, cli.model, cli.datamodule),
    }
    return row, cli.datamodule


def test_accuracies(trainer: Trainer, model: object, data: ArrowData) -> list[float]:
    """Test accuracy at every size of the data."""
    metrics: dict[str, float] = {}
    best = trainer.checkpoint_callback.best_model_path
    for per_loader in trainer.test(model, datamodule=data, ckpt_path=best, verbose=False):
        metrics.update(per_loader)
    return [round(metrics[f"test/accuracy{name}"], 4) for name in data.eval_names]


def picture(rows: list[dict[str, object]], data: ArrowData) -> Figure:
    """Example images of the smallest and the largest size, and accuracy against size."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1.25, 1])
    grid = left.subplots(2, EXAMPLES)
    for axes_row, size in zip(grid, (data.sizes[0], data.sizes[-1]), strict=True):
        drawing, labels = data.dataset("test", size).__getitems__(list(range(EXAMPLES)))
        for axes, image, label in zip(axes_row, drawing.draw(), labels, strict=True):
            axes.imshow(image[0], cmap="gray", vmin=0, vmax=1)
            axes.set_title("points at it" if label else "does not", fontsize=8)
            axes.set_xticks([])
            axes.set_yticks([])
        axes_row[0].set_ylabel(f"{size} pixels", fontsize=8)
    axes = right.subplots()
    for row in rows:
        axes.plot(data.sizes, row["accuracy"], marker="o", label=row["net"])
    axes.axvline(data.sizes[0], color="0.6", linestyle="--", label="training size")
    axes.axhline(0.5, color="0.6", linewidth=0.8)
    axes.set_xticks(data.sizes)
    axes.set_xlabel("image size in pixels")
    axes.set_ylabel("test accuracy")
    axes.set_ylim(0.45, 1.0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def main() -> None:
    rows = []
    for name in NETS:
        row, data = run(name)
        rows.append({**row, "sizes": data.sizes, **conditions()})
        print(json.dumps(rows[-1]), flush=True)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "quickstart.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    picture(rows, data).savefig(RESULTS / "quickstart.png", dpi=150)


if __name__ == "__main__":
    main()
