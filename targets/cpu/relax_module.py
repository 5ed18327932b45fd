"""The step as TVM IRModules: a Relax function for each entry over the same kernels, for toolchains that start from TVM.

The functions are made from the planned graphs but not from the plan: a result is a tensor of its own, of the size it
has in the largest step, and where it lies is left to TVM. Both compute the same bits, so each checks the other.

    tvm/params.json          the arguments and results of every function, and TVM's target for each level
    tvm/<level>/module.py    TVMScript, which parses back to the module
    tvm/<level>/module.json  the module as TVM stores it
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tvm
from tvm import relax, tirx

from dsv3c.compiler.core import ops
from dsv3c.compiler.core.caches import SLOTS, cache_of, is_cache
from dsv3c.compiler.core.chosen import computed
from dsv3c.compiler.core.ir import Graph, Value, is_weight
from dsv3c.compiler.core.storage import components, plain, tensor_name
from dsv3c.compiler.core.target import EntryGraph
from dsv3c.targets.calls.lower import lower
from dsv3c.targets.calls.operands import CONTROL, Operand
from dsv3c.targets.calls.plan import KernelCall
from dsv3c.targets.cpu.isa import IsaLevel
from dsv3c.targets.cpu.kernels import build, operands
from dsv3c.targets.cpu.kernels.frame import TVM_DTYPES
from dsv3c.targets.cpu.library import tvm_target

_INPUTS = ("tokens", "positions", "sequence", "page_table", "rows", "hidden")

_HEADER = """\
# One step of the model ({entries}) for {level}: TVM Relax functions over TIR kernels.
#
# Every tensor is flat. ../params.json lists for each function its arguments in order (inputs, the caches by layer,
# weights by their names in ../../weights.safetensors) and the tensors of the tuple it returns. control[0] is the number
# of tokens in this step, control[1] the number of rows whose logits are wanted; no more than that is read of the other
# inputs, and written of the results. Caches are updated in place; they may have any number of slots, the same in all of
# them. bfloat16 goes as uint16.
#
#     module = tvm.ir.load_json(open("module.json").read())  # or tvm.script.from_source(open("module.py").read())
#     target = tvm.target.Target(json.load(open("../params.json"))["levels"]["{level}"]["target"])
#     vm = relax.VirtualMachine(relax.build(module, target), tvm.cpu())
#     logits, *_ = vm["decode"](*arguments)
#
"""


@dataclass(frozen=True)
class Parameter:
    """One flat argument. kind: "input", "cache" or "weight". size: elements, of a cache those of one slot."""

    name: str
    kind: str
    dtype: str
    size: int


def write_modules(
    folder: Path,
    entries: Mapping[str, EntryGraph],
    bounds: Mapping[str, int],
    kernels: Mapping[Any, str],
    recipes: Mapping[str, Value],
    levels: Iterable[IsaLevel],
) -> None:
    """Write the modules of all levels into the new `folder`. kernels: names by spec; recipes: weights by name."""
    names = {recipe: name for name, recipe in recipes.items()}
    described: dict[str, Any] = {"bounds": dict(bounds), "levels": {}, "functions": {}}
    for level in levels:
        module, parameters = relax_module(entries, bounds, kernels, names, level)
        path = folder / level.name
        path.mkdir(parents=True)
        (path / "module.json").write_text(tvm.ir.save_json(module), encoding="utf-8")
        header = _HEADER.format(entries=", ".join(entries), level=level.name)
        (path / "module.py").write_text(header + script(module), encoding="utf-8")
        target = json.loads(str(tvm_target(level)))
        described["levels"][level.name] = {"target": target, "requires": list(level.requires)}
        described["functions"] = {
            name: {"parameters": [asdict(item) for item in parameters[name]], "results": _results(entry.graph)}
            for name, entry in entries.items()
        }
    (folder / "params.json").write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")


def relax_module(
    entries: Mapping[str, EntryGraph],
    bounds: Mapping[str, int],
    kernels: Mapping[Any, str],
    names: Mapping[Value, str],
    level: IsaLevel,
) -> tuple[Any, dict[str, list[Parameter]]]:
    """The IRModule for one level, and the parameters of its Relax functions. names: those of the weights."""
    builder = relax.BlockBuilder()
    functions = {
        spec: builder.add_func(build(spec, level).with_attr("global_symbol", name), name)
        for spec, name in kernels.items()
    }
    parameters = {
        name: _Function(builder, functions, bounds, names).add(name, entry.graph) for name, entry in entries.items()
    }
    return builder.get(), parameters


def script(module: Any) -> str:
    """TVMScript of `module` that parses back.

    TVM prints a binding of two lanes with a type that its parser does not know; without it the parser infers it.
    """
    return re.sub(r"\bT\.let\[T\.\w+x2\]", "T.let", str(module.script()))


class _Function:
    """One Relax function under construction. Weights become parameters when they are first read."""

    def __init__(
        self, builder: Any, kernels: Mapping[Any, Any], bounds: Mapping[str, int], names: Mapping[Value, str]
    ) -> None:
        self._builder = builder
        self._kernels = kernels
        self._bounds = bounds
        self._names = names
        self._cache_sizes: dict[int, Any] = {}  # elements of caches, by those of a slot
        self._parameters: dict[Parameter, Any] = {}
        self._stored: dict[Value, dict[str, Any]] = {}  # the variable of each component, by role
        self._weights: dict[Value, bool] = {}

    def add(self, name: str, graph: Graph) -> list[Parameter]:
        """Add `graph` to the module as the function `name`; returns the parameters in order."""
        values = [value for value in graph.values() if not is_weight(value, self._weights)]
        self._parameter(Parameter("control", "input", _dtype(CONTROL), int(CONTROL.size or 0)))
        for value in sorted((value for value in values if value.op == "input"), key=_input_order):
            self._input(value)
        with self._builder.function(name, attrs={"num_input": len(self._parameters)}):
            with self._builder.dataflow():
                for value in values:
                    if ops.lookup(value.op).role not in ("leaf", "view"):
                        self._call(value, lower(value, self._bounds))
                results = [self._stored[_owner(value)]["data"] for _, value in computed(graph)]
                output = self._builder.emit_output(relax.Tuple(results))
            self._builder.emit_func_output(output, list(self._parameters.values()))
        return list(self._parameters)

    def _call(self, value: Value, call: KernelCall) -> None:
        listed = operands(call.spec)
        written = [item for item in listed if item.role == "scratch" or call.roles.get(_role(item)[0]) is value]
        arguments = [self._argument(call, item) for item in listed if item not in written]
        roles = [_role(item)[1] for item in written]
        types = [relax.TensorType((item.size,), _dtype(item)) for item in written]
        kernel, packed = self._kernels[call.spec], relax.Tuple(arguments)
        if ops.lookup(value.op).in_place:
            updated = self._stored[_owner(value.inputs[0])]["data"]
            place = next(i for i, argument in enumerate(arguments) if argument.same_as(updated))
            places = [place, *[-1] * len(written)]
            roles, types = ["data", *roles], [updated.ty, *types]
            result = self._builder.emit(relax.call_tir_inplace(kernel, packed, places, types), value.op)
        else:
            result = self._builder.emit(relax.call_tir(kernel, packed, types), value.op)
        self._stored[value] = self._components(result, roles, value.op)

    def _components(self, result: Any, roles: list[str], name: str) -> dict[str, Any]:
        """The variable of each component of a call's result, by role. One result is no tuple."""
        if len(roles) == 1:
            return {roles[0]: result}
        kept = [(i, role) for i, role in enumerate(roles) if role != "scratch"]
        return {role: self._builder.emit(relax.TupleGetItem(result, i), name) for i, role in kept}

    def _argument(self, call: KernelCall, operand: Operand) -> Any:
        role, part = _role(operand)
        if role == "control":
            return next(iter(self._parameters.values()))
        source = call.roles[role]
        if not is_weight(source, self._weights):
            return self._stored[_owner(source)][part]
        component = next(item for item in components(source.type, {}) if item.role == part)
        name = tensor_name(self._names[source], component)
        return self._parameter(Parameter(name, "weight", _dtype(operand), component.size))

    def _input(self, value: Value) -> None:
        name, (component,) = str(value.attrs["name"]), components(value.type, {**self._bounds, SLOTS: 1})
        kind = "cache" if is_cache(value) else "input"
        parameter = Parameter(name, kind, TVM_DTYPES[component.dtype], component.size)
        self._stored[value] = {"data": self._parameter(parameter)}

    def _parameter(self, parameter: Parameter) -> Any:
        if parameter not in self._parameters:
            name = re.sub(r"\W+", "_", parameter.name)
            size = self._cache_size(parameter.size) if parameter.kind == "cache" else parameter.size
            self._parameters[parameter] = relax.Var(name, relax.TensorType((size,), parameter.dtype))
        return self._parameters[parameter]

    def _cache_size(self, width: int) -> Any:
        """Caches as wide as each other have as many elements."""
        return self._cache_sizes.setdefault(width, tirx.Var(f"cache_size_{width}", "int64"))


def _owner(value: Value) -> Value:
    """The value whose tensor `value` is a view of. An in-place result is a tensor of its own here."""
    while ops.lookup(value.op).role == "view":
        value = value.inputs[0]
    return value


def _role(operand: Operand) -> tuple[str, str]:
    """The operand's role in the call and the component of the value in it."""
    role, _, part = operand.role.partition(".")
    return role, part or ("scratch" if role == "scratch" else "data")


def _dtype(operand: Operand) -> str:
    return TVM_DTYPES[operand.dtype]


def _input_order(value: Value) -> tuple[int, int, str]:
    """Inputs of the step as a caller would list them, then caches by layer."""
    if is_cache(value):
        cache = cache_of(value)
        return len(_INPUTS), cache.layer, cache.part
    return _INPUTS.index(str(value.attrs["name"])), 0, ""


def _results(graph: Graph) -> list[dict[str, Any]]:
    """The tensors of the tuple, with the shape that the flat elements stand for."""
    return [
        {"name": name, "dtype": TVM_DTYPES[type.dtype], "shape": list(type.shape)}
        for name, type in ((name, plain(value.type)) for name, value in computed(graph))
    ]
