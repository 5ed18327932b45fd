"""`inspect`: what is in an artifact."""

from __future__ import annotations

from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dsv3c.runtime.cli.eval import DIVERGENCE, estimates, show_figures
from dsv3c.runtime.cli.group import Command
from dsv3c.runtime.cli.output import echo, number, print_json, section, size
from dsv3c.runtime.cli.params import PATH, json_option

if TYPE_CHECKING:
    from dsv3c.runtime.artifact.fields import Fields


@click.command("inspect", cls=Command)
@click.argument("artifact", metavar="ARTIFACT", type=PATH)
@json_option
def inspect_command(artifact: Path, as_json: bool) -> None:
    """Show what is in an ARTIFACT.

    The model's config, the sizes of its parts, bits per weight, the target, the buffers and the kernels. Weights are
    not read.

    \b
    Example:
      PROGRAM inspect OUT --json
    """
    show(artifact, describe_artifact(artifact), as_json)


def show(path: Path, report: dict[str, Any], as_json: bool) -> None:
    """Print what `describe_artifact`, or its like for a checkpoint, found in `path`."""
    if as_json:
        print_json(report)
        return
    parts, config = report["parts"], report["config"]
    count = sum(part["weights"] for part in parts.values())
    echo(f"{path}: {report['kind']} of a {config.get('model_type', 'model')}, {number(count)} weights")
    section("config", _config_rows(config))
    section("parts", [_part_row(name, part) for name, part in (*parts.items(), ("all", _sum(parts)))])
    if report["kind"] == "artifact":
        _tell_artifact(report)
    section("files", [(size(nbytes), name) for name, nbytes in report["files"].items()])
    for note in report["notes"]:
        echo(f"note: {note}")


def describe_artifact(folder: Path) -> dict[str, Any]:
    """What manifest and plan say. Raises a RuntimeFault for an artifact that could not be loaded."""
    from dsv3c.runtime.artifact.artifact import Artifact
    from dsv3c.runtime.artifact.fields import Fields
    from dsv3c.runtime.errors import ManifestInvalid

    artifact = Artifact.open(folder)
    manifest, plan = artifact.manifest.content, artifact.plan
    # Loading does not check what only people read.
    described = Fields(dict(manifest), "manifest", ManifestInvalid)
    counts = {
        name: dict(Counter(kernel for kernel, _ in entry.calls).most_common()) for name, entry in plan.entries.items()
    }
    kinds: dict[str, dict[str, int]] = {}
    for buffer in plan.buffers:
        kind = kinds.setdefault(buffer.kind, {"buffers": 0, "bytes": 0})
        kind["buffers"] += 1
        kind["bytes"] += buffer.bytes
    if "arena" in kinds:
        kinds["arena"]["bytes"] = plan.arena_bytes  # buffers that are never alive together share memory
    return {
        "kind": "artifact",
        "config": dict(artifact.manifest.model),
        "parts": _checked_parts(described.object("weights").object("parts")),
        "quantization": dict(described.object("quantization").value),
        "quality": _checked_quality(described),
        "target": manifest["target"],
        "source": manifest.get("source", {}),
        "options": manifest.get("options", {}),
        "dsv3c_version": artifact.manifest.dsv3c_version,
        "bounds": {"tokens": plan.bounds.T, "rows": plan.bounds.R, "sequences": plan.bounds.S, "context": plan.context},
        "buffers": kinds,
        "caches": [
            {
                "name": cache.name,
                "dtype": cache.dtype,
                "width": cache.width,
                "codes": cache.codes,
                "bytes_per_token": cache.slot_bytes,
            }
            for cache in plan.caches
        ],
        "cache_bytes_per_token": plan.slot_bytes,
        "kernel_calls": counts,
        "files": {name: entry.size for name, entry in artifact.manifest.files.items()},
        "notes": described.list("notes"),
    }


def _checked_parts(parts: Fields) -> dict[str, dict[str, Any]]:
    """The parts of the weights as the manifest lists them. Raises ManifestInvalid."""
    found = {name: parts.object(name) for name in parts.value}
    return {
        name: {
            "nbytes": part.integer("nbytes", 0, 2**63 - 1),
            "weights": part.integer("weights", 0, 2**63 - 1),
            "format": part.string("format"),
        }
        for name, part in found.items()
    }


def _checked_quality(manifest: Fields) -> dict[str, Any] | None:
    """What `compile --measure` found, None where nothing was measured. Raises ManifestInvalid."""
    from dsv3c.runtime.artifact.fields import Fields

    if "quality" not in manifest.value:
        return None
    quality = manifest.object("quality")
    against = None if quality.get("against") is None else quality.string("against")
    texts = [Fields(text, f"{quality.where}.texts[{i}]", quality.fault) for i, text in enumerate(quality.list("texts"))]
    return {
        "device": quality.string("device"),
        "context": quality.integer("context", 1, 2**31 - 1),
        "bos": quality.string("bos"),
        "against": against,
        "texts": [_checked_figures(text) for text in texts],
    }


def _checked_figures(text: Fields) -> dict[str, Any]:
    counts = {name: text.integer(name, 1, 2**63 - 1) for name in ("tokens", "windows")}
    found = {"text": text.string("text"), "sha256": text.string("sha256"), **counts}
    found |= {name: text.number(name) for name in estimates("nll", "perplexity")}
    if "against" in text.value:
        other = text.object("against")
        found["against"] = {name: other.number(name) for name in DIVERGENCE}
    return found


def _tell_artifact(report: dict[str, Any]) -> None:
    bounds = report["bounds"]
    section("quantization", _quantization_rows(report["quantization"]))
    if report["quality"] is not None:
        show_figures("measured", report["quality"])
    section(
        f"target {report['target']['name']}",
        [(level["name"], "needs " + " ".join(level["requires"])) for level in report["target"]["levels"]],
    )
    section(
        "one step at most",
        [(bounds["tokens"], "tokens"), (bounds["rows"], "logits"), (bounds["sequences"], "sequences")],
    )
    buffers = report["buffers"].items()
    sizes = {kind: size(of["bytes"]) for kind, of in report["buffers"].items()}
    sizes["cache"] = f"{size(report['cache_bytes_per_token'])} a token, {bounds['context']} tokens a sequence at most"
    rows = Counter(_row_of(cache) for cache in report["caches"])
    sizes["cache"] += ": " + ", ".join(f"{count} of {row}" for row, count in rows.items())
    section("buffers", [(kind, f"{of['buffers']} buffers", sizes[kind]) for kind, of in buffers])
    for entry, calls in report["kernel_calls"].items():
        section(f"kernel calls of {entry}: {sum(calls.values())}", _by_operation(calls))


def _row_of(cache: dict[str, Any]) -> str:
    """A token's row in a cache."""
    if cache["codes"]:
        return f"{cache['bytes_per_token']} B in {cache['codes']}"
    return f"{cache['width']} x {cache['dtype']}"


def _by_operation(calls: dict[str, int]) -> list[tuple[object, ...]]:
    """Kernels of one operation together, most calls first; a kernel's name is its operation's and a number."""
    groups: dict[str, list[int]] = {}
    for name, count in calls.items():
        groups.setdefault(name.rpartition("_")[0], []).append(count)
    rows = sorted(groups.items(), key=lambda row: -sum(row[1]))
    return [(sum(n), name, f"{len(n)} kernels" if len(n) > 1 else "") for name, n in rows]


def _quantization_rows(quantization: dict[str, Any]) -> list[tuple[str, object]]:
    """One value a line; of weights that have formats of their own, how many have which."""
    formats = quantization.get("formats")
    counts = Counter(map(str, formats.values())).most_common() if isinstance(formats, dict) else []
    shown = {**quantization, **({"formats": ", ".join(f"{n} {name}" for name, n in counts)} if counts else {})}
    return [(name, _one_line(value)) for name, value in shown.items()]


def _config_rows(config: dict[str, Any]) -> list[tuple[str, object]]:
    return [(name, _one_line(value)) for name, value in config.items() if value not in (None, [], {})]


def _one_line(value: object) -> str:
    """Objects as the fields that are set, long lists with equal neighbours counted: "dense, 3 sparse"."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_one_line(item)}" for key, item in value.items() if item is not None)
    if not isinstance(value, list):
        return str(value)
    if len(value) <= 4:
        return ", ".join(map(str, value))
    runs = [(item, len(list(equal))) for item, equal in groupby(value)]
    return ", ".join(f"{count} {item}" if count > 1 else str(item) for item, count in runs)


def _part_row(name: str, part: dict[str, Any]) -> tuple[str, str, str, str, str]:
    bits = f"{8 * part['nbytes'] / part['weights']:.2f} bits/weight" if part["weights"] else ""
    return name, size(part["nbytes"]), f"{number(part['weights'])} weights", bits, part["format"]


def _sum(parts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    keys = ("nbytes", "weights")
    return {key: sum(part[key] for part in parts.values()) for key in keys} | {"format": ""}
