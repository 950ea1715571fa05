import math

import pytest
import torch

from plstm import PLSTM1d
from tasks.optim import WarmupCosine, describe, parameter_groups


def rates(total_steps, **kwargs):
    """Learning rate of every step over the highest one."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = WarmupCosine(optimizer, total_steps, **kwargs)
    values = []
    for _ in range(total_steps + 3):
        values.append(scheduler.get_last_lr()[0] / 0.5)
        optimizer.step()
        scheduler.step()
    return values


def test_matrices_decay_and_vectors_do_not():
    layer = PLSTM1d(8, 2, conv_width=3)
    layer.k_proj.weight.requires_grad_(False)
    optimizer = torch.optim.AdamW(parameter_groups(layer), weight_decay=0.3)
    decay = {p: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    names = dict(layer.named_parameters())
    assert decay.keys() == set(names.values()) - {layer.k_proj.weight}
    for name in ("q_proj.weight", "out_proj.weight", "gate_proj.weight", "conv.conv.weight"):
        assert decay[names[name]] == 0.3
    for name in ("skip", "gate_proj.bias", "norm.weight", "conv.conv.bias"):
        assert decay[names[name]] == 0.0


def test_shared_parameters_are_listed_once():
    layer = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    layer[1].weight = layer[0].weight
    matrices, vectors = (group["params"] for group in parameter_groups(layer))
    assert (len(matrices), len(vectors)) == (1, 2)


def test_groups_in_words():
    net = torch.nn.Linear(30, 40)
    optimizer = torch.optim.AdamW(parameter_groups(net), weight_decay=0.05)
    assert describe(optimizer) == (
        "AdamW: 1,200 parameters in 1 tensors with weight decay 0.05, "
        "40 parameters in 1 tensors with weight decay 0"
    )


def test_warmup_and_cosine_values():
    got = rates(12, warmup=1 / 3, final=0.1)
    rising = [0.2, 0.4, 0.6, 0.8]
    falling = [0.1 + 0.9 * (1 + math.cos(math.pi * n / 8)) / 2 for n in range(9)]
    assert got == pytest.approx(rising + falling + [0.1] * 2)


def test_without_warmup():
    assert rates(4, warmup=0.0) == pytest.approx([1, 0.853553, 0.5, 0.146447, 0, 0, 0], abs=1e-6)


@pytest.mark.parametrize("total_steps", [1, 2, 3])
def test_very_short_runs(total_steps):
    got = rates(total_steps)
    assert all(0 <= rate <= 1 for rate in got)
    assert got[0] == 1


@pytest.mark.parametrize("warmup", [-0.1, 1.0])
def test_warmup_error(warmup):
    with pytest.raises(ValueError, match=r"WarmupCosine: warmup is a fraction.*got"):
        rates(4, warmup=warmup)
