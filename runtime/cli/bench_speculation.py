"""What `dsv3c bench --speculate` prints: plain decoding against drafted, as Markdown, JSON or CSV."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dsv3c.runtime.cli.tables import comma_separated, number, percent, table
from dsv3c.runtime.measure.speculation import Comparison, Settings

Row = dict[str, Any]
TITLES = (
    "text", "temperature", "plain t/s", "drafted t/s", "ratio", "acceptance", "drafts a step", "tokens drafted",
    "same text",
)  # fmt: skip


@dataclass(frozen=True)
class Report:
    """Everything measured in one run. drafter: who drafts. text: the name of the file, None for the model's own."""

    model: str
    device: dict[str, Any]
    drafter: str
    text: str | None
    settings: Settings
    comparisons: Sequence[Comparison]


def render(report: Report, form: str) -> str:
    """The report as "md", "json" or "csv", with a line end."""
    forms: dict[str, Callable[[Report], str]] = {"md": _markdown, "json": _json, "csv": _csv}
    return forms[form](report)


def comparison_row(report: Report, found: Comparison) -> Row:
    return {
        "model": report.model,
        "drafter": report.drafter,
        "text": found.kind,
        "temperature": found.temperature,
        "n_gen": report.settings.new_tokens,
        "repetitions": len(found.plain),
        "plain_ts": statistics.median(found.plain),
        "drafted_ts": statistics.median(found.drafted),
        "ratio": found.ratio,
        "acceptance": found.drafts.acceptance if found.drafts.proposed else None,
        "proposed": found.drafts.proposed,
        "accepted": found.drafts.accepted,
        "drafts_a_step": found.drafts_a_step,
        "share_drafted": found.share_drafted,
        "answers": found.answers,
        "same": found.same,
        "fault": found.fault,
    }


def _json(report: Report) -> str:
    tests = [
        comparison_row(report, found) | {"samples_plain_ts": found.plain, "samples_drafted_ts": found.drafted}
        for found in report.comparisons
    ]
    content = {"device": report.device, "text": report.text, "tests": tests}
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _csv(report: Report) -> str:
    return comma_separated([comparison_row(report, found) for found in report.comparisons])


def _markdown(report: Report) -> str:
    rows = [comparison_row(report, found) for found in report.comparisons]
    worst = min(rows, key=lambda row: float(row["ratio"]))
    origin = "the model's own" if report.text is None else f"from {report.text}"
    notes = [
        f"{report.model}, drafts by {report.drafter}; texts are {origin}. Every answer was generated plainly and with "
        f"drafts, one after the other, {report.settings.repetitions} times. The drafted ones have at worst "
        f"{worst['ratio']:.2f} of the plain speed ({worst['text']}, temperature {worst['temperature']:g}).",
        *_unequal(rows),
        *[f"Drafting ended: {fault}" for fault in dict.fromkeys(row["fault"] for row in rows) if fault],
    ]
    return "\n\n".join([table(TITLES, map(_cells, rows), left=1).rstrip(), *notes]) + "\n"


def _unequal(rows: Sequence[Row]) -> list[str]:
    differing = sum(row["answers"] - row["same"] for row in rows)
    if not differing:
        return []
    return [
        f"{differing} drafted answers have other tokens than the plain ones. Drafts do not change what is drawn, but "
        "the logits of several rows may be rounded otherwise than those of one."
    ]


def _cells(row: Row) -> list[str]:
    return [
        row["text"],
        f"{row['temperature']:g}",
        number(row["plain_ts"]),
        number(row["drafted_ts"]),
        f"{row['ratio']:.2f}",
        percent(row["acceptance"]),
        f"{row['drafts_a_step']:.2f}",
        percent(row["share_drafted"]),
        "yes" if row["same"] == row["answers"] else f"no: {row['same']} of {row['answers']}",
    ]
