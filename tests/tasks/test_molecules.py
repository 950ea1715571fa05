"""MoleculesData: reading, splits, cache, predictions, errors; BBBP and ESOL if they are there."""

import csv
import gzip
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch_geometric.utils import from_smiles

import tasks.molecule_graphs
from plstm.extras import MissingExtra
from plstm.graph import LineGraph, ToDag
from tasks.molecule_graphs import MoleculeGraphs
from tasks.molecules import MoleculesData
from tasks.smiles import ATOM_SIZES, BOND_SIZES, fingerprint, read_molecule
from tasks.splits import named_split, random_split, scaffold_split
from tasks.tables import read_table
from tests.graph.graphs import REAL_DATA
from tests.tasks.runs import folder_of, metrics_of, run

ODD = ["C", "[Na+].[Cl-]", "c1ccccc1O", "C/C=C/C", "N[C@@H](C)C(=O)O", "[2H]O[2H]"]
STRANGE = (  # of a stranger: byte-order mark, Windows line ends, blank line, commas in quotes
    "\ufeffname, smiles ,tox,logS,set\r\n"
    '"a, b",CCO,1,-0.5,train\r\n'
    "again,OCC ,0,,train\r\n"
    "none,,1,2,train\r\n"
    "\r\n"
    "open,C1CC,1,2,train\r\n"
    "carbon,CC(C)(C)(C)C,1,2,train\r\n"
    "unmeasured,CCC,,NA,train\r\n"
    "salt,[Na+].[Cl-],0,1e1,valid\r\n"
    "methane,C,1,3,Test\r\n"
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")


def write(file: Path, text: str) -> str:
    file.write_bytes(text.encode())
    return str(file)


def strange(folder: Path, **options: object) -> MoleculesData:
    path = write(folder / "strange.csv", STRANGE)
    return MoleculesData(path, **{"targets": ["tox", "logS"], "split": "set", **options})


def table(folder: Path, count: int = 40, **options: object) -> MoleculesData:
    """Chains and rings with the number of atoms as the target."""
    rows = [f"{'C' * (1 + i)},{1 + i}" for i in range(count // 2)]
    rows += [f"C1{'C' * (2 + i)}1{'N' * (i % 3)},{3 + i}" for i in range(count - count // 2)]
    path = write(folder / "table.csv", "\n".join(["smiles,size", *rows]))
    return MoleculesData(path, "size", **options)


@pytest.mark.parametrize("smiles", ODD)
def test_graphs_are_those_of_pyg(smiles: str) -> None:
    graph, want = read_molecule(smiles).graph, from_smiles(smiles)
    starts = torch.tensor([0, *np.cumsum(ATOM_SIZES)[:-1]])
    assert torch.equal(graph.x - starts, want.x)
    assert graph.x.max() < sum(ATOM_SIZES) and (graph.edge_attr < sum(BOND_SIZES)).all()
    assert torch.equal(graph.edge_index, want.edge_index)
    starts = torch.tensor([0, *np.cumsum(BOND_SIZES)[:-1]])
    assert torch.equal(graph.edge_attr - starts, want.edge_attr)


def test_scaffolds_and_canonical_names() -> None:
    assert read_molecule("OCC").canonical == read_molecule("CCO").canonical
    assert read_molecule("CCc1ccccc1").scaffold == "c1ccccc1"
    assert read_molecule("CCC").scaffold == ""


@pytest.mark.parametrize(
    ("smiles", "reason"),
    [
        ("", "no SMILES"),
        ("C1CC", "not a valid SMILES"),
        ("ethanol", "not a valid SMILES"),
        ("C(C)(C)(C)(C)C", "Explicit valence for atom # 0 C, 5"),
        ("c1cccc1", "Can't kekulize mol"),
    ],
)
def test_reasons_of_refusal(smiles: str, reason: str, capfd) -> None:
    with pytest.raises(ValueError, match=reason):
        read_molecule(smiles)
    assert capfd.readouterr().err == ""  # rdkit itself is silent


def test_fingerprints_tell_molecules_apart() -> None:
    first, second = fingerprint("CCO"), fingerprint("c1ccccc1O")
    assert first.shape == (2048,) and set(first) == {0, 1}
    assert not np.array_equal(first, second)
    assert np.array_equal(first, fingerprint("OCC"))


def test_a_strangers_table(tmp_path: Path) -> None:
    data = strange(tmp_path)
    read = read_table(data.hparams.path)
    assert read.columns == ["name", "smiles", "tox", "logS", "set"]
    assert [row.line for row in read.rows] == [2, 3, 4, 6, 7, 8, 9, 10]
    assert read.column("name")[0] == "a, b"
    assert data.dataset.rows.tolist() == [0, 1, 5, 6, 7]
    want = [[1, -0.5], [0, math.nan], [math.nan, math.nan], [0, 10], [1, 3]]
    assert torch.equal(data.targets.nan_to_num(-9), torch.tensor(want).nan_to_num(-9))
    splits = {name: part.tolist() for name, part in data.splits.items()}
    assert splits == {"train": [0, 1], "val": [3], "test": [4]}
    assert (data.in_dim, data.out_dim, data.target_names) == (177, 2, ["tox", "logS"])
    assert data.net_args == {"edge_dim": 30, "node_columns": 9, "edge_columns": 3}
    batch = next(iter(data.val_dataloader()))
    assert batch.num_nodes == 2 and batch.edge_index.shape == (2, 0)  # two ions
    assert batch.y.tolist() == [[0, 10]] and batch.num_graphs == 1
    assert data.node_names[6] == "C" and data.node_names[11] == "Na"


def test_compressed_tables_are_read(tmp_path: Path) -> None:
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(STRANGE.encode()))
    write(tmp_path / "t.csv", STRANGE)
    plain, packed = read_table(tmp_path / "t.csv"), read_table(tmp_path / "t.csv.gz")
    assert [row.cells for row in plain.rows] == [row.cells for row in packed.rows]


def test_what_is_said_of_a_table(workplace: Path, caplog) -> None:
    Path("strange.csv").write_bytes(STRANGE.encode())
    arguments = ["--data.path=strange.csv", "--data.targets=[tox, logS]", "--data.split=set"]
    cli = run("fit", "molecules", *arguments, "--model=Regression")
    said = caplog.text
    assert "8 rows, 2 train, 1 val, 1 test; 4 are left out (line 4: no SMILES)" in said
    assert "1 repeat the molecule of another row" in said
    assert "3 of 10 targets were not measured" in said
    with open(folder_of(cli) / "refused_rows.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["line"], row["smiles"]) for row in rows] == [
        ("4", ""),
        ("6", "C1CC"),
        ("7", "CC(C)(C)(C)C"),
        ("8", "CCC"),
    ]
    assert [row["reason"] for row in rows][::3] == ["no SMILES", "no target was measured"]
    metrics = metrics_of(cli)
    assert metrics["val/rmse/tox"] >= 0 and "val/r2" not in metrics  # of one molecule


@pytest.mark.parametrize("module", ["MultiLabel", "Regression"])
def test_predictions_for_a_new_table(workplace: Path, module: str) -> None:
    first = folder_of(run("fit", "molecules", f"--model={module}"))
    arguments = [first / "config.yaml", f"--ckpt_path={first / 'checkpoints' / 'best.ckpt'}"]
    Path("new.csv").write_bytes(STRANGE.encode())
    Path("molecules.csv").unlink()  # it is not needed any more
    cli = run("predict", *arguments, "--data.predict_path=new.csv")
    with open(folder_of(cli) / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["line", "smiles", "toxic", "reason"]
    assert [row["line"] for row in rows] == ["2", "3", "4", "6", "7", "8", "9", "10"]
    assert rows[2]["toxic"] == "" and rows[2]["reason"] == "no SMILES"
    saved = torch.load(folder_of(cli) / "predictions.pt", weights_only=True)[""][:, 0]
    told = [float(row["toxic"]) for row in rows if not row["reason"]]
    assert told == pytest.approx(saved.tolist(), rel=1e-5)
    assert len(told) == 5
    assert told[0] == pytest.approx(told[1], abs=1e-5)  # one molecule, written in two ways
    assert (folder_of(cli) / "gating_graph.png").exists()
    limited = run(
        "predict",
        *arguments,
        "--data.predict_path=new.csv",
        "--data.batch_size=2",
        "--trainer.limit_predict_batches=1",
    )
    with open(folder_of(limited) / "predictions.csv", newline="") as file:
        reasons = [row["reason"] for row in csv.DictReader(file)]
    assert reasons.count("not predicted") == 3 and reasons.count("") == 2


def test_predictions_for_the_test_set(workplace: Path) -> None:
    cli = run("predict", "molecules")
    with open(folder_of(cli) / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["line"]) for row in rows] == list(range(26, 34))
    assert (folder_of(cli) / "targets.png").exists()


def test_resumed_runs_go_on_with_the_same_file_only(workplace: Path) -> None:
    folder = folder_of(run("fit", "molecules"))
    again = run("fit", "molecules", f"--resume={folder}")
    assert folder_of(again) == folder
    Path("molecules.csv").write_text(Path("molecules.csv").read_text() + "CCCl,1,2,train\n")
    with pytest.raises(ValueError, match=r"molecules\.csv has changed"):
        run("fit", "molecules", f"--resume={folder}")


def test_scaffold_split_keeps_scaffolds_together() -> None:
    scaffolds = ["a"] * 5 + ["b"] * 3 + ["c", "d", "b", "e", "", ""]  # 14: 10 train, 2 val, 2 test
    splits = scaffold_split(scaffolds, (0.15, 0.15))
    parts = {name: [scaffolds[i] for i in part] for name, part in splits.items()}
    assert parts == {
        "train": [*"aaaaabbb", "b", "e"],  # of the single ones the last
        "val": ["", ""],  # two have no room to train
        "test": ["c", "d"],
    }
    assert sorted(np.concatenate(list(splits.values())).tolist()) == list(range(14))


def test_random_split_keeps_molecules_together() -> None:
    molecules = [str(i % 20) for i in range(60)]
    splits = random_split(molecules, (0.1, 0.2), seed=0)
    parts = [{molecules[i] for i in part} for part in splits.values()]
    assert [len(part) for part in parts] == [14, 2, 4]
    assert len(set.union(*parts)) == 20
    again, other = random_split(molecules, (0.1, 0.2), 0), random_split(molecules, (0.1, 0.2), 1)
    assert all(np.array_equal(splits[name], again[name]) for name in splits)
    assert not np.array_equal(splits["test"], other["test"])


def test_named_split() -> None:
    splits = named_split(["train", "VALID", "test", "Training"], "set")
    assert {k: v.tolist() for k, v in splits.items()} == {"train": [0, 3], "val": [1], "test": [2]}


def test_files_are_splits(tmp_path: Path) -> None:
    names = {"path": "CCO,1\nbad,2", "val_path": "C,3", "test_path": "CC,4\nCCC,5"}
    paths = {k: write(tmp_path / f"{k}.csv", f"smiles,y\n{v}\n") for k, v in names.items()}
    data = MoleculesData(**paths, targets="y", split="files")
    assert {k: data.targets[v].flatten().tolist() for k, v in data.splits.items()} == {
        "train": [1],
        "val": [3],
        "test": [4, 5],
    }
    assert data.checksums.keys() == {"path.csv", "val val_path.csv", "test test_path.csv"}


def test_prepared_once_however_many_want_it(tmp_path: Path, monkeypatch) -> None:
    calls = []
    count = lambda text: calls.append(text) or read_molecule(text)  # noqa: E731
    monkeypatch.setattr(tasks.molecule_graphs, "read_molecule", count)
    with ThreadPoolExecutor() as pool:
        made = [pool.submit(MoleculeGraphs, ODD, ToDag()) for _ in range(3)]
        assert [len(x.result()) for x in made] == [len(ODD)] * 3
    assert calls == ODD
    MoleculeGraphs(ODD, ToDag("given"))
    MoleculeGraphs(ODD[:-1], ToDag())
    assert len(calls) == 3 * len(ODD) - 1  # another transform, other molecules


def test_batches_are_dags(tmp_path: Path) -> None:
    data = table(tmp_path, split="random", batch_size=7, order="random")
    seen = 0
    for batch in data.train_dataloader():
        seen += batch.num_graphs
        assert torch.equal(batch.batch.bincount().float(), batch.y[:, 0] + extra(batch))
        LineGraph.from_edges(batch.dag_edge_index, batch.num_nodes)  # acyclic
        assert batch.dag_edge_attr.dtype == torch.int64
    assert seen == len(data.splits["train"])


def extra(batch) -> torch.Tensor:
    """Nitrogens of every molecule, which its target does not count."""
    nitrogens = (batch.x[:, 0] == 7).float()
    return torch.zeros(batch.num_graphs).index_add(0, batch.batch, nitrogens)


def test_one_row_is_enough_to_predict(tmp_path: Path) -> None:
    path = write(tmp_path / "one.csv", "smiles\nCCO")
    data = MoleculesData("absent.csv", "y", predict_path=path)
    (batch,) = data.predict_dataloader()
    assert batch.num_nodes == 3 and batch.y.isnan().all()


def make(folder: Path, text: str, **options: object) -> object:
    path = write(folder / "t.csv", text)
    data = MoleculesData(path, **{"targets": "y", "split": "random", **options})
    return data.splits


ROWS = "\n".join(f"{'C' * (i + 1)},{i},train" for i in range(20))
WRONG = {
    "no column": ("SMILES;y\nC;1", {}, r"one column 'smiles', t\.csv has 'SMILES;y'; .*commas"),
    "no target": (
        f"smiles,y,z\n{ROWS}",
        {"targets": ["Y"]},
        r"one column 'Y', t\.csv has 'smiles'",
    ),
    "twice": ("smiles,y,y\nC,1,2", {}, r"one column 'y', t\.csv has 'smiles', 'y', 'y'"),
    "text": ("smiles,y\nC,1\nCC,>10", {}, r"got '>10' in column 'y', line 3 of t\.csv"),
    "infinite": ("smiles,y\nC,inf", {}, "got 'inf' in column 'y', line 2"),
    "empty": ("smiles,y\n\n", {}, r"has no rows under its header \['smiles', 'y'\]"),
    "nothing": ("", {}, r"has no rows under its header \[\]"),
    "long": ("smiles,y\nC,1,2", {}, r"line 2 of .*t\.csv has 3 cells, the header 2"),
    "names": ("smiles,y\nethanol,1\nwater,2", {}, r"any of the 2 SMILES.*'ethanol' \(not a valid"),
    "few": ("smiles,y\nC,1\nCC,2", {}, r"got none in val and test \(2 in train, 0 in val"),
    "one scaffold": (f"smiles,y,z\n{ROWS}", {"split": "scaffold"}, "got none in train and val"),
    "split": (f"smiles,y,z\n{ROWS}", {"split": "y"}, "train, val or test in every row, got '0'"),
    "shares": ("smiles,y\nC,1", {"val_share": 0.6, "test_share": 0.5}, "leave some to train"),
    "no targets": ("smiles,y\nC,1", {"targets": []}, "targets must be different columns, one or"),
    "files": ("smiles,y\nC,1", {"val_path": "v.csv"}, 'are for split "files", which needs both'),
}


@pytest.mark.parametrize(("text", "options", "message"), WRONG.values(), ids=WRONG)
def test_wrong_tables(tmp_path: Path, text: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(tmp_path, text, **options)


def test_files_that_are_no_tables(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no file"):
        read_table(tmp_path / "none.csv")
    (tmp_path / "x.csv").write_bytes(b"smiles\n\xff\xfe")
    with pytest.raises(ValueError, match="is not a CSV file in UTF-8"):
        read_table(tmp_path / "x.csv")
    (tmp_path / "x.csv.gz").write_bytes(b"smiles\nC\n")
    with pytest.raises(ValueError, match="is not a CSV file in UTF-8"):
        read_table(tmp_path / "x.csv.gz")


def test_absent_rdkit_is_named(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "rdkit", None)
    message = r'MoleculesData needs rdkit, .* pip install "plstm\[molecules\]"'
    with pytest.raises(MissingExtra, match=message):
        MoleculeGraphs(["C"], ToDag())


@pytest.mark.parametrize(
    ("name", "target", "rows"),
    [
        ("BBBP", "p_np", 2039),
        ("esol_delaney-processed", "measured log solubility in mols per litre", 1128),
    ],
)
def test_moleculenet_tables(name: str, target: str, rows: int) -> None:
    path = REAL_DATA / "moleculenet" / f"{name}.csv.gz"
    if not path.exists():
        pytest.skip("needs the MoleculeNet files")
    read = read_table(path)
    assert len(read.rows) == rows
    assert np.isfinite(read.numbers([target])).all()
