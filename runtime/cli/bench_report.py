"""What `dsv3c bench` prints: a Markdown table, JSON, or CSV, all of the same rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dsv3c.runtime.artifact.artifact import Manifest
from dsv3c.runtime.artifact.costs import Work
from dsv3c.runtime.cli.bench_batches import batches_text, over_one, step_row
from dsv3c.runtime.cli.output import size
from dsv3c.runtime.cli.tables import ABSENT, comma_separated, duration, number, percent, table
from dsv3c.runtime.measure.bench import Result, Settings
from dsv3c.runtime.measure.breakdown import Breakdown, Operation
from dsv3c.runtime.measure.limits import Limits

Row = dict[str, Any]
RATES = ("GB/s", "of read", "GFLOP/s", "of matrix")
LEAST_SHARE = 0.005  # of a breakdown's time, below which a kernel gets no line of its own in Markdown


@dataclass(frozen=True)
class Report:
    """Everything measured in one run, and on what."""

    model: str
    quant: str
    device: dict[str, Any]
    settings: Settings
    limits: Limits
    results: Sequence[Result]
    breakdowns: Sequence[Breakdown]

    @staticmethod
    def of(
        manifest: Manifest,
        device: dict[str, Any],
        settings: Settings,
        limits: Limits,
        results: Sequence[Result],
        breakdowns: Sequence[Breakdown],
    ) -> Report:
        quant = manifest.content.get("quantization", {}).get("weights", "unknown")
        return Report(str(manifest.model.get("name", "unknown")), quant, device, settings, limits, results, breakdowns)

    @property
    def integer(self) -> bool:
        """Whether any products are of int8."""
        return any(result.work and result.work.int8_flops for result in self.results)

    def rates(self, work: Work | None, seconds: float) -> Row:
        """Bytes, operations, and what share of the limits they are when they took `seconds`."""
        if work is None or seconds <= 0:
            return dict.fromkeys(("gb_per_s", "read_share", "gflops", "matrix_share"))
        read, least = work.bytes / seconds, _least_seconds(work, self.limits)
        return {
            "gb_per_s": read / 1e9,
            "read_share": _ratio(read, self.limits.read_bandwidth),
            "gflops": work.flops / seconds / 1e9,
            "matrix_share": None if least is None else least / seconds,
        }


def _least_seconds(work: Work, limits: Limits) -> float | None:
    """How long the products take at the rates of their factors; None where one is not known."""
    parts = ((work.flops - work.int8_flops, limits.float_rate), (work.int8_flops, limits.int8_rate))
    needed = [(flops, rate) for flops, rate in parts if flops]
    return sum(flops / rate for flops, rate in needed if rate) if all(rate for _, rate in needed) else None


def render(report: Report, form: str) -> str:
    """The report as "md", "json" or "csv", with a line end."""
    forms: dict[str, Callable[[Report], str]] = {"md": _markdown, "json": _json, "csv": _csv}
    return forms[form](report)


def test_row(report: Report, result: Result) -> Row:
    """One test. Names are those of llama-bench where it has them; bytes and operations are per token, but those of
    `step_` of a step of a decode."""
    work, tokens = result.work, result.all_tokens
    generates = result.kind == "tg"
    return {
        "model": report.model,
        "quant": report.quant,
        "device": report.device.get("device"),
        "level": report.device.get("level"),
        "n_threads": report.device.get("threads"),
        "test": result.name,
        "n_prompt": 0 if generates else result.tokens,
        "n_gen": result.tokens if generates else 0,
        "n_depth": result.depth,
        "n_sequences": result.sequences,
        "repetitions": len(result.seconds),
        "median_ts": result.median,
        "avg_ts": sum(result.speeds) / len(result.speeds),
        "stddev_ts": result.deviation,
        "min_ts": min(result.speeds),
        "max_ts": max(result.speeds),
        "weight_bytes": work and work.weight_bytes / tokens,
        "cache_bytes": work and work.cache_bytes / tokens,
        "flops": work and work.flops / tokens,
        **report.rates(work, result.median_seconds),
        **step_row(result, report.limits),
        **over_one(result, report.results),
    }


def operation_row(report: Report, breakdown: Breakdown, operation: Operation) -> Row:
    """One kernel of a breakdown; bytes and operations are of all its calls together."""
    work = operation.work
    return {
        "test": breakdown.name,
        "kernel": operation.kernel,
        "weight": operation.weight,
        "calls": operation.calls,
        "seconds": operation.seconds,
        "time_share": _ratio(operation.seconds, breakdown.seconds),
        "weight_bytes": work and work.weight_bytes,
        "cache_bytes": work and work.cache_bytes,
        "flops": work and work.flops,
        **report.rates(work, operation.seconds),
    }


def limit_row(limits: Limits) -> Row:
    return {
        "read_bandwidth": limits.read_bandwidth,
        "float32_flops": limits.float_rate,
        "int8_ops": limits.int8_rate,
    }


def breakdown_row(breakdown: Breakdown) -> Row:
    return {
        "test": breakdown.name,
        "seconds": breakdown.seconds,
        "kernel_seconds": breakdown.kernels,
        "between_seconds": breakdown.between,
        "session_seconds": breakdown.session,
        "launches": breakdown.launches,
        "launches_per_layer": breakdown.launches / breakdown.layers,
    }


def _json(report: Report) -> str:
    tests = [
        test_row(report, result) | {"samples_ts": result.speeds, "samples_s": list(result.seconds)}
        for result in report.results
    ]
    content = {"device": report.device, "limits": limit_row(report.limits), "tests": tests}
    if report.breakdowns:
        content["breakdowns"] = [
            breakdown_row(breakdown)
            | {"operations": [operation_row(report, breakdown, operation) for operation in breakdown.operations]}
            for breakdown in report.breakdowns
        ]
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _csv(report: Report) -> str:
    limits = {f"limit_{name}": value for name, value in limit_row(report.limits).items()}
    tables = [[test_row(report, result) | limits for result in report.results]]
    if report.breakdowns:
        tables.append([breakdown_row(breakdown) for breakdown in report.breakdowns])
        tables.append(
            [
                operation_row(report, breakdown, operation)
                for breakdown in report.breakdowns
                for operation in breakdown.operations
            ]
        )
    return "\n".join(comma_separated(rows) for rows in tables)


def _markdown(report: Report) -> str:
    parts = [_markdown_tests(report), _limits_text(report)]
    if any(result.sequences > 1 for result in report.results):
        parts.append(batches_text([test_row(report, result) for result in report.results if result.kind == "tg"]))
    parts += [_markdown_breakdown(report, breakdown) for breakdown in report.breakdowns]
    return "\n".join(parts)


def _markdown_tests(report: Report) -> str:
    titles = ("model", "quant", "level", "threads", "test", "t/s", "min … max", "MB/token", *RATES)
    return table(titles, (_test_cells(report, result) for result in report.results), left=5)


def _test_cells(report: Report, result: Result) -> list[str]:
    row = test_row(report, result)
    read = None if result.work is None else result.work.bytes / result.all_tokens / 1e6
    return [
        report.model,
        report.quant,
        str(row["level"] or row["device"]),
        str(row["n_threads"] or "–"),
        result.name,
        f"{row['median_ts']:.2f} ± {row['stddev_ts']:.2f}",
        f"{row['min_ts']:.2f} … {row['max_ts']:.2f}",
        number(read),
        *_rate_cells(row),
    ]


def _limits_text(report: Report) -> str:
    limits = report.limits
    if limits.read_bandwidth is None:
        if report.device.get("library") is None:  # only libraries of CPU kernels have them
            return f"The limits of this machine are not measured with artifacts for {report.device.get('device')}.\n"
        note = "The limits of this machine are not known: the artifact has no routines that measure them."
        return f"{note} Compile it again with this version of dsv3c.\n"
    integers = f", {number(limits.int8_rate / 1e9)} GOP/s in int8" if limits.int8_rate else ""
    floats = number(limits.float_rate and limits.float_rate / 1e9)
    used = "of int8 in products with integer weights, of float32 in others" if report.integer else "of float32"
    return (
        f"Limits measured in this run: memory is read at {number(limits.read_bandwidth / 1e9)} GB/s; products run at "
        f"{floats} GFLOP/s in float32{integers}. `of matrix` is the share {used}.\n"
    )


def _markdown_breakdown(report: Report, breakdown: Breakdown) -> str:
    titles = ("kernel", "weight", "calls", "time", "share", "read", *RATES)
    shown = [operation for operation in breakdown.operations if operation.seconds >= LEAST_SHARE * breakdown.seconds]
    cells = [_operation_cells(report, breakdown, operation) for operation in shown]
    if others := breakdown.operations[len(shown) :]:
        cells.append(_others(others, breakdown))
    spent = (
        f"{duration(breakdown.seconds)}: kernels {duration(breakdown.kernels)}, between them "
        f"{duration(breakdown.between)}, session {duration(breakdown.session)}; {breakdown.launches} kernel calls, "
        f"{breakdown.launches / breakdown.layers:.1f} a layer"
    )
    return f"### {breakdown.name}\n\n{spent}.\n\n{table(titles, cells, left=2)}"


def _operation_cells(report: Report, breakdown: Breakdown, operation: Operation) -> list[str]:
    row = operation_row(report, breakdown, operation)
    work = operation.work
    return [
        operation.kernel,
        operation.weight,
        str(operation.calls),
        duration(operation.seconds),
        percent(row["time_share"]),
        size(work.bytes) if work and work.bytes else ABSENT,
        *_rate_cells(row),
    ]


def _others(operations: Sequence[Operation], breakdown: Breakdown) -> list[str]:
    """One line for kernels that take next to no time; JSON and CSV list them."""
    calls, seconds = sum(item.calls for item in operations), sum(item.seconds for item in operations)
    share = percent(_ratio(seconds, breakdown.seconds))
    return [f"{len(operations)} others", "", str(calls), duration(seconds), share, *[ABSENT] * (1 + len(RATES))]


def _rate_cells(row: Row) -> list[str]:
    read = [number(row["gb_per_s"]), percent(row["read_share"])] if row["gb_per_s"] else [ABSENT, ABSENT]
    done = [number(row["gflops"]), percent(row["matrix_share"])] if row["gflops"] else [ABSENT, ABSENT]
    return [*read, *done]


def _ratio(value: float, limit: float | None) -> float | None:
    return value / limit if limit else None
