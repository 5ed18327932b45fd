"""Kernels on tile registers, run on emulated ones: equal to the bit to those on vectors, and to numpy.

The instructions themselves are only looked for in the library of the level that has them: these tests run on any CPU.
"""

import re
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from dsv3c import runtime
from dsv3c.compiler.driver import pipeline
from dsv3c.compiler.formats.table import WeightFormat
from dsv3c.compiler.options import CompileOptions
from dsv3c.targets.calls.linear import Linear
from dsv3c.targets.calls.moe import MoeDown, MoeGateUp
from dsv3c.targets.calls.operands import Rows
from dsv3c.targets.calls.router import ExpertOrder
from dsv3c.targets.cpu.kernels import build
from dsv3c.targets.x86.levels import LEVELS
from tests.conftest import BUNDLED_MODEL
from tests.targets.cases.attention import materialized_case
from tests.targets.cases.dense import linear_case
from tests.targets.cases.moe import moe_case
from tests.targets.cpu.emulation import BASE, EMULATED, emulation
from tests.targets.cpu.harness import Kernels
from tests.targets.libraries import build_library
from tests.targets.op_tests import compare

FORMATS = (
    "int8",
    "int8-g32",
    "int8-g64",
    "int4-g32",
    "int4-g64-asym",
    "int4-g128",
    "int4-g32-asym",
    "int5-g32",
    "int3-g16",
    "mxfp4",
)
TOKENS = (1, 15, 16, 17, 31, 32, 33, 100)
BOUND = max(TOKENS)

pytestmark = [pytest.mark.isa(*BASE.requires), pytest.mark.thorough]


def skewed_ids(t):
    """An expert for each of t tokens: the first has nearly all, the second a few, the third one, the others none."""
    ids = np.zeros((t, 1), np.int32)
    ids[1::7], ids[0] = 1, 2
    return ids


def all_cases():
    """What makes each, by its name."""
    for name in FORMATS:
        for t in TOKENS:
            for n in (31, 33):  # two blocks together, three one by one
                yield f"linear-{name}-t{t}-n{n}", partial(linear_case, name, t, n, 160, bound=BOUND)
        yield f"heads-{name}", partial(linear_case, name, 33, 32, 96, heads=3, bound=BOUND)
        yield f"rows-of-heads-{name}", partial(linear_case, name, 19, 20, 40, multiplier=3, bound=BOUND)
        for op in (MoeGateUp, MoeDown):
            for t in (17, 100):
                yield f"{op.__name__}-{name}-t{t}", partial(moe_case, op, name, t, 48, 33, 8, 2, 1, bound=BOUND)
            skewed = {"bound": BOUND, "ids": skewed_ids(100)}
            yield f"{op.__name__}-{name}-skewed", partial(moe_case, op, name, 100, 272, 160, 5, 1, 0, **skewed)
        latents = partial(materialized_case, rounded=True)
        yield f"materialized-{name}", partial(latents, "ragged", 2, 33, 17, 100, 10, "f32", name)


class Made(Mapping):
    """Cases by name, each made when it is asked for first: few CPUs run them."""

    def __init__(self, makers):
        self._makers, self._made = dict(makers), {}

    def __getitem__(self, name):
        if name not in self._made:
            self._made[name] = self._makers[name]()
        return self._made[name]

    def __iter__(self):
        return iter(self._makers)

    def __len__(self):
        return len(self._makers)


CASES = Made(all_cases())


@pytest.fixture(scope="module")
def on_vectors(tmp_path_factory):
    return Kernels(CASES, BASE, tmp_path_factory.mktemp("vectors"))


# A lower threshold sends more rows through tiles.
@pytest.fixture(scope="module", params=[(16, 1), (4, 2)], ids=lambda pair: f"from{pair[0]}-threads{pair[1]}")
def on_tiles(request, tmp_path_factory):
    """(rows from which on they go through tiles, kernels)."""
    emulation()
    least, threads = request.param
    level = EMULATED.tuned(replace(EMULATED.tuning, matrix_min_tokens=least))
    return least, Kernels(CASES, level, tmp_path_factory.mktemp("tiles"), threads)


class TestAmxKernels:
    @pytest.mark.parametrize("name", CASES)
    def test_bits_are_those_of_vectors_and_near_numpy(self, on_tiles, on_vectors, name):
        spec, inputs, expected, tolerance = CASES[name]
        found = on_tiles[1].run(spec, inputs)
        compare(found, inputs, expected, tolerance)
        (role,) = expected
        wanted = on_vectors.run(spec, inputs)[role]
        np.testing.assert_array_equal(found[role].view(np.uint32), wanted.view(np.uint32))
        assert not emulation().amx_configured()

    @pytest.mark.parametrize("tokens", TOKENS)
    @pytest.mark.parametrize("name", ["int8", "int4-g32", "int4-g64-asym"])
    def test_rows_from_the_threshold_on_go_through_tiles(self, on_tiles, name, tokens):
        least, kernels = on_tiles
        spec, inputs, *_ = CASES[f"linear-{name}-t{tokens}-n31"]
        rest = tokens % 32 if tokens % 32 >= least else 0
        row_tiles = -(-(tokens // 32 * 32 + rest) // 16)
        products = spec.weight.padded_k(spec.k) // min(64, spec.weight.grouping.activations)
        emulation().amx_products()
        kernels.run(spec, inputs)
        assert emulation().amx_products() == row_tiles * 2 * products


@pytest.fixture(scope="module")
def instructions(tmp_path_factory):
    """The mnemonics in a library of integer kernels, by level."""
    folder = tmp_path_factory.mktemp("instructions")
    order, weight = ExpertOrder(Rows(64), 8, 2, 0), WeightFormat.parse("int4-g32")
    kernels = {
        "linear": Linear(Rows(64), 512, 512, WeightFormat.parse("int8")),
        "gate_up": MoeGateUp(order, 512, 512, weight),
        "down": MoeDown(order, 512, 512, weight),
    }
    found = {}
    for level in LEVELS:
        built = {name: build(spec, level) for name, spec in kernels.items()}
        path = build_library(built, level, folder / level.library)
        done = subprocess.run(["objdump", "-d", str(path)], capture_output=True, text=True, check=True)
        bodies = re.split(r"^\w+ <(.*)>:$", done.stdout, flags=re.MULTILINE)
        texts = zip(bodies[1::2], bodies[2::2], strict=True)
        found[level.name] = {name: set(re.findall(r"\b(?:tile\w+|ldtilecfg|tdp\w+)", text)) for name, text in texts}
    return found


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
@pytest.mark.needs("binutils")
def test_tile_instructions_are_where_the_level_has_them(instructions, level):
    found = instructions[level.name]
    kernels = [used for name, used in found.items() if name.startswith(("linear_", "gate_up_", "down_"))]
    assert len(kernels) >= 3
    every = {"ldtilecfg", "tilezero", "tileloadd", "tdpbsud", "tilestored", "tilerelease"}
    if level.matrix is None:
        assert not any(found.values())
    else:
        assert sum(used == every for used in kernels) == 3


@pytest.fixture(scope="module", params=["int8", "int4-g32"])
def artifact(request, tmp_path_factory):
    """The bundled model on vectors and on emulated tiles."""
    emulation()
    out = tmp_path_factory.mktemp("bundled") / request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dsv3c.targets.x86.levels.LEVELS", (BASE, EMULATED))
        pipeline.compile_checkpoint(BUNDLED_MODEL, out, CompileOptions(quant=request.param))
    return out


def test_bundled_model_computes_the_same_on_tiles(artifact, monkeypatch):
    """Prompts as prefill and decode see them, and what follows, to the bit."""
    results = []
    for level in (BASE, EMULATED):
        monkeypatch.setenv("DSV3C_ISA", level.name)
        emulation().amx_products()
        with runtime.load(artifact, threads=2) as model:
            assert model.report()["level"] == level.name
            ids = np.arange(5, 5 + 7 * 90, 7, dtype=np.int32) % 2048
            logits = model.logits(ids).copy()
            story = model.generate("Once upon a time there was a king who", temperature=0, max_new_tokens=24)
            results.append((logits, story.token_ids, emulation().amx_products()))
    (logits, story, none), (found, found_story, products) = results
    np.testing.assert_array_equal(found.view(np.uint32), logits.view(np.uint32))
    assert found_story == story
    assert none == 0 < products
