"""The step as a TVM module: what TVM's Relax VM makes of it is, bit for bit, what the runtime makes of the plan."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes  # lets safetensors read bfloat16, too
import numpy as np
import pytest
import tvm
from numpy.typing import NDArray
from safetensors.numpy import load_file
from tvm import relax

from dsv3c import runtime, targets
from dsv3c.compiler.checkpoint import Checkpoint
from dsv3c.compiler.core.target import Planned
from dsv3c.compiler.driver import lowering, pipeline
from dsv3c.compiler.options import CompileOptions
from dsv3c.runtime.devices.cpu.cores import usable_cpus
from dsv3c.runtime.devices.cpu.features import cpu_flags
from dsv3c.runtime.model import Model
from dsv3c.targets.cpu.emit import emit
from dsv3c.targets.cpu.plan import plan
from dsv3c.targets.x86.levels import LEVELS
from tests.checkpoints import tiny_config, write_checkpoint
from tests.conftest import BUNDLED_MODEL
from tests.selection import shortlist
from tests.targets.cpu.emulation import BASE, EMULATED, emulation

Ints = NDArray[np.int32]
Floats = NDArray[np.float32]

DOCS = Path(__file__).parents[3] / "docs" / "16-tvm-graph.md"
LOWEST, BEST = 0, -1
# Every weight format meets the most of the instructions that it can; float32 the fewest.
CASES = {"float32": LOWEST, "int8": BEST, "int4-g32": BEST}
MODEL_TYPES = {
    "deepseek_v3": {"num_nextn_predict_layers": 1},
    "deepseek_v2": {},
    "glm4_moe_lite": {},
    "youtu": {"q_lora_rank": None, "intermediate_size": 90},
    "mistral4": {},
}
# Nearly every kernel, and LLVM IR in it; odd widths in narrow vectors, in a step too short for a second entry.
SCRIPTS = {"deepseek_v3": (LEVELS[BEST], 512), "youtu": (LEVELS[LOWEST], 8)}


class Batch(NamedTuple):
    """tokens, positions, sequence [T]; the pages of each sequence; rows [R]."""

    tokens: Ints
    positions: Ints
    sequence: Ints
    pages: list[Ints]
    rows: Ints


class Vm:
    """The TVM form in a folder, built and run by TVM on weights. The caches are kept between steps, by all entries."""

    def __init__(self, folder: Path, weights: Path, level: str, slots: int, pipeline: str = "dsv3c_cpu") -> None:
        self._params = json.loads((folder / "tvm/params.json").read_text(encoding="utf-8"))
        module = tvm.ir.load_json((folder / f"tvm/{level}/module.json").read_text(encoding="utf-8"))
        target = tvm.target.Target(self._params["levels"][level]["target"])
        built = relax.build(module, target, tir_pipeline=pipeline)
        self._vm = relax.VirtualMachine(built, tvm.cpu())
        stored = load_file(weights)
        self._kept = {name: tvm.runtime.tensor(array.reshape(-1).view(_plain(array))) for name, array in stored.items()}
        self._slots = slots

    def step(self, entry: str, batch: Batch, hidden: Floats | None = None) -> tuple[Floats, Floats]:
        """Logits [R, V] and hidden states [T, D]."""
        function, pages = self._params["functions"][entry], self._params["bounds"]["P"]
        table = np.zeros((len(batch.pages), pages), np.int32)
        for row, used in zip(table, batch.pages, strict=True):
            row[: used.size] = used
        counts = np.array([batch.tokens.size, batch.rows.size], np.int32)
        given = {**batch._asdict(), "pages": None, "page_table": table, "control": counts, "hidden": hidden}
        arguments = [self._argument(parameter, given) for parameter in function["parameters"]]
        results = self._vm[entry](*arguments)
        assert len(results) == len(function["results"])
        found = {}
        for description, result in zip(function["results"][:2], results, strict=False):
            dim, width = description["shape"]
            count = counts["TR".index(dim)]
            found[description["name"]] = result.numpy()[: count * width].reshape(count, width)
        return found["logits"], found["hidden"]

    def _argument(self, parameter: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
        name = parameter["name"]
        if parameter["kind"] == "cache" and name not in self._kept:
            self._kept[name] = tvm.runtime.tensor(np.zeros(parameter["size"] * self._slots, parameter["dtype"]))
        if parameter["kind"] != "input":
            return self._kept[name]
        array = np.zeros(parameter["size"], parameter["dtype"])
        array[: given[name].size] = given[name].reshape(-1)
        return tvm.runtime.tensor(array)


class Compiled(NamedTuple):
    model: Model
    vm: Vm


def _plain(array: NDArray[Any]) -> str:
    """The dtype, bfloat16 as the integers that carry it."""
    return "uint16" if array.dtype == ml_dtypes.bfloat16 else str(array.dtype)


@pytest.fixture(scope="module")
def usable() -> list[Any]:
    found = [level for level in LEVELS if level.matrix is None and not level.missing(cpu_flags())]
    if not found:
        pytest.skip("this CPU is below every x86 level")
    if found[BEST] is not BASE:
        return found
    emulation()
    return [*found, EMULATED]


@pytest.fixture(scope="module")
def compiled(
    usable: list[Any], bundled_artifact: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Compiled]]:
    """The bundled model at one level, loaded by the runtime and by TVM; each weight format once."""
    models: list[Model] = []

    @cache
    def load(quant: str) -> Compiled:
        folder, level = tmp_path_factory.mktemp("relax"), usable[CASES[quant]]
        if level is EMULATED:
            compile_for(BUNDLED_MODEL, out := folder / quant, level, quant=quant)
        else:
            out = bundled_artifact(quant)
        write_tvm(Checkpoint.open(BUNDLED_MODEL), folder, level, quant)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DSV3C_ISA", level.name)
            models.append(runtime.load(out))
        vm = Vm(folder, out / "weights.safetensors", level.name, models[-1].session.device.slots)
        return Compiled(models[-1], vm)

    yield load
    for model in models:
        model.close()


def compile_for(checkpoint: Path, out: Path, level: Any, **options: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dsv3c.targets.x86.levels.LEVELS", (level,))
        pipeline.compile_checkpoint(checkpoint, out, CompileOptions(**options, emit=("tvm",)))


def write_tvm(source: Checkpoint, folder: Path, level: Any, quant: str, max_tokens: int = 512) -> Planned:
    """Write the TVM form for one level into `folder`; what the CPU target plans, too."""
    options = CompileOptions(quant=quant, max_tokens=max_tokens)
    lowered = lowering.lower(source.config, source.shapes, options, targets.get("x86"))
    found = plan(lowered.entries, lowered.bounds)
    emit(found, (level,)).extras["tvm"](folder)
    return found


def assert_same(compiled: Compiled, entry: str, batch: Batch, hidden: Floats | None = None) -> Floats:
    """Run both and compare the bits; returns the hidden states."""
    logits, states = compiled.vm.step(entry, batch, hidden)
    expected = compiled.model.session.step(*batch, entry=entry, hidden=hidden)
    assert expected.hidden is not None
    np.testing.assert_array_equal(logits.view(np.uint32), expected.logits.view(np.uint32))
    np.testing.assert_array_equal(states.view(np.uint32), expected.hidden.view(np.uint32))
    return states


def ints(*values: int) -> Ints:
    return np.array(values, np.int32)


def prompt(length: int, pages: Ints) -> Batch:
    rng = np.random.default_rng(length)
    positions = np.arange(length, dtype=np.int32)
    rows = ints(0, length // 2, length - 1)
    return Batch(rng.integers(0, 2048, length, np.int32), positions, np.zeros_like(positions), [pages], rows)


@pytest.mark.parametrize("quant", shortlist(CASES, ["int8"]))
def test_relax_vm_computes_the_bits_of_the_plan(quant: str, compiled: Callable[[str], Compiled]) -> None:
    """A prompt, then two sequences of unequal length decoded side by side, and the MTP layer behind the prompt."""
    pages, fresh = ints(5, 2, 7), ints(3)
    both = compiled(quant)
    batch = prompt(37, pages)
    states = assert_same(both, "prefill", batch)
    for step in range(4):
        place = (ints(37 + step, step), ints(0, 1), [pages, fresh], ints(0, 1))
        assert_same(both, "decode", Batch(ints(100 + step, 200 + step), *place))
    assert_same(both, "mtp", batch._replace(tokens=np.roll(batch.tokens, -1)), states)


def test_threads_of_tvm_change_no_bit(compiled: Callable[[str], Compiled]) -> None:
    configure, usable = tvm.get_global_func("runtime.config_threadpool"), usable_cpus()
    try:
        for threads in (1, 3):
            configure(1, threads)
            assert_same(compiled("int8"), "prefill", prompt(200, np.arange(13, dtype=np.int32)))
    finally:
        configure(1, 0)
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, usable)  # TVM's pool binds the thread that asked for it


def planned(folder: Path, model_type: str, level: Any, max_tokens: int = 512) -> Planned:
    """As `write_tvm`, of a tiny model."""
    write_checkpoint(folder, tiny_config(model_type, **MODEL_TYPES[model_type]))
    return write_tvm(Checkpoint.open(folder), folder, level, "int8", max_tokens)


@pytest.mark.parametrize("model_type", shortlist(MODEL_TYPES, ["deepseek_v3"]))
def test_functions_are_the_entries(model_type: str, tmp_path: Path) -> None:
    """The kernels of each entry in the order of the plan, and every weight an argument."""
    level = LEVELS[BEST]
    found = planned(tmp_path, model_type, level)
    params = json.loads((tmp_path / "tvm/params.json").read_text(encoding="utf-8"))
    module = tvm.ir.load_json((tmp_path / f"tvm/{level.name}/module.json").read_text(encoding="utf-8"))
    relax.analysis.well_formed(module)
    functions = {var.name_hint: found for var, found in module.functions_items() if isinstance(found, relax.Function)}
    assert sorted(functions) == sorted(params["functions"]) == sorted(found.entries)
    for name, function in functions.items():
        calls = found.entries[name].calls
        assert called_kernels(function) == [kernel for kernel, _ in calls]
        buffers = [found.buffers[i] for _, used in calls for i in used]
        weights = {buffer.name for buffer in buffers if buffer.kind == "weight"}
        parameters = params["functions"][name]["parameters"]
        assert {item["name"] for item in parameters if item["kind"] == "weight"} == weights
        assert len(function.params) == len(parameters)
        assert int(function.attrs["num_input"]) == len(parameters) - len(weights)


def called_kernels(function: Any) -> list[str]:
    (block,) = function.body.blocks
    calls = [binding.value for binding in block.bindings if isinstance(binding.value, relax.Call)]
    return [call.args[0].name_hint for call in calls]


@pytest.mark.parametrize("model_type", shortlist(SCRIPTS, []))
def test_script_parses_back_to_the_module(model_type: str, tmp_path: Path) -> None:
    level, max_tokens = SCRIPTS[model_type]
    planned(tmp_path, model_type, level, max_tokens)
    folder = tmp_path / "tvm" / level.name
    stored = tvm.ir.load_json((folder / "module.json").read_text(encoding="utf-8"))
    parsed = tvm.script.from_source((folder / "module.py").read_text(encoding="utf-8"))
    tvm.ir.assert_structural_equal(stored, parsed)


@pytest.mark.thorough
def test_example_of_the_docs_gives_the_logits_of_the_runtime(
    usable: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With TVM's default passes, on an artifact where the example looks for one; few tokens make few kernels."""
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    write_checkpoint(tmp_path / "tiny", tiny_config("youtu"))
    out = tmp_path / "artifacts/fairytale-10m-int8-x86"
    compile_for(tmp_path / "tiny", out, usable[LOWEST], quant="float32", max_tokens=8)
    monkeypatch.chdir(tmp_path)
    example: dict[str, Any] = {}
    exec(code, example)
    with runtime.load(out) as model:
        expected = model.logits([17])
    found = example["logits"].numpy()[: expected.size]
    np.testing.assert_array_equal(found.view(np.uint32), expected.reshape(-1).view(np.uint32))
