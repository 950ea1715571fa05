"""Reader for the file of an offline wandb run.

The file is a LevelDB log: blocks of 32 KiB hold parts of records (checksum, length, whether it is
the first, a middle or the last part, bytes); every record is a protocol buffer of wandb.
"""

import json
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

from wandb.proto.wandb_internal_pb2 import Record

HEADER = 7  # bytes, of the file and of every part
BLOCK = 2**15
WHOLE, LAST = 1, 4  # types of parts that end a record


class WandbFile:
    """Configuration and metrics of one finished run in a wandb folder."""

    def __init__(self, folder: Path) -> None:
        (self.path,) = folder.glob("run-*.wandb")
        self.config: dict[str, object] = {}
        self.history: list[dict[str, object]] = []
        self.exit_code: int | None = None
        for record in records(self.path.read_bytes()):
            self._take(record)

    def _take(self, record: Record) -> None:
        match record.WhichOneof("record_type"):
            case "run":
                self.config |= values(record.run.config.update)
            case "config":
                self.config |= values(record.config.update)
            case "history":
                self.history.append(values(record.history.item))
            case "exit":
                self.exit_code = record.exit.exit_code

    def logged(self, name: str) -> list[object]:
        """All values of a metric in order."""
        return [row[name] for row in self.history if name in row]


def records(data: bytes) -> Iterator[Record]:
    """Iterate over the records of a file."""
    at, parts = HEADER, b""
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:  # the rest of a block stays empty
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + HEADER])
        parts += data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (WHOLE, LAST):
            yield Record.FromString(parts)
            parts = b""


def values(items: Iterable[object]) -> dict[str, object]:
    """Names and values of items; nested names are joined by dots."""
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}
