"""Plans of GPU targets: the runtime reads the table that is emitted, and weights are cut where a device demands it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from dsv3c import targets
from dsv3c.compiler.checkpoint import Checkpoint, ModelConfig
from dsv3c.compiler.checkpoint.expected import required_tensors
from dsv3c.compiler.core.blame import failed_kernel
from dsv3c.compiler.core.target import Emission
from dsv3c.compiler.driver import contents, lowering, weights
from dsv3c.compiler.options import CompileOptions
from dsv3c.runtime.artifact.plan import Plan
from dsv3c.runtime.artifact.plan_reader import parse_plan
from dsv3c.runtime.artifact.weights import Tensor
from dsv3c.runtime.devices.dispatch import Steps, table_of
from dsv3c.targets.calls.elementwise import Swiglu
from dsv3c.targets.calls.spec_text import parse_spec
from dsv3c.targets.gpu.capabilities import MOST_BINDING
from dsv3c.targets.gpu.emit import Backend, emit
from dsv3c.targets.gpu.kernels import SPECS
from dsv3c.targets.gpu.lower import WeightTooLarge
from dsv3c.targets.gpu.plan import plan
from dsv3c.targets.vulkan import LEAST_RANGE
from dsv3c.targets.vulkan.spirv import ShaderInvalid
from tests.conftest import BUNDLED_MODEL
from tests.selection import shortlist

NAMES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "i32": "int32", "i8": "int8", "u8": "uint8"}


Shapes = Mapping[str, tuple[int, ...]]
# DeepSeek-V3 with four of its layers, one of them with experts, and a context of 4096.
V3 = {
    "model_type": "deepseek_v3", "vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432,
    "moe_intermediate_size": 2048, "num_hidden_layers": 4, "num_attention_heads": 128, "n_shared_experts": 1,
    "n_routed_experts": 256, "routed_scaling_factor": 2.5, "kv_lora_rank": 512, "q_lora_rank": 1536,
    "qk_rope_head_dim": 64, "v_head_dim": 128, "qk_nope_head_dim": 128, "topk_method": "noaux_tc", "n_group": 8,
    "topk_group": 4, "num_experts_per_tok": 8, "first_k_dense_replace": 3, "norm_topk_prob": True,
    "scoring_func": "sigmoid", "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "rope_theta": 10000,
}  # fmt: skip


def compile_nothing(functions: Mapping[str, Callable[[], Any]], folder: Path, advance: Callable[[int], None]) -> None:
    for name in functions:
        (folder / name).write_bytes(b"")
        advance(1)


@cache
def emitted(quant: str, max_binding: int = MOST_BINDING) -> tuple[Emission, Plan]:
    """What a target without a compiler emits for the bundled model, and its plan as the runtime reads it."""
    checkpoint = Checkpoint.open(BUNDLED_MODEL)
    return planned(checkpoint.config, checkpoint.shapes, quant, max_binding)


def planned(config: ModelConfig, shapes: Shapes, quant: str, max_binding: int) -> tuple[Emission, Plan]:
    options = CompileOptions(target="vulkan", quant=quant)
    lowered = lowering.lower(config, shapes, options, targets.get("vulkan"))
    found = plan(lowered.entries, lowered.bounds, max_binding)
    emission = emit(found, Backend(compile_nothing))
    stored = [tensor for parts in weights.lay_out(found.recipes).tensors.values() for tensor in parts]
    tensors = {
        tensor.name: Tensor(NAMES[part.dtype], part.shape, tensor.offset, part.nbytes)
        for tensor in stored
        for part in (tensor.component,)
    }
    made = contents.whole_plan(lowered, found, emission.dispatches)
    read = parse_plan(json.loads(json.dumps(made.to_json())), tensors, config.vocab_size)
    assert read == made
    return emission, read


def test_the_runtime_finds_launches_for_steps_of_any_size() -> None:
    _, found = emitted("int4-g32")
    table = table_of(found)
    assert table.threads == 128
    for entry in found.entries.values():
        steps = Steps(found, table, entry)
        for tokens in (1, 2, 16, 17, found.bounds.T):
            assert 0 < len(steps.launches(tokens, min(tokens, found.bounds.R))) <= len(entry.calls)


def test_every_function_of_the_table_is_compiled_once(tmp_path: Path) -> None:
    emission, found = emitted("int4-g32")
    done: list[int] = []
    emission.write_kernels(tmp_path / "kernels", done.append)
    named = {form.function for forms in table_of(found).forms.values() for form in forms}
    assert {path.name for path in (tmp_path / "kernels").iterdir()} == named
    assert sum(done) == emission.kernel_files == len(named)


def test_every_call_says_what_it_writes() -> None:
    """The caches and the results are written by some call, weights and inputs by none."""
    _, found = emitted("int4-g32")
    table = table_of(found)
    for entry in found.entries.values():
        written = set()
        for name, buffers in entry.calls:
            written |= {buffers[position] for form in table.forms[name] for position in form.writes}
        assert {output.buffer for output in entry.outputs.values()} <= written
        assert {found.buffers[index].kind for index in written} <= {"arena", "cache"}
    decode = found.entries["decode"]
    noted = {buffers[i] for name, buffers in decode.calls for form in table.forms[name] for i in form.writes}
    assert {found.buffers[index].name for index in noted if found.buffers[index].kind == "cache"} == {
        f"cache.{layer}"
        for layer in range(len(found.caches) - 1)  # the last one is the MTP layer's
    }


def test_weights_above_the_limit_are_cut_into_parts_that_cover_them() -> None:
    limit = 300_000
    _, whole = emitted("int4-g32")
    _, cut = emitted("int4-g32", limit)
    parts: dict[str, list[tuple[int, int]]] = {}
    for buffer in cut.buffers:
        if buffer.kind == "weight":
            assert buffer.bytes <= limit
            parts.setdefault(buffer.tensor, []).append((buffer.offset, buffer.offset + buffer.bytes))
    for buffer in whole.buffers:
        if buffer.kind != "weight":
            continue
        spans = sorted(parts[buffer.tensor])
        assert [start for start, _ in spans] == [0, *(end for _, end in spans[:-1])]
        assert spans[-1][1] == buffer.bytes
        assert (len(spans) > 1) >= (buffer.bytes > limit)
    assert sum(len(spans) > 1 for spans in parts.values()) > 6


@pytest.mark.parametrize("quant", shortlist(["int4-g32", "float16"], ["int4-g32"]))
def test_deepseek_v3_stays_within_the_limits_that_every_vulkan_device_has(quant: str) -> None:
    """128 MiB an operand, 65,535 workgroups an axis: in steps of 512 tokens, with the default of --max-tokens."""
    config = ModelConfig.from_dict(V3, Path("config.json"))
    _, found = planned(config, required_tensors(config), quant, LEAST_RANGE)
    table = table_of(found)
    assert found.bounds.T == 512
    assert max(buffer.bytes for buffer in found.buffers) <= LEAST_RANGE
    for entry in found.entries.values():
        assert max(Steps(found, table, entry).largest()) <= 65_535


def test_scores_of_a_long_context_are_made_for_as_many_tokens_as_every_vulkan_device_binds() -> None:
    indexer = {"index_n_heads": 64, "index_head_dim": 128, "index_topk": 2048}
    content = V3 | indexer | {"model_type": "deepseek_v32", "max_position_embeddings": 163840}
    content |= {"num_hidden_layers": 1, "first_k_dense_replace": 1}
    config = ModelConfig.from_dict(content, Path("config.json"))
    _, found = planned(config, required_tensors(config), "int4-g32", LEAST_RANGE)
    assert max(buffer.bytes for buffer in found.buffers) <= LEAST_RANGE
    decode = found.entries["decode"]
    assert [name for name, _ in decode.calls if name.startswith("index_topk")] == [f"index_topk_{i}" for i in range(6)]
    steps = Steps(found, table_of(found), decode)
    assert len(steps.launches(512, 1)) - len(steps.launches(204, 1)) == 4, "204 tokens have room"


def test_a_single_piece_above_the_limit_is_refused() -> None:
    with pytest.raises(WeightTooLarge, match="in one piece, devices of this target bind 1000 at once"):
        emitted("int4-g32", 1000)


def test_the_kernel_that_is_not_compiled_is_found_among_all(tmp_path: Path) -> None:
    def refuse_swiglu(functions: Mapping[str, Callable[[], Any]], folder: Path, advance: Callable[[int], None]) -> None:
        if any(name.startswith("swiglu") for name in functions):
            raise ShaderInvalid(program="p", name="n", output="o")

    source = Checkpoint.open(BUNDLED_MODEL)
    options = CompileOptions(target="vulkan", quant="int8")
    lowered = lowering.lower(source.config, source.shapes, options, targets.get("vulkan"))
    emission = emit(plan(lowered.entries, lowered.bounds, MOST_BINDING), Backend(refuse_swiglu))
    with pytest.raises(ShaderInvalid) as caught:
        emission.write_kernels(tmp_path / "kernels", lambda count: None)
    kernel = failed_kernel(caught.value)
    assert kernel is not None and kernel.level == ""
    assert isinstance(parse_spec(kernel.spec, SPECS), Swiglu)
