import pytest

from tasks.arrow import FreshSampler
from tasks.data import DataModule, ShuffledSampler


def test_sampler_takes_every_sample_once():
    order = list(ShuffledSampler(50, seed=1))
    assert sorted(order) == list(range(50))
    assert order != sorted(order)


def test_sampler_order_depends_on_seed_and_epoch():
    orders = {tuple(ShuffledSampler(50, seed, epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9
    sampler = ShuffledSampler(50, seed=2)
    sampler.set_epoch(1)
    assert list(sampler) == list(sampler) == list(ShuffledSampler(50, 2, 1))


@pytest.mark.parametrize(("count", "length"), [(7, 7), (50, 50), (80, 50), (None, 50)])
def test_sampler_count(count, length):
    sampler = ShuffledSampler(50, count=count)
    assert len(sampler) == length
    assert len(set(sampler)) == length


@pytest.mark.parametrize("name", ["in_dim", "out_dim"])
def test_sizes_must_be_defined(name):
    with pytest.raises(TypeError, match=rf"abstract .*\b{name}\b"):
        DataModule()


@pytest.mark.parametrize("sampler_class", [ShuffledSampler, FreshSampler])
def test_sampler_goes_on_within_an_epoch(sampler_class):
    done = 0
    sampler = sampler_class(50, seed=3, epoch=2, skip=lambda: done)
    whole = list(sampler)
    for done in (20, 49, 50):
        assert list(sampler) == whole[done:]
    assert len(sampler) == 50
