"""Print the conformance table as markdown: python -m tests.conformance.report [CONFIG …] [--numpy]"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.conformance.configs import CONFIGS
from tests.conformance.measure import ENTRIES, GRAPHS, Subject, Table, markdown


def main(arguments: list[str]) -> None:
    chosen = [name for name in arguments if not name.startswith("--")] or list(CONFIGS)
    table: Table = {}
    for name in chosen:
        with tempfile.TemporaryDirectory() as folder:
            table[name] = errors(Subject(name, Path(folder)), with_artifact="--numpy" not in arguments)
        print(name, file=sys.stderr)
    print(markdown(table))


def errors(subject: Subject, *, with_artifact: bool) -> dict[str, float]:
    """The largest error of each way over all schedules."""
    found = {f"numpy {graph}": max(subject.graph_errors(graph).values()) for graph in GRAPHS}
    if subject.case.has_mtp:
        found |= {f"MTP numpy {graph}": subject.mtp_graph_error(graph) for graph in GRAPHS}
    if not with_artifact:
        return found
    for way, entry in ENTRIES.items():
        if subject.has_entry(entry):
            found[way] = max(subject.artifact_errors(entry).values())
    found["onnx"] = max(subject.onnx_errors().values())
    if subject.case.has_mtp:
        found["MTP artifact"] = subject.mtp_artifact_error(subject.model)
        found["MTP onnx"] = subject.mtp_artifact_error(subject.onnx_model)
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
