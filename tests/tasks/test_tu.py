"""TUData: a data set written by hand, its folds and cache, and MUTAG if it is there."""

import os
import shutil
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch_geometric.datasets import TUDataset

from plstm.graph import LineGraph, ToDag
from plstm.graph.prepared import line_graph
from tasks.tu import DagTUDataset, TUData
from tests.graph.graphs import real_tu_root

COUNT = 24  # graphs; graph i is a path of 2 + i % 3 nodes and has label i % 2


def write_tiny(root: Path, name: str = "TINY", attributes: bool = True) -> Path:
    """Raw TU files: numbers from 1, both directions of every edge, labels -1 and 1."""
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    edges, graph, labels, bonds, first = [], [], [], [], 1
    for i in range(COUNT):
        size = 2 + i % 3
        for a in range(first, first + size - 1):
            edges += [(a, a + 1), (a + 1, a)]
            bonds += [a % 2, a % 2]
        graph += [i + 1] * size
        labels += [(a + i) % 3 for a in range(size)]
        first += size

    def write(what: str, rows: list) -> None:
        (raw / f"{name}_{what}.txt").write_text("\n".join(map(str, rows)) + "\n")

    write("A", [f"{a}, {b}" for a, b in edges])
    write("graph_indicator", graph)
    write("graph_labels", [1 - 2 * (i % 2) for i in range(COUNT)])
    if attributes:
        write("node_labels", labels)
        write("edge_labels", bonds)
        write("edge_attributes", [f"{0.5 * b + 7}" for b in bonds])
    return root


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny(tmp_path)


def make(root: Path, **options: object) -> TUData:
    return TUData("TINY", str(root), **{"num_folds": 4, "batch_size": 5, **options})


def test_sizes_are_known_before_setup(tiny: Path) -> None:
    data = make(tiny)
    assert (data.in_dim, data.out_dim, data.net_args) == (3, 2, {"edge_dim": 2})
    assert data.eval_names == [""]


def test_classes_have_the_labels_of_the_file(tiny: Path) -> None:
    data = make(tiny)
    assert data.class_names == ["-1", "1"]
    assert data.dataset[0].y == 1  # the first graph has the label 1
    assert data.dataset[1].y == 0


def test_atoms_have_names_where_a_description_lists_all(tiny: Path) -> None:
    assert make(tiny).node_names is None
    file = tiny / "TINY" / "raw" / "README.txt"
    file.write_text("Node labels:\n\n  0  C\n  1  Cl\n\nEdge labels:\n\n  0  aromatic\n  2  3\n")
    assert make(tiny).node_names is None  # of three kinds
    file.write_text("Node labels:\n\t0\tC  \n\t1\tCl \n\t2\tN\nEdge labels:\n  0  aromatic\n")
    assert make(tiny).node_names == ["C", "Cl", "N"]


class Counted(ToDag):
    """Counts the graphs it prepares, and may fail."""

    count = 0
    fails = False

    def forward(self, data):
        time.sleep(0.01)
        Counted.count += 1
        if Counted.fails:
            raise KeyboardInterrupt
        return super().forward(data)


@pytest.fixture
def counted():
    Counted.count, Counted.fails = 0, False
    return Counted()


def test_prepared_once_however_many_want_it(tiny: Path, counted: Counted) -> None:
    with ThreadPoolExecutor() as pool:  # the lock holds for threads as it does for processes
        made = [pool.submit(DagTUDataset, str(tiny), "TINY", counted) for _ in range(3)]
        assert [len(x.result()) for x in made] == [COUNT] * 3
    assert Counted.count == COUNT


def test_interrupted_preparation_is_made_again(tiny: Path, counted: Counted) -> None:
    Counted.fails = True
    with pytest.raises(KeyboardInterrupt):
        DagTUDataset(str(tiny), "TINY", counted)
    Counted.fails, Counted.count = False, 0
    assert len(DagTUDataset(str(tiny), "TINY", counted)) == Counted.count == COUNT
    assert {path.name for path in (tiny / "TINY").iterdir() if "partial" in path.name} == set()


def test_prepared_data_is_read_where_nobody_may_write(tiny: Path, counted: Counted) -> None:
    DagTUDataset(str(tiny), "TINY", counted)
    (tiny / "TINY" / "preparing.lock").unlink()
    assert len(DagTUDataset(str(tiny), "TINY", counted)) == COUNT
    assert not (tiny / "TINY" / "preparing.lock").exists()
    assert Counted.count == COUNT


def test_changed_files_never_come_from_the_cache(tiny: Path) -> None:
    before = make(tiny).dataset
    file = tiny / "TINY" / "raw" / "TINY_graph_labels.txt"
    labels = file.read_text().split()
    file.write_text("".join(f"{label}\n" for label in labels[::-1]))
    after = make(tiny).dataset
    assert torch.equal(after.y, before.y.flip(0)) and not torch.equal(after.y, before.y)
    assert after.checksums.keys() == before.checksums.keys()
    changed = {name for name, old in before.checksums.items() if after.checksums[name] != old}
    assert changed == {"TINY_graph_labels.txt"}


WRONG_FILES = {
    "graph_labels": {
        lambda text: text + "1\n": f"graph_labels.txt has {COUNT + 1} lines for {COUNT} graphs",
        lambda text: text.rstrip(): "the last line of TINY_graph_labels.txt must end in a line b",
        lambda text: None: "TINY_graph_labels.txt is missing",
    },
    "node_labels": {lambda text: text + "1\n": "node_labels.txt has 73 lines for 72 nodes"},
    "edge_labels": {lambda text: text + "1\n": "edge_labels.txt has 97 lines for 96 edges"},
    "edge_attributes": {lambda text: "7\n": "edge_attributes.txt has 1 lines for 96 edges"},
    "graph_indicator": {lambda text: "2" + text[1:]: "graph_indicator.txt must not decrease"},
    "A": {
        lambda text: text + "1, 3\n": "A.txt joins nodes of different graphs",
        lambda text: text + "0, 1\n": r"A.txt has nodes outside 1\.\.72",
    },
}


@pytest.mark.parametrize(
    ("what", "change", "message"),
    [(what, change, text) for what, cases in WRONG_FILES.items() for change, text in cases.items()],
)
def test_files_that_do_not_fit_one_another(tiny: Path, what, change, message) -> None:
    file = tiny / "TINY" / "raw" / f"TINY_{what}.txt"
    text = change(file.read_text())
    file.unlink() if text is None else file.write_text(text)
    with pytest.raises(ValueError, match=rf"TUData: the files of TINY in .*\(.*{message}") as got:
        make(tiny).dataset  # noqa: B018
    assert "remove" not in str(got.value)


def test_data_that_cannot_be_written_are_prepared_elsewhere(
    tiny: Path, monkeypatch, caplog
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tiny / "cache"))
    monkeypatch.setattr(os, "access", lambda folder, mode: False)  # the superuser writes anywhere
    before = set((tiny / "TINY").rglob("*"))
    data = make(tiny)
    assert len(data.dataset) == COUNT
    assert set((tiny / "TINY").rglob("*")) == before
    cache = tiny / "cache" / "plstm" / "tu" / "TINY"
    assert Path(data.dataset.processed_dir).parent == cache
    assert f"TINY cannot be written; prepared graphs are stored in {cache}" in caplog.text


def test_download_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch) -> None:
    def download(self: TUDataset) -> None:
        written = write_tiny(tmp_path / "source") / "TINY" / "raw"
        for file in written.iterdir():
            file.rename(Path(self.raw_dir, file.name))
            if fails:
                raise ConnectionError("lost")

    monkeypatch.setattr(TUDataset, "download", download)
    fails = True
    with pytest.raises(
        OSError, match=r"could not download TINY \(lost\).*put its files into .*raw$"
    ):
        make(tmp_path).dataset  # noqa: B018
    assert not (tmp_path / "TINY" / "raw").exists()
    shutil.rmtree(tmp_path / "source")
    fails = False
    assert len(make(tmp_path).dataset) == COUNT
    assert {x.name for x in (tmp_path / "TINY").iterdir() if x.name.endswith("partial")} == set()


def test_graphs_without_labels(tmp_path: Path) -> None:
    data = make(write_tiny(tmp_path, attributes=False))
    assert (data.in_dim, data.net_args) == (1, {"edge_dim": 0})
    batch = next(iter(data.train_dataloader()))
    assert batch.x is None and batch.num_nodes == batch.batch.numel()
    assert line_graph(batch).num_nodes == batch.num_nodes


@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches(tiny: Path, num_workers: int) -> None:
    data = make(tiny, num_workers=num_workers)
    seen = 0
    for batch in data.train_dataloader():
        seen += batch.num_graphs
        graph = line_graph(batch)
        want = LineGraph.from_edges(graph.edge_index, graph.num_nodes, batch.batch)
        assert torch.equal(graph.edge_level, want.edge_level)
        assert torch.equal(graph.reverse().edge_level, want.reverse().edge_level)
        assert set(map(tuple, graph.line_index.T.tolist())) == set(
            map(tuple, want.line_index.T.tolist())
        )
        assert batch.dag_edge_attr.shape == (graph.num_edges, 2)  # labels, no attributes
        assert torch.equal(batch.dag_edge_attr.sum(1), torch.ones(graph.num_edges))
        assert set(batch.y.tolist()) <= {0, 1}
    assert seen == len(data.splits["train"])


def test_training_order_depends_on_seed_and_epoch_only(tiny: Path) -> None:
    def first_epochs(seed: int) -> list[list[int]]:
        loader, orders = make(tiny, seed=seed).train_dataloader(), []
        for epoch in range(2):
            loader.batch_sampler.sampler.set_epoch(epoch)
            orders.append(list(loader.batch_sampler))
        return orders

    assert first_epochs(0) == first_epochs(0) != first_epochs(1)
    assert first_epochs(0)[0] != first_epochs(0)[1]


def test_folds_are_disjoint_complete_and_stratified(tiny: Path) -> None:
    tests = []
    for fold in range(4):
        data = make(tiny, fold=fold)
        parts = [data.splits[name] for name in ("train", "val", "test")]
        assert sorted(np.concatenate(parts).tolist()) == list(range(COUNT))
        assert len(parts[1]) == 2  # a ninth of 18
        for part in parts:
            assert data.dataset.y[part].float().mean() == 0.5
        tests.append(parts[2])
    assert sorted(np.concatenate(tests).tolist()) == list(range(COUNT))
    again, other = make(tiny).splits["test"], make(tiny, seed=1).splits["test"]
    assert np.array_equal(tests[0], again) and not np.array_equal(tests[0], other)


@pytest.mark.parametrize("fold", [-1, 4])
def test_fold_out_of_range(tiny: Path, fold: int) -> None:
    with pytest.raises(ValueError, match=r"TUData: fold must lie in 0\.\.3 with num_folds=4"):
        make(tiny, fold=fold)


def test_another_transform_never_reads_the_old_cache(tiny: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PyG warns when it finds another transform's data
        sets = [
            DagTUDataset(str(tiny), "TINY", transform)
            for transform in (ToDag(), ToDag("given"), ToDag("random", 0), ToDag("random", 1))
        ]
        again = DagTUDataset(str(tiny), "TINY", ToDag("given"))
    assert len({data.processed_dir for data in sets}) == len(sets)
    assert again.processed_dir == sets[1].processed_dir
    assert torch.equal(again.dag_edge_index, sets[1].dag_edge_index)
    assert not torch.equal(sets[0].dag_edge_index, sets[2].dag_edge_index)


def test_random_order_augments_training_only(tiny: Path) -> None:
    data = make(tiny, order="random")
    train, size = data.train_dataloader().collate_fn, len(data.splits["train"])
    numbers = list(range(size))
    first, second = (train([epoch * size + i for i in numbers]) for epoch in (0, 1))
    assert torch.equal(first.edge_index, second.edge_index)
    assert not torch.equal(first.dag_edge_index, second.dag_edge_index)
    assert torch.equal(first.dag_edge_index, train(numbers).dag_edge_index)
    val = data.val_dataloader().collate_fn
    assert torch.equal(val(numbers).dag_edge_index, val(numbers).dag_edge_index)
    stored = make(tiny, order="bfs").train_dataloader().collate_fn
    again = stored([size + i for i in numbers])
    assert torch.equal(stored(numbers).dag_edge_index, again.dag_edge_index)


def test_position_codes_have_new_signs_in_training_only(tiny: Path) -> None:
    data = make(tiny, random_walk=2, laplacian=3)
    assert data.net_args == {"edge_dim": 2, "code_dim": 5}
    train, size = data.train_dataloader().collate_fn, len(data.splits["train"])
    numbers = list(range(size))
    first, second = (train([epoch * size + i for i in numbers]).position_code for epoch in (0, 1))
    assert torch.equal(first[:, :2], second[:, :2])
    assert torch.equal(first[:, 2:].abs(), second[:, 2:].abs())
    assert not torch.equal(first, second)
    assert torch.equal(first, train(numbers).position_code)
    (batch,) = (val for val in data.val_dataloader() if val.num_graphs == 2)
    stored = [data.dataset[int(i)].position_code for i in data.splits["val"]]
    assert torch.equal(batch.position_code, torch.cat(stored))


def test_other_position_codes_never_come_from_the_cache(tiny: Path) -> None:
    choices = ({}, {"random_walk": 2}, {"random_walk": 3}, {"laplacian": 2})
    sets = [make(tiny, **codes).dataset for codes in choices]
    assert len({data.processed_dir for data in sets}) == len(sets)
    assert [data[0].get("position_code", torch.ones(0)).shape[-1] for data in sets] == [0, 2, 3, 2]


def test_mutag(tmp_path: Path) -> None:
    data = TUData("MUTAG", str(real_tu_root("MUTAG", tmp_path)))
    assert (data.in_dim, data.out_dim, data.net_args) == (7, 2, {"edge_dim": 4})
    assert [len(data.splits[s]) for s in ("train", "val", "test")] == [150, 19, 19]
    for item in data.dataset:
        graph = LineGraph.from_edges(item.dag_edge_index, item.num_nodes)  # acyclic
        assert graph.num_edges == item.edge_index.shape[1] // 2
        assert torch.equal(graph.edge_level, item.edge_level)


def test_batches_carry_plans_and_move_at_once(tiny: Path) -> None:
    without = next(iter(make(tiny, plans=False).val_dataloader()))
    assert "line_entries" not in without and "planned" not in without
    data = make(tiny)
    batch = next(iter(data.val_dataloader()))
    moved = data.transfer_batch_to_device(batch, torch.device("meta"), 0)
    assert moved.x.is_meta and moved.line_entries.is_meta
    assert moved.line_sizes.device.type == "cpu"  # loops over levels read it
