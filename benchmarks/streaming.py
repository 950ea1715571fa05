"""python -m benchmarks streaming RUN --path FILE: a text as one stream, in windows, at once.

Bits per character, time and memory of the net of a run of the text task. As a stream, the net
predicts every character from all previous ones, and stores nothing but its state.

Writes streaming.md.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.measure import ROOT, conditions, peak_mib
from benchmarks.results import markdown, number
from plstm.models import state_size
from tasks.carried import check_carries
from tasks.cli.generate import find_checkpoint, load

RESULTS = ROOT / "benchmarks" / "results"
PIECE = 6144  # positions per call, in every form but the last


def as_stream(net: nn.Module, tokens: Tensor) -> Iterator[Tensor]:
    """Logits (1, L, C) of consecutive pieces of tokens (T,), each from the previous state."""
    state = None
    for piece in tokens[None].split(PIECE, 1):
        logits, state = net(piece, state, return_state=True)
        yield logits


def in_windows(net: nn.Module, tokens: Tensor, context: int) -> Iterator[Tensor]:
    """Logits of windows of `context` positions, each without a state; the last may be shorter."""
    for piece in tokens.split(PIECE // context * context):
        whole = len(piece) // context * context
        if whole:
            yield net(piece[:whole].view(-1, context)).flatten(0, 1)[None]
        if whole < len(piece):
            yield net(piece[None, whole:])


def at_once(net: nn.Module, tokens: Tensor) -> Iterator[Tensor]:
    """Logits of the whole text in one call."""
    yield net(tokens[None])


@torch.no_grad()
def bits(pieces: Iterator[Tensor], targets: Tensor) -> float:
    """Bits per character for targets (T,), given the logits of consecutive pieces."""
    nats, start = 0.0, 0
    for logits in pieces:
        own = targets[start : start + logits.shape[1]].long()
        nats += float(nn.functional.cross_entropy(logits[0].float(), own, reduction="sum"))
        start += logits.shape[1]
    assert start == len(targets)
    return nats / len(targets) / math.log(2)


def measure(read: Callable[[Tensor], Iterator[Tensor]], tokens: Tensor) -> tuple[str, ...]:
    """Cells of a row: characters, bits per character, seconds, peak memory in MiB."""
    found: list[float] = []
    inputs, targets = tokens[:-1].long(), tokens[1:]
    begin = time.perf_counter()
    peak = peak_mib(lambda: found.append(bits(read(inputs), targets)))
    seconds = time.perf_counter() - begin
    return f"{len(tokens):,}", f"{found[0]:.3f}", f"{seconds:.1f}", number(peak, 0)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks streaming",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, help="folder of a run of the text task")
    parser.add_argument("--path", type=Path, required=True, help="a text file")
    parser.add_argument("--characters", type=int, default=1_000_000, help="last characters to read")
    parser.add_argument("--context", type=int, default=64, help="characters per window")
    parser.add_argument("--out", type=Path, default=RESULTS, help="output folder")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    args = parse(sys.argv[2:] if arguments is None else arguments)
    model = load(find_checkpoint(args.run)).cpu()
    check_carries(model.net)
    tokens, _ = model.alphabet.encode_known(args.path.read_text("utf-8")[-args.characters :])
    tenth = tokens[-(len(tokens) // 10) :]
    net, context = model.net, args.context
    parameters, size = sum(p.numel() for p in net.parameters()), state_size(net)
    rows = []
    for form, read, part in (
        (f"windows of {context}", lambda x: in_windows(net, x, context), tenth),
        ("at once", lambda x: at_once(net, x), tenth),
        ("stream", lambda x: as_stream(net, x), tenth),
        ("stream", lambda x: as_stream(net, x), tokens),
    ):
        rows.append([form, *measure(read, part)])
        print(*rows[-1], flush=True)
    table = markdown(["form", "characters", "bits per character", "seconds", "peak MiB"], rows)
    where = conditions()
    text = (
        f"{table}\n\nThe last {len(tokens):,} characters of {args.path.name}, and the last tenth "
        f"of them, by a net of {parameters:,} parameters and a state of {size:,} elements, in "
        f"pieces of {PIECE:,} positions. Peak: resident memory in addition to net and text. "
        f"{where['processor']}, {where['threads']} thread(s), torch {where['torch']}, "
        f"{where['date']}\n"
    )
    print(f"\n{text}")
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "streaming.md").write_text(text, "utf-8")


if __name__ == "__main__":
    main()
