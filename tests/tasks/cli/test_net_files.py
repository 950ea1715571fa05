"""A net on the command line inherits nothing from the previous net."""

import sys

import pytest
import yaml

from tasks.cli import main
from tests.tasks.runs import CONFIGS

NETS = CONFIGS / "net"


@pytest.fixture
def net_of(capsys, monkeypatch):
    """The resolved net of a command line."""

    def resolve(*arguments):
        monkeypatch.setattr(sys, "argv", ["train.py"])
        with pytest.raises(SystemExit):
            main(["fit", *arguments, "--print_config"])
        captured = capsys.readouterr()
        assert captured.err == ""
        return yaml.safe_load(captured.out)["model"]["init_args"]["net"]

    return resolve


def arguments_of(net):
    return net["init_args"] | {
        "mixers": [mixer["init_args"] for mixer in net["init_args"]["mixers"]]
    }


@pytest.mark.parametrize("form", [["--model.net={}"], ["--model.net", "{}"], ["--config={}"]])
def test_arguments_of_the_net_before_are_gone(form, net_of, tmp_path):
    """Those it would share, and those of its mixers: the silent ViT would have a stem."""
    file = NETS / "vit_quickstart.yaml"
    if form == ["--config={}"]:
        file = tmp_path / "own.yaml"
        file.write_text(f"model: {{init_args: {{net: {NETS / 'vit_quickstart.yaml'}}}}}")
    net = net_of(f"--config={CONFIGS / 'quickstart.yaml'}", *(x.format(file) for x in form))
    got = arguments_of(net)
    assert (got["stem"], got["bias"], got["pooling"]) == ([], True, "mean")


def test_arguments_of_mixers_before_are_gone(net_of):
    config = f"--config={CONFIGS / 'words.yaml'}"
    net = net_of(config, f"--model.net={NETS / 'gated_delta_net_sequences.yaml'}")
    (mixer,) = arguments_of(net)["mixers"]
    assert mixer["negative_eigenvalues"]
    assert (mixer["qk_dim"], mixer["v_dim"], mixer["conv_width"]) == (None, None, 4)


def test_single_arguments_change_the_net_that_is_there(net_of):
    config = f"--config={CONFIGS / 'quickstart.yaml'}"
    vit = f"--model.net={NETS / 'vit_quickstart.yaml'}"
    plain, deeper = net_of(config, vit), net_of(config, vit, "--model.net.depth=5")
    assert deeper["init_args"]["depth"] == 5
    assert deeper["init_args"] | {"depth": 2} == plain["init_args"]
