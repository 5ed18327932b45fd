"""index_topk and mla_sparse at sizes that only these kernels find hard: several positions of a thread, several blocks
of a workgroup, what is chosen cut into parts."""

import numpy as np

from dsv3c.targets.calls.cache import Paging
from dsv3c.targets.calls.operands import Rows
from dsv3c.targets.calls.sparse import IndexTopk, MlaSparse
from tests.targets.cases.attention import F32, as_stored, control, filled_cache, normal, place, slots_of, softmax
from tests.targets.cases.sparse import best, whole

PAGE, PAGES = 16, 256


def zeros(*shape, seed=0):
    return np.zeros(shape, np.float32)


def signed_zeros(*shape, seed=0):
    """Products of no two are positive, of weights less than zero -0.0."""
    return -np.abs(whole(*shape, seed=seed)) if len(shape) == 2 else np.abs(whole(*shape, seed=seed))


def placed(contexts, pages):
    """As `place`, in so many pages as the contexts take, while tables have room for `pages`."""
    used = max(-(-length // PAGE) for length, _ in contexts)
    positions, sequence, table, slots = place(contexts, PAGE, used)
    wide = np.zeros((len(table), pages), np.int32)
    wide[:, :used] = table
    inputs = {"control": control(len(positions)), "positions": positions, "sequence": sequence, "page_table": wide}
    return positions, sequence, wide, slots, inputs


def topk_case(contexts, heads, width, k, element, numbers=whole):
    positions, sequence, table, slots, inputs = placed(contexts, PAGES)
    paging = Paging(len(contexts), PAGES, PAGE, width, 0, element)
    cache = np.full((slots, width), np.nan, np.float32)
    for s in range(len(contexts)):
        used = slots_of(table, s, contexts[s][0], PAGE)
        cache[used] = numbers(len(used), width, seed=s)
    q, weights = numbers(len(positions), heads, width), numbers(len(positions), heads, seed=1)
    y = []
    for t, position in enumerate(positions):
        keys = cache[slots_of(table, sequence[t], position + 1, PAGE)].astype(np.float64)
        y.append(best(weights[t] @ np.maximum(q[t] @ keys.T, 0), k))
    inputs |= {"q": q, "weights": weights, "cache": as_stored(cache, paging)}
    return IndexTopk(Rows(len(positions)), heads, k, paging), inputs, {"y": np.array(y)}, 0


def sparse_case(contexts, heads, rank, d, k, element):
    positions, sequence, table, slots, inputs = placed(contexts, PAGES)
    paging = Paging(len(contexts), PAGES, PAGE, rank, d, element)
    cache = filled_cache(positions, sequence, table, slots, paging)
    q_latent, q_pe = normal(len(positions), heads, rank), normal(len(positions), heads, d, seed=1)
    query, scale = np.concatenate([q_latent, q_pe], -1), (rank + d) ** -0.5
    chosen, y = [], []
    for t, position in enumerate(positions):
        chosen.append(best(normal(position + 1, seed=t), k))
        places = chosen[-1][chosen[-1] >= 0]
        rows = cache[table[sequence[t], places // PAGE] * PAGE + places % PAGE].astype(np.float64)
        y.append(softmax(query[t] @ rows.T * scale) @ rows[:, :rank])
    inputs |= {"q_latent": q_latent, "q_pe": q_pe, "cache": cache, "chosen": np.array(chosen)}
    return MlaSparse(Rows(len(positions)), heads, k, paging, scale), inputs, {"y": np.array(y)}, F32


def all_cases():
    yield "topk-many-of-a-thread", topk_case([(3100, 1), (1500, 2)], 3, 16, 2048, "bf16")
    yield "topk-many-blocks-of-a-group", topk_case([(1200, 17)], 2, 16, 500, "f32")
    yield "topk-every-digit", topk_case([(2500, 1)], 33, 40, 300, "f32", normal)
    for name, numbers in (("equal", zeros), ("zero-of-either-sign", signed_zeros)):
        yield f"topk-{name}", topk_case([(700, 1), (20, 2)], 4, 16, 130, "f32", numbers)
    yield "sparse-parts", sparse_case([(1000, 1), (40, 1)], 5, 64, 16, 300, "bf16")


CASES = dict(all_cases())
