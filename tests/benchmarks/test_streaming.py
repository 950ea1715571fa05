"""The three ways to read a text agree where they must; the command runs."""

import pytest
import torch

from benchmarks import streaming
from tests.helpers import assert_close
from tests.models.test_sequence import model, tokens
from tests.tasks.runs import folder_of, run


@pytest.mark.parametrize("length", [1, 6, 7, 20])
def test_forms(length, monkeypatch):
    monkeypatch.setattr(streaming, "PIECE", 6)
    net, x = model().double(), tokens(length, batch=1)[0]
    whole = torch.cat(list(streaming.at_once(net, x)), 1)
    assert_close("stream", torch.cat(list(streaming.as_stream(net, x)), 1), whole)
    windows = torch.cat([net(part[None]) for part in x.split(3)], 1)
    assert_close("windows", torch.cat(list(streaming.in_windows(net, x, 3)), 1), windows)


def test_bits():
    targets = torch.tensor([0, 3, 1])
    pieces = iter([torch.zeros(1, 2, 4), torch.zeros(1, 1, 4)])
    assert streaming.bits(pieces, targets) == pytest.approx(2)


@pytest.mark.usefixtures("workplace")
def test_command(tmp_path, capsys):
    small = ["--model.net.dim=16", "--model.net.depth=1"]
    folder = folder_of(run("fit", "text", *small))
    streaming.main([str(folder), "--path=input.txt", "--characters=300", f"--out={tmp_path}"])
    rows = (tmp_path / "streaming.md").read_text().splitlines()[2:6]
    assert [row.split("|")[2].strip() for row in rows] == ["30", "30", "30", "300"]
    assert rows[1].split("|")[3] == rows[2].split("|")[3]  # the same bits
