"""Every code block and every command of the documentation works."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser

import benchmarks.__main__
from benchmarks import compare, fingerprints, leaks, streaming
from docs import pictures
from tasks.cli import CLI, export, folds, generate, main
from tests.tasks.runs import FURTHER, SMALL, end_wandb, folder_of, run

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {str(page.relative_to(DOCS)): page.read_text("utf-8") for page in DOCS.rglob("*.md")}
QUICK = ("how_to/layer.md", "how_to/task.md", "tasks/index.md")  # every config, files of one's own
FENCE = re.compile(r'^```(\w+)(?: title="(.*?)")?\n(.*?)^```', re.MULTILINE | re.DOTALL)
INLINE_COMMAND = re.compile(r"`(python (?:train\.py|-m) [^`\n]*)`")
INLINE_ARGUMENTS = re.compile(r"`(--(?:data|model|trainer)\.?[^`\n]*)`")
DEVICES = re.compile(r"^(?:torchrun --nproc_per_node \d+|srun python|python) (?=train\.py)")


class Block(NamedTuple):
    """A fenced block of a page."""

    language: str
    title: str  # of a file that later blocks of the page use
    text: str


def blocks(page: str, language: str | None = None) -> list[Block]:
    found = [Block(*groups) for groups in FENCE.findall(PAGES[page])]
    return [block for block in found if language in (None, block.language)]


def commands(page: str) -> list[list[str]]:
    """The words of all commands of a page, in blocks and in the text."""
    text = "\n".join(block.text for block in blocks(page, "bash"))
    lines = text.replace("\\\n", " ").replace("&&", "\n").splitlines()
    lines += INLINE_COMMAND.findall(FENCE.sub("", PAGES[page]))
    lines = [DEVICES.sub("python ", line.strip()) for line in lines]
    unique = dict.fromkeys(line for line in lines if line and not line.startswith("#"))
    return [shlex.split(line) for line in unique]


def training(page: str) -> Iterator[list[str]]:
    """Arguments of train.py on a page, without those that print help."""
    for words in commands(page):
        if words[:2] == ["python", "train.py"] and "--config" in words:
            yield words[2:]


def first_named() -> dict[str, list[list[str]]]:
    """The arguments of train.py of every page, without those of the pages before it."""
    seen, found = set(), {}
    for page in sorted(PAGES, key=lambda page: page not in QUICK):
        new = [words for words in training(page) if tuple(words) not in seen]
        seen.update(map(tuple, new))
        if new:
            found[page] = new
    return found


WITH_COMMANDS = [page for page in sorted(PAGES) if commands(page)]
WITH_PYTHON = [page for page in sorted(PAGES) if blocks(page, "python")]
TRAINING = first_named()
NEEDED = {"how_to/weights.md": ("huggingface_hub", "safetensors")}
FOLDERS = ("configs", "benchmarks", "plstm", "tasks", "examples", "tests")
PLACEHOLDER = re.compile("NAME|NET|my_file|help")


class Found(Exception):
    """Carries the parser of the command line out of it."""


@pytest.fixture(scope="module")
def parser() -> ArgumentParser:
    """The parser of train.py, made once."""

    def stop(self: CLI, parser: ArgumentParser, args: object) -> None:
        raise Found(parser)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Found) as found:
        patch.setattr(sys, "argv", ["train.py"])
        patch.setattr(CLI, "parse_arguments", stop)
        main(["fit"])
    return found.value.args[0]


@pytest.fixture
def page_folder(workplace, monkeypatch):
    """Makes the working folder look like the repository, with the files of a page in it."""
    for name in ("configs", "examples", "tasks", "benchmarks", "train.py"):
        Path(name).symlink_to(ROOT / name)
    monkeypatch.syspath_prepend(workplace)

    def write(page: str) -> None:
        for block in blocks(page):
            if block.title:
                Path(block.title).write_text(block.text, "utf-8")

    yield write
    for file in workplace.glob("my_*.py"):
        sys.modules.pop(file.stem, None)


def of_run(words: list[str], config: str) -> list[str]:
    """A command about a run, with the config that such a run has."""
    return [config if word == "RUN/config.yaml" else word for word in words]


def config_of(page: str) -> str:
    """The config that the runs of a page have: that of its first command."""
    first = next(words for words in training(page) if words[0] == "fit")
    return first[first.index("--config") + 1]


def test_there_is_something_to_test():
    assert len(WITH_COMMANDS) > 15
    assert len(WITH_PYTHON) > 5
    assert sum(len(list(training(page))) for page in WITH_COMMANDS) > 30


@pytest.mark.parametrize(
    "page", [p if p in QUICK else pytest.param(p, marks=pytest.mark.slow) for p in TRAINING]
)
def test_training_commands_parse(page, parser, page_folder):
    page_folder(page)
    for words in TRAINING[page]:
        parser.parse_args(of_run(words, config_of(page)))


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in WITH_COMMANDS if INLINE_ARGUMENTS.search(PAGES[p])])
def test_arguments_in_the_text_parse(page, parser, page_folder):
    """Those of a page after its first command, one after another."""
    page_folder(page)
    first = next(training(page), ["fit", "--config", "configs/quickstart.yaml"])
    for arguments in INLINE_ARGUMENTS.findall(FENCE.sub("", PAGES[page])):
        words = shlex.split(arguments)
        if (len(words) > 1 or "=" in arguments) and not PLACEHOLDER.search(arguments):
            parser.parse_args([*first, *words])


@pytest.mark.parametrize("page", WITH_COMMANDS)
def test_other_commands_parse(page, monkeypatch):
    for words in commands(page):
        if words[:2] != ["python", "train.py"] or "--config" not in words:
            check(words, monkeypatch)


def check(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the command's own parser read it, or look for what it names."""
    match words:
        case ["pip", "install", "-c", "constraints.txt", "-e", "."]:
            pass
        case ["pip", "install", "-c", "constraints.txt", "-e", what]:
            project = (ROOT / "pyproject.toml").read_text("utf-8")
            assert re.search(rf"^{what[2:-1]} = \[", project, re.MULTILINE), what
        case ["python", "train.py", "export", *arguments]:
            export.parse(arguments)
        case ["python", "-m", "tasks.cli.generate", *arguments]:
            generate.parse(arguments)
        case ["python", "-m", "tasks.cli.folds", *arguments]:
            monkeypatch.setattr(folds, "run_folds", lambda *_: [])
            monkeypatch.setattr(folds, "table", lambda *_: "")
            folds.main(arguments)
        case ["python", "-m", "benchmarks", "sweep", *arguments]:
            assert arguments in ([], ["runs"])
        case ["python", "-m", "benchmarks", name, *arguments] if name in SUBCOMMANDS:
            SUBCOMMANDS[name](arguments)
        case ["python", "-m", "benchmarks", *subjects]:
            benchmarks.__main__.parse(subjects)
        case ["python", "-m", ("plstm" | "benchmarks.overhead") as module]:
            assert list(ROOT.glob(f"{module.replace('.', '/')}*"))
        case ["python", file]:
            assert (ROOT / file).is_file()  # tests/test_examples.py runs them
        case ["wandb", "sweep", file]:
            assert (ROOT / file).is_file()  # tests/test_sweeps.py runs them
        case ["wandb", "agent", "ENTITY/PROJECT/ID"] | ["pytest"] | ["python", "train.py", _]:
            pass
        case _:
            pytest.fail(f"a command of unknown kind: {shlex.join(words)}")


SUBCOMMANDS = {
    "compare": lambda arguments: arguments and compare.parse(arguments),
    "fingerprints": fingerprints.parse,
    "leaks": leaks.parse,
    "streaming": streaming.parse,
    "kernels": lambda arguments: None,
}


@pytest.mark.parametrize("page", WITH_PYTHON)
def test_python_blocks_run(page, page_folder):
    for module in NEEDED.get(page, ()):
        pytest.importorskip(module)
    page_folder(page)
    names = {}
    for block in blocks(page, "python"):
        if "RUN" not in block.text:
            exec(compile(block.text, page, "exec"), names)


def test_python_blocks_about_a_run(workplace):
    folder = folder_of(run("fit", "quickstart"))
    texts = [block.text for page in WITH_PYTHON for block in blocks(page, "python")]
    names = {"images": torch.rand(2, 1, 40, 32)}
    for text in (text for text in texts if "RUN" in text):
        exec(text.replace("RUN", str(folder)), names)
    saved = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(names["model"].state_dict()[name], saved[name]) for name in saved)
    assert names["logits"].shape == (2, 2)
    assert names["parameters"] == sum(x.numel() for x in names["model"].parameters())
    assert 0 <= names["best"] <= 1


@pytest.mark.parametrize("page", sorted(PAGES))
def test_named_files_exist(page):
    named = re.findall(rf"(?<![\w/])(?:{'|'.join(FOLDERS)})/[\w./-]*\w", PAGES[page])
    named = [name for name in named if not re.search(r"NAME|NET|\.md$", name)]
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_result_is_on_the_site():
    text = "".join(PAGES.values())
    for file in (ROOT / "benchmarks" / "results").iterdir():
        if not file.stem.startswith("compare_") or file.suffix != ".jsonl":  # those have a table
            assert file.name in text, file.name


def test_blocks_of_data_are_read():
    for page in PAGES:
        for block in blocks(page, "yaml"):
            assert yaml.safe_load(block.text)


RUNS = [p for p in WITH_COMMANDS if p not in ("how_to/devices.md", "how_to/sweeps.md")]


@pytest.mark.slow
@pytest.mark.parametrize("page", RUNS)
def test_training_commands_run(page, page_folder, monkeypatch):
    """In their order, in small; a run that a command names is the one before it."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    page_folder(page)
    Path("input.txt").write_text("To be, or not to be: that is the question.\n" * 10, "utf-8")
    folder, task = None, ""
    for words in training(page):
        if words[0] == "fit":
            task = Path(words[words.index("--config") + 1]).stem
            folder = folder_of(main([*words, *small(task), *CPU]))
        else:
            main([*(in_place(word, folder, task) for word in words), *CPU])
        end_wandb()


def in_place(word: str, folder: Path, task: str) -> str:
    """A word of a command with the folder of a run and the data of its task."""
    for name, place in {"RUN": str(folder), "FILE": data_of(task), "FOLDER": data_of(task)}.items():
        word = re.sub(rf"\b{name}\b", place, word)
    return word


def data_of(task: str) -> str:
    """File or folder of the data of a task in the working folder."""
    return SMALL.get(task, {}).get("path", "")


def small(task: str) -> list[str]:
    """Arguments that make a run short and give it data."""
    sizes = [f"--data.{name}={value}" for name, value in SMALL.get(task, SEQUENCES).items()]
    return [*sizes, *FURTHER.get(task, []), "--trainer.max_epochs=1"]


CPU = ["--trainer.accelerator=cpu", "--trainer.log_every_n_steps=1"]
SEQUENCES = {"train_size": 16, "val_size": 8, "test_size": 8, "batch_size": 8}


def test_pictures_are_those_of_the_script():
    files = sorted(pictures.FOLDER.glob("*.png"))
    assert [file.stem for file in files] == sorted(draw.__name__ for draw in pictures.PICTURES)
    assert all(file.stat().st_size < 100_000 for file in files)


def test_numbers_in_the_pictures():
    corner = pictures.CORNERS[:1]
    many = pictures.grid_influence(5, (0, 0), pictures.ALL_TURNS, corner)
    assert many[-1, -1] == 70  # 8 over 4
    assert torch.all(pictures.grid_influence(5, (0, 0), pictures.ONE_TURN, corner) == 1)
    dag = pictures.influence(pictures.graph_of(pictures.DAG_EDGES, 6), 0.5, direct=0.2)
    assert dag[4, 0] == 1  # 0.5 + 0.25 + 0.25
    beam = pictures.grid_influence(9, (0, 0), pictures.beam(0.8), corner)
    for steps in range(1, 9):  # as much crosses every diagonal
        assert torch.isclose(beam.flip(1).diagonal(8 - steps).sum(), torch.tensor(1.0))


@pytest.mark.slow
def test_site_builds(tmp_path):
    pytest.importorskip("mkdocs", reason="the extra [docs]")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    for page in tmp_path.rglob("*.html"):
        text = page.read_text("utf-8")
        assert "<!-- results" not in text
        assert 'class="arithmatex"' not in text
        for picture in re.findall(r'<img [^>]*src="([^":]+)"', text):
            assert (page.parent / picture).is_file(), picture
