"""index_write, index_topk, mla_sparse and partial rotation in plain numpy."""

import numpy as np

from dsv3c.compiler.formats.elements import as_float32
from dsv3c.targets.calls.cache import Paging
from dsv3c.targets.calls.operands import Rows, View
from dsv3c.targets.calls.rope import Rope
from dsv3c.targets.calls.sparse import IndexTopk, IndexWrite, MlaSparse
from tests.targets.cases.attention import (
    BOUND,
    ELEMENTS,
    F32,
    as_stored,
    control,
    filled_cache,
    layout,
    normal,
    place,
    slots_of,
    softmax,
)

# Around a context that is as long as what is chosen of it, and around pages of 16 and their multiples; two sequences.
INDEXED = {
    "first": [(1, 1)],
    "all": [(31, 3)],
    "just": [(34, 4)],
    "pages": [(48, 2), (49, 3)],
    "long": [(300, 5), (33, 4)],
    "prefill": [(50, 18)],
}


def rope_case(t, heads, d, rest, interleave, view=None):
    view_ = view or View(heads * (d + rest), head_stride=d + rest)
    x, table = normal(t, view_.row_stride), normal(t, d)
    rows = np.stack([x[:, view_.offset + h * view_.head_stride :][:, : d + rest] for h in range(heads)], axis=1)
    turned = rows[..., :d]
    first, second = (turned[..., 0::2], turned[..., 1::2]) if interleave else np.split(turned, 2, -1)
    cos, sin = np.split(table[:, None], 2, -1)
    y = np.concatenate([first * cos - second * sin, second * cos + first * sin, rows[..., d:]], -1)
    spec = Rope(Rows(BOUND), heads, d, interleave, view, rest)
    return spec, {"control": control(t), "x": x, "table": table}, {"y": y}, F32


def write_case(context, width, rotated, element, interleave, view=None):
    paging, positions, sequence, table, cache, inputs = layout(context, 1, width, 0, element)
    tokens = len(positions)
    view_ = view or View(width)
    k, weight, bias, angles = (
        normal(tokens, view_.row_stride),
        normal(width),
        normal(width, seed=1),
        normal(tokens, rotated),
    )
    rows = k[:, view_.offset :][:, :width].astype(np.float64) + 3  # so that the mean counts
    k[:, view_.offset : view_.offset + width] += 3
    centred = rows - rows.mean(-1, keepdims=True)
    key = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * weight + bias
    turned = key[:, :rotated]
    first, second = (turned[:, 0::2], turned[:, 1::2]) if interleave else np.split(turned, 2, -1)
    cos, sin = np.split(angles, 2, -1)
    key = np.concatenate([first * cos - second * sin, second * cos + first * sin, key[:, rotated:]], -1)
    after = np.nan_to_num(as_float32(cache)).astype(cache.dtype)
    inputs |= {"cache": after.copy(), "k": k, "weight": weight, "bias": bias, "table": angles}
    written = [slots_of(table, sequence[t], position + 1, 16)[-1] for t, position in enumerate(positions)]
    after[written] = key.astype(cache.dtype)
    tolerance = 2.0**-8 if element == "bf16" else 2 * F32
    return IndexWrite(Rows(BOUND), paging, rotated, 1e-6, interleave, view), inputs, {"cache": after}, tolerance


def best(scores, k):
    """The k positions of the best scores, rising, then -1; of equal scores that of the lower position is better."""
    found = np.sort(np.argsort(-scores, kind="stable")[:k])
    return np.concatenate([found, np.full(k - len(found), -1)]).astype(np.int32)


def whole(*shape, seed=0):
    """Small whole numbers: sums of their products are exact in any order, and often equal."""
    return np.random.default_rng(sum(shape) + seed).integers(-2, 3, shape).astype(np.float32)


def topk_case(context, heads, width, k, element, numbers=whole):
    contexts = INDEXED[context]
    positions, sequence, table, slots = place(contexts, 16, 20)
    table = np.vstack([table, np.zeros((2 - len(table), 20), np.int32)])
    paging = Paging(2, 20, 16, width, 0, element)
    cache = np.full((slots, width), np.nan, np.float32)
    for s in np.unique(sequence):
        used = slots_of(table, s, positions[sequence == s].max() + 1, 16)
        cache[used] = numbers(len(used), width, seed=int(s))
    q, weights = numbers(len(positions), heads, width), numbers(len(positions), heads, seed=1)
    chosen = []
    for t, position in enumerate(positions):
        keys = cache[slots_of(table, sequence[t], position + 1, 16)].astype(np.float64)
        chosen.append(best(weights[t] @ np.maximum(q[t] @ keys.T, 0), k))
    inputs = {"control": control(len(positions)), "positions": positions, "sequence": sequence, "page_table": table}
    inputs |= {"q": q, "weights": weights, "cache": as_stored(cache, paging)}
    return IndexTopk(Rows(BOUND), heads, k, paging), inputs, {"y": np.array(chosen)}, 0


def sparse_case(context, heads, rank, d, k, element):
    positions, sequence, table, slots = place(INDEXED[context], 16, 20)
    table = np.vstack([table, np.zeros((2 - len(table), 20), np.int32)])
    paging = Paging(2, 20, 16, rank, d, element)
    cache = filled_cache(positions, sequence, table, slots, paging)
    q_latent, q_pe = normal(len(positions), heads, rank), normal(len(positions), heads, d, seed=1)
    query, scale = np.concatenate([q_latent, q_pe], -1), (rank + d) ** -0.5
    chosen, y = [], []
    for t, position in enumerate(positions):
        chosen.append(best(normal(position + 1, seed=t), k))
        places = chosen[-1][chosen[-1] >= 0]
        rows = as_float32(cache[table[sequence[t], places // 16] * 16 + places % 16]).astype(np.float64)
        y.append(softmax(query[t] @ rows.T * scale) @ rows[:, :rank])
    inputs = {"control": control(len(positions)), "positions": positions, "sequence": sequence, "page_table": table}
    inputs |= {"q_latent": q_latent, "q_pe": q_pe, "cache": cache, "chosen": np.array(chosen)}
    tolerance = 1e-5 if paging.coded else F32
    return MlaSparse(Rows(BOUND), heads, k, paging, scale), inputs, {"y": np.array(y)}, tolerance


def all_cases():
    for interleave in (False, True):
        yield f"rope-rest-{interleave}", rope_case(5, 5, 64, 64, interleave)
        yield f"rope-rest-odd-{interleave}", rope_case(2, 3, 22, 5, interleave)
    yield "rope-rest-view", rope_case(3, 2, 8, 10, True, View(50, offset=3, head_stride=19))

    for element in ELEMENTS:
        yield f"index-write-{element}", write_case("two", 128, 64, element, False)
        yield f"index-write-{element}-interleaved", write_case("two", 128, 64, element, True)
    yield "index-write-odd", write_case("c17", 33, 10, "bf16", True, View(100, offset=5))
    yield "index-write-all-rotated", write_case("c17", 22, 22, "f32", False)

    for element in ELEMENTS:
        for context in INDEXED:
            yield f"topk-{element}-{context}", topk_case(context, 4, 32, 33, element)
        yield f"topk-{element}-real", topk_case("long", 64, 128, 128, element)
        yield f"topk-{element}-odd", topk_case("long", 5, 22, 7, element)
        yield f"topk-{element}-one", topk_case("long", 1, 16, 1, element)
    yield "topk-normal", topk_case("long", 32, 128, 64, "f32", normal)
    yield "topk-more-than-the-table", topk_case("long", 3, 16, 400, "bf16")

    for element in (*ELEMENTS, "int8", "fp8"):
        for context in INDEXED:
            yield f"sparse-{element}-{context}", sparse_case(context, 5, 64, 16, 33, element)
        yield f"sparse-{element}-real", sparse_case("long", 17, 512, 64, 128, element)
        yield f"sparse-{element}-odd", sparse_case("pages", 3, 51, 10, 20, element)
    yield "sparse-few", sparse_case("long", 16, 64, 16, 1, "bf16")
    yield "sparse-more-than-the-table", sparse_case("long", 20, 64, 16, 400, "bf16")


CASES = dict(all_cases())
