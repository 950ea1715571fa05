"""Labelled sequences: metrics ignore missing labels, and the plot shows positions."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from tasks.accuracy_by_length import BINS, accuracy_by_length
from tasks.data import SPLITS, UNLABELLED
from tasks.labelling import SequenceLabelling
from tasks.languages import LanguageLabelling
from tasks.sequences import at_the_end, draw_lengths, inside
from tasks.words import WordData
from tests.tasks.runs import SMALL, folder_of, metrics_of, run

TASKS = ["words", "languages"]  # the others differ by what they draw


def module(cls=SequenceLabelling, classes=3, **options):
    made = cls(lambda in_dim, out_dim: torch.nn.Identity(), 2, classes, **options)
    made.eval_names = [""]
    return made


def updated(made, logits, targets):
    """Values of all metrics after one batch."""
    metrics = made.new_metrics()
    for name, values in made.measure(logits, targets).items():
        metrics[name].update(*values)
    return {name: float(metric.compute()) for name, metric in metrics.items()}


def test_metrics_leave_out_what_has_no_label():
    logits = torch.randn(4, 5, 3)
    targets = logits.argmax(-1)
    targets[0, 1] = (targets[0, 1] + 1) % 3  # one error
    targets[:, 3:] = UNLABELLED
    got = updated(module(), logits, targets)
    assert got["accuracy"] == pytest.approx(11 / 12)
    assert got["sequence_accuracy"] == 3 / 4
    want = cross_entropy(logits[:, :3].flatten(0, 1), targets[:, :3].flatten())
    assert got["loss"] == pytest.approx(float(want))


def test_sequences_of_other_lengths_count_their_own_labels():
    logits = torch.zeros(2, 4, 3)
    logits[..., 1] = 1
    targets = torch.tensor([[1, 1, 1, 2], [1, UNLABELLED, UNLABELLED, UNLABELLED]])
    got = updated(module(), logits, targets)
    assert (got["accuracy"], got["sequence_accuracy"]) == (pytest.approx(4 / 5), 1 / 2)


def test_training_until_the_first_error():
    targets = torch.tensor([[0, 1, 2, 0], [UNLABELLED, 1, UNLABELLED, 2], [2, 2, 2, 2]])
    answers = torch.tensor([[0, 2, 2, 0], [0, 1, 0, 2], [0, 2, 2, 1]])
    logits = torch.eye(3)[answers]
    made = module(until_error=True)
    assert made.labelled(logits, targets)[1].tolist() == [0, 1, 1, 2, 2]
    made.eval()
    assert len(made.labelled(logits, targets)[1]) == 10


def test_labels_are_smoothed_in_training_only():
    made = module(label_smoothing=0.3)
    logits, targets = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    shares = 0.7 * torch.eye(3)[targets] + 0.1
    want = -(shares * logits.log_softmax(-1)).sum(-1).mean()
    assert made.loss(logits, targets).item() == pytest.approx(want.item())
    made.eval()
    assert made.loss(logits, targets).item() == pytest.approx(cross_entropy(logits, targets).item())
    with pytest.raises(ValueError, match=r"SequenceLabelling: label_smoothing .* got 1\.5"):
        module(label_smoothing=1.5)


@pytest.mark.parametrize(("accuracy", "scaled"), [(1.0, 1.0), (0.2, 0.0), (0.6, 0.5)])
def test_scaled_accuracy(accuracy, scaled, monkeypatch):
    made, logged = module(LanguageLabelling, classes=5), {}
    monkeypatch.setattr(made, "log", lambda name, value, **rest: logged.update({name: value}))
    made.metrics["accuracy"] = made.new_metrics()["accuracy"]
    right = torch.arange(10) < 10 * accuracy
    made.metrics["accuracy"].update(torch.eye(5)[right.long()], torch.ones(10, dtype=torch.int64))
    made.on_test_epoch_end()
    assert logged == {"test/scaled_accuracy": pytest.approx(scaled, abs=1e-6)}


def test_positions():
    lengths = torch.tensor([1, 3, 2])
    assert inside(lengths, 3).tolist() == [[True, False, False], [True] * 3, [True, True, False]]
    none = UNLABELLED
    labels = torch.arange(9).view(3, 3)
    want = [[0, none, none], [none, none, 5], [none, 7, none]]
    assert at_the_end(labels, lengths).tolist() == want


def test_first_length_doubles_with_every_epoch():
    data = WordData(length=12, first_length=2, train_size=10, seed=0)
    train, val = data.dataset("train", 12), data.dataset("val", 12)
    lengths = [train.__getitems__([10 * epoch, 10 * epoch + 9])[0].shape for epoch in range(99)]
    assert lengths[:4] == [(2, 2), (2, 4), (2, 8), (2, 12)]
    assert set(lengths[4:]) == {(2, 12)}
    assert val.__getitems__([0])[0].shape == (1, 12)


@pytest.mark.parametrize("options", [{"first_length": 0}, {"first_length": 13}, {"fresh": False}])
def test_first_length_errors(options):
    with pytest.raises(ValueError, match=r"WordData: first_length must lie in 1..12"):
        WordData(**{"length": 12, "first_length": 2} | options)


def test_lengths_are_uniform():
    counts = torch.bincount(draw_lengths(1, torch.arange(4000), (3, 6)), minlength=7)
    assert counts[:3].sum() == 0
    assert (counts[3:] - 1000).abs().max() < 5 * 1000**0.5


def test_splits_lengths_and_seeds_share_no_stream():
    seeds = [
        WordData(length=8, extrapolation_lengths=(16,), seed=seed).dataset(split, n).seed
        for seed in (0, 1, 2**32 - 1)
        for split in SPLITS
        for n in (8, 16)
    ]
    assert len(set(seeds)) == len(seeds)


def test_fresh_epochs_share_no_sequence():
    sampler = WordData(train_size=6, batch_size=2).train_dataloader().batch_sampler.sampler
    epochs = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        epochs += sampler
    assert epochs == list(range(12))
    same = WordData(train_size=6, batch_size=2, fresh=False)
    assert sorted(same.train_dataloader().batch_sampler.sampler) == list(range(6))


def test_accuracy_by_length():
    hits = torch.tensor([[True, False, True], [True, True, False], [True, True, True]])
    labelled = torch.tensor([[True] * 3, [True, False, False], [True] * 3])
    left, right = accuracy_by_length({"test": (hits, labelled)}, 2).axes
    assert left.lines[0].get_xydata().tolist() == [[1, 1], [2, 0.5], [3, 1]]
    assert right.lines[0].get_xydata().tolist() == [[1, 1], [2, 0.5], [3, 0.5]]
    assert set(left.lines[1].get_xdata()) == {2}


def test_accuracy_by_length_in_bins():
    length = 2 * BINS + 1  # three positions a point
    hits = torch.ones(1, length, dtype=torch.bool)
    labelled = torch.arange(length)[None] != 3
    left, _ = accuracy_by_length({"test": (hits, labelled)}, 2).axes
    points = left.lines[0].get_xydata()
    assert points[:2].tolist() == [[2, 1], [5.5, 1]]
    assert len(points) == -(-length // 3)


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize("task", TASKS)
def test_run(task):
    """Trained, tested and predicted: metrics of every set of lengths, and the picture."""
    cli = run("fit", task, "--model.net.dim=12", "--model.net.depth=1")
    names = {"loss", "accuracy", "sequence_accuracy"}
    names |= {"scaled_accuracy"} if task == "languages" else set()
    *_, further = cli.datamodule.eval_names
    assert further == f"@{cli.datamodule.sizes[1]}"
    metrics = metrics_of(cli)
    assert {f"val/{name}{end}" for name in names for end in ("", further)} <= metrics.keys()
    folder = folder_of(cli)
    checkpoint = f"--ckpt_path={folder / 'checkpoints' / 'last.ckpt'}"
    config = folder / "config.yaml"
    tested = metrics_of(run("test", config, checkpoint))
    predicted = folder_of(run("predict", config, checkpoint))
    assert (predicted / "accuracy_by_length.png").exists()
    probabilities = torch.load(predicted / "predictions.pt", weights_only=True)[further]
    dataset = cli.datamodule.dataset("test", cli.datamodule.sizes[1])
    _, targets = dataset.__getitems__(list(range(SMALL[task]["test_size"])))
    labelled = targets != UNLABELLED
    right = (probabilities.argmax(-1) == targets)[labelled].float().mean()
    assert tested[f"test/accuracy{further}"] == pytest.approx(float(right))
