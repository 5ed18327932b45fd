"""Numbers of the kernels that are found by measuring, and the records of what was found on which CPU.

A record is artifacts/tuning/<cpu>.json: {"cpu", "level", "tuning": {parameter: value}, "measured": …}, of one core,
which CPUs of many names have (`families`). It is made by `dsv3c tune` and read when an artifact is compiled on such a
CPU; it holds for the level that it was measured at. "lower", which it may lack, has the same for further levels:
{level: {"tuning", "measured"}}, with the numbers that differ from the level's own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from dsv3c.compiler.errors import Dsv3cError

MAX_RECORD_BYTES = 1 << 20  # honest ones have less than a kilobyte
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")  # of a CPU: a file name, never a path
RECORDS = Path(__file__).parents[2] / "artifacts" / "tuning"


class BadTuningRecord(Dsv3cError):
    message = "{path} is no tuning record: {reason}"
    hint = "remove it; `dsv3c tune` then makes it again"


class UnknownTuningRecord(Dsv3cError):
    message = "there is no tuning record for the CPU {cpu!r}"
    hint = "known: {known}; make one on that machine with `dsv3c tune`, or leave the option out"


@dataclass(frozen=True)
class Tuning:
    """Parameters of the CPU kernels; the defaults are good on two cores with AVX-512 and VNNI.

    token_tile, row_blocks: activation rows by weight blocks of a tile, whose sums are kept in registers. word_unroll,
    float_unroll: 64-byte words of integer weights, or columns of float weights, per iteration of the inner loop.
    down_blocks: row blocks that a task of moe_down takes together: an expert's activations stay in its cache for all of
    them. prefetch_bytes: how far ahead of a single row's products its weights are fetched. context_chunk: tokens of the
    context that are worth a task of absorbed attention of their own.
    """

    token_tile: int = 4
    row_blocks: int = 2
    word_unroll: int = 4
    float_unroll: int = 4
    down_blocks: int = 8
    matrix_min_tokens: int = 16  # counted, not measured: half the rows of a step
    prefetch_bytes: int = 4096
    context_chunk: int = 128

    @classmethod
    def from_json(cls, values: Mapping[str, Any], path: Path) -> Tuning:
        """Raises BadTuningRecord for a parameter that is unknown or has a value outside of SPACE."""
        for name, value in values.items():
            if name not in SPACE or type(value) is not int or value not in SPACE[name]:
                raise BadTuningRecord(path=path, reason=f"{name!r:.40} is {value!r:.40}; known are {dict(SPACE)}")
        return cls(**values)

    def to_json(self) -> dict[str, int]:
        return asdict(self)


# What a search may choose from.
SPACE: Mapping[str, tuple[int, ...]] = {
    "token_tile": (2, 4, 6, 8),
    "row_blocks": (1, 2),
    "word_unroll": (1, 2, 4, 8),
    "float_unroll": (2, 4, 8),  # columns of bfloat16 lie in pairs
    "down_blocks": (1, 2, 4, 8, 16),
    "matrix_min_tokens": (4, 8, 16, 32),
    "prefetch_bytes": (512, 1024, 2048, 4096, 6144, 8192),
    "context_chunk": (128,),  # a record is of a core, and how far a context is divided depends on how many there are
}
assert {field.name for field in fields(Tuning)} == SPACE.keys()


def read_record(cpu: str, folder: Path = RECORDS) -> dict[str, Any] | None:
    """The record of a CPU, checked; None when there is none. Raises BadTuningRecord."""
    path = folder / f"{cpu}.json"
    if not _NAME.fullmatch(cpu) or not path.is_file():
        return None
    if path.stat().st_size > MAX_RECORD_BYTES:
        raise BadTuningRecord(path=path, reason=f"it is longer than {MAX_RECORD_BYTES} bytes")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise BadTuningRecord(path=path, reason="it is nested too deeply") from error
    except ValueError as error:
        raise BadTuningRecord(path=path, reason=f"{error!s:.200}") from error
    if (
        not isinstance(record, dict)
        or not isinstance(record.get("level"), str)
        or not isinstance(record.get("tuning"), dict)
    ):
        raise BadTuningRecord(path=path, reason='it lacks the text "level" or the object "tuning"')
    lower = record.get("lower", {})
    if not isinstance(lower, dict) or not all(isinstance(_tuning(part), dict) for part in lower.values()):
        raise BadTuningRecord(path=path, reason='in "lower" a level lacks the object "tuning"')
    for part in (record, *lower.values()):
        Tuning.from_json(part["tuning"], path)
    return record


def _tuning(part: object) -> object:
    return part.get("tuning") if isinstance(part, dict) else None


def check_known(cpu: str, folder: Path = RECORDS) -> None:
    """Raises UnknownTuningRecord, listing what is known."""
    if read_record(cpu, folder) is None:
        known = ", ".join(sorted(path.stem for path in folder.glob("*.json"))) or "none"
        raise UnknownTuningRecord(cpu=cpu, known=known)


def tuning_of(record: Mapping[str, Any], level: str, own: Tuning) -> Tuning:
    """What a checked record says for a level whose numbers are `own` without it."""
    if level == record["level"]:
        return Tuning(**record["tuning"])
    return replace(own, **record.get("lower", {}).get(level, {}).get("tuning", {}))
