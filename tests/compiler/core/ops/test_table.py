"""What holds for every row of the op table: the inferred type is that of the evaluated result."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from dsv3c.compiler.core import ops
from dsv3c.compiler.core.ir import Graph, TensorType, Value, dim_size, parse_type
from dsv3c.compiler.core.ops.table import broadcast
from dsv3c.compiler.core.ops.weight import Packed, QRows
from dsv3c.compiler.errors import TypeRuleError, UnknownOpError
from dsv3c.compiler.formats.elements import NUMPY_DTYPES
from dsv3c.compiler.formats.quant import QTensor

BOUNDS = {"T": 3, "R": 2, "S": 2, "P": 2, "N": 64}
PAGING = ("i32[T]", "i32[T]", "i32[S, P]")
ROUTING = {"n_group": 2, "topk_group": 1, "top_k": 3, "scoring": "sigmoid", "group_score": "top2"}
MLA = {"scale": 0.5, "page_size": 16}


@dataclass(frozen=True)
class Case:
    operands: tuple[str, ...]
    expected: str
    attrs: dict[str, Any] = field(default_factory=dict)


def case(*operands: str, to: str, **attrs: Any) -> Case:
    return Case(operands, to, attrs)


CASES: dict[str, list[Case]] = {
    "const": [case(to="f32[]", data=1.5), case(to="f32[3]", data=(1.0, 2.0, 3.0))],
    "add": [case("f32[T, 4]", "f32[4]", to="f32[T, 4]"), case("f32[T, 1]", "f32[1, 4]", to="f32[T, 4]")],
    "sub": [case("f32[T, 4]", "f32[T, 4]", to="f32[T, 4]")],
    "mul": [case("f32[T, 2, 4]", "f32[T, 1, 4]", to="f32[T, 2, 4]"), case("f32[4]", "f32[]", to="f32[4]")],
    "div": [case("f32[T, 4]", "f32[T, 1]", to="f32[T, 4]")],
    "rsqrt": [case("f32[T, 1]", to="f32[T, 1]")],
    "sigmoid": [case("f32[T, 4]", to="f32[T, 4]")],
    "relu": [case("f32[T, 4]", to="f32[T, 4]")],
    "cos": [case("f32[T]", to="f32[T]")],
    "sin": [case("f32[T]", to="f32[T]")],
    "cast": [case("i32[T]", to="f32[T]", dtype="f32"), case("f32[T, 2]", to="bool[T, 2]", dtype="bool"),
             case("f32[T]", to="i32[T]", dtype="i32")],
    "where": [case("bool[T, 4]", "f32[2, T, 4]", "f32[]", to="f32[2, T, 4]"),
              case("bool[T]", "f32[]", "f32[]", to="f32[T]")],
    "mean": [case("f32[T, 4]", to="f32[T, 1]", axis=-1, keepdims=True)],
    "sum": [case("f32[4, T, 2]", to="f32[T, 2]", axis=0, keepdims=False)],
    "max": [case("f32[T, 4]", to="f32[T]", axis=-1, keepdims=False)],
    "softmax": [case("f32[T, 4]", to="f32[T, 4]")],
    "matmul": [case("f32[2, T, 4]", "f32[4, 5]", to="f32[2, T, 5]")],
    "linear": [case("f32[T, 32]", "f32[5, 32]", to="f32[T, 5]"), case("f32[T, 32]", "f32[6, 5, 32]", to="f32[6, T, 5]"),
               case("f32[T, 40]", "bf16[5, 40]", to="f32[T, 5]"), case("f32[T, 40]", "int8[5, 40]", to="f32[T, 5]"),
               case("q8-g32[T, 40]", "int4-g32-asym[5, 40]@rows16", to="f32[T, 5]")],
    "reshape": [case("f32[T, 8]", to="f32[T, 2, 4]", shape=("T", 2, 4)),
                case("f32[T, 8]", to="f32[8*T]", shape=("8*T",))],
    "transpose": [case("f32[T, 2, 4]", to="f32[4, T, 2]", axes=(2, 0, 1))],
    "slice": [case("f32[T, 8]", to="f32[T, 3]", axis=-1, start=1, stop=7, step=2),
              case("bf16[8, 2]", to="bf16[5, 2]", axis=0, start=3, stop=8)],
    "concat": [case("f32[T, 8]", "f32[T, 1]", "f32[T, 2]", to="f32[T, 11]", axis=-1)],
    "take": [case("f32[9, 4]", "i32[T]", to="f32[T, 4]"), case("bf16[N, 4]", "i32[R]", to="f32[R, 4]"),
             case("int8[9, 4]", "i32[T]", to="f32[T, 4]")],
    "scale_rows": [case("f32[T, 6]", "f32[3]", "i32[T]", to="f32[T, 6]", block=4)],
    "take_along": [case("f32[T, 3, 8]", "i32[T, 3, 2]", to="f32[T, 3, 2]")],
    "put_along": [case("i32[T, 3]", "f32[T, 3]", to="f32[T, 8]", size=8),
                  case("i32[T, 3]", "f32[]", to="f32[T, 4]", size=4)],
    "top_k": [case("f32[T, 8]", to="i32[T, 3]", k=3)],
    "top_k_mask": [case("f32[T, 16*P*S]", to="bool[T, 16*P*S]", k=3), case("f32[T, 2]", to="bool[T, 2]", k=3)],
    "token_slots": [case(*PAGING, to="i32[T]", page_size=16)],
    "context_slots": [case("i32[S, P]", to="i32[16*P*S]", page_size=16)],
    "context_mask": [case(*PAGING, to="bool[T, 16*P*S]", page_size=16)],
    "chosen_mask": [case("i32[T, 3]", "i32[T]", "i32[S, P]", to="bool[T, 16*P*S]", page_size=16)],
    "scatter_rows": [case("bf16[N, 4]", "i32[T]", "f32[T, 4]", to="bf16[N, 4]")],
    "quantize": [case("f32[2, 5, 40]", to="int4-g32[2, 5, 40]", format="int4-g32"),
                 case("f32[5, 40]", to="bf16[5, 40]", format="bfloat16"),
                 case("f32[5, 40]", to="f32[5, 40]", format="float32")],
    "pack": [case("int4-g64-asym[5, 70]", to="int4-g64-asym[5, 70]@rows16", layout="rows16"),
             case("bf16[2, 17, 3]", to="bf16[2, 17, 3]@rows16", layout="rows16")],
    "quantize_rows": [case("f32[T, 2, 40]", to="q8-g32[T, 2, 40]", group=32)],
    "rms_norm": [case("f32[T, 4]", "f32[4]", to="f32[T, 4]", eps=1e-6)],
    "rope_table": [case("i32[T]", "f32[4]", to="f32[T, 8]", scale=1.0)],
    "rope": [case("f32[T, 2, 8]", "f32[T, 8]", to="f32[T, 2, 8]", interleave=True),
             case("f32[T, 8]", "f32[T, 8]", to="f32[T, 8]", interleave=False),
             case("f32[T, 2, 8]", "f32[T, 4]", to="f32[T, 2, 8]", interleave=True)],
    "swiglu": [case("f32[T, 8]", to="f32[T, 4]")],
    "head_linear": [case("f32[T, 2, 40]", "f32[2, 5, 40]", to="f32[T, 2, 5]"),
                    case("q8-g128[T, 2, 40]", "int8[2, 5, 40]@rows16", to="f32[T, 2, 5]")],
    "mla_write": [case("bf16[N, 12]", "f32[T, 12]", "f32[8]", "f32[T, 4]", *PAGING, to="bf16[N, 12]", eps=1e-6,
                       interleave=True, page_size=16)],
    "mla_absorbed": [case("f32[T, 2, 8]", "f32[T, 2, 4]", "f32[N, 12]", *PAGING, to="f32[T, 2, 8]", **MLA)],
    "mla_materialized": [case("f32[T, 2, 6]", "f32[T, 2, 4]", "bf16[N, 12]", "f32[2, 6, 8]", "f32[2, 5, 8]", *PAGING,
                              to="f32[T, 2, 5]", **MLA)],
    "router": [case("f32[T, 8]", "f32[8]", to="i32[T, 3]", **ROUTING),
               case("f32[T, 8]", to="i32[T, 3]", **ROUTING | {"scoring": "softmax", "group_score": "max"})],
    "router_weights": [case("f32[T, 8]", "i32[T, 3]", to="f32[T, 3]", scoring="softmax", norm_topk_prob=True,
                            scale=2.5)],
    "expert_weights": [case("i32[T, 3]", "f32[T, 3]", to="f32[T, 3]", n_experts=1)],
    "identity_experts": [case("f32[T, 8]", "i32[T, 3]", "f32[T, 3]", to="f32[T, 8]", n_experts=1)],
    "expert_order": [case("i32[T, 3]", to="i32[T, 24]", n_experts=8, n_shared=1)],
    "moe_gate_up": [case("f32[T, 40]", "order", "f32[9, 2, 6, 40]", to="f32[4*T, 6]"),
                    case("q8-g128[T, 40]", "order", "int8[9, 2, 6, 40]@rows16", to="f32[4*T, 6]")],
    "moe_down": [case("f32[4*T, 6]", "order", "f32[T, 3]", "f32[9, 40, 6]", to="f32[T, 40]")],
    "index_write": [case("bf16[N, 8]", "f32[T, 8]", "f32[8]", "f32[8]", "f32[T, 4]", *PAGING, to="bf16[N, 8]",
                         eps=1e-6, interleave=False, page_size=16)],
    "index_topk": [case("f32[T, 2, 8]", "f32[T, 2]", "bf16[N, 8]", *PAGING, to="i32[T, 3]", k=3, page_size=16)],
    "mla_sparse": [case("f32[T, 2, 8]", "f32[T, 2, 4]", "f32[N, 12]", "i32[T, 3]", *PAGING, to="f32[T, 2, 8]", **MLA)],
}  # fmt: skip
LISTED = [(op, case) for op, cases in CASES.items() for case in cases]


def array_of(type: TensorType, rng: np.random.Generator) -> Any:
    """A random value of the type; integers are small, so that they number rows of anything."""
    shape = tuple(dim_size(dim, BOUNDS) for dim in type.shape)
    if type.dtype in ("i32", "bool"):
        return rng.integers(0, 2, shape).astype(NUMPY_DTYPES[type.dtype])
    array = rng.uniform(0.1, 2, shape).astype(np.float32)
    if type.dtype.startswith("q8-g"):
        return ops.lookup("quantize_rows").evaluate(array, group=int(type.dtype.removeprefix("q8-g")))
    named = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}.get(type.dtype, type.dtype)
    stored = array if len(shape) < 2 else ops.lookup("quantize").evaluate(array, format=named)
    return ops.lookup("pack").evaluate(stored, layout=type.layout) if type.layout else stored


def operand(text: str, number: int, rng: np.random.Generator) -> tuple[Value, Any]:
    if text == "order":
        ids = ops.leaf("input", f"x{number}", parse_type("i32[T, 3]"))
        order = ops.apply("expert_order", (ids,), {"n_experts": 8, "n_shared": 1})
        chosen = np.stack([rng.permutation(8)[:3] for _ in range(BOUNDS["T"])]).astype(np.int32)
        return order, ops.lookup("expert_order").evaluate(chosen, n_experts=8, n_shared=1)
    type = parse_type(text)
    return ops.leaf("input", f"x{number}", type), array_of(type, rng)


def type_of(result: Any) -> tuple[str, tuple[int, ...], str]:
    """dtype, shape and layout of an evaluated value, as its type should say them."""
    if isinstance(result, Packed):
        dtype = result.format.type_name
        leading = result.components["data"].shape[: -4 if dtype == "bf16" or result.format.has_codes else -3]
        return dtype, (*leading, result.n, result.k), "rows16"
    if isinstance(result, QTensor):
        return result.format.name, (*result.codes.shape[:-1], result.k), ""
    if isinstance(result, QRows):
        group = result.data.shape[-1] // result.scale.shape[-1]
        return f"q8-g{group}", (*result.data.shape[:-1], result.k), ""
    names = {dtype: name for name, dtype in NUMPY_DTYPES.items()}
    return names[np.asarray(result).dtype], np.shape(result), ""


def test_every_op_has_a_case() -> None:
    assert set(ops.TABLE) - {"input", "param"} == set(CASES)


@pytest.mark.parametrize(("op", "case"), LISTED, ids=[f"{op}-{case.expected}" for op, case in LISTED])
def test_the_inferred_type_is_that_of_the_evaluated_result(op: str, case: Case) -> None:
    rng = np.random.default_rng(0)
    operands = [operand(text, number, rng) for number, text in enumerate(case.operands)]
    value = ops.apply(op, tuple(value for value, _ in operands), case.attrs)
    assert str(value.type) == case.expected
    result = ops.lookup(op).evaluate(*(array for _, array in operands), **case.attrs)
    shape = tuple(dim_size(dim, BOUNDS) for dim in value.shape)
    assert type_of(result) == (value.dtype, shape, value.type.layout)


@pytest.mark.parametrize(("op", "case"), LISTED, ids=[f"{op}-{case.expected}" for op, case in LISTED])
def test_no_op_writes_into_its_operands(op: str, case: Case) -> None:
    rng = np.random.default_rng(0)
    arrays = [operand(text, number, rng)[1] for number, text in enumerate(case.operands)]
    plain = [array for array in arrays if isinstance(array, np.ndarray)]
    before = [array.copy() for array in plain]
    ops.lookup(op).evaluate(*arrays, **case.attrs)
    assert all(np.array_equal(array, kept) for array, kept in zip(plain, before, strict=True))


def test_an_unknown_op_is_named() -> None:
    with pytest.raises(UnknownOpError, match="no operation is called 'gelu'"):
        ops.lookup("gelu")


def test_a_refusal_names_the_operation_its_operands_and_the_reason() -> None:
    x, y = (ops.leaf("input", name, parse_type(f"f32[{name}]")) for name in ("T", "R"))
    with pytest.raises(TypeRuleError, match=r"add\(f32\[T\], f32\[R\]\): dims R and T do not broadcast"):
        ops.apply("add", (x, y), {})


@pytest.mark.parametrize("operands", [(), ("f32[4]",), ("f32[4]", "f32[4]", "f32[4]")])
def test_the_number_of_operands_is_checked(operands: tuple[str, ...]) -> None:
    values = tuple(operand(text, number, np.random.default_rng())[0] for number, text in enumerate(operands))
    with pytest.raises(TypeRuleError, match=r"add\("):
        ops.apply("add", values, {})


def test_attributes_are_checked() -> None:
    x = ops.leaf("input", "x", parse_type("f32[4]"))
    with pytest.raises(TypeRuleError, match="unexpected keyword argument 'axis'"):
        ops.apply("sin", (x,), {"axis": 0})
    with pytest.raises(TypeRuleError, match="missing 1 required"):
        ops.apply("mean", (x,), {"axis": 0})


def test_leaves_are_given_and_not_computed() -> None:
    with pytest.raises(TypeRuleError, match="are given, not computed"):
        ops.apply("input", (), {})


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [(((), (3,)), (3,)), ((("T", 1), (1, 8)), ("T", 8)), (((2, 1, 4), ("T", 1)), (2, "T", 4)), (((1,), (1,)), (1,))],
)
def test_broadcast(shapes: Any, expected: Any) -> None:
    assert broadcast(*shapes) == expected


def square_plus(op: Any) -> Any:
    def build(x: Any) -> Any:
        return op.add(op.mul(x, x), op.const(1.0))

    return build


def test_recorder_and_evaluator_take_the_same_calls() -> None:
    x = ops.leaf("input", "x", parse_type("f32[4]"))
    graph = Graph("g", (("y", square_plus(ops.Recorder())(x)),))
    array = np.arange(4, dtype=np.float32)
    recorded = ops.evaluate_graph(graph, {"x": array}, lambda name: pytest.fail(name))
    assert np.array_equal(recorded["y"], array * array + 1)
    assert np.array_equal(square_plus(ops.Evaluator())(array), array * array + 1)


def test_each_value_is_computed_once_and_params_come_from_the_reader() -> None:
    weight = ops.leaf("param", "w", parse_type("f32[4]"))
    doubled = ops.apply("add", (weight, weight), {})
    asked = []

    def read(name: str) -> Any:
        asked.append(name)
        return np.ones(4, np.float32)

    graph = Graph("g", (("a", doubled), ("b", weight), ("c", ops.apply("add", (doubled, weight), {}))))
    results = ops.evaluate_graph(graph, {}, read)
    assert asked == ["w"]
    assert [float(results[name][0]) for name in "abc"] == [2, 1, 3]


def test_arrays_are_freed_after_their_last_use() -> None:
    x = ops.leaf("input", "x", parse_type("f32[4]"))
    value, alive, most = x, 0, 0

    class Counted(np.ndarray):  # type: ignore[type-arg]
        def __array_finalize__(self, _: object) -> None:
            nonlocal alive, most
            alive += 1
            most = max(most, alive)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    for _ in range(50):
        value = ops.apply("add", (value, value), {})
    ops.evaluate([value], lambda _: np.zeros(4, np.float32).view(Counted))
    assert most < 10
