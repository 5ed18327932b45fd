from __future__ import annotations

import pytest

from dsv3c.compiler.core.ir import Value, parse_graph
from dsv3c.compiler.core.verifier import PHASES, verify
from dsv3c.compiler.errors import VerifyError
from tests.conftest import Golden

CACHE = """
  %cache: f32[N, 4] = input()
  %slots: i32[T] = input()
  %rows: f32[T, 4] = input()
"""


def fault(lines: str, phase: str = "trace") -> str:
    """What the verifier says about a graph."""
    with pytest.raises(VerifyError) as caught:
        verify(parse_graph(f"graph g {{\n{lines.strip()}\n}}"), phase, "some-pass")
    return str(caught.value)


def passes(lines: str, phase: str = "trace") -> None:
    verify(parse_graph(f"graph g {{\n{lines.strip()}\n}}"), phase, "some-pass")


def test_a_wrong_type_is_shown_with_the_lines_around_it(golden: Golden) -> None:
    golden.check(
        fault("""
  %x: f32[T, 4] = input()
  %1: f32[T, 4] = sin(%x)
  %2: f32[T, 4] = cos(%1)
  %3: f32[T, 4] = mul(%1, %2)
  %4: f32[T, 5] = add(%3, %x)
  %5: f32[T, 5] = sin(%4)
  %6: f32[T, 5] = cos(%5)
  %7: f32[T, 5] = sin(%6)
  %8: f32[T, 5] = cos(%7)
  return r=%8
""")
    )


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("%1: f32[T, 4] = gelu(%x)", "no operation is called 'gelu'"),
        ("%1: f32[T, 4] = sin(%x, %x)", "sin(f32[T, 4], f32[T, 4]): "),
        ('%1: f32[T, 4] = sin(%x) {"axis": 0}', "unexpected keyword argument 'axis'"),
        ("%1: bf16[T, 4] = sin(%x)", "the type should be f32[T, 4]"),
        ("%1: f32[T, 4]@rows16 = sin(%x)", "the type should be f32[T, 4]"),
        ('%1: int8[T, 4] = quantize(%x) {"format": "int3"}', "int3"),
    ],
)
def test_each_value_must_have_the_type_of_its_rule(line: str, reason: str) -> None:
    message = fault(f"%x: f32[T, 4] = input()\n{line}\nreturn r=%1")
    assert "the graph is wrong after some-pass" in message
    assert reason in message


def test_where_a_result_lies_is_no_attribute_of_the_rule() -> None:
    passes('%x: f32[T, 4] = input()\n%1: f32[T, 4] = sin(%x) {"arena": [0]}\nreturn r=%1')


LEGAL = {
    "%1: f32[T, 4] = sin(%x)": ("trace", "fuse"),
    "%1: f32[T, 2] = swiglu(%x)": ("fuse", "kernel"),
    "%1: f32[T, 4] = add(%x, %x)": ("trace", "fuse", "kernel"),
    '%1: f32[2*T, 2] = reshape(%x) {"shape": ["2*T", 2]}': ("trace", "fuse", "kernel"),
    '%1: f32[4, T] = transpose(%x) {"axes": [1, 0]}': ("trace", "fuse"),
    '%1: q8-g32[T, 4] = quantize_rows(%x) {"group": 32}': ("fuse", "kernel"),
    '%1: int8[T, 4] = quantize(%x) {"format": "int8"}': (),
}


@pytest.mark.parametrize("line", LEGAL)
@pytest.mark.parametrize("phase", PHASES)
def test_each_phase_has_its_operations(line: str, phase: str) -> None:
    lines = f"%x: f32[T, 4] = input()\n{line}\nreturn r=%1"
    if phase in LEGAL[line]:
        passes(lines, phase)
    else:
        assert f"is not legal in phase '{phase}'" in fault(lines, phase)


@pytest.mark.parametrize("phase", PHASES)
def test_weights_may_use_every_operation(phase: str) -> None:
    passes(
        """
  %x: f32[T, 4] = input()
  %w: f32[4, 4] = param()
  %2: f32[4, 4] = sin(%w)
  %3: int8[4, 4] = quantize(%2) {"format": "int8"}
  %4: int8[4, 4]@rows16 = pack(%3) {"layout": "rows16"}
  %5: f32[T, 4] = linear(%x, %4)
  return r=%5
""",
        phase,
    )


def test_a_cache_may_be_written_and_then_read() -> None:
    passes(
        CACHE
        + """
  %3: f32[N, 4] = scatter_rows(%cache, %slots, %rows)
  %4: f32[T, 4] = take(%3, %slots)
  return r=%4, cache=%3
"""
    )


@pytest.mark.parametrize(
    ("lines", "blamed"),
    [
        ("%4: f32[T, 4] = take(%cache, %slots)\nreturn r=%4, cache=%3", "%cache"),
        ("return old=%cache, new=%3", "%cache"),
        ("%4: f32[N, 4] = scatter_rows(%3, %slots, %rows)\nreturn r=%3, s=%4", "%3"),
        ("%4: f32[N, 2] = slice(%cache) {\"axis\": 1, \"start\": 0, \"stop\": 2}\nreturn r=%4, cache=%3", "%cache"),
    ],
)  # fmt: skip
def test_memory_that_is_overwritten_has_no_other_reader(lines: str, blamed: str) -> None:
    message = fault(f"{CACHE}%3: f32[N, 4] = scatter_rows(%cache, %slots, %rows)\n{lines}")
    assert f"{blamed} is read and also overwritten in place" in message


def test_a_view_that_is_overwritten_shares_its_memory_with_no_reader() -> None:
    view = '%3: f32[N, 4] = slice(%wide) {"axis": 1, "start": 0, "stop": 4}'
    view += "\n%4: f32[N, 4] = scatter_rows(%3, %slots, %rows)"
    inputs = CACHE.replace("%cache: f32[N, 4]", "%wide: f32[N, 8]")
    passes(f"{inputs}{view}\nreturn r=%4")
    message = fault(f"{inputs}{view}\n%5: f32[T, 8] = take(%wide, %slots)\nreturn r=%4, s=%5")
    assert "%wide is read and also overwritten in place" in message


def test_what_is_written_must_not_be_the_memory_itself() -> None:
    lines = "%cache: f32[T, 4] = input()\n%slots: i32[T] = input()\n"
    message = fault(f"{lines}%2: f32[T, 4] = scatter_rows(%cache, %slots, %cache)\nreturn r=%2")
    assert "%cache is read and also overwritten in place" in message


def test_names_are_unique() -> None:
    """Else the text would not parse back, and values are given by their name."""
    from dsv3c.compiler.core import ops
    from dsv3c.compiler.core.ir import Graph, parse_type

    x, y = (ops.leaf(op, "x", parse_type("f32[4]")) for op in ("input", "param"))
    with pytest.raises(VerifyError, match="two values are %x"):
        verify(Graph("g", (("r", ops.apply("add", (x, y), {})),)), "trace", "some-pass")


def test_what_a_pass_left_alone_is_known_and_what_it_changed_is_not() -> None:
    text = "graph g {\n  %x: f32[4] = input()\n  %1: f32[4] = cos(%x)\n  %2: f32[4] = cos(%1)\n  return r=%2\n}"
    before, after = parse_graph(text), parse_graph(text.replace("%2: f32[4]", "%2: f32[5]"))
    typed: set[Value] = set()
    verify(before, "trace", "some-pass", typed)
    assert typed == set(before.values())
    for _ in range(2):  # what is wrong does not become known
        with pytest.raises(VerifyError, match=r"the type should be f32\[4\]"):
            verify(after, "trace", "some-pass", typed)
