"""The benchmark measures what it says, on cases small enough for a test."""

import json
import sys
from itertools import groupby

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import ops
from benchmarks.measure import median_ms, peak_mib
from tests.helpers import assert_close


def small_cases():
    yield from ops.sequence_cases(batch=2, length=9, heads=2, width=4)
    yield from ops.grid_cases(images=2, side=3, heads=2, width=4)
    yield from ops.graph_cases(graphs=3, nodes=8, heads=2, width=4)


def test_forms_of_a_group_agree_and_the_anchor_comes_last():
    for _, group in groupby(small_cases(), key=lambda case: case.group):
        *forms, anchor = group
        assert forms[0].form == "naive"
        assert anchor.form == "softmax attention"
        want = forms[0].function()
        for case in forms[1:]:
            assert_close(case.form, case.function(), want, rtol=1e-5)
        assert anchor.function().numel() == want.numel()


def test_molecules_have_rings():
    graph = ops.molecules(2, 30)
    assert graph.num_graphs == 2
    assert graph.num_edges == 2 * (29 + 3)


def test_command_writes_a_row_per_case(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "cases", small_cases)
    file = tmp_path / "new" / "ops.jsonl"
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--repeats=1", f"--out={file}"])
    command.main()
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(row["group"], row["form"]) for row in rows] == [
        (case.group, case.form) for case in small_cases()
    ]
    assert all(row["forward_ms"] > 0 and row["torch"] == torch.__version__ for row in rows)
    printed = capsys.readouterr().out
    assert printed.count("| softmax attention |") == 3


def test_peak_memory_sees_a_large_tensor():
    peak = peak_mib(lambda: torch.zeros(64, 2**20 // 4).add(1))  # twice 64 MiB
    if peak is None:
        pytest.skip("the system does not tell the peak of the resident memory")
    assert 60 < peak < 200


def test_median_counts_calls():
    calls = []
    assert median_ms(lambda: calls.append(1), repeats=4) >= 0
    assert len(calls) == 5


def test_peak_memory_is_not_hidden_by_what_was_freed_before():
    def work() -> None:
        blocks = [torch.zeros(2**18) for _ in range(64)]  # 1 MiB each
        assert blocks

    first, second = peak_mib(work), peak_mib(work)
    if first is None:
        pytest.skip("the system does not tell the peak of the resident memory")
    assert 60 < first < 100
    assert second == pytest.approx(first, rel=0.1)
