"""python -m tasks.cli.trial: train.py as a trial of a sweep, where divergence is a valid result.

A run with a gradient that is not finite ends with exit code 0; its metrics have `diverged`.
"""

from tasks.callbacks.guard import NotFinite
from tasks.cli import main as command_line
from tasks.cli import run_process


def main(args: list[str] | None = None) -> None:
    """Run a command line (sys.argv if None)."""
    try:
        command_line(args)
    except NotFinite as error:
        print(f"This run diverged. {error}")


if __name__ == "__main__":
    run_process(main, "tasks.cli.trial")
