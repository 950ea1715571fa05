"""python -m benchmarks.draws: sequences that a task draws per second on one core.

The median over several batches of different sequences, in process time on one thread.
"""

import statistics
import time

import torch

from benchmarks.measure import conditions
from benchmarks.results import markdown
from tasks.languages import LANGUAGES, LanguageData
from tasks.listops import ListOpsData
from tasks.recall import RecallData
from tasks.sequences import SequenceData
from tasks.words import ELEMENTS, GROUPS, WordData

LENGTH = 64
BATCHES = (128, 1024, 4096)
REPEATS = 15


def tasks() -> dict[str, SequenceData]:
    """Every task with sequences of length LENGTH."""
    words = {
        f"words, {group}, {elements}": WordData(group, elements, length=LENGTH)
        for group in GROUPS
        for elements in ELEMENTS
    }
    lengths = (LENGTH - 1, LENGTH)  # arithmetic needs an odd one
    languages = {f"languages, {x}": LanguageData(x, length=lengths) for x in LANGUAGES}
    recall = {f"recall, vocabulary {n}": RecallData(n, length=LENGTH) for n in (256, 8192)}
    return words | languages | recall | {"listops": ListOpsData(length=LENGTH)}


def rate(data: SequenceData, batch: int) -> float:
    """Sequences per second, with targets, at this batch size."""
    dataset, seconds = data.dataset("train", data.sizes[0]), []
    for number in range(REPEATS + 1):  # the first batch computes tables
        indices = list(range(number * batch, (number + 1) * batch))
        start = time.process_time()
        dataset.__getitems__(indices)
        seconds.append(time.process_time() - start)
    return batch / statistics.median(seconds[1:])


def main() -> None:
    """Print the table and the conditions."""
    torch.set_num_threads(1)
    lines = [
        [name, *(f"{rate(data, batch):,.0f}" for batch in BATCHES)]
        for name, data in tasks().items()
    ]
    print(markdown(["sequences per second", *(f"batch {batch}" for batch in BATCHES)], lines))
    print(*(f"- {name}: {value}" for name, value in conditions("cpu").items()), sep="\n")


if __name__ == "__main__":
    main()
