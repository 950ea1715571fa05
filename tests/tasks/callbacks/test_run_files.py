"""Files of a run: a checkpoint is the old one or the new one, whole, and holds weights only."""

import csv
import errno
import os
import pickle
from pathlib import Path

import pytest
import torch

from tasks.callbacks.checkpoints import AtomicCheckpointIO
from tasks.callbacks.metrics_file import MetricsFile
from tasks.checkpoint_file import read_checkpoint
from tasks.language_model import LanguageModel
from tests.tasks.runs import folder_of, full_disk, run

pytestmark = pytest.mark.usefixtures("workplace")


@pytest.mark.parametrize("place", ["write", "rename"])
def test_full_disk_keeps_the_old_checkpoint(tmp_path, monkeypatch, place):
    path, writer = tmp_path / "run" / "checkpoints" / "last.ckpt", AtomicCheckpointIO()
    writer.save_checkpoint({"state_dict": {}, "loops": {}, "step": 1}, path)

    monkeypatch.setattr(os, {"write": "fsync", "rename": "replace"}[place], full_disk)
    with pytest.raises(OSError, match=r"cannot save .*last.ckpt: No space left.*--resume") as got:
        writer.save_checkpoint({"state_dict": {}, "loops": {}, "step": 2}, path)
    assert got.value.errno == errno.ENOSPC
    assert read_checkpoint(path)["step"] == 1
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


class Harmful:
    def __reduce__(self) -> tuple:
        return os.system, ("touch harmed",)


def test_bad_checkpoints_are_refused(tmp_path):
    good = {"state_dict": {"w": torch.arange(1000.0)}, "loops": {}}
    path = tmp_path / "x.ckpt"
    torch.save(good, path)
    whole = path.read_bytes()
    bad = {
        r"there is no checkpoint": None,
        r"is damaged or not a checkpoint \(Pytorch": whole[: len(whole) // 2],
        r"is damaged or not a checkpoint \((EOF|Ran out)": b"",
        r"x.ckpt is damaged or not a checkpoint": b"to be or not to be",
        r"damaged or not a checkpoint \(not a pickle of weights": pickle.dumps(Harmful(), 4),
        r"holds code \(posix.system\) and not only weights; it is": pickle.dumps(Harmful(), 2),
    }
    for message, content in bad.items():
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_checkpoint(path)
    for harmful in (good | {"more": Harmful()}, Harmful()):
        torch.save(harmful, path)
        with pytest.raises(ValueError, match="holds code"):
            AtomicCheckpointIO().load_checkpoint(path)
    assert not Path("harmed").exists()
    for foreign in ({"w": torch.ones(3)}, [1, 2]):
        torch.save(foreign, path)
        with pytest.raises(ValueError, match="is not a checkpoint of a run"):
            read_checkpoint(path)


def test_flipped_bit_is_found():
    folder = folder_of(run("fit", "text"))
    path = folder / "checkpoints" / "last.ckpt"
    weight = read_checkpoint(path)["state_dict"]["net.head.weight"]
    content = bytearray(path.read_bytes())
    content[content.index(weight.numpy().tobytes()) + 2] ^= 16
    path.write_bytes(content)
    message = r"last\.ckpt is damaged .*checksum of its part .*data/\d+ is wrong\); use another"
    for command in ("test", "predict"):
        with pytest.raises(ValueError, match=message):
            run(command, folder / "config.yaml", f"--ckpt_path={path}")
    with pytest.raises(ValueError, match=message):
        LanguageModel.load_from_checkpoint(path)
    with pytest.raises(ValueError, match=message):
        AtomicCheckpointIO().load_checkpoint(path)
    best = path.with_name("best.ckpt")
    assert LanguageModel.load_from_checkpoint(best).net is not None
    with open(best, "rb") as file:
        assert LanguageModel.load_from_checkpoint(file).net is not None
    with pytest.warns(UserWarning, match=rf"{message}.*resuming from .*best\.ckpt"):
        run("fit", "text", f"--resume={folder}")


def test_checkpoint_that_could_not_be_read_is_not_written(tmp_path):
    with pytest.raises(ValueError, match=r"cannot be read back: holds code .*plain values"):
        AtomicCheckpointIO().save_checkpoint({"odd": Harmful()}, tmp_path / "x.ckpt")
    assert not list(tmp_path.glob("x*"))


def test_metrics_file_survives_new_columns(tmp_path, monkeypatch):
    file = MetricsFile(str(tmp_path / "run"))
    file.log_metrics({"a": 1.0}, 0)
    file.save()
    before = (tmp_path / "run" / "metrics.csv").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        file.log_metrics({"b": 2.0}, 1)
        with pytest.raises(KeyboardInterrupt):
            file.save()
    assert (tmp_path / "run" / "metrics.csv").read_bytes() == before
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full_disk)
        file.log_metrics({"c": 3.0}, 2)
        with pytest.raises(OSError, match=r"cannot write .*metrics.csv: No space .*--resume"):
            file.save()
    again = MetricsFile(str(tmp_path / "run"), keep=1)
    again.log_metrics({"b": 2.0}, 1)
    again.save()
    with open(tmp_path / "run" / "metrics.csv", newline="", encoding="utf-8") as stream:
        assert list(csv.DictReader(stream)) == [
            {"a": "1.0", "b": "", "step": "0"},
            {"a": "", "b": "2.0", "step": "1"},
        ]
    assert again.rows == 2
