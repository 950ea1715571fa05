"""Text from a prompt on the command line, and what is said of wrong ones."""

from pathlib import Path

import pytest
import torch

from tasks.cli import generate
from tests.tasks.runs import folder_of, run

SMALL = ["--model.net.dim=16", "--model.net.depth=1", "--data.train_windows=20"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder of a run of the text task, and of one of another task."""
    from tests.tasks.runs import write_data

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("generate"))
        patch.setattr("sys.argv", ["train.py"])
        patch.setenv("PL_GLOBAL_SEED", "0")
        write_data()
        text = folder_of(run("fit", "text", *SMALL)).resolve()
        words = folder_of(run("fit", "words", "--model.net.depth=1")).resolve()
    return text, words


@pytest.fixture
def told(trained, capsys):
    """What the command writes of that run: (text, messages), with exit code 2 for a mistake."""

    def run_and_read(*args, where=trained[0]):
        code = 0
        try:
            generate.main([str(where), *args])
        except SystemExit as stopped:
            code = stopped.code
        said = capsys.readouterr()
        assert (code == 2) == bool(said.err)
        return said.err or said.out

    return run_and_read


def test_text_is_that_of_the_net(told, trained):
    checkpoint = trained[0] / "checkpoints" / "best.ckpt"
    assert generate.find_checkpoint(trained[0]) == checkpoint
    model = generate.load(checkpoint)
    prompt = model.alphabet.encode("to be")[None]
    tokens = model.net.generate(
        prompt, 40, temperature=0.9, top_k=5, generator=torch.Generator().manual_seed(3)
    )
    want = model.alphabet.decode(tokens[0]) + "\n"
    more = ["--prompt=to be", "--length=40", "--temperature=0.9", "--top_k=5"]
    assert told(*more, "--seed=3") == want
    assert told(*more, "--seed=3", where=checkpoint) == want
    assert told(*more, "--seed=4") != want


def test_length_and_prompt(told):
    assert told("--prompt=to", "--length=0") == "to\n"
    long = told("--prompt", "not to be " * 500, "--length=700", "--temperature=0")
    assert len(long) == 5000 + 700 + 1
    assert len(told()) == 1 + 300 + 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--prompt=to Zé be é"], "got 'é' (2 times), 'Z' (1 times); leave it out"),
        (["--prompt="], "at least one position"),
        (["--temperature=-1"], "temperature must be 0 or more"),
        (["--temperature=nan"], "temperature must be 0 or more"),
        (["--top_k=0"], "top_k 1 or more"),
        (["--length=-1"], "--length must be 0 or more, got -1"),
    ],
    ids=lambda x: x[0] if isinstance(x, list) else "",
)
def test_wrong_arguments(args, message, told):
    said = told(*args)
    assert message in said
    assert "Traceback" not in said


def test_wrong_runs(told, trained, tmp_path):
    assert "must be a checkpoint or the folder of a run" in told(where=tmp_path)
    assert "has no alphabet; its net is not trained on text" in told(where=trained[1])
    file = tmp_path / "some.ckpt"
    file.write_bytes(Path(trained[0], "checkpoints/last.ckpt").read_bytes()[:500])
    assert "is damaged or not a checkpoint" in told(where=file)
