"""Data, loss and metrics of every task, and the command line."""

from importlib.util import find_spec

from plstm.extras import extra

with extra("train", "tasks"):
    if find_spec("lightning") is None:  # to import it takes seconds
        raise ModuleNotFoundError(name="lightning")
