"""Regression and MultiLabel: losses, metrics and predictions by hand, runs, checkpoints, errors."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr
from sklearn.metrics import average_precision_score, r2_score, roc_auc_score
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tasks.cli import main
from tasks.data import DataModule
from tasks.multi_label import MultiLabel
from tasks.regression import Regression
from tasks.targets import Cells, GatheredCells, by_target
from tasks.tu import TUData
from tests.helpers import assert_close
from tests.tasks.runs import folder_of, metrics_of

NAN = math.nan
WIDTH = 3
TARGETS = 2


class Points(DataModule):
    """Linear functions of points with noise, in large units; some cells are missing.

    Args:
        kind: "numbers", or "labels" for whether those are above their mean.
        missing: Share of the cells that were not measured.
    """

    def __init__(self, kind: str = "numbers", missing: float = 0.2, batch_size: int = 16) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(96, WIDTH, generator=generator)
        y = self.x[:, :TARGETS] + 0.1 * torch.randn(96, TARGETS, generator=generator)
        y = (y > 0).float() if kind == "labels" else 100 * y + 1000
        self.y = y.masked_fill(torch.rand(y.shape, generator=generator) < missing, NAN)

    in_dim, out_dim = WIDTH, TARGETS
    target_names = ["a b", "c.d"]  # noqa: RUF012

    @property
    def training_targets(self) -> Tensor:
        return self.y[:64]

    def part(self, start: int, stop: int) -> DataLoader:
        return DataLoader(TensorDataset(self.x[start:stop], self.y[start:stop]), batch_size=16)

    def train_dataloader(self) -> DataLoader:
        return self.part(0, 64)

    def val_dataloader(self) -> DataLoader:
        return self.part(64, 80)

    def test_dataloader(self) -> DataLoader:
        return self.part(80, 96)


class Line(nn.Linear):
    """A linear map, as a net."""


def command(subcommand: str, module: str, *args: str) -> list[str]:
    kind = {"regression.Regression": "numbers", "multi_label.MultiLabel": "labels"}[module]
    return [
        subcommand,
        f"--model=tasks.{module}",
        f"--model.net={__name__}.Line",
        "--model.optimizer=torch.optim.AdamW",
        "--model.optimizer.lr=0.1",
        f"--data={__name__}.Points",
        f"--data.kind={kind}",
        "--trainer.accelerator=cpu",
        "--trainer.max_epochs=15",
        "--trainer.log_every_n_steps=1",
        "--trainer.enable_progress_bar=false",
        "--trainer.logger=CSVLogger",
        "--trainer.logger.save_dir=runs",
        *args,
    ]


def regression(outputs: int = 1) -> Regression:
    return Regression(nn.Linear, WIDTH, outputs)


def test_squared_errors_are_those_of_standardized_targets() -> None:
    module = regression(2)
    module.standardize_by(torch.tensor([[1.0, 5.0], [3.0, 5.0], [NAN, 5.0]]))
    assert module.target_mean.tolist() == [2.0, 5.0]
    assert module.target_scale.tolist() == [1.0, 1.0]  # 1 for a constant target
    module.standardize_by(torch.tensor([[1.0, 5.0], [5.0, 9.0], [NAN, 7.0]]))
    outputs = torch.tensor([[0.5, 1.0], [2.0, 3.0]], requires_grad=True)
    targets = torch.tensor([[5.0, NAN], [NAN, 7.0]])
    loss = module.loss(*module.labelled(outputs, targets))
    assert_close("loss", loss, torch.tensor((0.5**2 + 3.0**2) / 2), 1e-6)
    loss.backward()
    want = torch.tensor([[-0.5, 0.0], [0.0, 3.0]])  # nothing from missing cells
    assert_close("gradient", outputs.grad, want, 1e-6)
    predicted = module.predicted(outputs.detach())
    assert_close("units", module.to_learn(predicted), outputs.detach(), 1e-6)


def test_cross_entropy_leaves_out_missing_cells() -> None:
    module = MultiLabel(nn.Linear, WIDTH, 2)
    outputs = torch.tensor([[0.3, 9.0], [-1.0, 2.0]], requires_grad=True)
    targets = torch.tensor([[1.0, NAN], [0.0, 0.0]])
    loss = module.loss(*module.labelled(outputs, targets))
    p = [1 / (1 + math.exp(-x)) for x in (0.3, -1.0, 2.0)]
    want = -(math.log(p[0]) + math.log(1 - p[1]) + math.log(1 - p[2])) / 3
    assert_close("loss", loss, torch.tensor(want), 1e-6)
    loss.backward()
    assert outputs.grad[0, 1] == 0 and (outputs.grad != 0).sum() == 3


@pytest.mark.parametrize("module", [Regression, MultiLabel])
def test_a_batch_without_any_measured_cell_teaches_nothing(module: type) -> None:
    outputs = torch.randn(3, 2, requires_grad=True)
    made = module(nn.Linear, WIDTH, 2)
    loss = made.loss(*made.labelled(outputs, torch.full((3, 2), NAN)))
    loss.backward()
    assert loss == 0 and not outputs.grad.any()


@pytest.mark.parametrize("rows", [2, 3, 50])
def test_metrics_are_those_of_other_libraries(rows: int) -> None:
    rng = np.random.default_rng(rows)
    targets = rng.normal(1000, 10, (rows, 3))
    predictions = targets + rng.normal(0, 5, (rows, 3))
    targets[-1, 1:] = NAN
    targets[1:, 2] = NAN  # one value is left
    cells = Cells(torch.from_numpy(predictions), torch.from_numpy(targets))
    values = {name: by_target(score, cells) for name, score in Regression.scores.items()}
    for t in range(3):
        keep = ~np.isnan(targets[:, t])
        p, y = predictions[keep, t], targets[keep, t]
        want = {"rmse": np.sqrt(((p - y) ** 2).mean()), "mae": abs(p - y).mean()}
        want["r2"] = r2_score(y, p) if len(y) > 1 else NAN
        want["pearson"] = pearsonr(p, y)[0] if len(y) > 1 else NAN
        got = [float(values[name][t]) for name in want]
        assert got == pytest.approx(list(want.values()), rel=1e-6, nan_ok=True), t


def test_ranking_metrics_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    targets = (rng.random((40, 3)) < 0.4).astype(float)
    targets[:, 2] = 1  # one class
    targets[rng.random((40, 3)) < 0.3] = NAN
    predictions = rng.random((40, 3)).round(1)  # with ties
    cells = Cells(torch.from_numpy(predictions), torch.from_numpy(targets))
    for name, function in (
        ("roc_auc", roc_auc_score),
        ("average_precision", average_precision_score),
    ):
        got = by_target(MultiLabel.scores[name], cells)
        for t in range(2):
            keep = ~np.isnan(targets[:, t])
            want = function(targets[keep, t], predictions[keep, t])
            assert float(got[t]) == pytest.approx(want, rel=1e-6), (name, t)
        assert got[2].isnan()


def test_constant_predictions_have_no_correlation() -> None:
    cells = Cells(torch.ones(4, 1).double(), torch.arange(4.0).double()[:, None])
    assert by_target(Regression.scores["pearson"], cells).isnan().all()
    assert by_target(Regression.scores["rmse"], cells).isfinite().all()


@pytest.fixture(scope="module", params=["regression.Regression", "multi_label.MultiLabel"])
def trained(request, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("run"))
        patch.setattr("sys.argv", ["train.py"])
        patch.setenv("PL_GLOBAL_SEED", "0")
        yield request.param, main(command("fit", request.param)), Path.cwd()


def test_runs_learn_and_log_every_target(trained) -> None:
    module, cli, _ = trained
    metrics = metrics_of(cli)
    names = cli.model.scores
    assert {f"val/{name}" for name in names} <= metrics.keys()
    for name in names:
        parts = [metrics[f"val/{name}/{target}"] for target in Points.target_names]
        assert metrics[f"val/{name}"] == pytest.approx(sum(parts) / 2)
    assert metrics["val/loss"] < 0.5
    if module == "regression.Regression":
        assert metrics["val/rmse"] < 50  # units of the data, whose deviation is 100
        assert metrics["val/rmse"] > 1
        assert metrics["val/r2"] > 0.8 and metrics["val/pearson"] > 0.9
        assert_close("mean", cli.model.target_mean, cli.datamodule.y[:64].nanmean(0), 1e-6)
    else:
        assert metrics["val/roc_auc"] > 0.9 and metrics["val/average_precision"] > 0.9


def test_pictures_show_the_targets(trained) -> None:
    _, cli, _ = trained
    assert (folder_of(cli) / "targets.png").exists()
    names = {file.name for file in folder_of(cli).glob("*.png")}
    assert names == {"targets.png", "learning_curve.png"}


def test_checkpoints_have_the_units(trained, workplace, monkeypatch) -> None:
    name, cli, where = trained
    monkeypatch.chdir(where)
    file = folder_of(cli) / "checkpoints" / "last.ckpt"
    loaded = type(cli.model).load_from_checkpoint(file, net=Line)
    x = cli.datamodule.x
    want = cli.model.predicted(cli.model(x))
    assert_close("predictions", loaded.eval().predicted(loaded(x)), want, 1e-6)
    done = main(command("predict", name, f"--ckpt_path={file}"))
    saved = torch.load(folder_of(done) / "predictions.pt", weights_only=True)[""]
    assert_close("saved", saved, want[80:].detach(), 1e-6)
    assert {f.name for f in folder_of(done).glob("*.png")} == {"targets.png"}
    tested = metrics_of(main(command("test", name, f"--ckpt_path={file}")))
    values = by_target(
        next(iter(cli.model.scores.values())),
        Cells(want[80:].detach().double(), cli.datamodule.y[80:].double()),
    )
    assert tested[f"test/{cli.model.main_metric}"] == pytest.approx(float(values.mean()), rel=1e-5)


def test_resumed_runs_keep_their_units(trained, workplace, monkeypatch) -> None:
    name, cli, where = trained
    monkeypatch.chdir(where)
    again = main(command("fit", name, f"--resume={folder_of(cli)}"))
    assert again.trainer.global_step == cli.trainer.global_step
    for mine, want in zip(again.model.buffers(), cli.model.buffers(), strict=True):
        assert torch.equal(mine, want)


def test_targets_of_one_class_are_named_once(workplace, monkeypatch, caplog) -> None:
    make = Points.__init__

    def make_constant(self: Points, *args: object, **kwargs: object) -> None:
        make(self, *args, **kwargs)
        self.y[64:, 1] = 1

    monkeypatch.setattr(Points, "__init__", make_constant)
    done = main(command("fit", "multi_label.MultiLabel", "--trainer.max_epochs=3"))
    metrics = metrics_of(done)
    assert "val/roc_auc/c.d" not in metrics
    assert metrics["val/roc_auc"] == metrics["val/roc_auc/a b"]
    assert caplog.text.count("no two different values were measured in val of c.d") == 1


WRONG = {
    "columns": (
        lambda: regression(3).columns(torch.zeros(4, 2)),
        r"Regression: targets must have out_dim=3 columns, got \(4, 2\)",
    ),
    "classes": (
        lambda: regression(2).columns(torch.zeros(4, dtype=torch.int64)),
        r"Regression: targets must have out_dim=2 columns, got \(4,\); .*Classification",
    ),
    "labels": (
        lambda: MultiLabel(nn.Linear, 1, 1).loss(torch.zeros(2), torch.tensor([0.0, 2.0])),
        r"MultiLabel: targets must be 0, 1 or NaN, got 0\.\.2",
    ),
    "task of classes": (
        lambda: TUData().training_targets,
        "TUData: a classification task has no targets",
    ),
}


@pytest.mark.parametrize(("call", "message"), WRONG.values(), ids=WRONG)
def test_errors(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[0.0, 2.0], [1.0, 1.0]], r"MultiLabel: targets must be 0, 1 or NaN, got 0\.\.2; use"),
        ([[0.0, 1.0], [0.0, NAN]], "no target has both in the training set"),
    ],
)
def test_labels_are_checked_before_training(workplace, monkeypatch, values, message) -> None:
    monkeypatch.setattr(Points, "training_targets", property(lambda self: torch.tensor(values)))
    with pytest.raises(ValueError, match=message):
        main(command("fit", "multi_label.MultiLabel"))


def test_a_target_without_training_values_is_refused(workplace, monkeypatch) -> None:
    empty = property(lambda self: torch.tensor([[1.0, NAN], [2.0, NAN]]))
    monkeypatch.setattr(Points, "training_targets", empty)
    with pytest.raises(ValueError, match=r"Regression: .*got no value of c\.d"):
        main(command("fit", "regression.Regression"))


@pytest.mark.parametrize("rows", [1, 2])
def test_cells_have_two_axes_however_few_they_are(rows):
    metric = GatheredCells()
    metric.update(torch.ones(rows, 1), torch.zeros(rows, 1))
    assert [x.shape for x in metric.cells()] == [(rows, 1)] * 2
