"""mla_absorbed, attention in latent space, and mla_materialized, on keys and values rebuilt from the latent cache."""

from __future__ import annotations

from dataclasses import dataclass

from dsv3c.compiler.formats.table import WeightFormat
from dsv3c.targets.calls.cache import Paging
from dsv3c.targets.calls.operands import Rows, View


@dataclass(frozen=True)
class MlaAbsorbed:
    """q_latent f32 [T, heads, rank], q_pe f32 [T, heads, d], cache, … -> y f32 [T, heads, rank]."""

    rows: Rows
    heads: int
    paging: Paging
    scale: float


@dataclass(frozen=True)
class MlaMaterialized:
    """q_nope f32 through `view` [T, heads, nope], q_pe f32 [T, heads, d], cache, w_uk packed [heads, nope, rank], w_uv
    packed [heads, v, rank], … -> y f32 [T, heads, v].

    group: latents are rounded to int8 in groups of it before they meet the weights; 0: they are not.
    """

    rows: Rows
    heads: int
    nope: int
    v: int
    paging: Paging
    scale: float
    weight: WeightFormat
    view: View | None = None
    group: int = 0
