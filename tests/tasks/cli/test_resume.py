"""A run that was killed and resumed ends like one that never stopped."""

import csv
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from tasks.callbacks.checkpoints import LastCheckpoint, check_writable
from tasks.checkpoint_file import read_checkpoint
from tasks.classification import Classification
from tasks.supervised import Supervised
from tests.tasks.runs import folder_of, full_disk, run

pytestmark = pytest.mark.usefixtures("workplace")

TIMED = ("train/samples_per_s", "train/flop_per_s")
SIZES = {  # two epochs of a few steps
    "quickstart": ["--data.train_size=24"],
    "images": ["--data.flip=true", "--model.net.depth=1"],
    "text": ["--data.train_windows=8", "--model.net.depth=1"],
    "tu": ["--data.batch_size=8"],
    "dags": ["--data.batch_size=12", "--model.net.depth=2"],
    "properties": ["--data.batch_size=6", "--data.laplacian=2", "--model.net.depth=2"],
}
OFTEN = "--last_checkpoint.minutes=0"


def slow(*values: object) -> object:
    """A case that runs with the slow tests only."""
    return pytest.param(*values, marks=pytest.mark.slow)


class Killed(BaseException):
    """Ends a run in the middle of something; nothing of ours catches it."""


@pytest.fixture
def kill(monkeypatch):
    """Runs a command and ends it when a function is called for the n-th time."""

    def kill_run(target: object, name: str, n: int, *command: str) -> Path:
        function, calls = getattr(target, name), 0

        def until_then(*args: object, **kwargs: object) -> object:
            nonlocal calls
            calls += 1
            if calls == n:
                raise Killed
            return function(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(target, name, until_then)
            with pytest.raises(Killed):
                run(*command)
        return max(Path("runs", command[1]).glob("version_*"), key=lambda p: p.stat().st_ctime)

    return kill_run


def fit(config: str, *args: str) -> list[str]:
    return ["fit", config, *SIZES[config], "--trainer.max_epochs=2", OFTEN, *args]


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
        return [{k: v for k, v in row.items() if k not in TIMED} for row in csv.DictReader(file)]


def contents(folder: Path, name: str) -> dict[str, object]:
    """All values of a checkpoint by their path in it; names of the run's folder left out."""

    def flat(value: object, key: str = "") -> dict[str, object]:
        if isinstance(value, dict):
            parts = value.items()
        elif isinstance(value, (list, tuple)):
            parts = enumerate(value)
        else:
            return {key: value.replace(str(folder), "") if isinstance(value, str) else value}
        return {k: v for name, part in parts for k, v in flat(part, f"{key}.{name}").items()}

    # ModelCheckpoint saves current_score and does not read it again.
    return {
        key.replace(str(folder), ""): value
        for key, value in flat(read_checkpoint(folder / "checkpoints" / name)).items()
        if not key.endswith((".current_score", ".loggers.0.1", *TIMED))
    }


def assert_same_run(folder: Path, unbroken: dict[str, object]) -> None:
    for name in ("last.ckpt", "best.ckpt"):
        ours, theirs = contents(folder, name), unbroken[name]
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            same = torch.equal if isinstance(value, Tensor) else lambda a, b: a == b
            assert same(ours[key], value), (name, key)
    assert rows(folder) == unbroken["rows"]
    assert not list(folder.rglob("*.partial"))


@pytest.fixture(scope="module")
def runs_made() -> dict[tuple[str, ...], dict[str, object]]:
    return {}


@pytest.fixture
def unbroken(runs_made):
    """Results of the same command without interruption, made once."""

    def result(*command: str) -> dict[str, object]:
        if command not in runs_made:
            folder = folder_of(run(*command, "--trainer.logger.name=unbroken"))
            names = ("last.ckpt", "best.ckpt")
            made = {name: contents(folder, name) for name in names} | {"rows": rows(folder)}
            runs_made[command] = made
        return runs_made[command]

    return result


@pytest.mark.parametrize(
    ("name", "n"),
    # Four steps and one validation make an epoch; a sanity check is the first validation.
    [("training_step", n) for n in (1, 4, 5)] + [("validation_step", n) for n in (2, 3)],
)
def test_killed_in_a_step(kill, unbroken, name, n):
    folder = kill(Classification, name, n, *fit("text"))
    assert folder_of(run(*fit("text"), f"--resume={folder}")) == folder
    assert_same_run(folder, unbroken(*fit("text")))


@pytest.mark.parametrize("n", [1, 2, 7, 12])
def test_killed_while_saving(kill, unbroken, n):
    folder = kill(os, "replace", n, *fit("text"))
    newest = folder_of(run(*fit("text"), "--resume=auto"))
    assert_same_run(newest, unbroken(*fit("text")))
    # Without a checkpoint the run begins anew elsewhere.
    assert (newest == folder) == (folder / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.parametrize(
    ("config", "args"),
    [
        ("quickstart", ()),
        slow("images", ()),
        slow("images", ("--data.num_workers=1",)),
        slow("tu", ()),
        slow("dags", ()),
        slow("properties", ()),
        ("text", ("--trainer.accumulate_grad_batches=2", "--data.train_windows=10")),
        ("text", ("--trainer.max_epochs=-1", "--trainer.max_steps=7")),
        slow("text", ("--trainer.val_check_interval=0.5",)),
        slow("text", ("--trainer.check_val_every_n_epoch=2",)),
        slow("text", ("--trainer.limit_train_batches=3",)),
        slow("text", ("--data.num_workers=1",)),
        ("tu", ("--data.num_workers=1", "--data.random_walk=2", "--data.laplacian=2")),
    ],
)
def test_killed_twice(kill, unbroken, config, args):
    command = fit(config, *args)
    folder = kill(Supervised, "training_step", 3, *command)
    kill(Supervised, "training_step", 3, *command, f"--resume={folder}")
    run(*command, f"--resume={folder}")
    assert_same_run(folder, unbroken(*command))


def test_streams_go_on(kill, unbroken):
    """From their states, even where a resumed run is killed before its first batch ends."""
    command = fit("text", "--data.train_streams=true", "--data.eval_streams=true")
    folder = kill(Classification, "training_step", 3, *command)
    kill(Classification, "training_step", 1, *command, f"--resume={folder}")
    run(*command, f"--resume={folder}")
    assert_same_run(folder, unbroken(*command))


@pytest.mark.filterwarnings("ignore:You're using the WeightAveraging callback")
def test_averaged_weights(kill, unbroken):
    command = fit("text", "--trainer.callbacks+=EMAWeightAveraging")
    folder = kill(Classification, "training_step", 4, *command)
    run(*command, f"--resume={folder}")
    assert_same_run(folder, unbroken(*command))
    plain = unbroken(*fit("text"))["last.ckpt"]
    averaged = contents(folder, "last.ckpt")
    key = next(key for key in plain if key.startswith(".state_dict.net") and "weight" in key)
    assert not torch.equal(plain[key], averaged[key])


def test_checkpoint_of_the_best_goes_on_too(kill, unbroken):
    folder = kill(Classification, "training_step", 7, *fit("text"))
    (folder / "checkpoints" / "last.ckpt").write_bytes(b"half of a che")
    with pytest.warns(UserWarning, match=r"last\.ckpt is damaged.*resuming from .*best\.ckpt"):
        run(*fit("text"), f"--resume={folder}")
    assert_same_run(folder, unbroken(*fit("text")))


def test_complete_run_is_left_as_it_is(capsys, caplog):
    folder = folder_of(run(*fit("text")))
    names = ["checkpoints/last.ckpt", "checkpoints/best.ckpt"]
    names += ["config.yaml", "metrics.csv", "facts.json"]
    before = [(folder / name).read_bytes() for name in names]
    assert folder_of(run(*fit("text"), "--resume=auto")) == folder
    assert [(folder / name).read_bytes() for name in names] == before
    assert "it is complete" in capsys.readouterr().err + caplog.text


def test_complete_run_is_trained_further():
    folder = folder_of(run(*fit("text")))
    cli = run(*fit("text"), f"--resume={folder}", "--trainer.max_epochs=3")
    assert cli.trainer.global_step == 12
    assert [int(row["step"]) for row in rows(folder) if row["train/loss"]] == list(range(12))


def test_moved_run(kill, unbroken):
    folder = kill(Classification, "training_step", 7, *fit("text"))
    Path("elsewhere").mkdir()
    moved = folder.rename(Path("elsewhere", "mine"))
    cli = run(*fit("text"), f"--resume={moved}")
    assert not folder.exists()
    assert rows(moved) == unbroken(*fit("text"))["rows"]
    best = cli.trainer.checkpoint_callback.best_model_path
    assert Path(best) == moved / "checkpoints" / "best.ckpt"


def test_saved_configuration_is_that_of_a_new_run(kill):
    folder = kill(Classification, "training_step", 3, *fit("text"))
    before = yaml.safe_load((folder / "config.yaml").read_text())
    run(*fit("text"), f"--resume={folder}")
    assert yaml.safe_load((folder / "config.yaml").read_text()) == before
    assert before["ckpt_path"] is None
    assert "resume" not in before


def test_auto_starts_a_new_run_if_there_is_none_of_this_command(kill, capsys, caplog):
    kill(Classification, "training_step", 3, *fit("text"))
    cli = run(*fit("text"), "--resume=auto", "--model.optimizer.lr=0.01")
    assert folder_of(cli) == Path("runs/text/version_1")
    said = capsys.readouterr().err + caplog.text
    assert "lr was 0.001, is 0.01" in said
    assert "starting a new one" in said


def test_another_command_is_refused(kill):
    folder = kill(Classification, "training_step", 3, *fit("text"))
    for args, message in (
        (["--model.optimizer.lr=0.5"], r"optimizer.init_args.lr was 0.001, is 0.5; repeat"),
        (["--data.seed=1", "--seed_everything=2"], r"seed_everything was 0, is 2; data.init_args"),
        (["--trainer.callbacks+=EMAWeightAveraging"], r"trainer.callbacks.\d was None, is"),
        (["--trainer.logger=TensorBoardLogger"], r"trainer.logger was .*CSVLogger', is .*TensorB"),
        (["--ckpt_path=some.ckpt"], r"omit --ckpt_path"),
        (["--trainer.logger=false"], r"needs a run folder"),
    ):
        with pytest.raises(ValueError, match=message):
            run(*fit("text"), *args, f"--resume={folder}")


def test_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"--resume none: no run was started there"):
        run(*fit("text"), "--resume=none")


def test_run_without_a_readable_checkpoint_is_refused(kill):
    folder = kill(Classification, "training_step", 3, *fit("text"))
    (folder / "checkpoints" / "last.ckpt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"no checkpoint can be used: .*last.ckpt is damaged"):
        run(*fit("text"), f"--resume={folder}")


def test_run_stopped_before_its_first_checkpoint_begins_again_in_its_folder(kill, unbroken):
    seldom = fit("text", "--last_checkpoint.minutes=60")
    folder = kill(Classification, "training_step", 3, *seldom)
    assert folder_of(run(*seldom, f"--resume={folder}")) == folder
    assert_same_run(folder, unbroken(*seldom))


def test_other_number_of_processes_is_refused(kill):
    folder = kill(Classification, "training_step", 3, *fit("text"))
    path = folder / "checkpoints" / "last.ckpt"
    checkpoint = read_checkpoint(path)
    checkpoint["resume"]["world_size"] = 2
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match=r"trained by 2 process.* cannot continue with 1"):
        run(*fit("text"), f"--resume={folder}")


@pytest.mark.parametrize(
    ("number", "code", "name", "n"),
    [
        (signal.SIGTERM, 143, "training_step", 3),
        (signal.SIGTERM, 143, "validation_step", 2),
        (signal.SIGINT, 130, "training_step", 3),
    ],
)
def test_signal_saves_and_ends_the_run(monkeypatch, unbroken, number, code, name, n):
    seldom = fit("text", "--last_checkpoint.minutes=60")
    function, calls = getattr(Classification, name), 0

    def with_signal(*args: object) -> object:
        nonlocal calls
        calls += 1
        if calls == n:
            os.kill(os.getpid(), number)
        return function(*args)

    before = signal.getsignal(number)
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr(Classification, name, with_signal)
        run(*seldom)
    assert stopped.value.code == code
    assert signal.getsignal(number) == before
    folder = Path("runs/text/version_0")
    done = 3 if name == "training_step" else 4
    assert read_checkpoint(folder / "checkpoints" / "last.ckpt")["global_step"] == done
    run(*seldom, f"--resume={folder}")
    assert_same_run(folder, unbroken(*seldom))


def test_nothing_is_saved_too_often():
    folder = folder_of(run(*fit("text", "--last_checkpoint.minutes=60")))
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}
    saved = read_checkpoint(folder / "checkpoints" / "last.ckpt")
    assert saved["global_step"] == 8
    with pytest.raises(ValueError, match="minutes must be at least 0, got -1"):
        LastCheckpoint(-1)


def test_full_disk_ends_the_run_and_it_goes_on(monkeypatch, unbroken):
    replace, calls = os.replace, 0

    def full(*args: object) -> None:
        nonlocal calls
        calls += 1
        if calls > 6:
            full_disk()
        replace(*args)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(os, "replace", full)
        run(*fit("text"))
    folder = Path("runs/text/version_0")
    run(*fit("text"), f"--resume={folder}")
    assert_same_run(folder, unbroken(*fit("text")))


def test_folder_that_cannot_be_written_is_found_before_training(tmp_path):
    Path("taken").write_text("a file in place of a folder")
    with pytest.raises(OSError, match=r"cannot write in taken.*--trainer.logger.save_dir"):
        run(*fit("text"), "--trainer.logger.save_dir=taken")
    with pytest.raises(OSError, match="cannot write in"):
        check_writable(Path("taken", "below"))


@pytest.mark.parametrize("seed", [0, *(slow(seed) for seed in range(1, 20))])
def test_sigkill(unbroken, seed):
    """The real thing: another process, killed by the system at a random moment of its training."""
    command = fit("text", "--data.train_windows=40")
    whole = unbroken(*command)
    moment = random.Random(seed).randrange(1, len(whole["rows"]) - 10)
    code = "import sys; args, sys.argv[1:] = sys.argv[1:], []; "
    code += "from tests.tasks.runs import run; run(*args)"
    folder = Path("runs/text/version_0")
    with subprocess.Popen(
        [sys.executable, "-c", code, *command],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        while process.poll() is None:
            time.sleep(0.005)
            if (folder / "metrics.csv").is_file() and len(rows(folder)) >= moment:
                process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert len(rows(folder)) < len(whole["rows"])
    run(*command, f"--resume={folder}")
    assert_same_run(folder, whole)
