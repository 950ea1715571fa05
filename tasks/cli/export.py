"""Export a trained net to files that do not need Lightning.

    python train.py export --ckpt_path runs/text/version_0/checkpoints/best.ckpt --to FOLDER

writes to the folder, from a checkpoint loaded with weights_only:

    config.json, model.safetensors   the net, for plstm.models.Pretrained.from_pretrained
    task.json      other contents of the checkpoint: alphabet, class names, units of outputs, ...
    model.pt2      its CPU program by torch.export, with dynamic batch, length and image size;
                   torch.export.load needs `import plstm` first, which registers our operators
    model.onnx     the same for ONNX, if ONNX supports all operators of the net

Every file is loaded again, run at another size, and compared with the net.
"""

import argparse
import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from plstm.extras import MissingExtra, extra
from plstm.models import Pretrained, SequenceModel, VisionModel
from plstm.models.pretrained import TRUSTED, WEIGHTS, build_net
from tasks.checkpoint_file import read_checkpoint

PROGRAM, ONNX, TASK = "model.pt2", "model.onnx", "task.json"
LENGTH, PATCHES = 100, (5, 7)  # traced sizes of dynamic axes
LARGEST_ERROR = 1e-3  # relative to the largest output


class Inputs(NamedTuple):
    """Inputs to trace a net with, and inputs to compare it on."""

    traced: Tensor
    compared: Tensor
    dynamic: dict[int, Dim]  # dynamic axes, where the two differ


def main(arguments: list[str]) -> None:
    """Run the command line."""
    args = parse(arguments)
    net, task = read_net(args.ckpt_path, args.trust)
    args.to.mkdir(parents=True, exist_ok=True)
    for line in write(net, task, args.to, size=args.size, trust=args.trust):
        print(line)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="train.py export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--ckpt_path", type=Path, required=True, help="checkpoint of a run")
    parser.add_argument("--to", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--size",
        type=int,
        nargs="+",
        help="length, or height and width in pixels, of the input that is traced; matters to nets "
        "that torch.export can trace for one size only",
    )
    parser.add_argument(
        "--trust",
        nargs="+",
        default=[],
        metavar="PACKAGE",
        help="packages beside plstm whose classes the checkpoint may name",
    )
    return parser.parse_args(arguments)


def read_net(checkpoint: Path, trust: Sequence[str]) -> tuple[Pretrained, dict[str, object]]:
    """The net of a checkpoint in evaluation mode, and the contents of task.json.

    Raises:
        ValueError: the file is damaged, or not of a run of train.py; the class of the net is not
            trusted, or not a `Pretrained`.
    """
    saved = read_checkpoint(checkpoint)
    told = saved.get("hyper_parameters", {})
    if not isinstance(told.get("net"), dict):
        raise ValueError(
            f"export: {checkpoint} does not say what its net is, as those of train.py fit do; "
            "call save_pretrained of the net in Python"
        )
    sizes = {"in_dim": told["in_dim"], "out_dim": told["out_dim"], **told["net_args"]}
    config = told["net"] | {"init_args": sizes | told["net"].get("init_args", {})}
    net = build_net(config, [*TRUSTED, *trust])
    if not isinstance(net, Pretrained):
        raise ValueError(
            f"export: the net must be one of plstm.models, or a subclass of Pretrained there, got "
            f"{type(net).__name__}"
        )
    weights = saved["state_dict"]
    try:
        net.load_state_dict(
            {k.removeprefix("net."): x for k, x in weights.items() if k.startswith("net.")}
        )
    except RuntimeError as error:
        raise ValueError(f"export: {checkpoint} has weights of another net: {error}") from error
    buffers = {k: x.tolist() for k, x in weights.items() if not k.startswith(("net.", "metrics."))}
    task = {"task": told.get("_class_path"), "data": saved.get("data_arguments", {}), **buffers}
    return net.eval(), task


def write(
    net: Pretrained,
    task: dict[str, object],
    folder: Path,
    *,
    size: Sequence[int] | None = None,
    trust: Sequence[str] = (),
) -> Iterator[str]:
    """Write all files, and yield one line of result for each.

    Raises:
        ValueError: a file computes something other than the net; the size is invalid.
    """
    inputs = make_inputs(net, size)
    net.save_pretrained(folder)
    for name in (PROGRAM, ONNX):  # remove those of a previous net
        (folder / name).unlink(missing_ok=True)
    (folder / TASK).write_text(json.dumps(task, indent=2), "utf-8")
    back = type(net).from_pretrained(folder, trusted=[*TRUSTED, *trust])
    if inputs is None:
        yield f"{folder}: config.json, {WEIGHTS} and {TASK}"
        yield f"no {PROGRAM}: torch.export takes tensors, and {type(net).__name__} takes graphs"
        return
    yield f"{folder}: config.json, {WEIGHTS} and {TASK}; {_compare(back, net, inputs.traced)}"
    try:
        program, inputs, sizes = _trace(net, inputs)
    except Exception as error:  # the compiler raises many types
        yield f"no {folder / PROGRAM}: {_first_line(error)}"
        return
    torch.export.save(program, folder / PROGRAM)
    run = torch.export.load(folder / PROGRAM).module()
    yield f"{folder / PROGRAM}: {sizes}; {_compare(run, net, inputs.compared)}"
    yield _write_onnx(program, net, inputs, folder / ONNX)


def make_inputs(net: nn.Module, size: Sequence[int] | None = None) -> Inputs | None:
    """Inputs of a sequence or image net, None for other nets.

    Raises:
        ValueError: the size is invalid for the net.
    """
    generator = torch.Generator().manual_seed(0)
    if isinstance(net, SequenceModel):
        longest = net.max_length
        (length,) = _checked(size or [min(LENGTH, longest or LENGTH)], 1)
        other = min(2 * length + 37, longest) if longest else 2 * length + 37
        numbers = partial(torch.randint, net.embed.num_embeddings, generator=generator)
        axes = {0: Dim("batch"), 1: Dim("length", max=longest)}
        return Inputs(numbers((2, length)), numbers((3, other)), axes)
    if isinstance(net, VisionModel):
        patch = net.patch_size
        height, width = _checked(size or [patch * n for n in PATCHES], 2)
        traced = torch.rand(2, net.in_dim, height, width, generator=generator)
        other = torch.rand(3, net.in_dim, 2 * height, width + patch, generator=generator)
        rows, columns = Dim("rows"), Dim("columns")
        sides = {2: patch * rows, 3: patch * columns} if patch > 1 else {2: rows, 3: columns}
        return Inputs(traced, other, {0: Dim("batch"), **sides})
    return None


def _checked(size: Sequence[int], axes: int) -> Sequence[int]:
    if len(size) != axes or min(size) < 1:
        rule = ("the length", "height and width")[axes - 1]
        raise ValueError(f"export: --size must be {rule}, 1 or more, got {list(size)}")
    return size


@torch.no_grad()
def _trace(net: nn.Module, inputs: Inputs) -> tuple[ExportedProgram, Inputs, str]:
    """Trace a net with as many dynamic sizes as it allows: program, inputs, dynamic sizes."""

    def trace(inputs: Inputs) -> ExportedProgram:
        return torch.export.export(net, (inputs.traced,), dynamic_shapes=(inputs.dynamic,))

    try:
        return trace(inputs), inputs, "any batch and size"
    except Exception as error:  # the compiler raises many types
        reason = _first_line(error)
    more = torch.cat([inputs.traced, inputs.traced[:1]])
    inputs = Inputs(inputs.traced, more, {0: inputs.dynamic[0]})
    fixed = " x ".join(map(str, more.shape[1:]))
    return trace(inputs), inputs, f"any batch, but {fixed} only (--size changes that): {reason}"


def _write_onnx(program: ExportedProgram, net: nn.Module, inputs: Inputs, path: Path) -> str:
    """Convert a program to ONNX, and return a line of result."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # lists missing packages
    try:
        with extra("onnx", str(path)):
            import onnxruntime
            import onnxscript  # noqa: F401  # used by torch.onnx
        torch.onnx.export(program, (), path, dynamo=True, external_data=False, verbose=False)
    except MissingExtra as error:
        return f"no {path}: {error}"
    except torch.onnx.OnnxExporterError as error:
        operator = re.search(r"No ONNX function found for <OpOverload\(op='([\w.]+)'", str(error))
        reason = f"ONNX has no operator {operator[1]}" if operator else _first_line(error)
        return f"no {path}: {reason}"
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])

    return f"{path}: {_compare(run, net, inputs.compared)}"


@torch.no_grad()
def _compare(run: Callable[[Tensor], Tensor], net: nn.Module, x: Tensor) -> str:
    """Compare a written program with the net, as text."""
    got, want = run(x), net(x)
    error, largest = (got - want).abs().max().item(), want.abs().max().item()
    if not error <= LARGEST_ERROR * largest:
        raise ValueError(
            f"export: what was written differs from the net by {error:.1e} at "
            f"{tuple(x.shape)}, where outputs reach {largest:.1e}; please report this"
        )
    return f"at {tuple(x.shape)} it differs from the net by {error:.1e} of {largest:.1e} at most"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
