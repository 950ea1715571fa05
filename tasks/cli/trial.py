"""python -m tasks.cli.trial: train.py as a trial of a sweep, of which divergence is a result.

A run whose gradient is no longer finite ends with exit code 0; its metrics have `diverged`.
"""

from tasks.callbacks.guard import NotFinite
from tasks.cli import main as command_line
from tasks.cli import run_process


def main(args: list[str] | None = None) -> None:
    """Run a command line (that of the process if None)."""
    try:
        command_line(args)
    except NotFinite as error:
        print(f"This run diverged, which is its result. {error}")


if __name__ == "__main__":
    run_process(main, "tasks.cli.trial")
