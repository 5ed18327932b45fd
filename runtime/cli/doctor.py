"""`doctor`: what this machine has that decides how a model runs on it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import click

from dsv3c.runtime.cli.group import Command
from dsv3c.runtime.cli.output import echo, print_json, section, size
from dsv3c.runtime.cli.params import json_option

TWICE = (
    "dsv3c and dsv3c-runtime are both installed and hold the same files, so that removing one breaks the other; "
    "uninstall both, then install one"
)


@click.command("doctor", cls=Command)
@json_option
def doctor_command(as_json: bool) -> None:
    """Show what this machine has.

    CPU features, memory, GPUs, versions of packages. Give the output with a report of a problem.
    """
    from dsv3c.runtime.measure import machine

    report = describe_machine(machine.PACKAGES)
    if as_json:
        print_json(report)
        return
    show_machine(report)
    show_devices(report)
    show_packages(report)


def describe_machine(packages: Iterable[str]) -> dict[str, Any]:
    """CPU, memory, devices, versions of `packages`, notes."""
    from dsv3c.runtime.devices import listing as devices
    from dsv3c.runtime.measure import machine

    cpu, memory = machine.cpu(), machine.memory()
    return {
        "cpu": {
            "model": cpu.model,
            "architecture": cpu.architecture,
            "physical_cores": cpu.physical_cores,
            "performance_cores": cpu.performance_cores,
            "efficiency_cores": cpu.efficiency_cores,
            "logical_cores": cpu.logical_cores,
            "threads": cpu.threads,
            "nodes": [{"number": number, "logical_cores": count} for number, count in cpu.nodes.items()],
            "features": cpu.notable,
        },
        "memory": vars(memory),
        "devices": devices.listed(),
        "packages": machine.packages(packages),
        "notes": [TWICE] if machine.installed_twice() else [],
    }


def show_machine(report: dict[str, Any], more: Iterable[tuple[str, str]] = ()) -> None:
    """Print CPU and memory; `more` are further rows of the CPU."""
    cpu, memory = report["cpu"], report["memory"]
    section(
        "cpu",
        [
            ("model", f"{cpu['model']} ({cpu['architecture']})"),
            ("cores", f"{_cores(cpu)}, {cpu['logical_cores']} logical"),
            ("threads", f"{cpu['threads']} by default"),
            ("nodes", _nodes(cpu["nodes"])),
            ("features", " ".join(cpu["features"]) or "unknown"),
            *more,
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


def _cores(cpu: dict[str, Any]) -> str:
    if not cpu["efficiency_cores"]:
        return f"{cpu['physical_cores']} physical"
    return f"{cpu['performance_cores']} performance, {cpu['efficiency_cores']} efficiency"


def _nodes(nodes: list[dict[str, int]]) -> str:
    """Memories, and what is near each."""
    if len(nodes) < 2:
        return "1"
    near = (f"{node['logical_cores']} logical cores near {node['number']}" for node in nodes)
    return f"{len(nodes)}: {', '.join(near)}"


def show_devices(report: dict[str, Any]) -> None:
    """Print what `--device` chooses from, or why there is nothing."""
    section("devices", [row for target, found in report["devices"].items() for row in _device_rows(target, found)])


def _device_rows(target: str, found: dict[str, Any]) -> list[tuple[str, str]]:
    if found["missing"]:
        return [(target, f"none: {found['missing']}")]
    return [(target, _device_row(row)) for row in found["devices"]]


def _device_row(row: dict[str, Any]) -> str:
    facts = ", ".join([row["type"], size(row["memory"]), *row["capabilities"]])
    return f"{row['number']}: {row['name']} ({facts})"


def show_packages(report: dict[str, Any]) -> None:
    section("packages", [(name, version or "not installed") for name, version in report["packages"].items()])
    for note in report["notes"]:
        echo(f"note: {note}")
