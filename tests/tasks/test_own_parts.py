"""A custom mixer, net and task, by class path, in a folder without this project."""

import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml

from examples.own import Majority, RunningMean
from tasks.cli import run_process
from tests.helpers import assert_close
from tests.tasks.runs import CONFIGS

EXAMPLES = CONFIGS.parent / "examples"
SMALL = ["--data.train_size=8", "--data.val_size=4", "--data.batch_size=4"]
PLAIN = ["--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--trainer.log_every_n_steps=1"]


@pytest.fixture
def own(workplace, monkeypatch):
    """The example in an empty folder, which nothing else makes importable."""
    shutil.copy(EXAMPLES / "own.py", "my_parts.py")
    config = (EXAMPLES / "own.yaml").read_text().replace("examples.own.", "my_parts.")
    Path("own.yaml").write_text(config)
    monkeypatch.setattr(sys, "path", [x for x in sys.path if x not in ("", str(workplace))])
    yield workplace
    sys.modules.pop("my_parts", None)


@pytest.mark.parametrize("net", ["plstm.SequenceModel", "my_parts.SmallNet"])
def test_own_parts_by_class_path(net, own, monkeypatch):
    arguments = [] if net.startswith("plstm") else [f"--model.net={net}"]
    line = ["train.py", "fit", "--config=own.yaml", *PLAIN, *SMALL, *arguments]
    monkeypatch.setattr(sys, "argv", line)
    run_process()
    folder = own / "runs" / "own" / "version_0"
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    assert saved["model"]["init_args"]["net"]["class_path"] == net
    assert saved["data"]["class_path"] == "my_parts.Majority"
    assert "val/accuracy@32" in (folder / "metrics.csv").read_text()
    weights = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    assert any("mixer.proj.weight" in name for name in weights)


def test_majority():
    tokens, targets = Majority(test_size=3).dataset("test", 16).__getitems__([0, 1, 2])
    for bits, labels in zip(tokens.tolist(), targets.tolist(), strict=True):
        want = [int(sum(bits[:n]) > n / 2) for n in range(1, 17)]
        assert labels == want


def test_running_mean():
    mixer, x = RunningMean(5).double(), torch.randn(2, 7, 5).double()
    want = torch.stack([x[:, : n + 1].mean(1) for n in range(7)], 1)
    assert_close("y", mixer(x), mixer.proj(want))
    with pytest.raises(ValueError, match=r"RunningMean: x must have shape \(B, L, 5\)"):
        mixer(x[..., :4])
