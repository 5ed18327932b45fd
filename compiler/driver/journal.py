"""What of a weights file is written already, kept beside it so that a run that was killed can be gone on with.

    {"run": {"options": …, "checkpoint": …, "version": …, "layout": …}}
    {"piece": "lm_head.weight#0", "spans": [[4096, 524288, "9f86…"], …]}

A line is added when its piece is written: where in the file, how many bytes, their CRC-32. Nothing of it is
believed when a run goes on: every piece is read again, and counts only if its digests are right. So it does not matter
in which order a system that stopped had brought lines and bytes to its disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import dsv3c.runtime
from dsv3c.compiler.checkpoint import Checkpoint
from dsv3c.compiler.checkpoint.files import some
from dsv3c.compiler.driver.workplace import ASIDE, JOURNAL, MADE, MAKING, abandoned
from dsv3c.compiler.errors import InterruptedRunError
from dsv3c.compiler.options import CompileOptions

WEIGHTS = "weights.safetensors"
_CHUNK = 1 << 22
_LONGEST = 60  # of a value in a message
_TEXT = "calibration"  # among the files of a checkpoint

Span = tuple[int, int, str]  # offset, bytes, digest


class Journal(Protocol):
    """Asked and told by whoever writes pieces of a file, from several threads. nbytes: of the pieces that are done."""

    @property
    def nbytes(self) -> int: ...

    def done(self, piece: str) -> bool: ...

    def note(self, piece: str) -> Any:
        """What was noted of a piece that is done; None where that is nothing."""

    def record(self, piece: str, parts: Sequence[tuple[int, memoryview]], note: Any = None) -> None:
        """The piece is in the file: (offset, bytes) of all of it. note: JSON, for a run that goes on."""


class NoJournal:
    """Of a file that is written in one go."""

    nbytes = 0

    def done(self, piece: str) -> bool:
        return False

    def note(self, piece: str) -> Any:
        return None

    def record(self, piece: str, parts: Sequence[tuple[int, memoryview]], note: Any = None) -> None: ...


@dataclass(frozen=True)
class Run:
    """What decides about every byte of the weights: two runs that are equal write the same file."""

    options: Mapping[str, Any]
    checkpoint: Mapping[str, Any]
    version: str
    layout: str

    @classmethod
    def of(cls, source: Checkpoint, options: CompileOptions, header: bytes) -> Run:
        """checkpoint: by the name of each file its size and the time of its last change, as JSON has them; that of
        the calibration too."""
        paths = source.files()
        if options.calibration is not None:
            paths[_TEXT] = options.calibration
        states = {name: os.stat(path) for name, path in paths.items()}
        files = {name: [state.st_size, state.st_mtime_ns] for name, state in states.items()}
        given = json.loads(json.dumps({**options.to_dict(), "formats": dict(options.formats)}))
        return cls(given, files, dsv3c.runtime.__version__, hashlib.sha256(header).hexdigest())

    def differences(self, other: Run) -> str:
        """How this run, now, differs from an earlier one."""
        names = [name for name in {**self.options, **other.options} if name != "formats"]
        changed = [name for name in names if self.options.get(name) != other.options.get(name)]
        found = [f"{name} {_short(other.options.get(name))}, now {_short(self.options.get(name))}" for name in changed]
        found += self._other_files(other)
        if self.version != other.version:
            found.append(f"dsv3c {other.version}, now {self.version}")
        formats, before = (run.options.get("formats") or {} for run in (self, other))
        differing = [name for name in {**before, **formats} if formats.get(name) != before.get(name)]
        if differing:
            found.append(f"other formats of {some(differing)}")
        return "; ".join(found) or "another layout of the weights"

    def _other_files(self, other: Run) -> list[str]:
        """What is said of files that were read; a text that only one of the runs has is an option that differs."""
        names = [name for name in {**other.checkpoint, **self.checkpoint} if name != _TEXT]
        changed = [name for name in names if self.checkpoint.get(name) != other.checkpoint.get(name)]
        found = [f"files of the checkpoint that are others now: {some(changed)}"] if changed else []
        texts = self.checkpoint.get(_TEXT), other.checkpoint.get(_TEXT)
        if None not in texts and texts[0] != texts[1]:
            found.append("a calibration text that is another now")
        return found


@dataclass
class FileJournal:
    """nbytes: of the pieces that were found written; their notes are in _done."""

    path: Path
    nbytes: int = 0
    _done: Mapping[str, Any] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _descriptor: int = -1

    def done(self, piece: str) -> bool:
        return piece in self._done

    def note(self, piece: str) -> Any:
        return self._done.get(piece)

    def record(self, piece: str, parts: Sequence[tuple[int, memoryview]], note: Any = None) -> None:
        spans = [(offset, data.nbytes, _digest(data)) for offset, data in parts]
        self._add({"piece": piece, "spans": spans, **({} if note is None else {"note": note})})

    def _add(self, line: Mapping[str, Any]) -> None:
        with self._lock:  # in one write, so that a line is whole or the last
            os.write(self._descriptor, (json.dumps(line) + "\n").encode())


@contextmanager
def opened(path: Path, run: Run, weights: Path) -> Iterator[FileJournal]:
    """The journal of a run: a new one, or that of an earlier run that is gone on with, all of whose pieces were read
    again. One without a piece that is right is begun anew, and `weights` with it."""
    pieces = _pieces(path, weights) if path.exists() else {}
    if not pieces:
        path.unlink(missing_ok=True)
        weights.unlink(missing_ok=True)
    nbytes = sum(span[1] for line in pieces.values() for span in line["spans"])
    notes = {piece: line.get("note") for piece, line in pieces.items()}
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    journal = FileJournal(path, nbytes, notes, _descriptor=descriptor)
    try:
        if pieces:
            os.write(descriptor, b"\n")  # behind a line that a kill cut off
        else:
            journal._add({"run": vars(run)})
        yield journal
    finally:
        os.close(descriptor)


def interrupted(out: Path, run: Run, restart: bool) -> Path | None:
    """The workplace of a run into `out` that was killed and that `run` goes on with; None where there is none.

    Raises InterruptedRunError when there are only such of other runs, unless they are to be discarded.
    """
    begun = {folder: found for folder in abandoned(out) if (found := _begun(folder)) is not None}
    same = [folder for folder, found in begun.items() if found == run]
    if same or restart or not begun:
        return same[0] if same else None
    folder, other = next(iter(begun.items()))
    raise InterruptedRunError(path=out, differences=run.differences(other), folder=folder)


def _begun(folder: Path) -> Run | None:
    """The run whose weights lie in a workplace; None where nothing is to be gone on with."""
    written = folder / MAKING / WEIGHTS
    if not written.is_file() or any((folder / name).exists() for name in (MADE, ASIDE)):
        return None
    lines = _lines(folder / JOURNAL)
    if len(lines) < 2:
        return None
    fields = lines[0].get("run")
    try:
        return Run(**fields) if isinstance(fields, dict) else None
    except TypeError:
        return None  # of another version of dsv3c


def _lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a journal that are whole."""
    found: list[dict[str, Any]] = []
    try:
        texts = path.read_bytes().split(b"\n")
    except OSError:
        return found
    for text in filter(None, texts):
        try:
            line = json.loads(text)
        except ValueError:
            continue  # cut off by the kill
        if isinstance(line, dict):
            found.append(line)
    return found


def _pieces(path: Path, weights: Path) -> dict[str, dict[str, Any]]:
    """The lines of a journal whose pieces are in the file as it says; of a piece written twice the last counts."""
    claimed = {str(line["piece"]): line for line in _lines(path) if "piece" in line}
    try:
        descriptor = os.open(weights, os.O_RDONLY)
    except OSError:
        return {}
    try:
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            right = pool.map(lambda line: all(_is_there(descriptor, span) for span in line["spans"]), claimed.values())
            return {piece: line for (piece, line), found in zip(claimed.items(), right, strict=True) if found}
    finally:
        os.close(descriptor)


def _digest(data: memoryview) -> str:
    return _text(zlib.crc32(data))


def _text(crc: int) -> str:
    return f"{crc:08x}"


def _is_there(descriptor: int, span: Span) -> bool:
    offset, left, wanted = span
    crc = 0
    while left > 0:
        chunk = os.pread(descriptor, min(left, _CHUNK), offset)
        if not chunk:
            return False
        crc = zlib.crc32(chunk, crc)
        offset, left = offset + len(chunk), left - len(chunk)
    return _text(crc) == wanted


def _short(value: object) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"
