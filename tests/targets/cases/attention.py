"""mla_write, mla_absorbed and mla_materialized as naive attention in numpy."""

from functools import partial

import ml_dtypes
import numpy as np

from dsv3c.compiler.core.ops.weight import decoded, evaluate_quantize_rows
from dsv3c.compiler.formats import coded_rows, quant, rows16
from dsv3c.compiler.formats.coded_rows import CodedRows
from dsv3c.compiler.formats.elements import as_float32
from dsv3c.compiler.formats.table import WeightFormat
from dsv3c.targets.calls.attention import MlaAbsorbed, MlaMaterialized
from dsv3c.targets.calls.cache import MlaWrite, Paging
from dsv3c.targets.calls.operands import Rows, View

BOUND, LONG_BOUND = 18, 33
F32 = 3e-6
ELEMENTS = {"f32": np.float32, "bf16": ml_dtypes.bfloat16}
CODED = ("int8", "fp8")


def normal(*shape, seed=0):
    return np.random.default_rng(sum(shape) + seed).standard_normal(shape).astype(np.float32)


def control(tokens):
    out = np.zeros(16, np.int32)
    out[0] = tokens
    return out


def place(contexts, page_size, pages):
    """Tokens at the end of each context: `contexts` is a list of (context length, new tokens).

    Returns positions, sequence, page_table [S, pages] with pages in shuffled order, and the number of slots.
    """
    positions = np.concatenate([np.arange(length - new, length) for length, new in contexts]).astype(np.int32)
    sequence = np.repeat(np.arange(len(contexts)), [new for _, new in contexts]).astype(np.int32)
    total = len(contexts) * pages
    table = np.random.default_rng(0).permutation(total).reshape(-1, pages).astype(np.int32)
    return positions, sequence, table, total * page_size


def slots_of(table, sequence, count, page_size):
    position = np.arange(count)
    return table[sequence, position // page_size] * page_size + position % page_size


def filled_cache(positions, sequence, table, slots, paging):
    """Random rows in every slot of a context, NaN in all others: a kernel that reads past a context shows."""
    cache = np.full((slots, paging.width), np.nan, np.float32)
    for s in np.unique(sequence):
        used = slots_of(table, s, positions[sequence == s].max() + 1, paging.page_size)
        cache[used] = normal(len(used), paging.width, seed=int(s))
    return as_stored(cache, paging)


def as_stored(rows, paging):
    """Rows f32 [N, width] as the cache has them. Each ninth coded row is zeros, of each seventh the latent is larger;
    codes of NaN are any, their scales NaN."""
    if not paging.coded:
        return rows.astype(ELEMENTS[paging.element])
    there = ~np.isnan(rows).any(-1)
    rows = np.where(there[:, None], rows, 0)
    rows[::9] = 0
    rows[3::7, : paging.rank] *= 8
    stored = coded_rows.encode(rows, CodedRows(paging.element, paging.rank).array_dtype(paging.width))
    stored["scales"][~there] = np.nan
    return stored


def softmax(scores):
    grown = np.exp(scores - scores.max(-1, keepdims=True))
    return grown / grown.sum(-1, keepdims=True)


def attend(query, cache, positions, sequence, table, page_size, scale, rank, group=0):
    """Naive absorbed attention, one token at a time, in float64. group: of latents that are rounded to int8."""
    out = []
    for t, position in enumerate(positions):
        context = as_float32(cache[slots_of(table, sequence[t], position + 1, page_size)]).astype(np.float64)
        if group:
            latents = evaluate_quantize_rows(context[:, :rank], group)
            context[:, :rank] = decoded(latents)
        out.append(softmax(query[t] @ context.T * scale) @ context[:, :rank])
    return np.array(out)


CONTEXTS = {
    "first": [(1, 1)],
    "c15": [(15, 1)],
    "c16": [(16, 1)],
    "c17": [(17, 3)],
    "c300": [(300, 1)],
    "prefill": [(17, 17)],
    "two": [(300, 5), (33, 4)],
    "one": [(313, 1), (1, 1)],  # cut into chunks, and not
}


# Around a block of 64 slots and a tile of 8 tokens, which the materialised form takes at a time; four sequences. GPUs
# take 64 tokens at a time.
BLOCKS = {
    "t1": [(1, 1)],
    "t8-c15": [(15, 8)],
    "t9-c16": [(16, 9)],
    "t17-c17": [(17, 17)],
    "t7-c63": [(63, 7)],
    "t33-c64": [(64, 33)],
    "t2-c65": [(65, 2)],
    "t33-c1000": [(1000, 33)],
    "ragged": [(1000, 16), (1, 1), (65, 65), (129, 5)],
}


def layout(context, heads, rank, d, element):
    long = context in BLOCKS
    sequences, pages = (4, 64) if long else (2, 20)
    contexts = BLOCKS[context] if long else CONTEXTS[context]
    positions, sequence, table, slots = place(contexts, 16, pages)
    paging = Paging(sequences, pages, 16, rank, d, element)
    cache = filled_cache(positions, sequence, table, slots, paging)
    inputs = {"control": control(len(positions)), "positions": positions, "sequence": sequence, "page_table": table}
    return paging, positions, sequence, table, cache, inputs


def absorbed_case(context, heads, rank, d, element):
    paging, positions, sequence, table, cache, inputs = layout(context, heads, rank, d, element)
    q_latent, q_pe = normal(len(positions), heads, rank), normal(len(positions), heads, d, seed=1)
    scale = (rank + d) ** -0.5
    query = np.concatenate([q_latent, q_pe], -1)
    y = attend(query, cache, positions, sequence, table, 16, scale, rank)
    inputs |= {"cache": cache, "q_latent": q_latent, "q_pe": q_pe}
    return MlaAbsorbed(Rows(BOUND), heads, paging, scale), inputs, {"y": y}, F32


def materialized_case(context, heads, nope, v, rank, d, element, name, view=None, rounded=False):
    """rounded: latents are, to int8, in the groups of the format, if it has integer products."""
    paging, positions, sequence, table, cache, inputs = layout(context, heads, rank, d, element)
    spec, tokens = WeightFormat.parse(name), len(positions)
    group = spec.grouping.activations if rounded and spec.integer_products else 0
    view_ = view or View(heads * nope, head_stride=nope)
    wide, q_pe = normal(tokens, view_.row_stride), normal(tokens, heads, d, seed=1)
    q_nope = np.stack([wide[:, view_.offset + h * view_.head_stride :][:, :nope] for h in range(heads)], 1)
    weights = {}
    for role, n in (("w_uk", nope), ("w_uv", v)):
        w = normal(heads, n, rank) * np.float32(rank**-0.5)
        stored = quant.stored(w, spec)
        inputs |= {f"{role}.{part}": array for part, array in rows16.pack(stored, spec).items()}
        weights[role] = decoded(stored).astype(np.float64)
    scale = (nope + d) ** -0.5
    # Absorbing w_uk into the query gives the same scores: the naive form above is the oracle for both kernels.
    query = np.concatenate([np.einsum("thn,hnc->thc", q_nope, weights["w_uk"]), q_pe], -1)
    latent = attend(query, cache, positions, sequence, table, 16, scale, rank, group)
    y = np.einsum("thc,hvc->thv", latent, weights["w_uv"])
    inputs |= {"cache": cache, "q_nope": wide, "q_pe": q_pe}
    bound = max(LONG_BOUND if context in BLOCKS else BOUND, tokens)
    return MlaMaterialized(Rows(bound), heads, nope, v, paging, scale, spec, view, group), inputs, {"y": y}, 1e-5


def write_case(context, rank, d, element, interleave, view=None, uneven=False):
    """uneven: the key of the first token and the latent of the second are zeros, the key of the third is large."""
    paging, positions, sequence, table, cache, inputs = layout(context, 1, rank, d, element)
    tokens = len(positions)
    view_ = view or View(paging.width)
    kv_a, weight, angles = normal(tokens, view_.row_stride), normal(rank), normal(tokens, d, seed=1)
    if uneven:
        kv_a[0, rank:] = kv_a[1, :rank] = 0
        kv_a[2, rank:] *= 1e6
    rows = kv_a[:, view_.offset :][:, : paging.width].astype(np.float64)
    latent = rows[:, :rank] / np.sqrt((rows[:, :rank] ** 2).mean(-1, keepdims=True) + 1e-6) * weight
    key = rows[:, rank:]
    first, second = (key[:, 0::2], key[:, 1::2]) if interleave else np.split(key, 2, -1)
    cos, sin = np.split(angles, 2, -1)
    rotated = np.concatenate([first * cos - second * sin, second * cos + first * sin], -1)
    cache = coded_rows.stored(np.nan_to_num(as_float32(cache)), cache.dtype)
    after = cache.copy()
    written = [slots_of(table, sequence[t], position + 1, 16)[-1] for t, position in enumerate(positions)]
    after[written] = coded_rows.stored(np.concatenate([latent, rotated], -1).astype(np.float32), cache.dtype)
    inputs |= {"cache": cache, "kv_a": kv_a, "weight": weight, "table": angles}
    # Values on the edge between two bfloat16 numbers may round either way: one unit in the last place of the largest.
    tolerance = 2.0**-8 if element == "bf16" else F32
    return MlaWrite(Rows(BOUND), paging, 1e-6, interleave, view), inputs, {"cache": after}, tolerance


def all_cases():
    for element in ELEMENTS:
        for context in CONTEXTS:
            yield f"absorbed-{element}-{context}-h5", absorbed_case(context, 5, 64, 16, element)
            yield f"absorbed-{element}-{context}-h4", absorbed_case(context, 4, 500, 10, element)
            yield f"absorbed-{element}-{context}-h20", absorbed_case(context, 20, 96, 34, element)
        for heads in (1, 16, 17):
            yield f"absorbed-{element}-h{heads}", absorbed_case("c300", heads, 512, 64, element)
        for interleave in (False, True):
            yield f"write-{element}-{interleave}", write_case("two", 512, 64, element, interleave)
        yield f"write-{element}-view", write_case("c17", 33, 10, element, False, View(100, offset=5))

    # The first of each kind are those that GPUs always run: int8 where latent and key meet in a word, fp8 where not.
    for element in CODED:
        evenly = {
            f"absorbed-{element}": absorbed_case("two", 5, 128, 16, element),
            f"write-{element}": write_case("two", 128, 16, element, True, uneven=True),
        }
        oddly = {
            f"absorbed-{element}-odd": absorbed_case("c17", 4, 51, 10, element),
            f"write-{element}-odd": write_case("c17", 33, 10, element, False, View(100, offset=5)),
        }
        yield from {**oddly, **evenly}.items() if element == "int8" else {**evenly, **oddly}.items()
    yield "absorbed-int8-h17", absorbed_case("one", 17, 64, 34, "int8")


def materialized_cases(rounded):
    """rounded: as targets with integer products have them."""
    case = partial(materialized_case, rounded=rounded)
    # The first of each kind are those that GPUs always run: int8 where latent and key meet in a word, fp8 where not.
    for element in CODED:
        evenly = f"materialized-over-{element}", case("two", 3, 40, 33, 128, 16, element, "int4-g32")
        oddly = f"materialized-over-{element}-odd", case("c17", 2, 31, 16, 51, 10, element, "float32")
        yield from (oddly, evenly) if element == "int8" else (evenly, oddly)
    yield "materialized-over-int8-ragged", case("ragged", 3, 40, 33, 64, 16, "int8", "float32")
    for context in CONTEXTS:
        for name in ("float32", "int4-g32"):
            yield f"materialized-{name}-{context}", case(context, 5, 24, 40, 64, 16, "f32", name)
    for name in ("bfloat16", "int8", "int8-g64", "int4-g32-asym", "int5-g32", "int3-g16-asym"):
        yield f"materialized-{name}", case("two", 3, 33, 17, 100, 10, "bf16", name)
    for context in BLOCKS:
        yield f"materialized-{context}", case(context, 5, 128, 64, 64, 32, "bf16", "int4-g32")
    for element in ELEMENTS:
        yield f"materialized-{element}-h1", case("ragged", 1, 192, 128, 512, 64, element, "bfloat16")
        yield f"materialized-{element}-h16", case("ragged", 16, 64, 192, 64, 64, element, "int8")
        yield f"materialized-{element}-h2", case("ragged", 2, 128, 256, 512, 64, element, "float32")
    yield "materialized-odd", case("ragged", 34, 31, 33, 51, 17, "bf16", "float16")
    view = View(3 * 50 + 4, offset=14, head_stride=50)
    yield "materialized-view", case("c17", 3, 33, 16, 64, 10, "bf16", "float16", view)


CASES = dict(all_cases()) | dict(materialized_cases(rounded=False))
ROUNDED = CASES | dict(materialized_cases(rounded=True))
