"""What matrices meet, against the model as it is written, run in numpy with its inputs looked at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from dsv3c import targets
from dsv3c.compiler.checkpoint import Checkpoint
from dsv3c.compiler.core import ops
from dsv3c.compiler.core.ir import Value, topological_order
from dsv3c.compiler.driver import calibrated, lowering
from dsv3c.compiler.driver.calibrated import CalibrationPlan
from dsv3c.compiler.formats.elements import as_float32
from dsv3c.compiler.frontend import model
from dsv3c.compiler.frontend.caches import cache_rows, main_cache_rows
from dsv3c.compiler.options import PAGE_SIZE, CompileOptions
from dsv3c.compiler.quantisation.calibration.forward import Forward, Sequences
from dsv3c.compiler.quantisation.calibration.stages import Experts
from dsv3c.compiler.quantisation.inputs import MatrixInputs
from tests.checkpoints import tiny_config, write_checkpoint

LENGTHS = (37, 16, 5)
Array = Any


class Met(NamedTuple):
    """What a weight was rounded with."""

    inputs: Sequence[MatrixInputs]
    few: str


class Recorder:
    """A RoundMatrix that changes weights by `change` and keeps what they met."""

    def __init__(self, change: Callable[[Array], Array] = lambda w: w) -> None:
        self.met: dict[tuple[str, str, int | None], Met] = {}
        self.saw: dict[str, list[int]] = {}
        self._change = change

    def __call__(
        self, weight: Value, expert: int | None, w: Array, inputs: Sequence[MatrixInputs], few: str
    ) -> Callable[[], Array]:
        key = (*label(weight), expert)
        assert key not in self.met, f"{key} is rounded twice"
        self.met[key] = Met(inputs, few)
        return lambda: self._change(as_float32(w))

    def count(self, experts: Experts, tokens: list[int]) -> None:
        self.saw[label(experts.down.inputs[3])[0]] = tokens


def label(weight: Value) -> tuple[str, str]:
    """The first tensor of a weight, and how the weight is made."""
    first = next(leaf for leaf in topological_order([weight]) if leaf.op == "param")
    how = f"slice from {weight.attrs['start']}" if weight.op == "slice" else weight.op
    return str(first.attrs["name"]), how


class Watching(ops.Evaluator):
    """Computes, and keeps what products with a weight read, the first time, and what attention and routing find."""

    def __init__(self) -> None:
        self.names: dict[int, str] = {}
        self.rows: dict[str, Array] = {}
        self.attended: dict[str, Array] = {}
        self.ids: dict[str, Array] = {}

    def linear(self, x: Array, weight: Array) -> Array:
        self.rows.setdefault(self.names[id(weight)], x)
        return ops.lookup("linear").evaluate(x, weight)

    def softmax(self, x: Array) -> Array:
        found: Array = ops.lookup("softmax").evaluate(x)
        if x.ndim == 3:
            name = next(reversed(self.rows))
            self.attended[name] = np.einsum("htn,nl->thl", found, self.rows[name])
        return found

    def put_along(self, ids: Array, values: Array, size: int) -> Array:
        if np.ndim(values) > 1:
            self.ids[next(reversed(self.rows))] = ids
        return ops.lookup("put_along").evaluate(ids, values, size=size)


class Seen(NamedTuple):
    """By the name of the tensor that was read last: rows that it meets, what attention puts out, chosen experts."""

    rows: dict[str, Array]
    attended: dict[str, Array]
    ids: dict[str, Array]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("checkpoint")
    write_checkpoint(folder, tiny_config(num_nextn_predict_layers=1))
    return Checkpoint.open(folder)


def plan_of(source: Checkpoint, quant: str = "int4-g32", target: str = "x86") -> CalibrationPlan:
    lowered = lowering.lower(source.config, source.shapes, CompileOptions(quant=quant), targets.get(target))
    return calibrated.plan(lowered.graphs)


def sequences_of(source: Checkpoint, lengths: Sequence[int] = LENGTHS) -> list[Array]:
    rng = np.random.default_rng(1)
    return [rng.integers(0, source.config.vocab_size, length).astype(np.int32) for length in lengths]


def evaluator(source: Checkpoint) -> Callable[[Value], Array]:
    def given(leaf: Value) -> Array:
        name, expert = str(leaf.attrs["name"]), leaf.attrs.get("expert")
        return source.read(name) if expert is None else source.part(name, int(expert))  # type: ignore[arg-type]

    return lambda value: ops.evaluate([value], given)[0]


def calibrate(
    source: Checkpoint, plan: CalibrationPlan, recorder: Recorder, models: int = 1, enough: int = 0
) -> Forward:
    """All sequences through the main model and the layer of multi-token prediction."""
    tokens = sequences_of(source)
    run = (evaluator(source), recorder, lambda columns: enough)
    main = Forward(plan.main.graph, [Sequences(tokens, {})] * models, *run)
    main.run(plan.main.stages, recorder.count)
    if plan.mtp is not None:
        hidden = [main.kept(plan.main.graph.graph.result("hidden"), number) for number in range(models)]
        shifted = [{"hidden": [rows[:-1] for rows in each]} for each in hidden]
        given = [Sequences([ids[1:] for ids in tokens], each) for each in shifted]
        Forward(plan.mtp.graph, given, *run).run(plan.mtp.stages, recorder.count)
    return main


@pytest.fixture(scope="module")
def seen(source: Checkpoint) -> Seen:
    config = source.config
    tensors = {name: source.read(name) for name in source.shapes}
    parts: list[Seen] = []
    for ids in sequences_of(source):
        op = Watching()
        op.names = {id(array): name for name, array in tensors.items()}
        inputs, cache = step_of(source, ids)
        caches = {row.name: cache for row in main_cache_rows(config)}
        output = model.forward(op, config, tensors.__getitem__, inputs, caches)
        inputs, cache = step_of(source, ids[1:])
        caches = {row.name: cache for row in cache_rows(config, config.num_hidden_layers)}
        model.forward_mtp(op, config, tensors.__getitem__, 0, inputs, output.hidden[:-1], caches)
        parts.append(Seen(op.rows, op.attended, op.ids))

    def joined(tables: Sequence[dict[str, Array]], axis: int) -> dict[str, Array]:
        return {name: np.concatenate([table[name] for table in tables], axis) for name in tables[0]}

    rows, attended, ids_of = zip(*parts, strict=True)
    return Seen(joined(rows, -2), joined(attended, 0), joined(ids_of, 0))


def step_of(source: Checkpoint, ids: Array) -> tuple[model.StepInputs, Array]:
    pages = -(-len(ids) // PAGE_SIZE)
    every = np.arange(len(ids), dtype=np.int32)
    cache = np.zeros((pages * PAGE_SIZE, source.config.latent_dim), np.float32)
    table = np.arange(pages, dtype=np.int32)[None]
    return model.StepInputs(ids, every, np.zeros_like(every), table, every, PAGE_SIZE), cache


def expected(source: Checkpoint, seen: Seen) -> dict[tuple[str, str, int | None], list[Array]]:
    """By the key of a Recorder: the rows that each matrix of a weight meets."""
    config, found = source.config, dict[tuple[str, str, int | None], list[Array]]()
    heads, nope = config.num_attention_heads, config.qk_nope_head_dim
    total = config.num_hidden_layers + 1
    for layer in range(total):
        prefix = f"model.layers.{layer}"
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        for name, op in (("q_a_proj", "concat"), ("q_b_proj", "param"), ("o_proj", "param")):
            found[f"{attention}.{name}.weight", op, None] = [seen.rows[f"{attention}.{name}.weight"]]
        q_b = f"{attention}.q_b_proj.weight"
        q = (seen.rows[q_b] @ source.read(q_b).T).reshape(-1, heads, nope + config.qk_rope_head_dim)
        kv_b = f"{attention}.kv_b_proj.weight"
        found[kv_b, "transpose", None] = [q[:, head, :nope] for head in range(heads)]
        found[kv_b, f"slice from {nope}", None] = [seen.attended[kv_b][:, head] for head in range(heads)]
        if layer < config.num_hidden_layers:
            found[kv_b, "slice from 0", None] = [written(seen.rows[kv_b])]
        if not config.is_moe(layer):
            found[f"{mlp}.gate_proj.weight", "concat", None] = [seen.rows[f"{mlp}.gate_proj.weight"]]
            found[f"{mlp}.down_proj.weight", "param", None] = [seen.rows[f"{mlp}.down_proj.weight"]]
            continue
        gate, down = (f"{mlp}.experts.*.{name}_proj.weight" for name in ("gate", "down"))
        ids = seen.ids[f"{mlp}.gate.weight"]
        for expert in range(config.n_routed_experts):
            tokens = np.flatnonzero((ids == expert).any(axis=1))
            found[gate, "concat", expert] = [seen.rows[gate][tokens]]
            found[down, "concat", expert] = [seen.rows[down][expert, tokens]]
        shared = config.n_routed_experts
        found[gate, "concat", shared] = [seen.rows[gate]]
        found[down, "concat", shared] = [seen.rows[f"{mlp}.shared_experts.down_proj.weight"]]
    found["model.layers.3.eh_proj.weight", "param", None] = [seen.rows["model.layers.3.eh_proj.weight"]]
    found["lm_head.weight", "param", None] = [seen.rows["lm_head.weight"]]
    return found


def written(rows: Array) -> Array:
    """Rows of a cache without those that no token wrote."""
    return rows[np.abs(rows).sum(axis=1) > 0]


def test_each_weight_of_each_entry_meets_what_the_model_gives_it(source: Checkpoint, seen: Seen) -> None:
    recorder = Recorder()
    calibrate(source, plan_of(source), recorder)
    wanted = expected(source, seen)
    assert recorder.met.keys() == wanted.keys()
    for key, matrices in wanted.items():
        found = recorder.met[key]
        assert len(found.inputs) == len(matrices), key
        for inputs, rows in zip(found.inputs, matrices, strict=True):
            assert inputs.tokens == len(rows), key
            assert inputs.cross is None
            gram = rows.T @ rows / max(1, len(rows))
            assert np.allclose(inputs.gram, gram, rtol=1e-4, atol=1e-5 * max(1e-3, np.abs(gram).max(initial=0))), key


def test_experts_see_the_tokens_that_the_router_sends_them(source: Checkpoint, seen: Seen) -> None:
    recorder = Recorder()
    calibrate(source, plan_of(source), recorder)
    for layer in (1, 2, 3):
        ids = seen.ids[f"model.layers.{layer}.mlp.gate.weight"]
        counts = np.bincount(ids.reshape(-1), minlength=source.config.n_routed_experts)
        assert recorder.saw[f"model.layers.{layer}.mlp.experts.*.down_proj.weight"] == [*counts, len(ids)]


def test_an_expert_that_saw_too_few_tokens_gets_the_statistics_of_its_layer(source: Checkpoint, seen: Seen) -> None:
    recorder = Recorder()
    calibrate(source, plan_of(source), recorder, enough=20)
    gate, down = (f"model.layers.1.mlp.experts.*.{name}_proj.weight" for name in ("gate", "down"))
    few = [expert for expert, tokens in enumerate(recorder.saw[down]) if tokens < 20]
    assert 0 < len(few) < 9
    rich = [expert for expert in range(9) if expert not in few]
    rows = seen.rows[gate]
    total = sum(recorder.saw[down][expert] for expert in rich)
    mean = sum(recorder.met[down, "concat", expert].inputs[0].gram * recorder.saw[down][expert] for expert in rich)
    for expert in range(9):
        first, second = (recorder.met[name, "concat", expert] for name in (gate, down))
        assert (first.few == second.few == "") == (expert in rich)
        if expert in few:
            assert first.few == f"it saw {recorder.saw[down][expert]} tokens of 20"
            assert np.allclose(first.inputs[0].gram, rows.T @ rows / len(rows), rtol=1e-4, atol=1e-5)
            assert np.allclose(second.inputs[0].gram, mean / total, rtol=1e-4, atol=1e-6)


def test_without_changes_both_models_are_the_same(source: Checkpoint) -> None:
    alone, beside = Recorder(), Recorder()
    calibrate(source, plan_of(source), alone)
    calibrate(source, plan_of(source), beside, models=2)
    assert alone.met.keys() == beside.met.keys()
    same = [key for key in alone.met if key[0].endswith("layers.0.self_attn.q_a_proj.weight")]
    assert same
    for key in same:  # behind it the embedding's rounding tells
        (left,), (right,) = alone.met[key].inputs, beside.met[key].inputs
        assert right.cross is not None
        assert np.allclose(left.gram, right.gram, rtol=0.02, atol=0.01)
        assert np.allclose(right.cross, right.gram, rtol=0.02, atol=0.01)


def test_corrected_inputs_are_those_of_the_model_as_it_is_rounded(source: Checkpoint) -> None:
    """Zeros for all rounded weights leave nothing but the residual stream, and its norm."""
    recorder = Recorder(np.zeros_like)
    calibrate(source, plan_of(source), recorder, models=2)
    (inputs,) = recorder.met["model.layers.0.self_attn.o_proj.weight", "param", None].inputs
    assert inputs.cross is not None
    assert not inputs.gram.any()
    (last,) = recorder.met["lm_head.weight", "param", None].inputs
    ids = np.concatenate(sequences_of(source))
    x = source.read("model.embed_tokens.weight").astype("bfloat16").astype(np.float32)[ids]
    norm = ops.lookup("rms_norm").evaluate(x, source.read("model.norm.weight"), eps=1e-6)
    assert np.allclose(last.gram, norm.T @ norm / len(ids), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("quant", ["float32", "bfloat16"])
def test_weights_of_plain_floats_are_not_rounded(quant: str, source: Checkpoint) -> None:
    recorder = Recorder()
    calibrate(source, plan_of(source, quant), recorder)
    assert recorder.met == {}


def test_activations_beyond_a_bound_go_to_a_file(
    source: Checkpoint, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    within, beyond = Recorder(), Recorder()
    calibrate(source, plan_of(source), within)
    monkeypatch.setattr("dsv3c.compiler.quantisation.calibration.store.MEMORY_BYTES", 0)
    main = calibrate(source, plan_of(source), beyond)
    assert isinstance(main.kept(plan_of(source).main.graph.graph.result("hidden"), 0)[0], np.memmap)
    for key, found in within.met.items():
        for one, other in zip(found.inputs, beyond.met[key].inputs, strict=True):
            assert np.array_equal(one.gram, other.gram)
