"""What an interrupted pack leaves behind so that the next one goes on: decoded chunks, and a journal of them.

.NAME.h5.partial/
    journal.jsonl   a line with the options that shape pixels, then a line a chunk
    chunks.bin      blobs of the chunks, one behind the other
    packed.h5       the file in the making; a new start makes it anew from the chunks

Nothing is trusted: a blob counts only with its CRC and with the stamp of its source files, and a torn line ends the
journal. Rank 0 alone writes here.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from fedhpc.data.packers.decode import Chunk, MaskResult, RowResult

WORTH_KEEPING = 256  # rows: fewer are decoded again in seconds, so an error that ends the pack leaves nothing behind


@dataclass(frozen=True)
class Stored:
    """Where a chunk's blob lies."""

    stamp: str
    offset: int
    size: int
    crc: int

    def is_whole(self, path: Path) -> bool:
        try:
            with open(path, "rb") as file:
                file.seek(self.offset)
                return zlib.crc32(file.read(self.size)) == self.crc
        except OSError:
            return False


class Spool:
    """The folder of one pack. Opened by rank 0; other ranks only look into `blobs`."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self.folder = out.with_name(f".{out.name}.partial")
        self.blobs = self.folder / "chunks.bin"
        self.packed = self.folder / "packed.h5"
        self.known: dict[int, Stored] = {}
        self.num_rows = 0  # of the chunks in the journal
        self._chunks: dict[int, Chunk] = {}
        self._lock: IO[str] | None = None
        self._journal: IO[str] | None = None
        self._file: IO[bytes] | None = None

    def open(self, options: Mapping[str, Any], num_chunks: int) -> None:
        """Take over what an earlier pack with the same options left. Raises ValueError while that one still runs."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = (self.folder / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            self._lock = None
            raise ValueError(f"another process is packing to {self._out}: wait for it, or set another --out") from None
        except OSError:
            pass  # a file system without locks
        journal = self.folder / "journal.jsonl"
        lines = _read_lines(journal)
        if lines and (changes := _changes(lines[0], options)):
            say(f"what an earlier pack left is of no use, as {changes}: starting anew")
            lines = []
        for line in lines[1:]:
            if line["index"] < num_chunks:
                self._remember(_chunk_of(line), Stored(line["stamp"], line["offset"], line["size"], line["crc"]))
        # Written anew: a torn last line would spoil the one behind it.
        temporary = journal.with_suffix(".new")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in [options, *lines[1:]]))
        os.replace(temporary, journal)
        if not lines:
            self.blobs.unlink(missing_ok=True)
        self._journal = journal.open("a")
        self._file = self.blobs.open("ab+")

    def add(self, chunk: Chunk) -> None:
        """Keep a decoded chunk; its blob is let go."""
        assert self._file is not None and self._journal is not None, "opened"
        offset = self._file.seek(0, os.SEEK_END)
        self._file.write(chunk.blob)
        self._file.flush()
        stored = Stored(chunk.stamp, offset, len(chunk.blob), zlib.crc32(chunk.blob))
        chunk.blob = b""
        line = {**asdict(chunk), "offset": stored.offset, "size": stored.size, "crc": stored.crc}
        del line["blob"]
        self._journal.write(json.dumps(line) + "\n")
        self._journal.flush()
        self._remember(chunk, stored)

    def take(self, index: int) -> Chunk:
        """A chunk with its blob, for the last time."""
        assert self._file is not None, "opened"
        chunk, stored = self._chunks.pop(index), self.known[index]
        chunk.blob = os.pread(self._file.fileno(), stored.size, stored.offset)
        return chunk

    def close(self, *, done: bool) -> None:
        """Delete the folder, unless enough is in it for another try. Does nothing where it was not opened."""
        if self._lock is None:
            return
        for file in (self._journal, self._file):
            if file is not None:
                file.close()
        if done or self.num_rows < WORTH_KEEPING:
            shutil.rmtree(self.folder, ignore_errors=True)
        else:
            say(f"{self.num_rows} decoded rows are kept in {self.folder} for the next try; delete it to start anew")
        self._lock.close()

    def _remember(self, chunk: Chunk, stored: Stored) -> None:
        if chunk.index not in self.known:
            self.num_rows += len(chunk.rows)
        self.known[chunk.index] = stored
        self._chunks[chunk.index] = chunk


def _read_lines(path: Path) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    if path.exists():
        with open(path) as file:
            for line in file:
                try:
                    lines.append(json.loads(line))
                except ValueError:
                    break
    return lines


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Empty when nothing differs."""
    return ", ".join(f"{key} was {old.get(key)}, is {new.get(key)}" for key in sorted({*old, *new})
                     if old.get(key) != new.get(key))  # fmt: skip


def _chunk_of(line: Mapping[str, Any]) -> Chunk:
    def flaw(pair: list[str] | None) -> tuple[str, str] | None:
        return None if pair is None else (pair[0], pair[1])

    rows = [
        RowResult(None if row["shape"] is None else tuple(row["shape"]), row["size"], row["mask"], flaw(row["unread"]),
                  flaw(row["unfit"]))
        for row in line["rows"]
    ]  # fmt: skip
    masks = [MaskResult(m["key"], tuple(m["shape"]), m["size"], m["has_classes"]) for m in line["masks"]]
    return Chunk(line["index"], line["stamp"], rows, masks)


def say(text: str) -> None:
    print(f"fedhpc pack: {text}", file=sys.stderr, flush=True)
