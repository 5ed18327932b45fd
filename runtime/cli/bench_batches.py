"""What `dsv3c bench -b` says of sequences that are decoded side by side: weights are read once a step for all of them.

The yardstick is what the bytes of a step allow at the measured read limit; the step's experts are those that its
tokens are expected to choose together (runtime/artifact/costs.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dsv3c.runtime.cli.tables import ABSENT, number, percent, table
from dsv3c.runtime.measure.bench import Result
from dsv3c.runtime.measure.limits import Limits

Row = dict[str, Any]
TITLES = (
    "test", "t/s", "t/s each", "ms/step", "MB/step", "of weights", "weights GB/s", "bytes allow", "reached",
    "× one", "by bytes",
)  # fmt: skip


def step_row(result: Result, limits: Limits) -> Row:
    """Of a step of a decode: its seconds and bytes, bytes of weights a second, and the tokens a second that the bytes
    allow. All None for a prefill."""
    names = ("median_ts_each", "step_seconds", "step_bytes", "step_weight_bytes", "weight_gb_per_s", "allowed_ts")
    row: Row = dict.fromkeys(names)
    if result.kind != "tg":
        return row
    seconds, work = result.median_seconds / result.tokens, result.work and result.work.over(result.tokens)
    row |= {"median_ts_each": result.median / result.sequences, "step_seconds": seconds}
    if work:
        row |= {"step_bytes": work.bytes, "step_weight_bytes": work.weight_bytes}
        row["weight_gb_per_s"] = work.weight_bytes / seconds / 1e9
    if work and work.bytes and limits.read_bandwidth:
        row["allowed_ts"] = result.sequences * limits.read_bandwidth / work.bytes
    return row


def over_one(result: Result, results: Sequence[Result]) -> Row:
    """How many times the speed of one sequence, measured, and as the bytes of the steps alone would have it; None of a
    prefill, and where one sequence was not measured."""
    decodes = (other for other in results if other.kind == result.kind == "tg" and other.sequences == 1)
    one = next((other for other in decodes if (other.tokens, other.depth) == (result.tokens, result.depth)), None)
    measured = None if one is None else result.median / one.median
    predicted = None
    if one is not None and one.work and result.work and result.work.bytes:
        predicted = result.sequences * one.work.bytes / result.work.bytes
    return {"over_one": measured, "over_one_by_bytes": predicted}


def batches_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The decodes as a Markdown table with a legend."""
    legend = (
        "`t/s` is of all sequences together. A step reads the weights once for all of them: of the experts those that "
        "tokens which choose at random are expected to need. `bytes allow` is the speed at which a step's bytes are "
        "read at the limit, `reached` the measured share of it; `× one` is the speed over that of one sequence, `by "
        "bytes` what the bytes alone would make of it."
    )
    return f"### Sequences side by side\n\n{table(TITLES, map(_cells, rows), left=1)}\n{legend}\n"


def _cells(row: Mapping[str, Any]) -> list[str]:
    return [
        row["test"],
        number(row["median_ts"]),
        number(row["median_ts_each"]),
        number(1e3 * row["step_seconds"]),
        number(_megabytes(row["step_bytes"])),
        number(_megabytes(row["step_weight_bytes"])),
        number(row["weight_gb_per_s"]),
        number(row["allowed_ts"]),
        percent(row["read_share"]),
        _times(row["over_one"]),
        _times(row["over_one_by_bytes"]),
    ]


def _megabytes(count: float | None) -> float | None:
    return None if count is None else count / 1e6


def _times(factor: float | None) -> str:
    return ABSENT if factor is None else f"{factor:.2f}"
