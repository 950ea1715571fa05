"""Image data: sets, splits, normalization, sequences, other sizes, predictions."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tasks.data import UNLABELLED
from tasks.images import ImageData, as_sequences
from tests.helpers import assert_close
from tests.tasks.runs import folder_of, metrics_of, run, write_pictures
from tests.tasks.test_image_files import idx

DATA = Path(os.environ.get("PLSTM_DATA", Path(__file__).parents[3] / "shared" / "data"))


def write_idx(folder, count=30, test_count=10, labels=None):
    """IDX files as those of MNIST: pictures (5, 7), labels 0, 1, 2, 0, ..."""
    generator, arrays = np.random.default_rng(0), {}
    folder.mkdir(parents=True, exist_ok=True)
    for split, size in {"train": count, "t10k": test_count}.items():
        images = generator.integers(0, 256, (size, 5, 7), dtype=np.uint8)
        kinds = {"images-idx3": images, "labels-idx1": np.arange(size, dtype=np.uint8) % 3}
        if labels is not None:
            kinds["labels-idx1"] = np.array(labels, np.uint8)
        for kind, array in kinds.items():
            (folder / f"{split}-{kind}-ubyte").write_bytes(idx(array))
        arrays[split] = images
    return arrays


def everything(loader):
    inputs, targets = zip(*loader, strict=True)
    return torch.cat(inputs), torch.cat(targets)


def grey(value, *shape):
    return Image.fromarray(np.full(shape or (8, 8), value, np.uint8))


def write_classes(folder, counts, shape=(8, 8)):
    """A folder for every class, with pictures whose brightness is the class and the number."""
    for place, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            grey(100 * place + number, *shape).save(folder / name / f"{number:03}.png")
    return str(folder)


# Sets.


def test_idx_files(tmp_path):
    arrays = write_idx(tmp_path)
    data = ImageData(str(tmp_path), val_share=0.2, batch_size=7)
    assert {split: len(part) for split, part in data.parts.items()} == {
        "train": 24,
        "val": 6,
        "test": 10,
    }
    assert (data.in_dim, data.out_dim, data.class_names) == (1, 3, ["0", "1", "2"])
    assert data.shapes == [(5, 7)]
    (loader,) = data.test_dataloader()
    images, labels = everything(loader)
    mean, std = data.mean_and_std
    assert_close("pixels", images[:, 0] * std + mean, torch.tensor(arrays["t10k"]) / 255, 1e-6)
    assert labels.tolist() == [n % 3 for n in range(10)]
    assert list(data.checksums) == [
        f"{split}-{kind}-ubyte"
        for split in ("train", "t10k")
        for kind in ("images-idx3", "labels-idx1")
    ]


def test_every_class_has_its_share(tmp_path):
    data = ImageData(
        write_classes(tmp_path, {"a": 50, "b": 20, "c": 30}), val_share=0.2, test_share=0.1
    )
    counts = {split: torch.bincount(part.labels).tolist() for split, part in data.parts.items()}
    assert counts == {"train": [35, 14, 21], "val": [10, 4, 6], "test": [5, 2, 3]}
    names = [name for part in data.parts.values() for name in part.names]
    assert len(set(names)) == len(names) == 100
    other = ImageData(str(tmp_path), val_share=0.2, test_share=0.1, seed=1)
    assert other.parts["val"].names != data.parts["val"].names
    again = ImageData(str(tmp_path), val_share=0.2, test_share=0.1)
    assert again.parts["val"].names == data.parts["val"].names


def test_folders_of_splits(tmp_path):
    for split, count in {"train": 6, "valid": 2, "test": 3}.items():
        write_classes(tmp_path / split, {"10": count, "9": count})
    data = ImageData(str(tmp_path))
    assert data.class_names == ["9", "10"]
    assert {s: len(part) for s, part in data.parts.items()} == {"train": 12, "val": 4, "test": 6}
    assert list(data.checksums) == [f"the folder of {s} images" for s in ("train", "val", "test")]


def test_without_a_test_share_the_validation_set_is_the_test_set(tmp_path):
    data = ImageData(write_classes(tmp_path, {"a": 10, "b": 10}), test_share=0.0)
    assert data.parts["test"] is data.parts["val"]
    assert len(data.parts["train"]) == 18


def test_mean_and_deviation_are_those_of_the_training_set(tmp_path):
    write_pictures(tmp_path)
    data = ImageData(str(tmp_path), size=8)
    train = data.parts["train"]
    pixels = [np.array(Image.open(tmp_path / name)).reshape(-1, 3) / 255.0 for name in train.names]
    mean = np.mean([x.mean(0) for x in pixels], 0)
    square = np.mean([(x**2).mean(0) for x in pixels], 0)
    assert_close("mean", data.mean_and_std[0].double(), torch.tensor(mean), 1e-6)
    assert_close("std", data.mean_and_std[1].double(), torch.tensor(square - mean**2).sqrt(), 1e-6)
    mean, std = [0.1, 0.2, 0.3], [1.0, 2.0, 3.0]
    given = ImageData(str(tmp_path), size=8, mean=mean, std=std)
    images, _ = everything(given.val_dataloader()[0])
    as_they_are = ImageData(str(tmp_path), size=8, mean=[0.0] * 3, std=[1.0] * 3)
    plain, _ = everything(as_they_are.val_dataloader()[0])
    for channel in range(3):
        want = (plain[:, channel] - mean[channel]) / std[channel]
        assert_close("normalized", images[:, channel], want, 1e-6)


def test_a_constant_channel(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for name in ("a/1.png", "a/2.png", "b/1.png", "b/2.png", "b/3.png"):
        grey(77).save(tmp_path / name)
    images, _ = everything(
        ImageData(str(tmp_path), test_share=0.2, val_share=0.2).val_dataloader()[0]
    )
    assert images.abs().max() < 1e-6


def test_grey_beside_colour(tmp_path):
    for name, mode in (("a", "L"), ("b", "RGB")):
        (tmp_path / name).mkdir()
        for number in range(4):
            grey(50 + number).convert(mode).save(tmp_path / name / f"{number}.png")
    data = ImageData(str(tmp_path), test_share=0.25, val_share=0.25)
    assert data.in_dim == 3
    images, _ = everything(data.test_dataloader()[0])
    assert images.shape == (2, 3, 8, 8)
    assert torch.allclose(
        images[:, 0] * data.mean_and_std[1][0], images[:, 2] * data.mean_and_std[1][2]
    )


def test_sixteen_bits_beside_eight(tmp_path):
    for name, kind in (("a", np.uint8), ("b", np.uint16)):
        (tmp_path / name).mkdir()
        for number in range(2):
            pixels = np.full((4, 4), np.iinfo(kind).max // 5, kind)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    data = ImageData(str(tmp_path), mean=[0.0], std=[1.0], val_share=0.25, test_share=0.25)
    images, _ = everything(data.train_dataloader())
    assert_close("values", images, torch.full_like(images, 0.2), 1e-6)


# Training.


def batches(data, epoch=0):
    data.train_epoch = lambda: epoch
    return list(data.train_dataloader())


@pytest.mark.parametrize("workers", [0, 1])
def test_training_pictures_depend_on_seed_and_epoch(workers, tmp_path):
    write_idx(tmp_path)
    options = {"flip": True, "max_shift": 1, "erase": 0.5, "batch_size": 5}
    data = ImageData(str(tmp_path), **options, num_workers=workers)
    first, later = batches(data), batches(data, 1)
    again = batches(ImageData(str(tmp_path), **options))
    for (x, y), (same_x, same_y) in zip(first, again, strict=True):
        assert torch.equal(x, same_x) and torch.equal(y, same_y)
    assert sorted(torch.cat([y for _, y in later])) == sorted(torch.cat([y for _, y in first]))
    assert not torch.equal(later[0][0], first[0][0])
    plain = batches(ImageData(str(tmp_path), batch_size=5))
    assert not torch.equal(plain[0][0], first[0][0])
    assert torch.equal(plain[0][1], first[0][1])


def test_pictures_to_evaluate_are_not_changed(tmp_path):
    write_idx(tmp_path)
    changed = ImageData(str(tmp_path), flip=True, max_shift=3, erase=1.0)
    for name in ("val_dataloader", "test_dataloader"):
        ours, _ = everything(getattr(changed, name)()[0])
        theirs, _ = everything(getattr(ImageData(str(tmp_path)), name)()[0])
        assert torch.equal(ours, theirs)


# Sequences and sizes.


def test_sequences():
    images = torch.tensor([[[[0, 1], [2, 3]], [[4, 5], [6, 255]]]]) / 255
    tokens, targets = as_sequences(images, torch.tensor([7]))
    assert tokens.tolist() == [[0, 4, 1, 5, 2, 6, 3, 255]]
    assert targets.tolist() == [[UNLABELLED] * 7 + [7]]
    mixed, targets = as_sequences(images, torch.tensor([7]), permutation_seed=1)
    assert sorted(mixed[0].tolist()) == sorted(tokens[0].tolist()) != mixed[0].tolist()
    assert torch.equal(as_sequences(images, torch.tensor([7]), 1)[0], mixed)
    assert not torch.equal(as_sequences(images, torch.tensor([7]), 2)[0], mixed)
    assert targets[0, -1] == 7


def test_sequences_have_the_bytes_of_the_file(tmp_path):
    arrays = write_idx(tmp_path)
    data = ImageData(str(tmp_path), as_sequence=True)
    assert (data.in_dim, data.out_dim) == (256, 3)
    tokens, _ = everything(data.test_dataloader()[0])
    assert torch.equal(tokens, torch.tensor(arrays["t10k"]).long().flatten(1))


def test_other_sizes(tmp_path):
    write_idx(tmp_path)
    data = ImageData(str(tmp_path), extrapolation_sizes=(10, 2))
    assert data.shapes == [(5, 7), (10, 14), (2, 3)]
    assert (data.sizes, data.eval_names) == ([5, 10, 2], ["", "@10", "@2"])
    loaders = data.val_dataloader()
    assert [everything(loader)[0].shape[2:] for loader in loaders] == data.shapes
    assert len({tuple(everything(loader)[1].tolist()) for loader in loaders}) == 1


def test_pictures_are_resized(tmp_path):
    write_pictures(tmp_path)
    data = ImageData(str(tmp_path), size=(4, 10), extrapolation_sizes=(8,))
    assert data.shapes == [(4, 10), (8, 20)]
    for loader, shape in zip(data.val_dataloader(), data.shapes, strict=True):
        images, _ = everything(loader)
        assert images.shape[1:] == (3, *shape)
    images, labels = everything(data.test_dataloader()[0])
    colours = images.mean((2, 3))[:, :2].argmax(1)
    assert colours.tolist() == (1 - labels).tolist()  # "green" before "red"


def test_mistakes_are_drawn(tmp_path):
    write_classes(tmp_path / "train", {"a": 4, "b": 4})
    write_classes(tmp_path / "test", {"a": 3, "b": 2})
    data = ImageData(str(tmp_path))
    sure = torch.tensor([0.9, 0.4, 0.2, 0.3, 0.7])  # of a
    (figure,) = data.prediction_pictures({"": torch.stack([sure, 1 - sure], 1)}).values()
    panels = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in panels] == ["a\nb 80%", "b\na 70%", "a\nb 60%"]
    drawn = [float(axes.images[0].get_array().mean()) * 255 for axes in panels]
    assert drawn == pytest.approx([2, 101, 1])
    right = torch.tensor([1.0, 1, 1, 0, 0])
    assert data.prediction_pictures({"": torch.stack([right, 1 - right], 1)}) == {}


# Error messages.

ARGUMENTS = {
    "size": ({"size": 0}, "size must be 1 or more, got 0"),
    "sides": ({"size": (4, -1)}, "size must be 1 or more, got -1"),
    "further sizes": ({"extrapolation_sizes": (8, 0)}, "extrapolation_sizes must be 1 or more"),
    "shares": ({"val_share": 0.7, "test_share": 0.3}, "some images must be left for training"),
    "no val": ({"val_share": 0.0}, "val_share must be above 0"),
    "shift": ({"max_shift": -1}, "max_shift must be 0 or more pixels"),
    "erase": ({"erase": 1.1}, "erase a probability"),
    "permutation": ({"permutation_seed": 0}, "permutation_seed is for sequences"),
    "mean": ({"mean": [0.5]}, "mean and std must have a value for each of 1 or 3 channels"),
    "std": ({"mean": [0.5], "std": [1.0] * 3}, "mean and std must have a value"),
    "channels": ({"mean": [0.5] * 2, "std": [1.0] * 2}, "mean and std must have a value"),
}


@pytest.mark.parametrize(("options", "message"), ARGUMENTS.values(), ids=ARGUMENTS)
def test_arguments(options, message):
    with pytest.raises(ValueError, match=f"ImageData: .*{message}"):
        ImageData("somewhere", **options)


def fails(message, path, **options):
    with pytest.raises(ValueError, match=f"ImageData: .*{message}"):
        ImageData(str(path), **options).test_dataloader()


def test_several_sizes_without_one_to_resize_to(tmp_path):
    write_pictures(tmp_path)
    fails(r"have 3 sizes: 6 x 9 \(green/\d+.png\), .*set data.size, as in --data.size 64", tmp_path)


def test_sets_of_other_sizes(tmp_path):
    write_classes(tmp_path / "train", {"a": 9, "b": 9})
    write_classes(tmp_path / "test", {"a": 9}, (8, 6))
    fails(r"of \(8, 6\) do not match the training images of \(8, 8\)", tmp_path)


def test_sizes_that_are_the_same(tmp_path):
    write_idx(tmp_path)
    fails(r"sizes of the sets must differ.* got \[5, 5\]", tmp_path, extrapolation_sizes=(5,))


def test_folders_at_fault(tmp_path):
    fails("path must be a folder.*there is none", tmp_path / "nowhere")
    fails("must have images, got none", tmp_path)
    write_classes(tmp_path, {"a": 3, "b": 3})
    fails("got none for test of the 6", tmp_path, test_share=0.01)
    (tmp_path / "c").mkdir()
    fails("every class must have training images.*none of c; add some", tmp_path)
    (tmp_path / "c").rmdir()
    grey(1).save(tmp_path / "loose.png")
    fails("must all be in class folders, or none of them, got 1 beside 6.*: loose.png", tmp_path)


def test_pictures_without_classes_cannot_be_trained_on(tmp_path):
    for number in range(20):
        grey(number).save(tmp_path / f"{number}.png")
    fails("images to train on must have classes", tmp_path)


def test_unknown_class(tmp_path):
    write_classes(tmp_path / "train", {"a": 9, "b": 9})
    write_classes(tmp_path / "test", {"a": 1, "z": 1})
    fails("must be among the classes a, b, got z", tmp_path)


def test_idx_files_at_fault(tmp_path):
    write_idx(tmp_path, labels=[0, 1])
    fails(r"must have a label for each of the 30 images of .*got \(2,\)", tmp_path)
    write_idx(tmp_path)
    fails(r"labels must be classes 0..1, got 2 in .*train-labels", tmp_path, classes=["a", "b"])
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    fails("images to train on must have classes", tmp_path)
    (tmp_path / "train-images-idx3-ubyte").unlink()
    fails("must have training images, got IDX files of test only", tmp_path)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(np.zeros((3, 2), np.uint8)))
    fails(r"must have shape \(number, rows, columns\), got \(3, 2\)", tmp_path)


def test_broken_pictures_end_a_command(workplace):
    Path("pictures/red/broken.jpg").write_bytes(b"no picture")
    with pytest.raises(
        ValueError, match=r"1 of the 25 images in .*: red/broken.jpg \(not an image"
    ):
        run("fit", "images")


# Runs.

NO_PICTURES = [
    "--standard_callbacks=false",
    "--trainer.callbacks+=tasks.callbacks.predictions.SavePredictions",
]


def tables(folder):
    """CSV files of a folder by name."""
    found = {}
    for file in folder.glob("predictions*.csv"):
        with file.open(newline="", encoding="utf-8") as stream:
            found[file.stem] = list(csv.DictReader(stream))
    return found


@pytest.fixture
def trained(workplace):
    """A run and the arguments to use its net."""
    folder = folder_of(run("fit", "images", "--model.net.depth=1"))
    return folder / "config.yaml", f"--ckpt_path={folder / 'checkpoints' / 'last.ckpt'}"


def test_checkpoint_keeps_what_the_net_goes_with(trained):
    _, checkpoint = trained
    data = ImageData("pictures", size=8)
    saved = torch.load(checkpoint.partition("=")[2], weights_only=True)["data_arguments"]
    assert saved == {
        "classes": ["green", "red"],
        "mean": data.mean_and_std[0].tolist(),
        "std": data.mean_and_std[1].tolist(),
    }


@pytest.mark.filterwarnings("ignore:Be aware that when using")  # a checkpoint of more callbacks
def test_new_pictures_are_predicted(trained):
    """Without classes, in another depth and size, where those to train on are gone."""
    config, checkpoint = trained
    cli = run("predict", config, checkpoint, *NO_PICTURES)
    before = tables(folder_of(cli))["predictions"]
    by_name = {row["picture"]: row for row in before}
    names = sorted(by_name)
    Path("new").mkdir()
    for name in names:
        Path("pictures", name).rename(Path("new", name.replace("/", "_")))
    Path("pictures").rename("gone")
    cli = run("predict", config, checkpoint, "--data.test_path=new")
    folder = folder_of(cli)
    assert list(tables(folder)) == ["predictions"]
    rows = tables(folder)["predictions"]
    assert [row["picture"] for row in rows] == [name.replace("/", "_") for name in names]
    for row, name in zip(rows, names, strict=True):
        want = by_name[name] | {"picture": row["picture"], "class": ""}
        assert want["class"] == "" != by_name[name]["class"] == name.split("/")[0]
        assert row == want
    saved = torch.load(folder / "predictions.pt", weights_only=True)[""]
    assert saved.shape == (len(names), 2)
    for row, probabilities in zip(rows, saved, strict=True):
        assert row["predicted"] == ["green", "red"][int(probabilities.argmax())]
        shown = [float(row["green"]), float(row["red"])]
        assert shown == pytest.approx(probabilities.tolist(), abs=1e-6)
    assert not (folder / "confusion.png").exists()  # there is nothing to compare with
    assert (folder / "gating_grid.png").exists()
    with pytest.raises(ValueError, match="images to test on must have classes"):
        run("test", config, checkpoint, "--data.test_path=new")
    one = f"--data.test_path=new/{rows[0]['picture']}"
    cli = run("predict", config, checkpoint, one, *NO_PICTURES)
    assert tables(folder_of(cli))["predictions"] == rows[:1]


def test_other_pictures_are_tested(trained):
    config, checkpoint = trained
    write_pictures(Path("other"), 5)
    sizes = "--data.extrapolation_sizes=[16]"
    tested = metrics_of(run("test", config, checkpoint, "--data.test_path=other", sizes))
    cli = run("predict", config, checkpoint, "--data.test_path=other", sizes)
    found = tables(folder_of(cli))
    assert sorted(found) == ["predictions", "predictions@16"]
    for name, rows in found.items():
        assert [row["class"] for row in rows] == ["green"] * 5 + ["red"] * 5
        right = [row["class"] == row["predicted"] for row in rows]
        metric = name.replace("predictions", "test/accuracy")
        assert tested[metric] == pytest.approx(sum(right) / 10)
    assert (folder_of(cli) / "confusion.png").exists()


def test_changed_pictures_are_noticed(workplace):
    folder = folder_of(run("fit", "images", "--model.net.depth=1"))
    Path("pictures").rename("moved")
    again = ["fit", "images", "--model.net.depth=1", "--data.path=moved", f"--resume={folder}"]
    assert folder_of(run(*again)) == folder
    grey(3, 6, 9).save("moved/red/0.png")
    with pytest.raises(ValueError, match="the folder of train images has changed"):
        run(*again)


def test_predictions_of_sequences(workplace):
    cli = run("predict", "pixels", "--model.net.depth=1", *NO_PICTURES)
    rows = tables(folder_of(cli))["predictions"]
    assert len(rows) == len(cli.datamodule.test_set)
    last = torch.load(folder_of(cli) / "predictions.pt", weights_only=True)[""][:, -1]
    assert [row["predicted"] for row in rows] == [["green", "red"][n] for n in last.argmax(1)]


def test_a_grey_picture_for_a_net_of_colours(workplace):
    Image.open("pictures/red/0.png").convert("L").save("grey.png")
    cli = run("predict", "images", "--data.test_path=grey.png", *NO_PICTURES)
    assert [row["picture"] for row in tables(folder_of(cli))["predictions"]] == ["grey.png"]


# Real files.


@pytest.mark.parametrize(
    ("name", "mean", "std"), [("mnist", 0.1307, 0.3081), ("fashion_mnist", 0.2860, 0.3530)]
)
@pytest.mark.slow
def test_real_files(name, mean, std):
    if not (DATA / name).exists():
        pytest.skip("the files are not here")
    data = ImageData(str(DATA / name), val_share=1e-4)
    assert {s: len(part) for s, part in data.sets.items()} == {"train": 60000, "test": 10000}
    assert data.out_dim == 10
    assert [float(x) for x in data.mean_and_std] == pytest.approx([mean, std], abs=1e-4)


@pytest.mark.skipif(not (DATA / "mnist").exists(), reason="the files are not here")
def test_a_file_of_mnist():
    data = ImageData(
        "nowhere",
        test_path=str(DATA / "mnist"),
        classes=[str(n) for n in range(10)],
        mean=[0.1307],
        std=[0.3081],
    )
    labels = data.test_set.labels
    assert labels[:8].tolist() == [7, 2, 1, 0, 4, 1, 4, 9]
    counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert torch.bincount(labels).tolist() == counts
    images, _ = next(iter(data.test_dataloader()[0]))
    assert images.shape == (128, 1, 28, 28)
