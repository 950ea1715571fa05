"""The plot of errors on arrow-pointing images, and its values."""

import pytest
import torch

from tasks.arrow_errors import FEWEST, arrow_errors, binned, geometry
from tasks.arrow_scenes import Scene
from tests.helpers import assert_close
from tests.tasks.runs import SMALL, folder_of, run


def made_scene(circle, degrees, label):
    """Arrows at (10, 10)."""
    count = len(label)
    circle, angle = torch.tensor(circle).double(), torch.tensor(degrees).double().deg2rad()
    one, arrow = torch.ones(count).double(), torch.full((count, 2), 10.0).double()
    return Scene(torch.tensor(label), arrow, circle, one, angle, one, one)


def test_geometry():
    scene = made_scene(
        circle=[[13, 14], [10, 20], [0, 10], [20, 10]],
        degrees=[0, 90, -170, 405],
        label=[0, 1, 1, 0],
    )
    distance, turn, axis = geometry(scene)
    assert_close("distance", distance, torch.tensor([5, 10, 10, 10]).double(), 1e-9)
    to_first = torch.tensor([4 / 3], dtype=torch.float64).atan().rad2deg()
    want = torch.cat([to_first, torch.tensor([0, 10, 45]).double()])
    assert_close("turn", turn, want, 1e-9)
    assert_close("axis", axis, torch.tensor([0, 0, 10, 45]).double(), 1e-9)


def test_bins_are_means_of_enough_images():
    x = torch.cat([torch.full((FEWEST,), 1.0), torch.full((FEWEST,), 3.0), torch.full((3,), 5.0)])
    correct = torch.ones(len(x), dtype=torch.bool)
    correct[FEWEST + 1 : 2 * FEWEST] = False
    means, shares, errors = binned(x, correct, [0, 2, 4, 6])
    assert means == [1, 3]
    assert shares == pytest.approx([1, 1 / FEWEST])
    assert errors == pytest.approx([0, (1 / FEWEST * (1 - 1 / FEWEST) / FEWEST) ** 0.5])


def test_picture_has_a_line_per_test_set():
    count = 2 * FEWEST
    scene = made_scene(
        circle=[[20 + n % 2, 10] for n in range(count)],
        degrees=[n % 2 * 170 for n in range(count)],
        label=[1 - n % 2 for n in range(count)],
    )
    correct = torch.arange(count) % 2 == 0
    figure = arrow_errors({"32 pixels": (scene, correct), "64 pixels": (scene, ~correct)})
    distance, turn, axis = figure.axes
    shares = [line.lines[0].get_ydata().tolist() for line in turn.containers]
    assert shares == [[0], [1], [1], [0]]  # misses and meets of each
    angles = [line.lines[0].get_xdata().tolist() for line in turn.containers]
    assert angles[0] == pytest.approx([170])
    assert angles[1] == pytest.approx([0])
    assert [text.get_text() for text in distance.get_legend().get_texts()] == [
        "32 pixels",
        "64 pixels",
    ]
    assert [line.lines[0].get_ydata().tolist() for line in distance.containers] == [[1, 0], [0, 1]]
    assert len(axis.containers) == 2


def test_predict_tells_the_net_right_from_wrong(workplace, monkeypatch):
    """The picture is about the predictions that are saved, in their order."""
    shown = {}
    monkeypatch.setattr("tasks.arrow.arrow_errors", lambda results: shown.update(results))
    monkeypatch.setattr("tasks.callbacks.pictures.callback.Pictures._save", lambda *args: None)
    cli = run("predict", "quickstart")
    saved = torch.load(folder_of(cli) / "predictions.pt", weights_only=True)
    for (name, probabilities), size in zip(saved.items(), cli.datamodule.sizes, strict=True):
        scene, correct = shown[f"{size} pixels"]
        labels = cli.datamodule.dataset("test", size).scenes(torch.arange(len(probabilities))).label
        assert len(correct) == SMALL["quickstart"]["test_size"]
        assert torch.equal(scene.label, labels)
        assert torch.equal(correct, probabilities.argmax(-1) == labels), name
