"""Packed batches: other inputs of the net, the same loss and metrics as padded ones."""

import pytest
import torch

from plstm import SequenceModel
from tasks.labelling import SequenceLabelling
from tasks.languages import LanguageData
from tasks.listops import ListOpsData
from tasks.packing import Packed, pack, packed_logits
from tasks.recall import RecallData
from tasks.words import WordData
from tests.helpers import assert_close
from tests.models.nets import SEQUENCE
from tests.tasks.runs import metrics_of, run
from tests.tasks.test_sequences import updated

RANGE = {"length": (1, 13), "extrapolation_lengths": ((5, 29),), "batch_size": 7, "val_size": 16}
DATA = {
    "words": lambda **more: WordData("S3", **RANGE, **more),
    "generators": lambda **more: WordData("Z5", elements="generators", **RANGE, **more),
    "parity": lambda **more: LanguageData(**RANGE, **more),
    "arithmetic": lambda **more: LanguageData("modular_arithmetic", **RANGE, **more),
    "listops": lambda **more: ListOpsData(**{**RANGE, "length": (4, 13)}, **more),
}


def test_pack():
    tokens = torch.tensor([[1, 2, 9], [9, 9, 9], [3, 4, 5]])
    packed = pack(tokens, tokens != 9)
    assert packed.tokens.tolist() == [[1, 2, 3, 4, 5]]
    assert packed.cu_seqlens.tolist() == [0, 2, 2, 5]


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("mixer", ["plstm", "attention"])
def test_loss_metrics_and_gradients_are_those_of_padded_batches(name, mixer):
    padded, packed = DATA[name](), DATA[name](packed=True)
    sizes = padded.in_dim, padded.out_dim
    model = SequenceLabelling(
        lambda *sizes: SequenceModel(*sizes, dim=8, depth=2, mixers=SEQUENCE[mixer], tied=False),
        *sizes,
    )
    model.configure_model()
    model.double()
    for parameter in model.net.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    parameters = list(model.net.parameters())
    loaders = zip(packed.val_dataloader(), padded.val_dataloader(), strict=True)
    batches = [pair for both in loaders for pair in zip(*both, strict=True)]
    assert len(batches) == 6
    for ours, theirs in batches:
        assert isinstance(ours[0], Packed)
        assert ours[0].tokens.numel() < theirs[0].numel()  # something is saved
        (logits, targets), (want, want_targets) = model._predict(ours), model._predict(theirs)
        assert torch.equal(targets, want_targets)
        keep = ours[0].kept
        assert_close("logits", logits[keep], want[keep])
        got, same = updated(model, logits, targets), updated(model, want, targets)
        assert got == pytest.approx(same, rel=1e-6)
        losses = [model.measure(x, targets)["loss"][0].mean() for x in (logits, want)]
        grads = [torch.autograd.grad(x, parameters, allow_unused=True) for x in losses]
        for grad, wanted in zip(*grads, strict=True):
            assert (grad is None) == (wanted is None)
            if grad is not None:
                assert_close("gradient", grad, wanted)


def test_training_batches_are_packed_and_predictions_are_not():
    data = DATA["words"](packed=True, train_size=8, test_size=8)
    (tokens, targets), *_ = data.train_dataloader()
    assert isinstance(tokens, Packed)
    assert tokens.kept.shape == targets.shape == (7, 13)
    (tokens, _), *_ = data.predict_dataloader()[0]
    assert isinstance(tokens, torch.Tensor)


@pytest.mark.parametrize("cls", [WordData, LanguageData, RecallData])
def test_one_length_is_not_packed(cls):
    with pytest.raises(
        ValueError, match="packed is for sequences of different lengths, got length=64"
    ):
        cls(packed=True)


def test_nets_that_take_no_packed_sequences():
    batch, _ = next(iter(DATA["parity"](packed=True).train_dataloader()))
    with pytest.raises(ValueError, match="packed_logits: Embedding takes no cu_seqlens; set"):
        packed_logits(torch.nn.Embedding(3, 4), batch)


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize(
    ("task", "more", "names"),
    [
        ("languages", [], ["val/accuracy@9", "val/scaled_accuracy"]),
        ("text", ["--data.documents= "], ["val/bits_per_char", "val/accuracy"]),
    ],
)
def test_run(task, more, names):
    """Trained and validated with the same numbers."""
    net = "--model.net.dim=16", "--model.net.depth=1", "--trainer.precision=64-true"
    padded, packed = (
        metrics_of(run("fit", task, *net, *more, f"--data.packed={x}")) for x in ("false", "true")
    )
    for name in ("train/loss", "val/loss", *names):
        assert packed[name] == pytest.approx(padded[name], rel=1e-6), name
