"""Sweeps: what wandb makes of each file, and one trial as its agent would run it."""

import os
import sys
from pathlib import Path

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args
from wandb.wandb_agent import Agent

from benchmarks.sweep import Trial
from benchmarks.sweep import read as read_trials
from benchmarks.wandb_file import WandbFile
from tasks.cli import folds, main, trial
from tests.tasks.runs import CONFIGS, FURTHER, SMALL, end_wandb

ROOT = CONFIGS.parent
FILES = sorted((CONFIGS / "sweeps").glob("*.yaml"))
TASK = {"lr_models": "quickstart", "arrow_modes": "arrow", "tu_folds": "tu"}
QUICK = [f"--trainer.{x}" for x in ("max_epochs=1", "accelerator=cpu", "log_every_n_steps=1")]
MACROS = {"${env}": [], "${interpreter}": [], "${program}": []}


@pytest.fixture(params=FILES, ids=lambda file: file.stem)
def file(request):
    return request.param


@pytest.fixture(autouse=True)
def workplace(workplace, monkeypatch):
    """It looks like the folder of the project, and wandb is offline."""
    for name in ("configs", "tasks", "train.py"):
        Path(name).symlink_to(ROOT / name)
    for name, value in {"MODE": "offline", "SILENT": "true", "SWEEP_ID": "s"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    for name in ("RUN_ID", "SWEEP_PARAM_PATH"):  # the agent sets them
        monkeypatch.setenv(f"WANDB_{name}", "")
        monkeypatch.delenv(f"WANDB_{name}")
    yield
    end_wandb()


def read(file):
    return yaml.safe_load(file.read_text())


def chosen(sweep, number):
    """A trial as the server would send it: of every parameter the choice of that number."""
    return {
        name: {"value": values["values"][number % len(values["values"])]}
        for name, values in sweep["parameters"].items()
    }


def arguments(sweep, trial):
    """What the agent puts behind the program, by wandb's own rendering."""
    rendered = create_sweep_command_args({"args": trial})
    parts = MACROS | {"${args}": rendered["args"]}
    command = [part for x in create_sweep_command(sweep["command"]) for part in parts.get(x, [x])]
    return command[2:] if command[0] == "-m" else command


def small(file):
    """Arguments that make a trial short."""
    task = TASK[file.stem]
    sizes = [f"--data.{name}={value}" for name, value in SMALL[task].items()]
    return [*sizes, *FURTHER.get(task, []), *QUICK]


def run(sweep, given):
    """Run the program of a sweep in this process."""
    programs = {"tasks.cli.folds": folds.main, "tasks.cli.trial": trial.main}
    (program,) = [x for name, x in programs.items() if name in sweep["command"]] or [main]
    return program(given)


def test_every_file_is_tried():
    assert {file.stem for file in FILES} == set(TASK)


def test_wandb_takes_the_file(file):
    from wandb.apis.public.sweeps import _validate_config_and_fill_distribution as check

    sweep = read(file)
    assert check(sweep) == sweep
    assert sweep["method"] == "grid"
    assert sweep["metric"]["goal"] in ("maximize", "minimize")
    logger = read(CONFIGS / "logger" / "wandb.yaml")["trainer"]["logger"]
    assert sweep["project"] == logger["init_args"]["project"]
    assert f"--config={Path('configs', 'logger', 'wandb.yaml')}" in sweep["command"]
    assert (ROOT / sweep["program"]).is_file()


def test_wandbs_schema(file):
    config = pytest.importorskip("sweeps.config", reason="the package sweeps needs NumPy 1")
    assert config.schema_violations_from_proposed_config(read(file)) == []


def test_every_choice_is_a_configuration(file, capsys):
    sweep = read(file)
    printed = set()
    for number in range(max(len(p["values"]) for p in sweep["parameters"].values())):
        given = arguments(sweep, chosen(sweep, number))
        with pytest.raises(SystemExit) as stopped:
            run(sweep, [*given, *small(file), "--print_config"])
        assert stopped.value.code == 0
        printed.add(capsys.readouterr().out)
    assert len(printed) == number + 1  # every choice has an effect


def test_a_wrong_key_is_refused(file, capsys):
    sweep = read(file)
    trial = chosen(sweep, 0) | {"model.net.colour": {"value": 1}}
    with pytest.raises(SystemExit) as stopped:
        run(sweep, [*arguments(sweep, trial), *small(file), "--print_config"])
    assert stopped.value.code == 2
    assert "colour" in capsys.readouterr().err


def test_the_metric_is_logged(file):
    """Also runs a trial of every file."""
    sweep = read(file)
    run(sweep, [*arguments(sweep, chosen(sweep, 0)), *small(file)])
    end_wandb()
    (folder,) = Path("runs", "wandb").glob("offline-run-*")
    values = WandbFile(folder).logged(sweep["metric"]["name"])
    assert len(values) == 1
    if file.stem == "lr_models":
        (found,) = read_trials(Path("runs"), "val/loss").values()
        assert found == Trial("plstm_quickstart", 0.0001, 0, values[0])


def trial_of_the_agent(file, monkeypatch):
    """One trial in a process that wandb's agent starts; what wandb keeps of it."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    sweep = read(file)
    trial = chosen(sweep, 1)
    agent = Agent(api=None, queue=None, sweep_id="s")
    position = sweep["command"].index("${args}")
    agent._sweep_command = sweep["command"][:position] + small(file) + ["${args}"]
    command = {"type": "run", "run_id": "trial", "program": sweep["program"], "args": trial}
    agent._command_run(command)
    assert agent._run_processes["trial"].wait() == 0
    (folder,) = Path("runs", "wandb").glob("offline-run-*")
    kept = WandbFile(folder)
    assert kept.path.stem == "run-trial"
    assert len(kept.logged(sweep["metric"]["name"])) == 1
    assert {name: kept.config[name] for name in trial} == {k: v["value"] for k, v in trial.items()}
    return kept


def test_the_agent_runs_a_trial(monkeypatch):
    kept = trial_of_the_agent(CONFIGS / "sweeps" / "lr_models.yaml", monkeypatch)
    assert kept.config["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 0.0003
    mixers = kept.config["model"]["init_args"]["net"]["init_args"]["mixers"]
    assert mixers[0]["class_path"].endswith("SoftmaxAttention")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["arrow_modes", "tu_folds"])
def test_the_agent_runs_other_trials(name, monkeypatch):
    trial_of_the_agent(CONFIGS / "sweeps" / f"{name}.yaml", monkeypatch)
