"""Files of DAGs: valid and invalid files, and the resulting data."""

import csv
import gzip
import json
import lzma
from pathlib import Path

import pytest
import torch
from torch_geometric.data import Data, InMemoryDataset

from plstm.graph import LineGraph
from tasks.dag_files import architecture, read_dags
from tasks.dags import DagsData
from tests.graph.graphs import REAL_DATA
from tests.tasks.runs import folder_of, run

DAG = {"nodes": ["in", "a", "out"], "edges": [[0, 1], [1, 2]], "target": 1.5}


def write(folder: Path, *dags: dict | str, name: str = "dags.jsonl") -> Path:
    lines = [dag if isinstance(dag, str) else json.dumps(dag) for dag in dags]
    path = folder / name
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def test_lines_become_graphs(tmp_path: Path) -> None:
    other = {"nodes": ["out", "b"], "edges": [[1, 0]], "target": None}
    graphs, lines, kinds = read_dags(write(tmp_path, DAG, "", other))
    assert lines == [1, 3]
    assert kinds == ["a", "b", "in", "out"]
    assert [graph.x.argmax(1).tolist() for graph in graphs] == [[2, 0, 3], [3, 1]]
    assert all(torch.equal(graph.x.sum(1), torch.ones(graph.num_nodes)) for graph in graphs)
    assert [graph.edge_index.tolist() for graph in graphs] == [[[0, 1], [1, 2]], [[1], [0]]]
    assert graphs[0].y.tolist() == [[1.5]] and graphs[1].y.isnan().all()


def test_features_and_several_targets(tmp_path: Path) -> None:
    dag = {"nodes": [[0.5, 2], [1, -1]], "edges": [], "target": [1, None]}
    (graph,), _, kinds = read_dags(write(tmp_path, dag))
    assert graph.x.tolist() == [[0.5, 2], [1, -1]] and kinds == []
    assert graph.edge_index.shape == (2, 0)
    assert graph.y[0, 0] == 1 and graph.y[0, 1].isnan()


@pytest.mark.parametrize("known", [["out", "in", "a", "more"], None])
def test_kinds_of_another_file(tmp_path: Path, known: list[str] | None) -> None:
    (graph,), _, kinds = read_dags(write(tmp_path, DAG), known)
    assert kinds == (known or ["a", "in", "out"])
    assert graph.x.argmax(1).tolist() == ([1, 2, 0] if known else [1, 0, 2])


@pytest.mark.parametrize("opener", [gzip.open, lzma.open])
def test_packed_files(tmp_path: Path, opener) -> None:
    path = tmp_path / ("dags.gz" if opener is gzip.open else "dags.xz")
    with opener(path, "wt", encoding="utf-8") as file:
        file.write("\ufeff" + json.dumps(DAG) + "\r\n")  # as some editors begin and end lines
    (graph,), *_ = read_dags(path)
    assert graph.num_nodes == 3


def test_architectures(tmp_path: Path) -> None:
    dag = architecture([[1], [4, 0], [5, 1, 0]], 0.7)
    assert dag.nodes == ["input", "1", "4", "5", "output"]
    assert dag.edges == [(0, 1), (1, 2), (2, 3), (3, 4), (0, 3)]
    (graph,), _, kinds = read_dags(write(tmp_path, "[[1], [4, 0], [5, 1, 0]], 0.7"))
    assert kinds == ["1", "4", "5", "input", "output"]
    assert graph.edge_index.T.tolist() == [list(edge) for edge in dag.edges]


def test_files_of_pyg(tmp_path: Path) -> None:
    edges = torch.tensor([[2, 0], [1, 2]])
    graphs = [
        Data(x=torch.randn(3, 2), edge_index=edges, edge_attr=torch.randn(2, 4), y=torch.tensor(n))
        for n in range(12)
    ]
    InMemoryDataset.save(graphs, tmp_path / "dags.pt")
    data = DagsData(str(tmp_path / "dags.pt"))
    assert (data.in_dim, data.out_dim, data.net_args) == (2, 1, {"edge_dim": 4})
    assert data.node_names is None
    item = data.dataset[7]
    assert torch.equal(item.x, graphs[7].x) and item.y == 7
    assert item.dag_edge_index.T.tolist() == [[0, 2], [2, 1]]
    assert torch.equal(item.dag_edge_attr, graphs[7].edge_attr[[1, 0]])
    graphs[3].edge_index = torch.tensor([[0, 1], [1, 0]])
    InMemoryDataset.save(graphs, tmp_path / "cycle.pt")
    with pytest.raises(ValueError, match=r"graph 3 of .*cycle.pt must have no cycle, .* 0, 1"):
        read_dags(tmp_path / "cycle.pt")
    (tmp_path / "no.pt").write_text("no")
    with pytest.raises(ValueError, match=r"no.pt must be a file of InMemoryDataset.save of PyG"):
        read_dags(tmp_path / "no.pt")


WRONG = {
    '{"nodes": ["a"], "edges": []}': "the target is missing",
    '{"nodes": ["a"], "edges": [], "target": 1, "size": 2}': "unknown size",
    '{"nodes": ["a"], "edges": [], "target": "x"}': "could not convert string to float: 'x'",
    '{"nodes": [], "edges": [], "target": 1}': "nodes must be one or more",
    '{"nodes": 3, "edges": [], "target": 1}': "nodes must be a list, got 3",
    '{"nodes": ["a", "b"], "edges": [[0, 2]], "target": 1}': r"two of the nodes 0\.\.1, got \[0, 2",
    '{"nodes": ["a", "b"], "edges": [[0, -1]], "target": 1}': r"nodes 0\.\.1, got \[0, -1\]",
    '{"nodes": ["a", "b"], "edges": [[0.0, 1]], "target": 1}': r"got \[0.0, 1\]",
    '{"nodes": ["a", "b"], "edges": [[0, 1, 1]], "target": 1}': r"got \[0, 1, 1\]",
    '{"nodes": ["a", "b"], "edges": [[0, 1], [0, 1]], "target": 1}': r"once, got \[0, 1\] twice",
    '{"nodes": ["a", "b"], "edges": [[0, 1], [1, 0]], "target": 1}': "no cycle, .* nodes 0, 1",
    '{"nodes": ["a"], "edges": [[0, 0]], "target": 1}': "no cycle, .* nodes 0;",
    '{"nodes": ["a"], "edges": [], "target": [1, 2]}': r"as many targets, 1, got \[1.0, 2.0\]",
    '{"nodes": [[1]], "edges": [], "target": 1}': "as in the first line",
    "nodes": "Expecting value",
    "[1, 2": "Expecting",
}


@pytest.mark.parametrize(("line", "message"), WRONG.items())
def test_wrong_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    path = write(tmp_path, DAG, line)
    with pytest.raises(ValueError, match=rf"DagsData: line 2 of .*dags.jsonl: .*{message}.*a line"):
        read_dags(path)


def test_wrong_features_kinds_and_files(tmp_path: Path) -> None:
    path = write(tmp_path, {"nodes": [[1], [1, 2]], "edges": [], "target": 1})
    with pytest.raises(ValueError, match=r"line 1 of .*every node must be a list of 1 numbers"):
        read_dags(path)
    path = write(tmp_path, {"nodes": [["x"]], "edges": [], "target": 1})
    with pytest.raises(ValueError, match=r"line 1 of .*'str'"):
        read_dags(path)
    with pytest.raises(ValueError, match="unknown kinds of nodes out, known are in, a"):
        read_dags(write(tmp_path, DAG), ["in", "a"])
    with pytest.raises(ValueError, match=r"there is no file .*none.jsonl; set --data.path"):
        read_dags(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match=r"dags.jsonl has no graphs; a line is {"):
        read_dags(write(tmp_path, ""))


def make(folder: Path, count: int = 20, **options: object) -> DagsData:
    dags = [DAG | {"target": n, "nodes": ["in"] * (n + 3)} for n in range(count)]
    path = write(folder, *dags)
    return DagsData(str(path), **{"batch_size": 3, **options})


def test_shares_are_disjoint_and_complete(tmp_path: Path) -> None:
    data = make(tmp_path, val_share=0.2, test_share=0.3)
    splits = data.splits
    assert [len(splits[name]) for name in ("train", "val", "test")] == [10, 4, 6]
    assert sorted(n for split in splits.values() for n in split) == list(range(20))
    assert torch.equal(data.training_targets.flatten(), torch.from_numpy(splits["train"]).float())
    other = make(tmp_path, val_share=0.2, test_share=0.3, seed=1).splits
    assert sorted(other["test"]) != sorted(splits["test"])


@pytest.mark.parametrize("shares", [(0.0, 0.1), (0.5, 0.5), (0.1, 0.01)])
def test_wrong_shares(tmp_path: Path, shares: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"val_share.* and test_share"):
        make(tmp_path, val_share=shares[0], test_share=shares[1]).splits  # noqa: B018


def test_edges_keep_their_directions_and_have_a_reverse(tmp_path: Path) -> None:
    dag = {"nodes": ["a", "b", "c"], "edges": [[2, 0], [1, 0], [2, 1]], "target": 1}
    others = [DAG | {"nodes": ["a"] * n} for n in range(3, 12)]
    data = DagsData(str(write(tmp_path, dag, *others)), random_walk=2)
    batch = data._batcher()([0])
    assert sorted(batch.dag_edge_index.T.tolist()) == sorted(dag["edges"])
    assert LineGraph.from_edges(batch.dag_edge_index, 3).num_pairs == batch.line_index.shape[1] == 1
    both = dag["edges"] + [[dst, src] for src, dst in dag["edges"]]
    assert sorted(batch.edge_index.T.tolist()) == sorted(both)
    assert data.net_args == {"edge_dim": 0, "encoding_dim": 2}
    assert torch.equal(batch.position_encoding[:, 0], torch.zeros(3))
    assert torch.equal(batch.position_encoding[:, 1], torch.full((3,), 0.5))  # on a triangle


def test_checksum_is_of_the_file(tmp_path: Path) -> None:
    first = make(tmp_path).checksums
    assert list(first) == ["dags.jsonl"]
    assert make(tmp_path, 21).checksums != first


def test_neural_architectures() -> None:
    """20,020 architectures of D-VAE; only the first lines are prepared here."""
    path = REAL_DATA / "dvae" / "enas_6_layers.txt.xz"
    if not path.exists():
        pytest.skip(f"needs {path.name}; set PLSTM_DATA to the folder of the data sets")
    graphs, lines, kinds = read_dags(path)
    assert lines == list(range(1, 20_021)) and kinds == [*"012345", "input", "output"]
    assert {graph.num_nodes for graph in graphs} == {8}
    accuracy = torch.cat([graph.y for graph in graphs])
    assert accuracy.min() > 0.70 and accuracy.max() < 0.76
    assert max(graph.num_edges for graph in graphs) <= 7 + 15


def test_equal_graphs_stay_together(tmp_path: Path) -> None:
    dags = [
        {"nodes": ["in", *"ab"[n % 2 : 1 + n % 2] * (1 + n // 4)], "edges": [], "target": n}
        for n in range(40)
    ]  # each comes twice
    data = DagsData(str(write(tmp_path, *dags)))
    of = {int(n): name for name, split in data.splits.items() for n in split}
    assert len(of) == 40
    assert all(of[n] == of[n + 2] for n in range(40) if n % 4 < 2)


@pytest.mark.usefixtures("workplace")
def test_another_file_is_predicted_line_by_line() -> None:
    """With the kinds of nodes that the net was trained with, and without targets."""
    folder = folder_of(run("fit", "dags"))
    lines = [json.loads(line) for line in Path("dags.jsonl").read_text().splitlines()[:5]]
    for line in lines:
        del line["target"]
    texts = ["", *map(json.dumps, lines[:3]), " ", *map(json.dumps, lines[3:])]
    Path("new.jsonl").write_text("\n".join(texts), "utf-8")
    checkpoint = f"--ckpt_path={folder / 'checkpoints' / 'last.ckpt'}"
    cli = run("predict", folder / "config.yaml", checkpoint, "--data.predict_path=new.jsonl")
    with (folder_of(cli) / "predictions.csv").open(newline="") as file:
        heading, *rows = csv.reader(file)
    assert heading == ["line", "target"]
    assert [int(row[0]) for row in rows] == [2, 3, 4, 6, 7]
    (batch,) = cli.datamodule.predict_dataloader()
    assert batch.num_graphs == 5 and batch.y.isnan().all()
    with torch.no_grad():
        want = cli.model.predicted(cli.model.eval()(batch)).flatten()
    assert [float(row[1]) for row in rows] == pytest.approx(want.tolist(), rel=1e-5)


@pytest.mark.usefixtures("workplace")
def test_a_checkpoint_knows_its_kinds_of_nodes() -> None:
    folder = folder_of(run("fit", "dags"))
    lines = Path("dags.jsonl").read_text().splitlines()
    Path("few.jsonl").write_text("\n".join(x for x in lines if '"b"' not in x), "utf-8")
    checkpoint = f"--ckpt_path={folder / 'checkpoints' / 'last.ckpt'}"
    cli = run("test", folder / "config.yaml", checkpoint, "--data.path=few.jsonl")
    assert cli.datamodule.node_names == ["a", "b", "c", "in", "out"]
