"""Rotary embeddings as configs describe them: frequencies and the scaling YaRN adds.

YaRN: arxiv.org/abs/2309.00071, with the mscale factors of DeepSeek-V2 (arxiv.org/abs/2405.04434). LongRoPE:
arxiv.org/abs/2402.13753. The results are those of transformers, whatever the spelling of the config: `rope_scaling`
with `type` or `rope_parameters` with `rope_type`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dsv3c.compiler.checkpoint.fields import ConfigFields

MAX_POSITIONS = 2**31 - 1
DEFAULT_THETA = 10000.0
_MAX_BLOCKS = 1 << 16


@dataclass(frozen=True)
class RopeScaling:
    """YaRN. `mscale` and `mscale_all_dim` are 0 when the config leaves them out."""

    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    attention_factor: float | None = None
    truncate: bool = True

    @property
    def rotation_scale(self) -> float:
        """What cos and sin are multiplied by."""
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return _mscale(self.factor, self.mscale) / _mscale(self.factor, self.mscale_all_dim)
        return _mscale(self.factor, 1.0)

    @property
    def softmax_factor(self) -> float:
        """What the softmax scale of attention is multiplied by."""
        return _mscale(self.factor, self.mscale_all_dim) ** 2 if self.mscale_all_dim else 1.0


@dataclass(frozen=True)
class LongRope:
    """LongRoPE up to `longest` tokens: a divisor for each frequency. longest: 0 where all lengths have the same.

    Beyond it transformers takes other divisors for the whole text, for keys that are cached too.
    """

    factors: tuple[float, ...]
    rotation_scale: float = 1.0
    softmax_factor: float = 1.0
    longest: int = 0


def inverse_frequencies(
    dim: int, theta: float, scaling: RopeScaling | LongRope | None
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Angle per position of each rotated pair: float32 [dim/2]."""
    exponent = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    # The power is taken in float64 and rounded once, so that no mathematics library shows in the result.
    powers = np.power(np.float64(theta), exponent.astype(np.float64)).astype(np.float32)
    plain = np.float32(1) / powers
    if scaling is None:
        return plain
    if isinstance(scaling, LongRope):
        return np.float32(1) / (np.array(scaling.factors, np.float32) * powers)
    stretched = np.float32(1) / (np.float32(scaling.factor) * powers)
    low, high = _correction_range(dim, theta, scaling)
    ramp = (np.arange(dim // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low)
    keep = np.float32(1) - np.clip(ramp, np.float32(0), np.float32(1))
    mixed: np.ndarray[Any, np.dtype[np.float32]] = stretched * (np.float32(1) - keep) + plain * keep
    return mixed


def parse_query_scales(config: ConfigFields, max_positions: int) -> tuple[tuple[float, ...], int]:
    """(factors, block): what queries are multiplied by, one factor for each `block` positions of the context.

    1 + beta * log(1 + floor(position / block)), as Llama 4 and Mistral's models have it; no factors without a beta.
    """
    rope = _rope_object(config)
    beta = rope.number("llama_4_scaling_beta", 0, 1e3, 0.0)
    block = rope.integer("original_max_position_embeddings", 1, MAX_POSITIONS) if beta else 1
    count = -(-max_positions // block) if beta else 0
    if count > _MAX_BLOCKS:
        raise rope.wrong("original_max_position_embeddings", f"a length that the context has at most {_MAX_BLOCKS} of")
    return tuple(1 + beta * math.log1p(number) for number in range(count)), block


def stored_scaling(values: Mapping[str, Any] | None) -> RopeScaling | LongRope | None:
    """What dataclasses.asdict made values of, back from JSON."""
    if values is None:
        return None
    if "factors" in values:
        return LongRope(**{**values, "factors": tuple(values["factors"])})
    return RopeScaling(**values)


def _rope_object(config: ConfigFields) -> ConfigFields:
    scaling = config.object("rope_scaling")
    return scaling if scaling.values else config.object("rope_parameters")


def parse_rope(
    config: ConfigFields, max_positions: int, rotated: float = 1.0
) -> tuple[float, RopeScaling | LongRope | None]:
    """(rope_theta, scaling) of a config. Raises typed errors for values out of range and unsupported rope types.

    rotated: what partial_rotary_factor says when all of qk_rope_head_dim is rotated.
    """
    rope = _rope_object(config)
    theta_holder = rope if rope.has("rope_theta") else config
    theta = theta_holder.number("rope_theta", 1.000001, 1e30, DEFAULT_THETA)
    for holder in (rope, config):
        if holder.number("partial_rotary_factor", 0, 1, rotated) != rotated:
            raise holder.unsupported("partial_rotary_factor", "all of qk_rope_head_dim is rotated")
    type_key = "rope_type" if rope.has("rope_type") or not rope.has("type") else "type"
    if not rope.has(type_key) and rope.has("factor"):
        raise rope.wrong(type_key, "the name of the scaling that factor belongs to")
    rope_type = rope.values.get(type_key)
    if rope_type in (None, "default"):
        return theta, None
    if rope_type == "longrope":
        return theta, _parse_longrope(config, rope, max_positions)
    if rope_type != "yarn":
        raise rope.unsupported(type_key, "known are default, yarn and longrope")
    return theta, _parse_yarn(config, rope, max_positions)


def _original_positions(config: ConfigFields, rope: ConfigFields, max_positions: int) -> int:
    # As in transformers, a length beside the rope object goes before one inside it.
    holder = config if config.has("original_max_position_embeddings") else rope
    return holder.integer("original_max_position_embeddings", 1, MAX_POSITIONS, max_positions)


def _parse_longrope(config: ConfigFields, rope: ConfigFields, max_positions: int) -> LongRope:
    pairs = config.integer("qk_rope_head_dim", 2, 2**20) // 2
    short, long = (_factors(rope, key, pairs) for key in ("short_factor", "long_factor"))
    original = _original_positions(config, rope, max_positions)
    factor = rope.number("factor", 1e-6, 1e6, max_positions / original)
    grown = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 and original > 1 else 1.0
    return LongRope(
        factors=short,
        rotation_scale=rope.number("attention_factor", 1e-6, 1e6, grown),
        softmax_factor=_mscale(factor, rope.number("mscale_all_dim", 0, 1e3, 0.0)) ** 2,
        longest=original if original < max_positions and short != long else 0,
    )


def _factors(rope: ConfigFields, key: str, count: int) -> tuple[float, ...]:
    found = rope.values.get(key)
    if not isinstance(found, list) or len(found) != count:
        raise rope.wrong(key, f"a list of {count} numbers, one for each rotated pair")
    if not all(type(factor) in (int, float) and 1e-6 <= factor <= 1e6 for factor in found):
        raise rope.wrong(key, "numbers from 1e-06 to 1000000")
    return tuple(map(float, found))


def _parse_yarn(config: ConfigFields, rope: ConfigFields, max_positions: int) -> RopeScaling:
    beta_slow = rope.number("beta_slow", 1e-6, 1e6, 1.0)
    return RopeScaling(
        factor=rope.number("factor", 1, 1e6),
        original_max_position_embeddings=_original_positions(config, rope, max_positions),
        beta_fast=rope.number("beta_fast", beta_slow, 1e6, max(32.0, beta_slow)),
        beta_slow=beta_slow,
        mscale=rope.number("mscale", 0, 1e3, 0.0),
        mscale_all_dim=rope.number("mscale_all_dim", 0, 1e3, 0.0),
        attention_factor=rope.number("attention_factor", 1e-6, 1e6) if rope.has("attention_factor") else None,
        truncate=rope.boolean("truncate", True),
    )


def _mscale(factor: float, weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def _correction_range(dim: int, theta: float, scaling: RopeScaling) -> tuple[float, float]:
    """The pairs between which the frequencies pass from kept to stretched."""

    def pair_of(rotations: float) -> float:
        ratio = scaling.original_max_position_embeddings / (rotations * 2 * math.pi)
        return dim * math.log(ratio) / (2 * math.log(theta))

    low, high = pair_of(scaling.beta_fast), pair_of(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    return low, high + 0.001 if low == high else high
