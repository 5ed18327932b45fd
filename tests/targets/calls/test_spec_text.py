"""What `repr` writes of a spec is read back, for every kernel of every family."""

from __future__ import annotations

import pytest

from dsv3c import targets
from dsv3c.compiler.checkpoint import Checkpoint
from dsv3c.compiler.driver import lowering
from dsv3c.compiler.options import CompileOptions
from dsv3c.targets.calls.elementwise import ScaleRows
from dsv3c.targets.calls.operands import Rows
from dsv3c.targets.calls.router import ExpertWeights, IdentityExperts
from dsv3c.targets.calls.spec_text import BadSpecError, UnknownLevelError, check_level, parse_spec
from dsv3c.targets.cpu.kernels import SPECS
from dsv3c.targets.cpu.plan import plan
from dsv3c.targets.gpu.kernels import SPECS as GPU_SPECS
from dsv3c.targets.gpu.kernels import stages
from dsv3c.targets.gpu.kernels.parts import Part
from dsv3c.targets.gpu.kernels.sampling.steps import Greedy, Sample
from tests.conftest import BUNDLED_MODEL
from tests.targets.cases.sparse import CASES as SPARSE


@pytest.fixture(scope="module")
def specs() -> list[object]:
    """Those of all kernels of the bundled model on a CPU, and those that only other models need."""
    source, options = Checkpoint.open(BUNDLED_MODEL), CompileOptions(quant="int4-g32-asym")
    lowered = lowering.lower(source.config, source.shapes, options, targets.get("x86"))
    sparse = [SPARSE[name][0] for name in ("index-write-odd", "topk-f32-all", "sparse-few")]
    others = (ScaleRows(Rows(512), 256, 3, 8192), ExpertWeights(Rows(512), 8, 2), IdentityExperts(Rows(512), 256, 8, 2))
    return [*plan(lowered.entries, lowered.bounds).kernels, *others, *sparse]


def test_every_spec_of_a_model_is_read_back(specs: list[object]) -> None:
    assert {type(spec) for spec in specs} == set(SPECS)
    for spec in specs:
        assert parse_spec(repr(spec), SPECS) == spec


def test_every_stage_of_a_gpu_is_read_back(specs: list[object]) -> None:
    sampled = (Greedy(Rows(8, 1), 2048), Sample(Rows(8, 1), 2048))
    found = [stage for spec in (*specs, *sampled) for stage in (spec, *stages(spec))]
    parts = [Part(stage, 1, 2) for stage in found if type(stage).__name__ in ("Linear", "Take", "PairDown")]
    assert {type(stage) for stage in (*found, *parts)} >= {Part, Greedy, Sample}
    on_gpus = [stage for stage in (*found, *parts) if isinstance(stage, GPU_SPECS)]
    assert {type(stage) for stage in on_gpus} == set(GPU_SPECS)
    for stage in on_gpus:
        assert parse_spec(repr(stage), GPU_SPECS) == stage


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Add(", "was never closed"),
        ("Add(rows=Rows(bound=18), d=open('x'))", "open is not known"),
        ("Add.build()", "Add.build is not known"),
        ("Add(rows=Rows(bound=18))", "missing 1 required positional argument: 'd'"),
        ("Rows(bound=18)", "it is a part of one"),
        ("18", "it is a part of one"),
        ("Linear(Rows(1), 2, 3, WeightFormat(name='int9'))", "unknown weight format 'int9'"),
        ("d", "malformed node"),
    ],
)
def test_what_names_no_kernel_is_refused_and_not_run(text: str, reason: str) -> None:
    with pytest.raises(BadSpecError) as caught:
        parse_spec(text, SPECS)
    assert reason in str(caught.value) and "kinds are Add, Concat" in str(caught.value)


def test_an_unknown_level_is_answered_with_the_known() -> None:
    check_level("a", ["a", "b"])
    with pytest.raises(UnknownLevelError, match="has no level 'c'; its levels are a, b"):
        check_level("c", ["a", "b"])
    with pytest.raises(UnknownLevelError, match="its levels are none"):
        check_level("c", [])
