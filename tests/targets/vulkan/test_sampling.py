"""Sampling on a Vulkan device against the sampler of the runtime, over many rows with drawn parameters."""

import numpy as np
import pytest

from dsv3c.runtime.engine.params import SamplingParams
from dsv3c.runtime.engine.processors.filters import candidates
from dsv3c.targets.gpu.kernels import operands, stages, variants
from dsv3c.targets.gpu.kernels.frame import Rows
from dsv3c.targets.gpu.kernels.sampling.steps import Sample
from dsv3c.targets.vulkan.glsl import print_kernel
from dsv3c.targets.vulkan.spirv import compile_glsl
from tests.targets.gpu.op_tests import arguments, groups
from tests.targets.gpu.sampling_cases import token_of, words

COUNTS = {2500: 400, 270_001: 24}  # rows by vocabulary: of two segments, of more than a workgroup has threads
NEAR = 3e-6  # of the whole weight: sums of float32 weights and of whole shares differ by less


def params_of(random, vocab):
    """Each filter is on in about half of the rows."""
    return SamplingParams(
        temperature=float(random.choice([0.05, 0.5, 0.8, 1.0, 1.3, 4.0])),
        top_k=int(random.choice([0, 0, 1, 2, 17, 300, vocab - 1, vocab])),
        top_p=float(random.choice([1.0, 1.0, 1e-4, 0.3, 0.9, 0.95, 0.999])),
        min_p=float(random.choice([0.0, 0.0, 0.01, 0.2])),
    )


def is_near_an_edge(logits, params, uniform):
    """Whether the number that the sampler draws stands so near a border between two ids that rounding decides."""
    _, weights = candidates(logits, float(logits.max()), params)
    total = np.cumsum(weights, dtype=np.float64)
    borders = np.abs(total - uniform * total[-1]) < NEAR * total[-1]
    if params.top_p == 1:
        return borders.any()
    # Nearly as many may be in the nucleus as one less or one more.
    every = np.exp((logits - logits.max()) / np.float32(params.temperature))
    top = np.cumsum(np.sort(every)[::-1][: params.top_k or None], dtype=np.float64)
    return borders.any() or (np.abs(top - params.top_p * top[-1]) < NEAR * top[-1]).any()


def draw(device, tmp_path, spec, inputs):
    arrays, modules = arguments(stages(spec), inputs), {}
    for stage in stages(spec):
        (form,) = variants(stage)
        if stage not in modules:
            path = compile_glsl("sampling", print_kernel(form.build()), tmp_path / "kernel.spv")
            modules[stage] = path.read_bytes()
        grid = [groups(extent, inputs["control"]) for extent in form.grid]
        device.run(modules[stage], [arrays[o.role] for o in operands(stage)], (*grid, *[1] * (3 - len(grid))))
    return arrays["token"]


@pytest.mark.parametrize(
    ("vocab", "rounding"), [(2500, 64), (2500, None), (270_001, 64)], ids=["equal-logits", "any-logits", "many-ids"]
)
def test_draws_what_the_sampler_of_the_runtime_draws(vocab, rounding, shader_compiler, device, tmp_path):
    random, count = np.random.default_rng(7), COUNTS[vocab]
    logits = random.normal(0, 1, (count, vocab)) * random.choice([0.5, 2, 5], (count, 1))
    logits = (logits if rounding is None else (logits * rounding).round() / rounding).astype(np.float32)
    logits[::5, 1::3] = -np.inf
    params, uniform = [params_of(random, vocab) for _ in range(count)], np.floor(random.random(count) * 2**32) / 2**32
    inputs = {
        "control": np.array([1, count, *[0] * 14], np.int32),
        "logits": logits,
        "sampling": np.stack([words(*each) for each in zip(params, uniform, strict=True)]),
    }
    found = draw(device, tmp_path, Sample(Rows(count, index=1), vocab), inputs)
    rows = list(zip(logits, params, uniform, strict=True))
    expected = np.array([token_of(*row) for row in rows])
    differ = [i for i in np.flatnonzero(found != expected) if not is_near_an_edge(*rows[i])]
    assert not differ, [(int(found[i]), int(expected[i]), params[i], float(uniform[i])) for i in differ]
    assert (found == expected).mean() > 0.9
