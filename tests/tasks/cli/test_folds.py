"""Cross-validation with a stand-in for training."""

from types import SimpleNamespace

import pytest

from tasks.callbacks.timing import EpochTimer
from tasks.cli.folds import run_folds, table


def test_fold_driver() -> None:
    """Every fold is fitted and its best checkpoint tested, with a stand-in for the command line."""
    calls = []

    def main(arguments: list[str]) -> object:
        timer = EpochTimer()
        for _ in range(3):
            timer.on_train_epoch_start(None, None)
            timer.on_train_batch_end()
        accuracy = 0.5 + 0.1 * len(calls)
        calls.append(arguments)

        def test(model: object, **options: object) -> list[dict[str, float]]:
            assert options["ckpt_path"] == "best.ckpt"
            return [{"test/accuracy": accuracy}]

        checkpoint = SimpleNamespace(best_model_path="best.ckpt")
        trainer = SimpleNamespace(test=test, callbacks=[timer], checkpoint_callback=checkpoint)
        datamodule = SimpleNamespace(hparams=SimpleNamespace(num_folds=3))
        return SimpleNamespace(trainer=trainer, model=None, datamodule=datamodule)

    results = run_folds(main, ["--config", "tu.yaml"])
    assert [r.fold for r in results] == [0, 1, 2] and all(r.epochs == 3 for r in results)
    assert [arguments[:4] for arguments in calls] == [
        ["fit", "--config", "tu.yaml", f"--data.fold={fold}"] for fold in range(3)
    ]
    assert calls[0][4] == "--trainer.callbacks+=tasks.callbacks.timing.EpochTimer"
    assert "mean         0.6000" in table(results) and "sd         0.1000" in table(results)
    assert len(run_folds(main, [], num_folds_to_run=2)) == 2
    with pytest.raises(ValueError, match="num_folds_to_run must be 1 or more, got 0"):
        run_folds(main, [], num_folds_to_run=0)
