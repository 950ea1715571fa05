"""Generate text with a trained net, given a prompt.

    python -m tasks.cli.generate runs/text/version_0 --prompt "ROMEO:" --length 1000

The first argument is the folder of a run, for its best checkpoint, or a checkpoint.
"""

import argparse
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch

from tasks.callbacks.checkpoints import LAST
from tasks.checkpoint_file import FOLDER, read_checkpoint
from tasks.language_model import LanguageModel

BEST = "best.ckpt"


def find_checkpoint(run: Path) -> Path:
    """The best checkpoint of a run, or its last one; a checkpoint is returned unchanged.

    Raises:
        ValueError: there is none.
    """
    if run.is_file():
        return run
    for name in (BEST, LAST):
        if (run / FOLDER / name).is_file():
            return run / FOLDER / name
    raise ValueError(
        f"generate: {run} must be a checkpoint or the folder of a run, with {FOLDER}/{BEST} or "
        f"{FOLDER}/{LAST} in it"
    )


def load(checkpoint: Path) -> LanguageModel:
    """Load the trained net of a text task, with its alphabet.

    Raises:
        ValueError: the checkpoint is damaged, or of another task.
    """
    saved = read_checkpoint(checkpoint)
    if "vocabulary" not in saved.get("data_arguments", {}):
        raise ValueError(f"generate: {checkpoint} has no alphabet; its net is not trained on text")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = LanguageModel.load_from_checkpoint(checkpoint, map_location=device, weights_only=True)
    return model.eval()


def write(
    model: LanguageModel,
    prompt: str,
    length: int,
    *,
    temperature: float = 0.8,
    top_k: int | None = None,
    seed: int = 0,
) -> Iterator[str]:
    """Generate `length` characters after a prompt, one at a time.

    Raises:
        ValueError: the prompt is empty or has unknown characters; see also SequenceModel.stream.
    """
    tokens = model.alphabet.encode(prompt)[None].to(model.device)
    generator = torch.Generator(model.device).manual_seed(seed)
    samples = model.net.stream(tokens, temperature=temperature, top_k=top_k, generator=generator)
    return (model.alphabet.decode(token[0]) for token in islice(samples, length))


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tasks.cli.generate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, help="folder of a run, or a checkpoint")
    parser.add_argument("--prompt", default="\n", help="text to continue; default: a line break")
    parser.add_argument("--length", type=int, default=300, help="number of characters (300)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 is greedy decoding (0.8)")
    parser.add_argument("--top_k", type=int, help="sample only from the k most likely characters")
    parser.add_argument("--seed", type=int, default=0, help="random seed (0)")
    args = parser.parse_args(arguments)
    if args.length < 0:
        parser.error(f"--length must be 0 or more, got {args.length}")
    return args


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; report user errors in one line."""
    args = parse(arguments)
    try:
        model = load(find_checkpoint(args.run))
        options = {"temperature": args.temperature, "top_k": args.top_k, "seed": args.seed}
        characters = write(model, args.prompt, args.length, **options)
        print(args.prompt, end="")
        for character in characters:
            print(character, end="", flush=True)
        print()
    except (ValueError, OSError) as error:
        print(f"generate: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
