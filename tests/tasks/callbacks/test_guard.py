"""A run stops when gradients are not finite."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback

from tasks.callbacks.guard import NotFinite
from tests.tasks.runs import run

pytestmark = pytest.mark.usefixtures("workplace")

SEED = hash((0, 2, 0)) & (2**63 - 1)  # of seed 0, batch 2, process 0


class Poison(Callback):
    """Spoils a weight, or a gradient, before the third step."""

    weight = "net.blocks.1.mixer.v_proj.weight"
    kept = None

    def __init__(self, gradient: bool = False) -> None:
        self.gradient = gradient

    def setup(self, trainer, pl_module, stage):
        # A gradient before the guard looks, a weight after a checkpoint was saved.
        trainer.callbacks.sort(key=lambda x: (x is self) != self.gradient)

    def on_train_batch_start(self, trainer, pl_module, *args):
        Poison.kept = pl_module, {k: x.clone() for k, x in pl_module.state_dict().items()}
        if trainer.global_step == 2 and not self.gradient:
            with torch.no_grad():
                pl_module.get_parameter(self.weight)[0, 0] = float("nan")

    def on_before_optimizer_step(self, trainer, pl_module, *args):
        if trainer.global_step == 2 and self.gradient:
            pl_module.get_parameter(self.weight).grad[0, 0] = float("inf")


@pytest.mark.parametrize(
    ("gradient", "cause"),
    [
        (False, r"the first such output is from blocks\.1\.mixer\.v_proj \(BlockDiagonal\)"),
        (
            True,
            r"all outputs are finite, the gradients of net\.blocks\.1\.mixer\.v_proj\.weight are",
        ),
    ],
)
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_stops_before_the_step(gradient, cause, precision, tmp_path):
    poison = f"--trainer.callbacks+={Poison.__module__}.Poison"
    more = ["--data.train_windows=10", f"--trainer.precision={precision}"]
    more += [poison, f"--trainer.callbacks.gradient={gradient}", "--last_checkpoint.minutes=0"]
    with pytest.raises(NotFinite, match=f"the gradient of step 2 is not finite: {cause}") as error:
        run("fit", "text", *more)
    module, before = Poison.kept
    assert f"batch 2 in epoch 0, with torch.manual_seed({SEED})" in str(error.value)
    for name, weight in module.state_dict().items():
        if name != Poison.weight or gradient:
            assert torch.equal(weight, before[name]), name
    (file,) = tmp_path.glob("runs/text/*/checkpoints/last.ckpt")
    saved = torch.load(file, weights_only=True)
    assert saved["global_step"] == 2
    assert all(torch.isfinite(x).all() for x in saved["state_dict"].values())


def test_every_process_is_asked(monkeypatch):
    def gather(everything, own):
        everything[:] = [own, (False, "the first such output is from process 1")]

    group = {"is_initialized": lambda: True, "get_world_size": lambda: 2}
    fake = SimpleNamespace(**group, all_gather_object=gather)
    monkeypatch.setattr("tasks.distributed.distributed", fake)
    more = [f"--trainer.callbacks+={Poison.__module__}.Poison", "--data.train_windows=10"]
    with pytest.raises(NotFinite, match="not finite: the first such output is from process 1;"):
        run("fit", "text", *more, "--trainer.callbacks.gradient=true")
