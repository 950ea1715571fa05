import copy
from contextlib import closing
from functools import partial
from itertools import islice

import pytest
import torch

from plstm import FlattenedGrid, PLSTM1d, SequenceModel
from plstm.models import sequence
from tests.helpers import assert_close, gradients
from tests.models.nets import SEQUENCE

VOCABULARY = 11
all_mixers = pytest.mark.parametrize("mixers", SEQUENCE.values(), ids=SEQUENCE)


def model(mixers=SEQUENCE["plstm"], out_dim=VOCABULARY, **kwargs):
    options = {"dim": 8, "depth": 2} | kwargs
    net = SequenceModel(VOCABULARY, out_dim, mixers=mixers, **options)
    with torch.no_grad():
        for parameter in net.parameters():  # so that logits, and the past, matter
            parameter += 0.3 * torch.randn_like(parameter)
    return net


def tokens(length, batch=2):
    return torch.randint(VOCABULARY, (batch, length))


@all_mixers
@pytest.mark.parametrize("length", [1, 9])
def test_shape_and_gradients(length, mixers):
    net = model(mixers, max_length=9)
    logits = net(tokens(length))
    assert logits.shape == (2, length, VOCABULARY)
    logits.square().sum().backward()
    for name, parameter in net.named_parameters():
        if length > 1:  # a lone position has no use for transitions
            assert parameter.grad is not None, name
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


@all_mixers
def test_causal(mixers):
    net, x = model(mixers, max_length=12), tokens(12)
    for position in (1, 6, 11):
        changed = x.clone()
        changed[:, position] = (x[:, position] + 1) % VOCABULARY
        got, want = net(changed), net(x)
        assert_close("before", got[:, :position], want[:, :position], 1e-5)
        assert not torch.allclose(got[:, position], want[:, position])
    assert not torch.allclose(got[:, -1], want[:, -1])


@all_mixers
@pytest.mark.parametrize("max_length", [None, 30])
@pytest.mark.parametrize("prompt", [1, 5])
def test_greedy_generation_repeats_forward(prompt, max_length, mixers):
    net, x = model(mixers, max_length=max_length).double(), tokens(prompt)
    got = net.generate(x, 20, temperature=0)
    want = x
    with torch.no_grad():
        for _ in range(20):
            want = torch.cat([want, net(want)[:, -1:].argmax(-1)], 1)
    assert torch.equal(got, want)
    assert len(got.unique()) > 1


@all_mixers
def test_sampling_follows_the_seed(mixers):
    net, x = model(mixers), tokens(3)

    def sample(seed):
        return net.generate(x, 20, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(sample(0), sample(0))
    assert not torch.equal(sample(0), sample(1))
    assert torch.equal(sample(0)[:, :3], x)


def test_sampling_follows_the_probabilities():
    net, x = model(), tokens(4, batch=1)
    drawn = net.generate(x.expand(4000, -1), 1, temperature=0.7)[:, -1]
    share = drawn.bincount(minlength=VOCABULARY) / len(drawn)
    with torch.no_grad():
        want = torch.softmax(net(x)[0, -1] / 0.7, -1)
    assert (share - want).abs().max() < 0.04  # five standard deviations of a share near 1/2
    assert want.std() > 0.02  # and not all alike


def test_top_k():
    net, x = model(), tokens(4, batch=1).expand(500, -1)
    with torch.no_grad():
        ranked = net(x[:1])[0, -1].argsort(descending=True)
    for k in (1, 3, 100):
        drawn = net.generate(x, 1, temperature=10.0, top_k=k)[:, -1]
        assert set(drawn.tolist()) == set(ranked[:k].tolist())


def test_generate_nothing():
    x = tokens(3)
    assert torch.equal(model().generate(x, 0), x)


@pytest.mark.parametrize("training", [True, False])
def test_generate_keeps_the_mode_and_makes_no_graph(training):
    net = model(dropout=0.5).train(training)
    x = tokens(3)
    first, second = (net.generate(x, 10, temperature=0) for _ in range(2))
    assert torch.equal(first, second)  # no dropout inside
    assert all(module.training == training for module in net.modules())
    assert not first.requires_grad


def test_generate_up_to_max_length():
    net = model(max_length=8)
    assert net.generate(tokens(3), 6).shape == (2, 9)  # the last one is not read
    with pytest.raises(ValueError, match=r"only 8 positions are encoded.*position 9"):
        net.generate(tokens(3), 7)
    assert net.training  # restored after the error too


@all_mixers
@pytest.mark.parametrize("piece", [1, 3, 4])
def test_stream_reads_a_prompt_in_pieces(piece, mixers, monkeypatch):
    net, x = model(mixers).double(), tokens(11)
    want = net.generate(x, 9, temperature=0)[:, 11:]
    monkeypatch.setattr(sequence, "PROMPT_PIECE", piece)
    with closing(net.stream(x, temperature=0)) as samples:
        got = torch.cat(list(islice(samples, 9)), 1)
        assert not net.training
        assert torch.is_grad_enabled()
    assert net.training
    assert torch.equal(got, want)


def test_forward_beyond_max_length():
    with pytest.raises(ValueError, match=r"only 8 positions are encoded.*position 9"):
        model(max_length=8)(tokens(9))


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        (torch.zeros(2, 0, dtype=torch.long), {}, "at least one position"),
        (
            torch.zeros(3, dtype=torch.long),
            {},
            r"integers \(B, L\), got torch.int64 of shape \(3,\)",
        ),
        (torch.zeros(1, 2), {}, r"integers \(B, L\), got torch.float32"),
        (
            torch.zeros(1, 2, dtype=torch.long),
            {"temperature": -1.0},
            "temperature must be 0 or more",
        ),
        (torch.zeros(1, 2, dtype=torch.long), {"top_k": 0}, "top_k 1 or more, got 1.0 and 0"),
    ],
    ids=["empty", "no-batch", "float", "temperature", "top_k"],
)
def test_generate_errors(prompt, options, message):
    with pytest.raises(ValueError, match=message):
        model().generate(prompt, 1, **options)


def test_tied_weights():
    net = model(tied=True)
    assert net.head.weight is net.embed.weight
    assert copy.deepcopy(net).head.weight.shape == (VOCABULARY, 8)
    assert sum(p.shape == (VOCABULARY, 8) for p in net.parameters()) == 1
    untied = model(tied=False, out_dim=4)
    assert untied(tokens(3)).shape == (2, 3, 4)
    with pytest.raises(ValueError, match="tied weights need in_dim = out_dim, got 11 and 4"):
        model(out_dim=4)


@all_mixers
def test_deepcopy_and_state_dict(mixers):
    net, other, x = model(mixers), model(mixers), tokens(6)
    twin = copy.deepcopy(net)
    assert twin.head.weight is twin.embed.weight
    assert torch.equal(twin(x), net(x))
    assert not torch.equal(other(x), net(x))
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(x), net(x))


def test_logit_cap():
    net, x = model(), tokens(5)
    free = 100 * net(x)
    with torch.no_grad():
        net.head.weight = torch.nn.Parameter(100 * net.head.weight)
    net.logit_cap = 2.0
    capped = net(x)
    assert (capped.abs() <= 2).all()
    assert_close("cap", capped, 2 * torch.tanh(free / 2), 1e-5)


def test_dropout_in_training_only():
    net, x = model(dropout=0.5), tokens(5)
    assert not torch.allclose(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))


def test_depth_error():
    with pytest.raises(ValueError, match="need depth >= 1"):
        model(depth=0)


@all_mixers
@pytest.mark.parametrize("max_length", [None, 17])
def test_a_text_in_pieces(mixers, max_length):
    """Logits and gradients, which reach back through the states."""
    net, x = model(mixers, max_length=max_length).double(), tokens(17)
    whole, state, pieces = net(x), None, []
    for part in x.split([1, 9, 7], 1):
        logits, state = net(part, state, return_state=True)
        pieces.append(logits)
    logits = torch.cat(pieces, 1)
    assert_close("logits", logits, whole, 1e-12)
    assert state.seen.tolist() == [17] * len(x)
    parameters = dict(net.named_parameters())
    want = gradients(whole, parameters)
    for name, grad in gradients(logits, parameters).items():
        assert_close(name, grad, want[name], 1e-12)


def test_a_text_beyond_max_length():
    net, x = model(max_length=5), tokens(4)
    _, state = net(x, return_state=True)
    net(x[:, :1], state)
    with pytest.raises(ValueError, match=r"only 5 positions are encoded, .* up to position 6"):
        net(x[:, :2], state)


LENGTHS = [4, 0, 66, 1]
BORDERS = torch.tensor([0, *LENGTHS]).cumsum(0)


@all_mixers
@pytest.mark.parametrize("max_length", [None, 66])
def test_packed_sequences(mixers, max_length):
    net, x = model(mixers, max_length=max_length).double(), tokens(sum(LENGTHS), batch=1)
    logits = net(x, cu_seqlens=BORDERS)
    alone = torch.cat([net(part) for part in x.split(LENGTHS, 1) if part.shape[1]], 1)
    assert_close("logits", logits, alone, 1e-12)
    parameters = dict(net.named_parameters())
    want = gradients(alone, parameters)
    for name, grad in gradients(logits, parameters).items():
        assert_close(name, grad, want[name], 1e-12)


@all_mixers
def test_packed_states(mixers):
    net, x = model(mixers).double(), tokens(2 * sum(LENGTHS), batch=1)
    first, second = x.chunk(2, 1)
    _, state = net(first, return_state=True, cu_seqlens=BORDERS)
    got = net(second, state, cu_seqlens=BORDERS)
    for i, (a, b) in enumerate(zip(first.split(LENGTHS, 1), second.split(LENGTHS, 1), strict=True)):
        if a.shape[1]:
            alone = net(torch.cat([a, b], 1))[:, a.shape[1] :]
            assert_close("logits", got[:, BORDERS[i] : BORDERS[i + 1]], alone, 1e-12)


def test_packed_sequences_need_a_mixer_that_takes_them():
    mixers = [partial(FlattenedGrid, mixer=partial(PLSTM1d, num_heads=2))]
    with pytest.raises(ValueError, match=r"^Block: the mixer FlattenedGrid takes no cu_seqlens"):
        model(mixers)(tokens(9, batch=1), cu_seqlens=torch.tensor([0, 9]))
