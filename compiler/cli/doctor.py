"""`dsv3c doctor`: what this machine has, and what each target still needs."""

from __future__ import annotations

from typing import Any

import click

from dsv3c.runtime.cli.doctor import describe_machine, show_devices, show_machine, show_packages
from dsv3c.runtime.cli.output import print_json, section
from dsv3c.runtime.cli.params import json_option


@click.command("doctor")
@json_option
def doctor_command(as_json: bool) -> None:
    """Show what this machine has and what each target still needs.

    CPU features and which kernel level will run, memory, compilers, device libraries, GPUs, versions of packages.
    Give the output with a report of a problem.
    """
    report = _gather()
    if as_json:
        print_json(report)
        return
    show_machine(report, [("levels", _levels(report["cpu"]["levels"]))])
    section("tools", [(name, tool["found"] or f"not found ({tool['use']})") for name, tool in report["tools"].items()])
    show_devices(report)
    show_packages(report)
    section("targets", [(name, _state(missing)) for name, missing in report["targets"].items()])


def _gather() -> dict[str, Any]:
    from dsv3c.compiler.driver import machine
    from dsv3c.runtime.devices.cpu.features import cpu_flags

    report = describe_machine(machine.PACKAGES)
    report["cpu"]["levels"] = [level.name for level in machine.levels(cpu_flags())]
    return report | {
        "tools": {need.name: {"found": need.find(), "use": need.use, "get": need.get} for need in machine.tools()},
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
