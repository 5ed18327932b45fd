"""What is measured, over which steps, and how much work they are; never how long they take."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dsv3c import targets
from dsv3c.compiler.checkpoint import Checkpoint
from dsv3c.compiler.driver import contents, lowering
from dsv3c.compiler.options import CompileOptions
from dsv3c.runtime.artifact.costs import StepShape, Work
from dsv3c.runtime.artifact.plan import Plan
from dsv3c.runtime.artifact.plan_reader import parse_plan
from dsv3c.runtime.artifact.weights import Tensor
from dsv3c.runtime.artifact.work import steps_work
from dsv3c.runtime.errors import BenchBatchTooLarge, BenchTooLong
from dsv3c.runtime.measure import bench, limits
from dsv3c.runtime.measure.bench import Bench, Result, Settings
from dsv3c.runtime.measure.breakdown import weight_label
from dsv3c.runtime.measure.limits import Limits
from tests.runtime import toy

LAYERS, MOE_LAYERS, HEADS = 4, 3, 8


@pytest.fixture(scope="module")
def plan(bundled_model: Path) -> Plan:
    """The bundled model's plan in int8, without kernels or weights."""
    options, target = CompileOptions(quant="int8"), targets.get("x86")
    source = Checkpoint.open(bundled_model)
    lowered = lowering.lower(source.config, source.shapes, options, target)
    return contents.whole_plan(lowered, target.plan(lowered.entries, lowered.bounds), None)


def flops(projections: int, tokens: int, rows: int) -> int:
    """The model's operations but for attention: what a layer projects for attention is given."""
    dense = 3 * 768 * 256
    experts = 16 * 256 + (4 + 1) * 3 * 128 * 256  # router, then 4 chosen and 1 shared
    return 2 * (tokens * (LAYERS * projections + dense + MOE_LAYERS * experts) + rows * 2048 * 256)


QKV_A, Q_B, OUT = (128 + 128 + 16) * 256, HEADS * (32 + 16) * 128, 256 * HEADS * 32


def test_operations_of_a_token(plan: Plan) -> None:
    absorbed = HEADS * 128 * 32 + HEADS * 32 * 128  # query into the latent space, values out of it
    pair = 2 * HEADS * (2 * 128 + 16)
    for start in (0, 100):
        work = steps_work(plan, [StepShape("decode", 1, 1, start)])
        assert work is not None
        assert work.flops == flops(QKV_A + Q_B + absorbed + OUT, 1, 1) + LAYERS * pair * (start + 1)
        assert work.cache_bytes == LAYERS * (start + 1) * (128 + 16) * 2
        router, attention = 2 * MOE_LAYERS * 16 * 256, LAYERS * pair * (start + 1)
        assert work.int8_flops == work.flops - router - attention


def test_weight_bytes_of_a_token(plan: Plan) -> None:
    # int8: a byte for each weight of a row, padded to groups of 64, and 4 for the row's scale.
    attention = 272 * (256 + 4) + 384 * (128 + 4) + HEADS * 128 * (64 + 4) + HEADS * 32 * (128 + 4) + 256 * (256 + 4)
    norms = 4 * (256 + 128 + 128 + 256)
    dense = 2 * 768 * (256 + 4) + 256 * (768 + 4)
    experts = 5 * (2 * 128 * (256 + 4) + 256 * (128 + 4)) + 4 * 16 * 256 + 4 * 16
    head = 2048 * (256 + 4) + 4 * 256
    embedding, frequencies = 2 * 256, 4 * 8
    work = steps_work(plan, [StepShape("decode", 1, 1, 0)])
    assert work is not None
    layers = LAYERS * (attention + norms) + dense + MOE_LAYERS * experts
    assert work.weight_bytes == pytest.approx(layers + head + embedding + frequencies)


def test_operations_of_a_prompt(plan: Plan) -> None:
    tokens, start = 256, 128
    work = steps_work(plan, [StepShape("prefill", tokens, 1, start)])
    assert work is not None
    rebuilt = 2 * HEADS * 128 * (32 + 32) * (start + tokens)
    pairs = tokens * start + tokens * (tokens + 1) // 2
    attention = rebuilt + 2 * HEADS * (32 + 16 + 32) * pairs
    assert work.flops == flops(QKV_A + Q_B + OUT, tokens, 1) + LAYERS * attention
    assert work.cache_bytes == LAYERS * (start + tokens) * (128 + 16) * 2


def test_labels_name_the_weight_without_its_layer(plan: Plan) -> None:
    labels = {weight_label(plan, indices) for _, indices in plan.entries["decode"].calls}
    assert {"self_attn.o_proj", "mlp.down_proj", "lm_head", "mlp.{gate_proj,up_proj}", ""} <= labels
    assert not any(digit in label for label in labels for digit in "0123456789")


def test_a_plan_without_costs_has_no_work() -> None:
    plan = parse_plan(toy.plan_content(), {"scale": Tensor("float32", (1,), 0, 4)}, toy.VOCAB)
    assert steps_work(plan, [StepShape("decode", 1, 1, 0)]) is None


def test_speeds_of_a_result() -> None:
    result = Result("tg", 10, 0, seconds=(1.0, 2.0, 5.0))
    assert result.speeds == [10, 5, 2]
    assert (result.median, result.median_seconds) == (5, 2)
    assert result.deviation == pytest.approx(np.std([10, 5, 2], ddof=1))
    assert Result("tg", 10, 0, seconds=(1.0,)).deviation == 0
    assert (result.name, Result("pp", 512, 4096).name) == ("tg10", "pp512 @ d4096")
    batch = Result("tg", 10, 64, 16, seconds=(2.0,))
    assert (batch.name, batch.speeds) == ("tg10 @ b16 @ d64", [80])


class TimedToy(toy.ToyDevice):
    """The toy as a device whose every call takes a millisecond."""

    def run_timed(self, entry: str) -> NDArray[np.float64]:
        self.run(entry)
        return np.full(len(self.plan.entries[entry].calls), 1e-3)


@pytest.fixture
def toy_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a Bench over the toy, whose plan states costs."""
    content = toy.plan_content() | {"costs": {"toy_step": {"row_flops": 10, "cache_row_bytes": 2}}}
    folder = toy.write_artifact(tmp_path / "toy", content)
    monkeypatch.setattr(bench, "place", lambda artifact, slots, _: (artifact, TimedToy(artifact.plan, slots)))
    return lambda settings: Bench(folder, settings)


def test_tests_run_at_each_depth_after_a_warm_up(toy_bench: Any) -> None:
    with toy_bench(Settings((7,), (3,), (10, 0), repetitions=2)) as measured:
        results = measured.results()
        steps = measured.device.steps
    assert [result.name for result in results] == ["pp7", "tg3", "pp7 @ d10", "tg3 @ d10"]
    assert all(len(result.seconds) == 2 for result in results)
    tests = [("prefill", 7, 1)] * 3 + [("decode", 1, 1)] * 9
    # The toy's largest step is 8 tokens: 10 are filled in by two.
    assert steps == [*tests, ("prefill", 8, 0), ("decode", 2, 1), *tests]


def test_work_is_that_of_the_steps_that_ran(toy_bench: Any) -> None:
    with toy_bench(Settings((7,), (3,), (10,), repetitions=1)) as measured:
        prefill, decode = measured.results()
    assert prefill.work == Work(4, 2 * 17, 70)  # the toy's weight is one float32
    assert decode.work == Work(3 * 4, 2 * (11 + 12 + 13), 30)


def test_a_breakdown_adds_up(toy_bench: Any) -> None:
    with toy_bench(Settings((9,), (4,), (0, 5), repetitions=2)) as measured:
        found = measured.breakdowns()
    names = ["pp9", "one token of tg4", "pp9 @ d5", "one token of tg4 @ d5"]
    assert [breakdown.name for breakdown in found] == names
    # Nine tokens take two steps, of one call each.
    assert [breakdown.launches for breakdown in found] == [2, 1, 2, 1]
    (operation,) = found[0].operations
    assert (operation.kernel, operation.weight, operation.calls) == ("toy_step", "scale", 2)
    assert operation.seconds == found[0].kernels == pytest.approx(2e-3)
    assert operation.work == Work(8, 2 * (8 + 9), 90)
    # The work of a token is the mean over the steps: at 5 to 8 cached tokens, 7.5 with its own.
    assert found[3].operations[0].work == Work(4, 2 * 7.5, 10)


def test_a_batch_decodes_a_token_of_each_sequence_in_every_step(toy_bench: Any) -> None:
    with toy_bench(Settings((7,), (3,), (0, 10), repetitions=1, batches=(1, 3))) as measured:
        seen: list[Any] = []
        run = toy.ToyDevice.run

        def noted(entry: str) -> None:
            inputs, count = measured.device.inputs, int(measured.device.inputs["control"][0])
            seen.append((inputs["tokens"][:count].tolist(), inputs["positions"][:count].tolist()))
            run(measured.device, entry)

        measured.device.run = noted
        results = measured.results()
        assert measured._session.pool.free_pages == measured._session.pool.pages
    assert [each.name for each in results] == [
        "pp7", "tg3", "tg3 @ b3", "pp7 @ d10", "tg3 @ d10", "tg3 @ b3 @ d10",
    ]  # fmt: skip
    decodes = [step for step in measured.device.steps if step[:2] == ("decode", 3)]
    assert decodes == [("decode", 3, 3)] * 12  # three steps, twice, at each depth
    *_, last = seen
    assert last[1] == [12, 12, 12]
    assert len(set(last[0])) > 1
    assert results[-1].work == Work(3 * 4, 2 * 3 * (11 + 12 + 13), 3 * 30)


def test_a_batch_is_broken_down_by_step(toy_bench: Any) -> None:
    with toy_bench(Settings((), (4,), (5,), batches=(1, 2))) as measured:
        one, two = measured.breakdowns()
    assert [one.name, two.name] == ["one token of tg4 @ d5", "one step of tg4 @ b2 @ d5"]
    assert two.operations[0].work == Work(4, 2 * 2 * 7.5, 2 * 10)


def test_the_cache_has_room_for_the_batch_and_no_more() -> None:
    assert Settings((8,), (6,), (9,)).pages(4) == 5  # of the prompt behind the depth
    assert Settings((8,), (6,), (9,), batches=(1, 3)).pages(4) == 5 + 2 * 4
    assert Settings((8,), (), (0,), batches=(3,)).pages(4) == 2  # nothing is generated


def test_a_batch_beyond_a_step_is_refused_before_anything_is_loaded(toy_bench: Any) -> None:
    toy_bench(Settings((), (1,), batches=(3,)))
    toy_bench(Settings((8,), (), batches=(4,)))
    with pytest.raises(BenchBatchTooLarge, match="compile with --max-sequences 4") as caught:
        toy_bench(Settings((), (1,), batches=(2, 4)))
    assert (caught.value.batch, caught.value.limit) == (4, 3)


def test_the_context_is_checked_before_anything_is_loaded(toy_bench: Any) -> None:
    toy_bench(Settings((8,), (), (56,)))
    with pytest.raises(BenchTooLong) as caught:
        toy_bench(Settings((8,), (), (57,)))
    assert (caught.value.needed, caught.value.limit) == (65, 64)


def test_the_better_of_two_limits_counts() -> None:
    assert Limits(3, None, 5).best(Limits(4, None, 2)) == Limits(4, None, 5)
    assert Limits().best(Limits(1, 2, 3)) == Limits(1, 2, 3)


def test_a_library_without_probes_tells_no_limits() -> None:
    assert limits.measure_loaded(ctypes.CDLL(None)) == Limits()


def test_more_than_the_caches_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, text in (("index0", "48K\n"), ("index3", "128M\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "size").write_text(text)
    monkeypatch.setattr(limits, "_CACHES", tmp_path)
    assert limits.last_cache_bytes() == 128 << 20
    assert limits.stream_bytes() == 512 << 20
    monkeypatch.setattr(limits, "_CACHES", tmp_path / "none")
    assert limits.stream_bytes() == 256 << 20
