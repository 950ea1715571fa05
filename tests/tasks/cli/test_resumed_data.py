"""What may change before a run goes on, and what it notices: other data, another process."""

from pathlib import Path

import pytest
from filelock import FileLock, Timeout
from lightning.pytorch.utilities import rank_zero_only

from tasks.classification import Classification
from tasks.cli import run_lock
from tasks.cli.run_lock import RunInUse, only_writer
from tasks.cli.same_command import differences
from tasks.listops import ListOpsData
from tasks.text import TextData
from tests.tasks.runs import TU_NAME, folder_of, run

pytestmark = pytest.mark.usefixtures("workplace")

TEXT = ["fit", "text", "--model.net.depth=1"]
LOGGERS = """
trainer:
  logger:
    - class_path: CSVLogger
      init_args: {save_dir: runs, name: text, flush_logs_every_n_steps: 7}
    - class_path: TensorBoardLogger
      init_args: {save_dir: boards}
"""


def test_other_text_is_noticed_wherever_it_is():
    folder = folder_of(run(*TEXT))
    text = Path("input.txt").read_text()
    Path("other.txt").write_text(text[::-1])  # as long, with the same characters
    with pytest.raises(
        ValueError, match=r"data differ from those.*: the text has changed; restore"
    ):
        run(*TEXT, "--data.path=other.txt", f"--resume={folder}")
    Path("input.txt").write_text(text[::-1])
    with pytest.raises(ValueError, match="the text has changed"):
        run(*TEXT, f"--resume={folder}")
    assert run(*TEXT).trainer.global_step == 2  # a new run may train on it


def test_place_of_the_data_and_what_only_watches_may_change():
    folder = folder_of(run(*TEXT))
    Path("input.txt").rename("moved.txt")
    Path("loggers.yaml").write_text(LOGGERS)
    changes = ["--data.path=moved.txt", "--trainer.log_every_n_steps=2", "--config=loggers.yaml"]
    changes += ["--trainer.num_sanity_val_steps=0", "--trainer.callbacks+=LearningRateMonitor"]
    cli = run(*TEXT, *changes, "--trainer.max_epochs=2", f"--resume={folder}")
    assert folder_of(cli) == folder
    assert cli.trainer.global_step == 4
    assert list(Path("boards").rglob("events*"))


def test_callbacks_that_only_watch_make_no_other_command():
    def command(callbacks: object) -> dict[str, object]:
        return {"trainer": {"callbacks": callbacks}}

    watching, other = {"class_path": "lightning.RichProgressBar"}, {"class_path": "mine.Freeze"}
    for callbacks in (None, [], watching, [watching], "RichProgressBar"):
        assert differences(command(None), command(callbacks)) == []
        assert differences(command([other, watching]), command(callbacks)) != []
    assert differences(command(other), command([watching, other])) == []


def test_place_of_data_without_checksums_may_not_change(monkeypatch):
    monkeypatch.setattr(TextData, "checksums", {})
    folder = folder_of(run(*TEXT))
    Path("input.txt").rename("moved.txt")
    with pytest.raises(ValueError, match=r"data.init_args.path was 'input.txt', is 'moved.txt'"):
        run(*TEXT, "--data.path=moved.txt", f"--resume={folder}")


def test_other_graphs_are_noticed_wherever_they_are():
    folder = folder_of(run("fit", "tu"))
    Path("tu").rename("moved")
    moved = ["fit", "tu", "--data.root=moved", f"--resume={folder}"]
    assert folder_of(run(*moved)) == folder
    file = Path("moved", TU_NAME, "raw", f"{TU_NAME}_node_labels.txt")
    file.write_text(file.read_text().replace("2", "1", 1))
    with pytest.raises(ValueError, match=f"differ .*: {file.name} has changed; restore them"):
        run(*moved)


def test_checksums_of_expressions():
    assert ListOpsData().checksums == {}
    Path("file.tsv").write_text("Source\tTarget\n")
    (one,) = ListOpsData("file.tsv").checksums.values()
    for split in ("train", "val", "test"):
        Path("folder").mkdir(exist_ok=True)
        Path("folder", f"basic_{split}.tsv").write_text(f"Source\tTarget\n{split}")
    checksums = ListOpsData("folder").checksums
    assert list(checksums) == ["the train file", "the val file", "the test file"]
    assert len({one, *checksums.values()}) == 4


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(run_lock, "WAIT", 0.1)


def test_two_processes_cannot_train_one_run(impatient):
    folder = folder_of(run(*TEXT))
    files = [folder / "metrics.csv", folder / "checkpoints" / "last.ckpt"]
    before = [file.read_bytes() for file in files]
    message = f"another process is training the run {folder}; wait until it ends"
    with FileLock(folder / "run.lock"):
        for args in ([f"--resume={folder}"], ["--resume=auto"], ["--trainer.logger.version=0"]):
            with pytest.raises(OSError, match=message):
                run(*TEXT, "--trainer.max_epochs=2", *args)
    assert [file.read_bytes() for file in files] == before
    run(*TEXT, f"--resume={folder}", "--trainer.max_epochs=2")


def test_new_run_leaves_the_folder_of_another_that_has_just_begun(impatient):
    folder = Path("runs/text/version_0")
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text("step\n0\n")
    with FileLock(folder / "run.lock"), pytest.raises(RunInUse):
        run(*TEXT, "--trainer.logger.version=0")
    assert (folder / "metrics.csv").read_text() == "step\n0\n"


@pytest.mark.parametrize("further", [[], ["--trainer.logger=TensorBoardLogger"]])
def test_run_is_held_from_its_first_step_to_its_end(monkeypatch, further):
    step, tried = Classification.training_step, []

    def step_and_try(self: object, *args: object) -> object:
        lock = FileLock(folder_of(self) / "run.lock")
        with pytest.raises(Timeout):
            lock.acquire(timeout=0)
        tried.append(lock)
        if len(tried) == 4:
            raise KeyError("a run that fails")
        return step(self, *args)

    monkeypatch.setattr(Classification, "training_step", step_and_try)
    for epochs in (1, 2):  # the second fails
        try:
            run(*TEXT, *further, f"--trainer.max_epochs={epochs}")
        except KeyError:
            assert epochs == 2
        with tried[-1].acquire(timeout=0):
            pass
    assert len(tried) == 4


def test_further_ranks_leave_the_lock_to_the_first(tmp_path, monkeypatch, impatient):
    with only_writer(tmp_path), pytest.raises(OSError), only_writer(tmp_path):
        pass
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    with FileLock(tmp_path / "run.lock"), only_writer(tmp_path), only_writer(tmp_path / "none"):
        assert not (tmp_path / "none").exists()
