import pytest
import torch

from tasks.augmentation import AREA, RATIO, Augmentation, rectangles, shifted

MEAN = torch.tensor([0.25, 0.75])


def images(count=40, rows=9, columns=7):
    return torch.rand(count, 2, rows, columns, generator=torch.Generator().manual_seed(0))


def changed(x, augmentation, index=None, seed=3):
    index = torch.arange(len(x)) if index is None else index
    return augmentation(x, index, mean=MEAN, seed=seed)


ALL = Augmentation(flip=True, max_shift=2, erase=0.5)


def test_nothing_is_changed_unless_asked_for():
    assert torch.equal(changed(images(), Augmentation()), images())


def test_a_change_depends_on_seed_and_index_alone():
    x = images()
    whole = changed(x, ALL)
    assert torch.equal(changed(x[7:9], ALL, torch.tensor([7, 8])), whole[7:9])
    assert not torch.equal(changed(x, ALL, torch.arange(40, 80)), whole)
    assert not torch.equal(changed(x, ALL, seed=4), whole)


def test_half_are_mirrored():
    x = images(400)
    got = changed(x, Augmentation(flip=True))
    mirrored = (got == x.flip(-1)).flatten(1).all(1)
    assert torch.equal(got[~mirrored], x[~mirrored])
    assert 150 < mirrored.sum() < 250


@pytest.mark.parametrize("by", [(0, 0), (2, -1), (-3, 4), (20, -20)], ids=str)
def test_shifted(by):
    x = images(1)
    got = shifted(x, torch.tensor([by]))
    for row in range(9):
        for column in range(7):
            source = (min(max(row - by[0], 0), 8), min(max(column - by[1], 0), 6))
            assert torch.equal(got[0, :, row, column], x[0, :, *source])


def test_shifts_reach_all_distances():
    x = images(300)
    got = changed(x, Augmentation(max_shift=1))
    moves = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    counts = [
        int((got == shifted(x, torch.tensor([by]).expand(300, 2))).flatten(1).all(1).sum())
        for by in moves
    ]
    assert sum(counts) == 300
    assert min(counts) > 15  # of 33 on average


@pytest.mark.parametrize("shape", [(28, 28), (1, 1), (1, 13), (5, 2)], ids=str)
def test_rectangles(shape):
    draws = torch.rand(200, 4, dtype=torch.float64)
    for inside in rectangles(draws, *shape):
        rows, columns = inside.any(1), inside.any(0)
        assert torch.equal(inside, rows[:, None] & columns)
        assert inside.any()
        for line in (rows, columns):  # in one piece
            first, last = line.nonzero()[0, 0], line.nonzero()[-1, 0]
            assert line[first : last + 1].all()


def test_sizes_of_rectangles():
    inside = rectangles(torch.rand(2000, 4, dtype=torch.float64), 64, 64)
    height, width = inside.any(2).sum(1), inside.any(1).sum(1)
    whole = (height < 64) & (width < 64)  # those that the border has not cut
    area = (height * width)[whole] / 64**2
    assert AREA[0] * 0.9 < area.min() < 0.04
    assert 0.35 < area.max() < AREA[1] * 1.1
    ratio = (height / width)[whole].log()
    assert abs(ratio.mean()) < 0.1
    assert (ratio.exp() > RATIO[0] * 0.8).all()


def test_erased_pixels_have_the_mean():
    x = images(500)
    got = changed(x, Augmentation(erase=0.25))
    erased = (got == MEAN[:, None, None]).all(1)
    assert torch.equal(torch.where(erased[:, None], x, got), x)
    assert 90 < erased.flatten(1).any(1).sum() < 160
