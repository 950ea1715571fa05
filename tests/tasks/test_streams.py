"""Truncated backpropagation through time, evaluation in one stream, a net's own alphabet."""

import math
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from torch.nn.functional import cross_entropy

from tasks.alphabet import Alphabet
from tasks.carried import detached, state_of, tensors_of
from tasks.checkpoint_file import read_checkpoint
from tasks.language_model import LanguageModel
from tests.helpers import assert_close
from tests.models.nets import SEQUENCE
from tests.models.test_sequence import model, tokens
from tests.tasks.runs import CONFIGS, folder_of, metrics_of, run

TRAIN, EVAL = "--data.train_streams=true", "--data.eval_streams=true"
SMALL = ["--model.net.dim=16", "--model.net.depth=1", "--data.train_windows=10"]
DOUBLE = "--trainer.precision=64-true"
workplace = pytest.mark.usefixtures("workplace")


class Seen(Callback):
    """Keeps what every training step began with, and its gradients."""

    def __init__(self):
        Seen.weights, Seen.batches, Seen.gradients = [], [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.weights.append({k: v.clone() for k, v in pl_module.net.state_dict().items()})
        self.batches.append(batch)

    def on_after_backward(self, trainer, pl_module):
        parameters = pl_module.net.named_parameters()
        self.gradients.append({name: p.grad.clone() for name, p in parameters})


WATCHED = f"--trainer.callbacks+={__name__}.Seen"


def gradients_of(net, batch, state):
    """Gradients of the loss of a batch from a constant state, and the next state."""
    net.zero_grad()
    logits, state = net(batch[0], state, return_state=True)
    cross_entropy(logits.flatten(0, 1), batch[1].flatten()).backward()
    return {name: p.grad.clone() for name, p in net.named_parameters()}, detached(state)


@workplace
@pytest.mark.parametrize(
    ("more", "begins"),
    [
        ([], [0]),
        (["--trainer.max_epochs=2"], [0]),  # the streams go on
        (["--trainer.max_epochs=2", "--trainer.limit_train_batches=3"], [0, 3]),
    ],
    ids=["epoch", "epochs", "limited"],
)
def test_gradients_of_a_piece_from_the_state_before(more, begins):
    """That state is a constant: truncated backpropagation through time."""
    cli = run("fit", "text", TRAIN, DOUBLE, *SMALL, WATCHED, *more)
    net, state = cli.model.net.train(), None
    assert len(Seen.batches) > 4
    for n, (weights, batch, want) in enumerate(
        zip(Seen.weights, Seen.batches, Seen.gradients, strict=True)
    ):
        net.load_state_dict(weights)
        state = None if n in begins else state
        got, after = gradients_of(net, batch, state)
        for name, grad in want.items():
            assert_close(name, got[name], grad)
        if state is not None:
            without, _ = gradients_of(net, batch, None)
            assert not torch.allclose(without["embed.weight"], want["embed.weight"], rtol=1e-6)
        state = after


@workplace
def test_validation_does_not_disturb_the_streams():
    rare = run("fit", "text", TRAIN, EVAL, *SMALL, "--trainer.num_sanity_val_steps=0")
    often = run("fit", "text", TRAIN, EVAL, *SMALL, "--trainer.val_check_interval=1")
    for name, weight in rare.model.net.state_dict().items():
        assert torch.equal(often.model.net.state_dict()[name], weight), name
    assert metrics_of(often)["val/loss"] == metrics_of(rare)["val/loss"]


@workplace
def test_evaluation_of_a_stream_is_that_of_the_whole_text():
    small = ["--data.batch_size=1", "--data.context=2", "--data.test_share=0.3", *SMALL]
    cli = run("fit", "text", EVAL, DOUBLE, *small)
    config = folder_of(cli) / "config.yaml"
    checkpoint = f"--ckpt_path={folder_of(cli) / 'checkpoints' / 'last.ckpt'}"
    part = cli.datamodule.parts["test"].long()[None]
    assert part.shape[1] > 4 * 16  # several pieces
    with torch.no_grad():
        losses = cross_entropy(cli.model.net.eval()(part[:, :-1])[0], part[0, 1:])
    tested = metrics_of(run("test", config, checkpoint))
    assert tested["test/loss"] == pytest.approx(float(losses), rel=1e-6)  # metrics are float32
    assert tested["test/bits_per_char"] == pytest.approx(float(losses) / math.log(2), rel=1e-6)
    windows = metrics_of(run("test", config, checkpoint, "--data.eval_streams=false"))
    assert abs(windows["test/loss"] - tested["test/loss"]) > 1e-4


def test_states_in_a_checkpoint():
    for mixers in SEQUENCE.values():
        net, x = model(mixers), tokens(7)
        _, state = net(x, return_state=True)
        saved = tensors_of(state)
        assert not any(isinstance(x, torch.Tensor) and x.requires_grad for x in saved)
        torch.manual_seed(1)
        again = state_of(saved, net, x[:, :1])
        assert net.training
        assert torch.equal(torch.rand(2), torch.manual_seed(1) and torch.rand(2))
        assert_close("logits", net(x, again), net(x, state))
    with pytest.raises(ValueError, match="has states of 2 streams, got batches of 3"):
        state_of(saved, net, tokens(1, batch=3))


@workplace
@pytest.mark.parametrize("argument", [TRAIN, EVAL])
@pytest.mark.parametrize(
    ("net", "message"),
    [
        ("--model.net=attention", "a state of fixed size, got the mixer SoftmaxAttention; choose"),
        ("--model.net.max_length=100", "got a position encoding with max_length=100; set"),
    ],
)
def test_nets_without_a_bounded_state(argument, net, message):
    net = net.replace("=attention", f"={CONFIGS / 'net' / 'attention_text.yaml'}")
    with pytest.raises(ValueError, match=message):
        run("fit", "text", argument, *SMALL, net)


@workplace
@pytest.mark.parametrize("wrong", ["temperature=-1", "sample_length=-1", "temperature=.nan"])
def test_wrong_samples_are_found_at_the_start(wrong):
    with pytest.raises(ValueError, match="sample_length and temperature must be 0 or more"):
        run("fit", "text", *SMALL, f"--model.{wrong}")


@workplace
def test_another_text_by_the_alphabet_of_the_checkpoint():
    """A text of other characters is read with those that the net knows."""
    cli = run("fit", "text", *SMALL)
    config = folder_of(cli) / "config.yaml"
    checkpoint = f"--ckpt_path={folder_of(cli) / 'checkpoints' / 'last.ckpt'}"
    Path("other.txt").write_text("not to be, to be not;\n" * 20, "utf-8")
    with pytest.warns(UserWarning, match=r"20 of the 440 .* are left out: ';' \(20 times\)"):
        other = run("test", config, checkpoint, "--data.test_path=other.txt")
    windows = cli.model.alphabet.encode("not to be, to be not\n" * 20)[: 52 * 8 + 1]
    inputs, targets = windows[:-1].view(-1, 8), windows[1:].view(-1, 8)
    with torch.no_grad():
        loss = cross_entropy(cli.model.net.eval()(inputs).flatten(0, 1), targets.flatten())
    assert metrics_of(other)["test/loss"] == pytest.approx(float(loss), rel=1e-5)
    with pytest.warns(UserWarning, match="are left out"):
        same = run("test", config, checkpoint, "--data.path=other.txt")
    assert same.datamodule.vocabulary == cli.datamodule.vocabulary


@workplace
def test_a_loaded_net_has_its_alphabet():
    cli = run("fit", "text", TRAIN, *SMALL)
    path = folder_of(cli) / "checkpoints" / "last.ckpt"
    loaded = LanguageModel.load_from_checkpoint(path)
    assert loaded.alphabet.characters == cli.datamodule.vocabulary
    x = loaded.alphabet.encode("to be")[None]
    assert torch.equal(loaded.net(x), cli.model.net(x))
    loaded.alphabet = Alphabet("TO BE")  # of data
    with pytest.raises(ValueError, match=r"has the characters '.*,abe.*', got data with ' BEOT'"):
        loaded.on_load_checkpoint(read_checkpoint(path))
