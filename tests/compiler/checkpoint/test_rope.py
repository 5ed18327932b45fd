"""The numbers were printed by transformers 5.23 for the same configs (float32, so they are compared exactly)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsv3c.compiler.checkpoint.errors import ConfigValueError, MissingConfigKeyError, UnsupportedConfigError
from dsv3c.compiler.checkpoint.fields import ConfigFields
from dsv3c.compiler.checkpoint.rope import RopeScaling, inverse_frequencies, parse_rope
from dsv3c.compiler.errors import CheckpointError
from tests.checkpoints import YARN


def parse(**config: Any) -> tuple[float, RopeScaling | None]:
    return parse_rope(ConfigFields(config, Path("config.json")), 4096)


@pytest.mark.parametrize(
    ("rope", "theta", "dim", "length", "frequencies", "factor"),
    [
        ({}, 10000.0, 8, 512, [1.0, 0.10000000149011612, 0.009999999776482582, 0.0010000000474974513], 1.0),
        (
            {
                "type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 512,
                "beta_fast": 32,
                "beta_slow": 1,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
            },
            10000.0,
            16,
            2048,
            [
                1.0,
                0.2569350600242615,
                0.0625,
                0.013834965415298939,
                0.0024999999441206455,
                0.0007905694656074047,
                0.0002500000118743628,
                7.905694656074047e-05,
            ],
            1.0,
        ),
        (
            {
                "type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 128,
                "beta_fast": 32,
                "beta_slow": 1,
                "mscale": 1.0,
                "mscale_all_dim": 0.5,
            },
            10000.0,
            8,
            512,
            [1.0, 0.0625, 0.0024999999441206455, 0.0002500000118743628],
            1.0648216253695715,
        ),
        (
            {"rope_type": "yarn", "factor": 4.0, "truncate": False},
            50000.0,
            12,
            4096,
            [
                1.0,
                0.16475489735603333,
                0.023664113134145737,
                0.002153568435460329,
                0.00018420153355691582,
                3.034811743418686e-05,
            ],
            1.138629436111989,
        ),
    ],
)
def test_transformers_has_the_same_numbers(
    rope: dict[str, Any], theta: float, dim: int, length: int, frequencies: list[float], factor: float
) -> None:
    theta, scaling = parse_rope(ConfigFields({"rope_theta": theta, "rope_scaling": rope}, Path("config.json")), length)
    assert inverse_frequencies(dim, theta, scaling).tolist() == frequencies
    assert (scaling.rotation_scale if scaling else 1.0) == pytest.approx(factor, rel=1e-15)


def test_the_definition_without_scaling() -> None:
    frequencies = inverse_frequencies(64, 10000.0, None)
    assert frequencies.dtype == np.float32
    np.testing.assert_allclose(frequencies, 10000.0 ** (-np.arange(32) / 32), rtol=2e-7)


def test_yarn_keeps_fast_pairs_and_stretches_slow_ones() -> None:
    plain, scaled = (inverse_frequencies(64, 10000.0, scaling) for scaling in (None, RopeScaling(40.0, 4096)))
    ratio = plain / scaled
    assert ratio[0] == 1
    np.testing.assert_allclose(ratio[-1], 40, rtol=1e-6)
    assert np.all(np.diff(ratio) >= -1e-4)


def test_the_factors_of_deepseek_v3() -> None:
    scaling = RopeScaling(40.0, 4096, mscale=1.0, mscale_all_dim=1.0)
    assert scaling.rotation_scale == 1.0
    assert scaling.softmax_factor == pytest.approx((0.1 * math.log(40) + 1) ** 2)
    assert RopeScaling(40.0, 4096).rotation_scale == pytest.approx(0.1 * math.log(40) + 1)
    assert RopeScaling(40.0, 4096).softmax_factor == 1.0
    assert RopeScaling(40.0, 4096, attention_factor=1.5, mscale=1.0, mscale_all_dim=1.0).rotation_scale == 1.5
    assert RopeScaling(1.0, 4096, mscale=2.0, mscale_all_dim=1.0).rotation_scale == 1.0


def test_old_and_new_spelling_mean_the_same() -> None:
    old = parse(rope_theta=5e4, rope_scaling=YARN)
    new = parse(rope_parameters={**YARN, "rope_type": "yarn", "type": "ignored", "rope_theta": 5e4})
    assert old == new == (5e4, RopeScaling(4.0, 128, 32.0, 1.0, 1.0, 1.0))
    assert parse(rope_theta=5e4) == parse(rope_parameters={"rope_theta": 5e4, "rope_type": "default"}) == (5e4, None)
    assert parse(rope_theta=5e4, rope_scaling=None) == parse(rope_theta=5e4, rope_scaling={}) == (5e4, None)
    assert parse() == (10000.0, None)


def test_the_original_length_is_found_where_transformers_finds_it() -> None:
    def length(**config: Any) -> int | None:
        scaling = parse(**config)[1]
        return scaling and scaling.original_max_position_embeddings

    assert length(rope_scaling={"type": "yarn", "factor": 2}) == 4096
    assert length(rope_scaling=YARN) == 128
    assert length(rope_scaling=YARN, original_max_position_embeddings=200) == 200


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"factor": 0}, ConfigValueError),
        ({"factor": -4.0}, ConfigValueError),
        ({"factor": math.nan}, ConfigValueError),
        ({"factor": math.inf}, ConfigValueError),
        ({"factor": True}, ConfigValueError),
        ({"factor": "4"}, ConfigValueError),
        ({"factor": None}, MissingConfigKeyError),
        ({"original_max_position_embeddings": 0}, ConfigValueError),
        ({"original_max_position_embeddings": 4.5}, ConfigValueError),
        ({"beta_fast": 0}, ConfigValueError),
        ({"beta_slow": -1}, ConfigValueError),
        ({"beta_slow": 64}, ConfigValueError),
        ({"mscale": math.nan}, ConfigValueError),
        ({"mscale_all_dim": -1}, ConfigValueError),
        ({"attention_factor": 0}, ConfigValueError),
        ({"truncate": 1}, ConfigValueError),
        ({"type": None}, ConfigValueError),
        ({"type": "linear"}, UnsupportedConfigError),
        ({"type": 3}, UnsupportedConfigError),
        ({"rope_type": "llama3"}, UnsupportedConfigError),
        ({"partial_rotary_factor": 0.5}, UnsupportedConfigError),
    ],
    ids=str,
)
def test_a_bad_scaling_is_refused(change: dict[str, Any], error: type[CheckpointError]) -> None:
    with pytest.raises(error, match=r"rope_scaling\."):
        parse(rope_scaling={**YARN, **change})


@pytest.mark.parametrize("theta", [0, 1, -10000.0, math.nan, "10000", True])
def test_a_bad_theta_is_refused(theta: Any) -> None:
    with pytest.raises(ConfigValueError, match="rope_theta"):
        parse(rope_theta=theta)


def test_a_rope_that_is_no_object_is_refused() -> None:
    with pytest.raises(ConfigValueError, match="rope_scaling"):
        parse(rope_scaling=[1])
