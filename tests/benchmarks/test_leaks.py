"""The table of accuracies from parts of an arrow-pointing image."""

import sys

from benchmarks import __main__ as command
from benchmarks import leaks
from benchmarks.leaks import PARTS, QUICKSTART

SETTINGS = {(32, 48): QUICKSTART, (192,): {}}


def test_table_has_every_size_and_placement(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(leaks, "SETTINGS", SETTINGS)
    sizes = ["--train_size=400", "--test_size=200", f"--out={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["benchmarks", "leaks", *sizes])
    command.main()
    head, _, *lines = (tmp_path / "leaks.md").read_text().split("\n\n")[0].splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in [head, *lines]]
    assert cells[0] == ["placement", "pixels", *PARTS]
    want = [(p, str(n)) for sizes in SETTINGS for p in ("balanced", "published") for n in sizes]
    assert [tuple(line[:2]) for line in cells[1:]] == want
    leaking = [float(line[2]) for line in cells[1:] if line[:2] == ["published", "32"]]
    assert leaking[0] > 0.7
    assert cells[1][0] + " " + cells[1][1] in capsys.readouterr().out
