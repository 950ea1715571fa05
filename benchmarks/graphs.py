"""NCI1 with the nets of the TU task: one training step, and one epoch including data loading.

GIN has as many parameters as pLSTM (configs/net/gin_tu.yaml). The epoch is the training part of the
first fold, with new batches every time.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks.case import Case, Setting, Work
from benchmarks.steps import build, make_step, to_device, training_step
from tasks.cli import CLI

NAME, BATCH = "NCI1", 64
NODES = 30  # average per molecule
ROOT = Path("data/tu")  # as in configs/tu.yaml


def cases(setting: Setting, root: Path = ROOT, name: str = NAME) -> Iterator[Case]:
    """Without the raw files there are no cases, only a message; never downloads."""
    if not (root / name / "raw").is_dir():
        print(f"skipped {name}: there is no folder {root / name / 'raw'}", flush=True)
        return
    case = partial(Case, "graphs", "graph", batch=BATCH, tokens=NODES)
    group = f"tu step, {name}, {BATCH} graphs"
    for form, net in {"pLSTM": "plstm_tu", "GIN": "gin_tu"}.items():
        make = partial(_step, setting, root, name, net)
        yield case(group, form, make=make, anchor=form == "GIN")
    group = f"tu epoch, {name}, training part of fold 0, batches of {BATCH}"
    for form, net, order in (
        ("pLSTM, fixed node order", "plstm_tu", "bfs"),
        ("pLSTM, new node order every time", "plstm_tu", "random"),
        ("GIN", "gin_tu", "bfs"),
    ):
        make = partial(_epoch, setting, root, name, net, order)
        yield case(group, form, make=make, anchor=form == "GIN")


def _step(setting: Setting, root: Path, name: str, net: str) -> Work:
    cli = _build(root, name, net, "bfs")
    batch = next(iter(cli.datamodule.train_dataloader()))
    return training_step(setting, cli, to_device(batch, setting.device))


def _epoch(setting: Setting, root: Path, name: str, net: str, order: str) -> Work:
    cli = _build(root, name, net, order)
    loader = cli.datamodule.train_dataloader()
    step = make_step(setting, cli, cli.model.net.to(setting.device))

    def epoch() -> None:
        for batch in loader:
            step(to_device(batch, setting.device))

    return Work(None, epoch)


def _build(root: Path, name: str, net: str, order: str) -> CLI:
    data = [f"--data.name={name}", f"--data.root={root}", f"--data.order={order}"]
    data.append(f"--data.plans={net == 'plstm_tu'}")
    return build("tu", net, *data, f"--data.batch_size={BATCH}")
