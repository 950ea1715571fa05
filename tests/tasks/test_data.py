import tracemalloc
from itertools import chain

import pytest

from tasks.data import (
    DataModule,
    FreshSampler,
    Shard,
    ShardedBatches,
    ShuffledSampler,
    chosen_seed,
)


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


SIZES = [
    (size, batch, count)
    for size in (4, 5, 7, 12, 13)
    for batch in (1, 2, 3)
    for count in (1, 2, 3, 4)
]


@pytest.mark.parametrize(("size", "batch", "count"), SIZES)
def test_batches_of_all_processes_are_those_of_one(size, batch, count):
    order = list(FreshSampler(size, epoch=1))
    shards = [
        list(ShardedBatches(FreshSampler(size, epoch=1), batch, Shard(rank, count)))
        for rank in range(count)
    ]
    assert len({len(shard) for shard in shards}) == 1  # or one process would wait for ever
    together = [sorted(chain(*parts)) for parts in zip(*shards, strict=True)]
    assert list(chain(*together)) == order
    assert all(len(part) > 0 for shard in shards for part in shard)
    assert all(max(x) - min(x) <= 1 for x in zip(*([*map(len, s)] for s in shards), strict=True))
    one = list(ShardedBatches(FreshSampler(size, epoch=1), batch * count))
    if len(one[-1]) < count:  # they join the batch before
        one[-2:] = [one[-2] + one[-1]]
    assert together == one


def test_last_batch_is_full_or_left_out():
    batches = ShardedBatches(FreshSampler(11), 2, Shard(1, 2), drop_last=True)
    assert list(batches) == [[1, 3], [5, 7]]
    assert len(batches) == 2


@pytest.mark.parametrize("sampler_class", [ShuffledSampler, FreshSampler])
def test_batches_go_on_within_an_epoch(sampler_class):
    done = 0
    batches = ShardedBatches(sampler_class(50, seed=3, epoch=2), 4, Shard(1, 2), skip=lambda: done)
    whole = list(batches)
    for done in (2, 6, 7):
        assert list(batches) == whole[done:]
    assert len(batches) == len(whole) == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, 2, Shard(0, 4)), "for 4 processes, got 3 samples; .*fewer devices"),
        ((3, 0), "batch_size must be 1 or more, got 0"),
        ((0, 2), "got 0 samples"),
    ],
)
def test_too_few_samples(arguments, message):
    size, *rest = arguments
    with pytest.raises(ValueError, match=f"ShardedBatches: .*{message}"):
        ShardedBatches(FreshSampler(size), *rest)


def test_no_full_batch():
    with pytest.raises(ValueError, match=r"a batch of 4 samples .* got 3 .*or smaller batches"):
        ShardedBatches(FreshSampler(3), 4, drop_last=True)


@pytest.mark.parametrize("sampler_class", [FreshSampler, ShuffledSampler])
def test_memory_of_a_large_epoch(sampler_class):
    size = 3_000_000
    tracemalloc.start()
    next(iter(ShardedBatches(sampler_class(size), 1000)))
    assert tracemalloc.get_traced_memory()[1] < 10 * size / 4  # a list would take 8 and more each
    tracemalloc.stop()


def test_seed_of_the_run_is_that_of_the_data(monkeypatch):
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    assert chosen_seed(None) == 0
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    assert (chosen_seed(None), chosen_seed(0), chosen_seed(3)) == (7, 0, 3)
