"""A net in use outside the command line: before training, and from a checkpoint."""

import re

import pytest
import torch
from torch import nn

from tasks.arrow import ArrowData
from tasks.classification import Classification
from tests.tasks.runs import CONFIGS, folder_of, run

PAGE = (CONFIGS.parent / "docs" / "command_line.md").read_text("utf-8")
(LOADING,) = re.findall(r"```python\n([^`]*load_from_checkpoint.*?)```", PAGE, re.DOTALL)


def test_documented_code_loads_a_trained_net(workplace):
    cli = run("fit", "quickstart")
    checkpoint = folder_of(cli) / "checkpoints" / "best.ckpt"
    names = {"images": torch.rand(2, 1, 40, 32)}
    exec(LOADING.replace("RUN/checkpoints/best.ckpt", str(checkpoint)), names)
    saved = torch.load(checkpoint, weights_only=True)["state_dict"]
    cli.model.load_state_dict(saved)
    with torch.inference_mode():
        want = cli.model.eval()(names["images"])
    assert torch.equal(names["logits"], want)
    assert not names["model"].training


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_new_net_is_made_by_its_first_call(dtype):
    model = Classification(lambda in_dim, out_dim: nn.Linear(in_dim, out_dim), 3, 2).to(dtype)
    x = torch.randn(5, 3, dtype=dtype)
    assert model(x).shape == (5, 2)
    assert torch.equal(model(x), model(x))  # the same net
    assert len(list(model.parameters())) == 2


def test_arrow_loaders_give_images_without_a_trainer():
    shapes = {"padding": 5, "radius": (3, 5), "arrow_length": (6, 9), "line_width": (1, 2)}
    data = ArrowData(32, (48,), **shapes, train_size=4, val_size=2, test_size=2, batch_size=2)
    model = Classification(pooled_net, data.in_dim, data.out_dim)
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (2, 1, 32, 32)
    assert 0 < images.mean() < 1
    assert model(images).shape == (len(labels), 2)


def pooled_net(in_dim, out_dim):
    return nn.Sequential(nn.Flatten(2), nn.AdaptiveAvgPool1d(out_dim), nn.Flatten())
