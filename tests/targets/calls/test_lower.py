"""From operations to calls: what a kernel cannot see a view of must lie in one piece."""

from __future__ import annotations

import pytest

from dsv3c.compiler.core.ir import parse_graph
from dsv3c.targets.calls.lower import lower

BOUNDS = {"T": 4}


@pytest.mark.parametrize("start", [0, 2])
def test_an_operand_that_a_kernel_reads_in_one_piece_is_no_part_of_rows(start: int) -> None:
    graph = parse_graph(
        "graph decode {\n"
        "  %x: f32[T, 6] = input()\n"
        f'  %part: f32[T, 4] = slice(%x) {{"axis": 1, "start": {start}, "stop": {start + 4}}}\n'
        "  %y: f32[T, 4] = add(%part, %part)\n"
        "  return y=%y\n}"
    )
    with pytest.raises(AssertionError, match="a of add must be contiguous"):
        lower(dict(graph.results)["y"], BOUNDS)


def test_a_whole_operand_may_go_by_another_shape() -> None:
    graph = parse_graph(
        "graph decode {\n"
        "  %x: f32[T, 2, 2] = input()\n"
        '  %flat: f32[T, 4] = reshape(%x) {"shape": ["T", 4]}\n'
        "  %y: f32[T, 4] = add(%flat, %flat)\n"
        "  return y=%y\n}"
    )
    assert lower(dict(graph.results)["y"], BOUNDS).spec.d == 4
