"""Scales that are folded into a checkpoint's tensors: the model is what it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsv3c.compiler.checkpoint import Checkpoint
from dsv3c.compiler.core import ops
from dsv3c.compiler.formats import fp8
from dsv3c.compiler.frontend import model
from dsv3c.compiler.frontend.caches import cache_rows
from dsv3c.compiler.quantisation.folding import Folding, Part, Site, sites
from tests.checkpoints import tiny_config, write_checkpoint

CONFIGS = {
    "a shared expert": tiny_config(num_hidden_layers=2, num_nextn_predict_layers=1),
    "no query latent, no shared expert": tiny_config(q_lora_rank=None, n_shared_experts=0, num_hidden_layers=2),
    "softmax, two shared experts": tiny_config("deepseek_v2", n_shared_experts=2, num_hidden_layers=2),
    "dense": tiny_config("youtu", num_hidden_layers=2),
    "experts that give back their input": tiny_config("longcat_flash", num_layers=1),
    "experts beside an MLP": tiny_config("longcat_flash", num_layers=1, zero_expert_num=0),
}
STEP = {
    "tokens": np.array([5, 7, 11, 13, 17], np.int32),
    "positions": np.arange(5, dtype=np.int32),
    "sequence": np.zeros(5, np.int32),
    "page_table": np.arange(2, dtype=np.int32)[None],
    "rows": np.arange(5, dtype=np.int32),
}


@pytest.fixture(params=CONFIGS)
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Checkpoint:
    write_checkpoint(tmp_path, CONFIGS[request.param])
    return Checkpoint.open(tmp_path)


def read(source: Checkpoint) -> Any:
    return lambda name, expert: source.read(name) if expert is None else source.part(name, expert)


def size(site: Site, source: Checkpoint) -> int:
    """How many inputs a site has."""
    part = site.readers[0]
    columns = source.shapes[part.name][-1]
    return len(np.arange(columns)[part.at])


def folded(source: Checkpoint) -> Folding:
    """Other scales at every site."""
    rng = np.random.default_rng(3)
    folding = Folding()
    for site in sites(source.config):
        folding.add(site, np.exp(rng.standard_normal(size(site, source))).astype(np.float32))
    return folding


def outputs(source: Checkpoint, read: Any) -> list[Any]:
    """Logits, states and caches of the main model, then of multi-token prediction."""
    config, step = source.config, model.StepInputs(**STEP, page_size=4)
    layers = config.num_hidden_layers + config.num_nextn_predict_layers
    caches = {row.name: np.zeros((8, row.width), "f4") for layer in range(layers) for row in cache_rows(config, layer)}

    def weight(name: str) -> Any:
        if name not in source.shapes:
            raise KeyError(name)
        return read(name, None)

    main = model.forward(ops.Evaluator(), config, weight, step, caches)
    found = [main.logits, main.hidden, *main.caches.values()]
    if config.num_nextn_predict_layers:
        mtp = model.forward_mtp(ops.Evaluator(), config, weight, 0, step, main.hidden, caches)
        found += [mtp.logits, mtp.hidden, *mtp.caches.values()]
    return found


def test_the_float_model_stays_what_it_is(source: Checkpoint) -> None:
    plain = outputs(source, read(source))
    scaled = outputs(source, folded(source).reading(read(source)))
    for found, expected in zip(scaled, plain, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_all_matrices_are_scaled_but_those_that_meet_cached_rows_and_the_head(source: Checkpoint) -> None:
    folding = folded(source)
    matrices = {name for name, shape in source.shapes.items() if len(shape) > 1}
    left = {name for name in matrices if not folding.multiplies(name, 0 if "*" in name else None)}
    left = {name.removeprefix("model.").split(".", 2)[-1] for name in left}
    if source.config.zero_expert_num:  # these give back what they are given, as it is
        left -= {f"mlp.{each}.weight" for each in ("gate", "gate_proj", "up_proj")}
        left -= {f"mlp.experts.*.{each}_proj.weight" for each in ("gate", "up")}
    assert left <= {*("weight", "embed_tokens.weight", "lm_head.weight", "self_attn.kv_b_proj.weight")}


def test_experts_read_alone_are_those_of_all_read_together(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, tiny_config(num_hidden_layers=2))
    source = Checkpoint.open(tmp_path)
    scaled = folded(source).reading(read(source))
    for projection in ("gate", "up", "down"):
        name = f"model.layers.1.mlp.experts.*.{projection}_proj.weight"
        assert not np.array_equal(scaled(name, 3), source.part(name, 3))
        np.testing.assert_array_equal(scaled(name, None)[3], scaled(name, 3))


def test_a_site_with_a_tensor_in_codes_is_left_as_it_is() -> None:
    """Codes of the checkpoint are kept, so neither they nor what goes with them may be multiplied."""
    weights = {"reader": np.ones((2, 4), fp8.CODED), "producer": np.ones((4, 3), np.float32)}
    folding = Folding()
    scaled = folding.reading(lambda name, expert: weights[name])
    scaled("reader", None)
    folding.add(Site((Part("reader"),), (Part("producer"),)), np.full(4, 2, np.float32))
    assert scaled("producer", None) is weights["producer"]
    assert scaled("reader", None) is weights["reader"]
    assert not folding.multiplies("reader", None)
