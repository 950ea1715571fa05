"""The benchmarks measure what they claim, on small cases."""

import json
import sys
from itertools import groupby
from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import __main__ as command
from benchmarks import counts, graphs, lanes, layers, measure, ops, results, speedup, steps
from benchmarks.case import Case, Setting, Work
from benchmarks.measure import conditions, median_ms, peak_mib
from benchmarks.plot import picture
from plstm.ops.flops import FORMULAS
from tests.helpers import assert_close
from tests.tasks.runs import TU_NAME

SETTING = Setting()
PNG = b"\x89PNG"


def small_ops():
    for length in (9, 128):
        yield from ops.sequence_cases(SETTING, batch=2, length=length, heads=2, width=16)
    for side in (3, 8):
        yield from ops.grid_cases(SETTING, batch=2, side=side, heads=2, width=16)
    for nodes in (8, 20):
        yield from ops.graph_cases(SETTING, batch=3, nodes=nodes, heads=2, width=4)


def small_layers():
    yield from layers.sequence_cases(SETTING, batch=1, length=128)
    yield from layers.grid_cases(SETTING, batch=1, rows=6, columns=8)
    yield from layers.graph_cases(SETTING, batch=3, nodes=20)


def small_lanes():
    sizes = {"batch": 2, "length": 9, "heads": 2, "key_width": 3}
    yield from lanes.lane_cases(SETTING, value_width=6, **sizes)


def two_sizes():
    for length in (9, 18):
        yield from ops.sequence_cases(SETTING, batch=2, length=length, heads=2, width=16)


def groups(cases):
    return [list(group) for _, group in groupby(cases, key=lambda case: case.group)]


def test_lanes_beside_one_lane():
    *cases, anchor = small_lanes()
    assert [case.form for case in cases] == ["2 lanes", "3 lanes"]  # 4 do not divide 6
    assert anchor.anchor
    for case in (*cases, anchor):
        work = case.make()
        assert work.forward().numel() == 2 * 9 * 2 * 6
        work.total()


def test_forms_of_a_group_agree_and_the_anchor_comes_last():
    for *forms, anchor in groups(small_ops()):
        assert [case.anchor for case in forms] == [False] * len(forms)
        assert anchor.anchor
        assert forms[0].form == "naive"
        want = forms[0].make().forward()
        for case in forms[1:]:
            assert_close(case.form, case.make().forward(), want, rtol=1e-5)
        assert anchor.make().forward().numel() == want.numel()


def test_layers_of_a_group_do_the_same_job():
    for *forms, anchor in groups(small_layers()):
        assert anchor.anchor
        assert len({case.make().forward().shape for case in [*forms, anchor]}) == 1


@pytest.mark.parametrize("subject", command.SUBJECTS)
def test_names_are_unique_and_long_cases_only_come_on_request(subject, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / graphs.ROOT / graphs.NAME / "raw").mkdir(parents=True)
    cases = list(command.SUBJECTS[subject](SETTING))
    names = [(case.group, case.form) for case in cases]
    assert len(set(names)) == len(names) > 0
    assert {case.subject for case in cases} == {subject}
    quick = list(command.chosen(cases, "", long=False))
    assert quick == [case for case in cases if not case.long]
    some = quick[-1].group
    assert {case.group for case in command.chosen(cases, some, long=True)} == {some}


def test_backward_reaches_every_input_and_weight():
    for case in [*small_ops(), *small_layers()]:
        case.make().total()  # raises for an input that is not used


def test_bfloat16():
    setting = Setting(dtype=torch.bfloat16)
    *_, case = ops.sequence_cases(setting, batch=1, length=5, heads=1, width=4)
    assert case.make().forward().dtype == torch.bfloat16
    layer, _ = layers.sequence_cases(setting, batch=1, length=5)
    work = layer.make()
    assert work.forward().dtype == torch.bfloat16
    full, _ = layers.sequence_cases(SETTING, batch=1, length=5)
    assert work.cost.bytes == full.make().cost.bytes / 2


def measured_flops(function):
    counter = FlopCounterMode(display=False, custom_mapping=FORMULAS)
    with counter, sdpa_kernel(SDPBackend.MATH):
        function()
    return counter.get_total_flops()


def test_counts_of_matrix_products_are_those_that_are_done():
    attention = [case for case in small_ops() if case.anchor and case.kind != "sequence"]
    for case in attention:
        work = case.make()
        assert measured_flops(work.total) == work.cost.flops
    rows = [case.make() for case in small_ops() if case.form == "rows"]
    for work in rows:
        assert measured_flops(work.forward) == pytest.approx(work.cost.flops / 3)
    (grid,) = groups(layers.grid_cases(SETTING, batch=1, rows=6, columns=8))
    work = grid[-1].make()
    assert measured_flops(work.forward) == pytest.approx(work.cost.flops / 3)


def test_counts_of_the_chunk_form():
    # The count omits work once per chunk, and redundant work of a form.
    chunk = [case for case in small_ops() if case.form == "chunk" and case.kind == "sequence"]
    work = chunk[-1].make()
    assert measured_flops(work.forward) == pytest.approx(work.cost.flops / 3, rel=0.2)


def test_counts_grow_as_they_should():
    def flops(form, length):
        return counts.plstm_1d_cost(form, 1, length, 1, 64).flops

    assert flops("chunk", 4096) == 4 * flops("chunk", 1024)
    assert flops("triton", 4096) == flops("chunk", 4096)
    attention = [counts.attention_cost(1, n, 1, 64, causal=True).flops for n in (1024, 4096)]
    assert attention[1] / attention[0] == pytest.approx(16, rel=1e-2)

    def grid(form, rows):
        return counts.plstm_2d_cost(form, 1, rows, 64, 1, 64)

    assert grid("chunk", 4) == grid("rows", 4)
    assert grid("chunk", 128).bytes < 2.5 * grid("chunk", 64).bytes
    assert grid("rows", 128).bytes > 3.5 * grid("rows", 64).bytes
    assert grid("triton", 64).flops < grid("rows", 64).flops


def test_molecules_have_rings():
    graph = ops.molecules(2, 30)
    assert graph.num_graphs == 2
    assert graph.num_edges == 2 * (29 + 3)


def test_the_second_call_of_a_step_trains_and_the_first_does_not(workplace):
    cli = steps.build("text", "plstm_text", "--data.path=input.txt", "--data.context=8")
    work = steps.training_step(SETTING, cli, next(iter(cli.datamodule.train_dataloader())))
    at_first = [p.detach().clone() for p in cli.model.net.parameters()]
    work.forward()
    assert all(map(torch.equal, at_first, cli.model.net.parameters()))
    work.total()
    assert not any(map(torch.equal, at_first, cli.model.net.parameters()))


@pytest.mark.parametrize("form", ["pLSTM", "softmax attention"])
def test_a_step_of_a_shipped_model_runs(workplace, form):
    cases = {(case.group.split()[0], case.form): case for case in steps.cases(SETTING)}
    assert len(cases) == 6
    work = cases["text", form].make()
    work.forward()
    work.total()


def test_an_epoch_uses_every_training_graph(workplace, monkeypatch):
    taken = []
    make_step = graphs.make_step

    def counted(*arguments):
        step = make_step(*arguments)
        return lambda batch: (taken.append(batch.num_graphs), step(batch))

    monkeypatch.setattr(graphs, "make_step", counted)
    cases = list(graphs.cases(SETTING, workplace / "tu", TU_NAME))
    assert [case.form for case in cases if case.anchor] == ["GIN", "GIN"]
    for case in cases:
        work = case.make()
        if work.forward:
            work.forward()
        work.total()
    assert taken == [32, 32, 32]  # 40 graphs, without a test fold of 4 and its validation graphs


def test_graphs_are_skipped_without_data(tmp_path, capsys):
    assert list(graphs.cases(SETTING, tmp_path)) == []
    assert "skipped NCI1" in capsys.readouterr().out


def test_command_writes_a_row_per_case_and_a_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "SUBJECTS", {"ops": lambda setting: two_sizes()})
    monkeypatch.setattr(command, "machine_rates", lambda *_: {"matmul_gflops": 1, "copy_gbs": 1})
    collected = []  # garbage collection is slow in a process with many modules
    monkeypatch.setattr(command, "gc", SimpleNamespace(collect=lambda: collected.append(True)))
    arguments = ["benchmarks", "ops", "--repeats=1", f"--out={tmp_path / 'new'}", "--name=try"]
    monkeypatch.setattr(sys, "argv", arguments)
    command.main()
    rows = results.read(tmp_path / "new" / "try.jsonl")
    assert [(row["group"], row["form"]) for row in rows] == [
        (case.group, case.form) for case in two_sizes()
    ]
    assert len(collected) == len(rows)
    for row in rows:
        assert row["forward_ms"] > 0
        assert row["total_ms"] > 0
        assert row["backward_ms"] == pytest.approx(row["total_ms"] - row["forward_ms"], abs=2e-3)
        assert row["gflop"] > 0
        assert row["torch"] == torch.__version__
        assert row["command"].startswith("python -m benchmarks ops --repeats=1")
    assert (tmp_path / "new" / "try.png").read_bytes().startswith(PNG)
    assert capsys.readouterr().out.count("| softmax attention |") == 2

    few = [case for case in two_sizes() if case.group.startswith("1-d op, 2 x 9 ")]
    monkeypatch.setattr(command, "SUBJECTS", {"ops": lambda setting: iter(few)})
    monkeypatch.setattr(sys, "argv", arguments)
    command.main()
    again = results.read(tmp_path / "new" / "try.jsonl")
    assert len(again) == len(rows)
    assert again[len(few) :] == rows[len(few) :]


def test_command_names_what_it_does_not_know(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        command.parse(["layrs"])
    assert "unknown layrs: choose from ops, lanes, layers" in capsys.readouterr().err


def row(form, total_ms, **fields):
    defaults = {"device": "cpu", "dtype": "float32", "group": "g", "anchor": False}
    return {**defaults, "form": form, "total_ms": total_ms, "peak_mib": 8.0, **fields}


def test_ratios_refer_to_the_anchor_of_the_group():
    rows = [row("a", 3.0), row("b", 2.0, anchor=True, peak_mib=16.0), row("a", 1.0, group="other")]
    results.add_ratios(rows)
    assert [r["time_ratio"] for r in rows] == [1.5, 1.0, None]
    assert [r["peak_ratio"] for r in rows] == [0.5, 1.0, None]


def test_speedup_joins_two_runs(tmp_path, monkeypatch, capsys):
    for name, ms in (("before", 6.0), ("after", 1.5)):
        rows = [row("a", ms), row("b", 2.0, anchor=True), row(f"only {name}", 1.0)]
        results.add_ratios(rows)
        (tmp_path / name).write_text("".join(json.dumps(r) + "\n" for r in rows))
    files = [str(tmp_path / name) for name in ("before", "after")]
    monkeypatch.setattr(sys, "argv", ["speedup", *files])
    speedup.main()
    lines = capsys.readouterr().out.splitlines()
    cells = [cell.strip() for cell in lines[2].split("|")]
    assert cells[1:8] == ["g", "a", "6.0", "1.5", "4.00", "3.00", "0.75"]
    assert len(lines) == 4  # two lines of head, a and b


def test_a_case_without_memory_is_left_out(capsys):
    def fail():
        raise RuntimeError("not enough memory: you tried to allocate 1 PiB")

    case = Case("ops", "grid", "g", "f", 1, 1, lambda: Work(fail, fail))
    assert command.run([case], {"device": "cpu"}, 1) == []
    assert "skipped g: f" in capsys.readouterr().out

    def broken():
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        command.run([case._replace(make=lambda: Work(broken, broken))], {"device": "cpu"}, 1)


def test_picture_has_a_line_per_form_with_several_sizes():
    where = {**conditions(), "commit": None, "device": "cpu", "dtype": "float32"}
    rows = [
        where | {**name, "batch": 2, "tokens": n, "anchor": False, "total_ms": n, "peak_mib": None}
        for n in (64, 16)
        for name in (
            {"subject": "layers", "kind": "sequence", "series": "", "form": "PLSTM1d"},
            {"subject": "ops", "kind": "grid", "series": "", "form": "rows"},
            {"subject": "steps", "kind": "grid", "series": "", "form": "pLSTM"},
        )
    ]
    panels = picture(rows).axes[::2]  # the upper ones
    assert [[line.get_label() for line in axes.lines] for axes in panels] == [
        ["layer: PLSTM1d"],
        ["op: rows"],
    ]
    assert list(panels[0].lines[0].get_xdata()) == [16, 64]
    assert list(panels[0].lines[0].get_ydata()) == [8, 32]  # per example
    assert picture([row for row in rows if row["subject"] == "steps"]) is None


def test_peak_memory_sees_a_large_tensor():
    peak = peak_mib(lambda: torch.zeros(64, 2**20 // 4).add(1))  # twice 64 MiB
    if peak is None:
        pytest.skip("the system does not tell the peak of the resident memory")
    assert 60 < peak < 200


def test_median_counts_calls():
    calls = []
    assert median_ms(lambda: calls.append(1), repeats=4) >= 0
    assert len(calls) == 5


def test_median_stops_when_time_is_up():
    calls = []
    median_ms(lambda: calls.append(1), repeats=100, budget_s=0.0)
    assert len(calls) == 2  # the warm-up took longer than the budget


def test_rates_of_the_machine_count_what_is_done(monkeypatch):
    products = []

    def half_a_second(function, repeats, device):
        with FlopCounterMode(display=False) as counter:
            products.append((function(), counter.get_total_flops()))
        return 500.0

    monkeypatch.setattr(measure, "median_ms", half_a_second)
    rates = measure.machine_rates()
    (_, flops), (copy, _) = products
    assert rates["matmul_gflops"] == pytest.approx(2e-9 * flops, rel=1e-2)
    assert rates["copy_gbs"] == pytest.approx(2e-9 * 2 * copy.nbytes, rel=1e-2)  # read and written
    assert (copy == 0).all()


def test_peak_memory_is_not_hidden_by_what_was_freed_before():
    def work() -> None:
        blocks = [torch.zeros(2**18) for _ in range(64)]  # 1 MiB each
        assert blocks

    first, second = peak_mib(work), peak_mib(work)
    if first is None:
        pytest.skip("the system does not tell the peak of the resident memory")
    assert 60 < first < 100
    assert second == pytest.approx(first, rel=0.1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_command_on_a_gpu(tmp_path, monkeypatch):
    def cases(setting):
        yield from ops.sequence_cases(setting, batch=2, length=128, heads=2, width=64)
        yield from layers.grid_cases(setting, batch=1, rows=6, columns=8)

    monkeypatch.setattr(command, "SUBJECTS", {"ops": cases})
    arguments = ["benchmarks", "--device=cuda", "--dtype=bfloat16", f"--out={tmp_path}"]
    monkeypatch.setattr(sys, "argv", arguments)
    command.main()
    rows = results.read(tmp_path / "speed.jsonl")
    assert all(row["peak_mib"] > 0 for row in rows)
