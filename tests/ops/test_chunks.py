import pytest
import torch

from plstm.ops.chunks import chunk_size, join_chunks, scan_chunks, split_chunks, split_gates
from plstm.ops.gates import Gates
from plstm.ops.plstm_1d.naive import plstm_1d_naive
from tests.helpers import assert_close
from tests.ops.inputs import sequence_inputs


@pytest.mark.parametrize("largest", [1, 4, 64])
def test_chunks_are_few_and_even(largest):
    for length in range(1, 200):
        size = chunk_size(length, largest)
        chunks = -(-length // size)
        assert size <= largest
        assert chunks == -(-length // largest)
        assert chunks * size - length < chunks  # less than one position per chunk is filled up


@pytest.mark.parametrize("widths", [(), (3,), (3, 2)])
@pytest.mark.parametrize(("length", "size"), [(1, 1), (5, 5), (6, 3), (7, 3), (7, 64)])
def test_split(length, size, widths):
    x = torch.randn(2, length, 4, *widths)
    chunks = split_chunks(x, size, fill=7.0)
    assert chunks.shape == (2, 4, -(-length // size), size, *widths)
    assert torch.equal(join_chunks(chunks, length), x)
    assert torch.equal(chunks.flatten(2, 3)[:, :, :length], x.transpose(1, 2))
    assert (chunks.flatten(2, 3)[:, :, length:] == 7).all()


@pytest.mark.parametrize("lanes", [None, (2, 3, 1)], ids=["one_lane", "lanes"])
def test_gates_that_fill_up_leave_states_alone(lanes):
    q, k, v, *gates, state = sequence_inputs(5, lanes).values()
    _, want = plstm_1d_naive(q, k, v, Gates(*gates), state, 1.0)
    longer = [split_chunks(x, 8, fill=1.0) for x in (q, k, v)]
    longer = [x.squeeze(2).transpose(1, 2) for x in (*longer, *split_gates(Gates(*gates), 8))]
    _, got = plstm_1d_naive(*longer[:3], Gates(*longer[3:]), state, 1.0)
    assert_close("state", got, want)


def test_scan():
    factors, updates, state = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5), torch.randn(2, 3, 5)
    states, last = scan_chunks(torch.addcmul, factors, updates, state)
    for n in range(4):
        assert torch.equal(states[:, :, n], state)
        state = torch.addcmul(factors[:, :, n], state, updates[:, :, n])
    assert torch.equal(last, state)
