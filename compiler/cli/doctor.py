"""`dsv3c doctor`: what this machine has, and what each target still needs."""

from __future__ import annotations

from typing import Any

import click

from dsv3c.runtime.cli.output import print_json, section, size
from dsv3c.runtime.cli.params import json_option


@click.command("doctor")
@json_option
def doctor_command(as_json: bool) -> None:
    """Show what this machine has and what each target still needs.

    CPU features and which kernel level will run, memory, compilers, device libraries, versions of packages. Give the
    output with a report of a problem.
    """
    report = _gather()
    if as_json:
        print_json(report)
        return
    cpu, memory = report["cpu"], report["memory"]
    section(
        "cpu",
        [
            ("model", f"{cpu['model']} ({cpu['architecture']})"),
            ("cores", f"{cpu['physical_cores']} physical, {cpu['logical_cores']} logical"),
            ("features", " ".join(cpu["features"]) or "unknown"),
            ("levels", _levels(cpu["levels"])),
        ],
    )
    section(
        "memory",
        [
            ("total", size(memory["total"]) if memory["total"] else "unknown"),
            ("available", size(memory["available"]) if memory["available"] else "unknown"),
            ("pages", f"{memory['page_size']} bytes, transparent huge pages: {memory['huge_pages'] or 'unknown'}"),
        ],
    )
    section("tools", [(name, tool["found"] or f"not found ({tool['use']})") for name, tool in report["tools"].items()])
    section("packages", [(name, version or "not installed") for name, version in report["packages"].items()])
    section("targets", [(name, _state(missing)) for name, missing in report["targets"].items()])


def _gather() -> dict[str, Any]:
    from dsv3c.compiler import machine

    cpu, memory = machine.cpu(), machine.memory()
    return {
        "cpu": {
            "model": cpu.model,
            "architecture": cpu.architecture,
            "physical_cores": cpu.physical_cores,
            "logical_cores": cpu.logical_cores,
            "features": cpu.notable,
            "levels": machine.levels(cpu.features),
        },
        "memory": {
            "total": memory.total,
            "available": memory.available,
            "page_size": memory.page_size,
            "huge_pages": memory.huge_pages,
        },
        "tools": {need.name: {"found": need.find(), "use": need.use, "get": need.get} for need in machine.tools()},
        "packages": machine.packages(),
        "targets": {
            state.target: [{"need": need.name, "use": need.use, "get": need.get} for need in state.missing]
            for state in machine.readiness()
        },
    }


def _levels(levels: list[str]) -> str:
    if not levels:
        return "none: this CPU runs no kernel level of ours"
    best, *others = levels
    return f"{best} will run; {', '.join(others)} too" if others else f"{best} will run"


def _state(missing: list[dict[str, str]]) -> str:
    if not missing:
        return "ready"
    return "needs " + "; ".join(f"{need['need']} ({need['get']})" for need in missing)
