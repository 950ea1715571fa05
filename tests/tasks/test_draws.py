import torch

from tasks.draws import fraction, integers, stream, substream, uniform


def test_uniform_is_uniform():
    u = uniform(3, torch.arange(20_000), 8)
    assert u.dtype == torch.float64
    assert u.min() >= 0
    assert u.max() < 1
    # Five standard deviations of each estimate.
    assert (u.mean(0) - 1 / 2).abs().max() < 5 * (1 / 12 / 20_000) ** 0.5
    assert (u.var(0) - 1 / 12).abs().max() < 5 * (1 / 180 / 20_000) ** 0.5
    counts = torch.histc(u[:, 0], 10, 0, 1)
    assert (counts - 2000).abs().max() < 5 * 2000**0.5


def test_uniform_is_uncorrelated():
    """Between draws, between neighboring indices and between neighboring seeds."""
    index = torch.arange(20_000)
    u, other = uniform(3, index, 6), uniform(4, index, 6)
    columns = torch.cat([u, u.roll(1, 0), u.roll(2, 0), other], 1)
    correlation = torch.corrcoef(columns.T) - torch.eye(24)
    assert correlation.abs().max() < 5 / 20_000**0.5


def test_uniform_depends_on_seed_index_and_draw_only():
    whole = uniform(5, torch.arange(50), 6)
    order = torch.randperm(50)
    assert torch.equal(uniform(5, order, 6), whole[order])
    assert torch.equal(uniform(5, torch.tensor([17]), 3), whole[17:18, :3])
    assert not torch.equal(uniform(6, torch.arange(50), 6), whole)
    assert len(whole.unique()) == whole.numel()


def test_streams_of_streams_are_those_of_draws():
    """Draw n of `uniform` is that of substream n, and substreams have further ones."""
    index = torch.arange(30)
    streams = substream(stream(5, index)[:, None], torch.arange(6))
    assert torch.equal(fraction(streams), uniform(5, index, 6))
    deeper = substream(streams[..., None], torch.arange(6))
    assert len(torch.cat([deeper.flatten(), streams.flatten()]).unique()) == 30 * 6 * 7


def test_integers_are_uniform():
    counts = torch.bincount(integers(2, torch.arange(7000), 3, 7, first=1).flatten(), minlength=7)
    assert len(counts) == 7
    assert (counts - 3000).abs().max() < 5 * 3000**0.5
