"""Cross-validation: with mocked training, stopped and resumed, and with wrong arguments."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tasks.callbacks.timing import EpochTimer
from tasks.classification import Classification
from tasks.cli import folds, run_process
from tasks.cli.folds import run_folds, table
from tests.tasks.runs import arguments


def test_fold_driver() -> None:
    """Every fold is fitted and its best checkpoint tested, with a stand-in for the command line."""
    calls = []

    def main(args: list[str]) -> object:
        timer = EpochTimer()
        for _ in range(3):
            timer.on_train_epoch_start(None, None)
            timer.on_train_batch_end()
        accuracy = 0.5 + 0.1 * len(calls)
        calls.append(args)

        def test(model: object, **options: object) -> list[dict[str, float]]:
            assert options["ckpt_path"] == "best.ckpt"
            return [{"test/accuracy": accuracy}]

        checkpoint = SimpleNamespace(best_model_path="best.ckpt")
        trainer = SimpleNamespace(
            test=test, callbacks=[timer], checkpoint_callback=checkpoint, current_epoch=3
        )
        datamodule = SimpleNamespace(hparams=SimpleNamespace(num_folds=3))
        return SimpleNamespace(trainer=trainer, model=None, datamodule=datamodule)

    results = run_folds(main, ["--config", "tu.yaml"])
    assert [r.fold for r in results] == [0, 1, 2] and all(r.epochs == 3 for r in results)
    assert [args[:4] for args in calls] == [
        ["fit", "--config", "tu.yaml", f"--data.fold={fold}"] for fold in range(3)
    ]
    assert calls[0][4] == "--trainer.callbacks+=tasks.callbacks.timing.EpochTimer"
    assert "mean         0.6000" in table(results) and "sd         0.1000" in table(results)
    assert len(run_folds(main, [], num_folds_to_run=2)) == 2
    with pytest.raises(ValueError, match="num_folds_to_run must be 1 or more, got 0"):
        run_folds(main, [], num_folds_to_run=0)
    for args in (["--data.fold=3"], ["--data.fold", "3"], ["--data.init_args.fold=3"]):
        with pytest.raises(ValueError, match=r"--data\.fold is set for every fold; .* --fold 4"):
            run_folds(main, args)


FOLDS = [
    "--data.num_folds=2",
    "--model.net.depth=1",
    "--data.batch_size=8",
    "--trainer.max_epochs=2",
]


def command(*args: str) -> list[str]:
    """Arguments of the driver for two folds of four steps in two epochs."""
    return [*arguments("fit", "tu", *FOLDS)[1:], "--last_checkpoint.minutes=0", *args]


@pytest.mark.usefixtures("workplace")
def test_folds_are_resumed(monkeypatch, capsys) -> None:
    """The first fold is complete and the second stops in the middle of an epoch."""
    step, steps, stop = Classification.training_step, 0, -1

    def step_or_stop(*args: object) -> object:
        nonlocal steps
        steps += 1
        if steps == stop:
            raise KeyError
        return step(*args)

    monkeypatch.setattr(Classification, "training_step", step_or_stop)
    whole = folds.main(command("--trainer.logger.name=whole"))
    each = steps // 2
    steps, stop = 0, each + each // 2 + 2
    with pytest.raises(KeyError):
        folds.main(command())
    steps, stop = 0, -1
    resumed = folds.main(command("--resume", "auto"))
    assert steps == each - (each // 2 + 1)
    assert [(r.fold, r.accuracy, r.epochs) for r in resumed] == [
        (r.fold, r.accuracy, r.epochs) for r in whole
    ]
    assert resumed[0].seconds is None and "     2         -" in capsys.readouterr().out
    assert len(list(Path("runs/tu").iterdir())) == 2
    with pytest.raises(ValueError, match=r"--resume must be auto, .* got runs/tu/version_0; with"):
        folds.main(command("--resume=runs/tu/version_0"))
    folds.main(command("--fold=1", "--resume=runs/tu/version_1"))


WRONG = {
    "--fold 12": "TUData: fold must lie in 0..1 with num_folds=2, got 12",
    "--num_folds_to_run 0": "run_folds: num_folds_to_run must be 1 or more, got 0",
    "--data.fold 1": "run_fold: --data.fold is set for every fold; choose one with --fold 4",
}


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize(("given", "message"), WRONG.items())
def test_mistakes_are_told_in_a_line(monkeypatch, capsys, given: str, message: str) -> None:
    monkeypatch.setattr(sys, "argv", ["folds.py", *command(*given.split())])
    with pytest.raises(SystemExit) as stopped:
        run_process(folds.main, "tasks.cli.folds")
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert f"tasks.cli.folds: {message}" in said and "Traceback" not in said
