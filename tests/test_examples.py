"""The examples run, stay short and learn; those of own parts: tests/tasks/test_own_parts.py."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from examples import causal_lm, plain_loop, pyg_network, timm_block
from tests.helpers import assert_close

EXAMPLES = (causal_lm, plain_loop, pyg_network, timm_block)


def last_number(text: str) -> float:
    return float(re.findall(r"\d+\.\d+", text)[-1])


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.__name__)
def test_is_short(example):
    assert len(Path(example.__file__).read_text("utf-8").splitlines()) < 60


def test_timm_block(capsys):
    timm_block.main(epochs=1)
    assert last_number(capsys.readouterr().out) > 0.2  # chance is 0.1


def test_timm_block_takes_the_arguments_of_timm():
    arguments = {"mlp_ratio": 2.0, "qkv_bias": True, "norm_layer": torch.nn.LayerNorm}
    block = timm_block.PLSTMBlock(dim=8, num_heads=2, depth=1, drop_path=0.0, **arguments)
    assert block.mixer.mode == "D"
    assert block(torch.randn(2, 9, 8)).shape == (2, 9, 8)


def test_causal_lm(capsys):
    causal_lm.main(steps=20)
    out = capsys.readouterr().out
    assert last_number(out) < 4  # log 256 = 5.5 at the start
    assert "num_heads: " in out


def test_causal_lm_goes_on_where_it_stopped():
    net, tokens = causal_lm.PLSTMForCausalLM(11, dim=8).double(), torch.randint(11, (2, 7))
    whole = net(tokens, labels=tokens)
    first = net(tokens[:, :3])
    assert first.loss is None
    second = net(tokens[:, 3:], past_key_values=first.past_key_values)
    assert_close("logits", torch.cat([first.logits, second.logits], 1), whole.logits)
    again = net(tokens[:, 3:], past_key_values=first.past_key_values)
    assert_close("states are kept", again.logits, second.logits)
    log_p = whole.logits.log_softmax(-1)[:, :-1].gather(2, tokens[:, 1:, None])
    assert_close("loss", whole.loss, -log_p.mean())


def test_plain_loop(capsys):
    plain_loop.main(steps=60, lengths=(32,))
    assert last_number(capsys.readouterr().out) > 0.99


def test_pyg_network(capsys):
    pyg_network.main()
    gcn, plstm = capsys.readouterr().out.splitlines()
    assert last_number(gcn) < 0.7
    assert last_number(plstm) > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.__name__)
def test_runs_as_script(example, tmp_path):
    root = Path(example.__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": str(root)}
    command = [sys.executable, example.__file__]
    out = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert out.stdout
