"""python -m benchmarks leaks: how well parts of an arrow-pointing image predict its label.

Gradient-boosted trees get the exact parameters of a part of the scene: the arrow without the
circle, the circle without the arrow, or both positions without the heading. If they are better than
chance, a net can be, too, without relating arrow and circle. To verify the trees, they also get
everything, including the angle between heading and circle that defines the label.

Writes leaks.md.
"""

import argparse
import sys
from pathlib import Path

import torch
from sklearn.ensemble import HistGradientBoostingClassifier
from torch import Tensor

from benchmarks.measure import ROOT, conditions
from benchmarks.results import markdown
from tasks.arrow import ArrowData
from tasks.arrow_errors import geometry
from tasks.arrow_scenes import PLACEMENTS, Scene

RESULTS = ROOT / "benchmarks" / "results"
QUICKSTART = {"padding": 5, "radius": (3, 5), "arrow_length": (6, 9), "line_width": (1, 2)}
SETTINGS = {  # sizes in pixels and shapes, as in configs/quickstart.yaml and configs/arrow.yaml
    (32, 48, 64, 128): QUICKSTART,
    (192, 384): {},
}
PARTS = ("arrow only", "circle only", "positions only", "everything")


def features(scene: Scene) -> dict[str, Tensor]:
    """Features of scenes for the trees, (B, F) for each of PARTS."""
    heading = torch.stack([scene.angle.cos(), scene.angle.sin()], 1)
    strokes = torch.stack([scene.length, scene.width], 1)
    arrow = torch.cat([scene.arrow, heading, strokes], 1)
    circle = torch.cat([scene.circle, scene.radius[:, None]], 1)
    distance, turn, _ = geometry(scene)
    positions = torch.cat([scene.arrow, circle, scene.circle - scene.arrow, distance[:, None]], 1)
    everything = torch.cat([arrow, positions, turn[:, None]], 1)
    return dict(zip(PARTS, (arrow, circle, positions, everything), strict=True))


def accuracies(train: Scene, test: Scene) -> dict[str, float]:
    """Test accuracy of trees for each part of the scenes."""
    seen, asked = features(train), features(test)
    return {
        part: HistGradientBoostingClassifier(random_state=0)
        .fit(seen[part], train.label)
        .score(asked[part], test.label)
        for part in PARTS
    }


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks leaks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--train_size", type=int, default=20_000, help="number of training scenes")
    parser.add_argument("--test_size", type=int, default=10_000, help="number of test scenes")
    parser.add_argument("--out", type=Path, default=RESULTS, help="output folder")
    return parser.parse_args(arguments)


def main() -> None:
    """Run the command line."""
    args = parse(sys.argv[2:])
    lines = []
    for sizes, shapes in SETTINGS.items():
        for placement in PLACEMENTS:
            data = ArrowData(sizes[0], sizes[1:], placement=placement, **shapes)
            for size in sizes:
                train = data.dataset("train", size).scenes(torch.arange(args.train_size))
                test = data.dataset("test", size).scenes(torch.arange(args.test_size))
                shares = accuracies(train, test)
                lines.append([placement, f"{size}", *(f"{x:.3f}" for x in shares.values())])
                print(*lines[-1], flush=True)
    table = markdown(["placement", "pixels", *PARTS], lines)
    text = (
        f"{table}\n\nAccuracy on {args.test_size:,} scenes, by trees trained on "
        f"{args.train_size:,} scenes of the same size; standard error of chance "
        f"{0.5 / args.test_size**0.5:.3f}. {conditions()['date']}\n"
    )
    print(f"\n{text}")
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "leaks.md").write_text(text, "utf-8")


if __name__ == "__main__":
    main()
