"""Command lines, run as one of several processes would run them that find each other as under
torchrun.

python -m tests.tasks.processes JOBS OUT: JOBS is a JSON list of argument lists, OUT gets a list of
(weights, metrics).
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
Outcome = tuple[dict[str, torch.Tensor], dict[str, float]]


def run_on_processes(jobs: list[list[str]], count: int) -> list[Outcome]:
    """Run command lines on `count` processes in the working folder; what the first one came to."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": count}
    shared |= {"LOCAL_WORLD_SIZE": count, "GROUP_RANK": 0, "TORCHELASTIC_RUN_ID": "test"}
    shared |= {"OMP_NUM_THREADS": 1, "PYTHONPATH": ROOT, "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-m", "tests.tasks.processes", json.dumps(jobs), "outcome.pt"]
    processes = []
    for rank in range(count):
        own = {
            key: str(value) for key, value in (shared | {"RANK": rank, "LOCAL_RANK": rank}).items()
        }
        processes.append(subprocess.Popen(command, env=os.environ | own))
    try:
        codes = [process.wait(timeout=300) for process in processes]
    finally:
        for process in processes:  # one that fails leaves the others waiting
            process.kill()
    assert codes == [0] * count
    return torch.load("outcome.pt", weights_only=True)


def outcome_of(cli: object) -> Outcome:
    """Weights and last metrics of a command that has run."""
    metrics = {name: float(value) for name, value in cli.trainer.callback_metrics.items()}
    weights = cli.model.net.state_dict()
    whole = {k: x.full_tensor() if hasattr(x, "full_tensor") else x for k, x in weights.items()}
    return whole, metrics


def main() -> None:
    from tasks.cli import main as command_line

    jobs, out = json.loads(sys.argv[1]), sys.argv[2]
    sys.argv = ["train.py"]
    outcomes = [outcome_of(command_line(job)) for job in jobs]
    if os.environ["RANK"] == "0":
        torch.save(outcomes, out)


if __name__ == "__main__":
    main()
