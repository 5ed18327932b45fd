from __future__ import annotations

import pytest

from dsv3c.passes.fuse_index import FuseIndex
from tests.conftest import Golden
from tests.passes.evaluation import assert_same_meaning, changed, graph

INDEXER = """
  %positions: i32[T] = input()
  %sequence: i32[T] = input()
  %page_table: i32[S, P] = input()
  %3: bool[T, 4*P*S] = context_mask(%positions, %sequence, %page_table) {"page_size": 4}
  %q_latent: f32[T, 5] = input()
  %wq_b: f32[18, 5] = param()
  %6: f32[T, 18] = linear(%q_latent, %wq_b)
  %7: f32[T, 3, 6] = reshape(%6) {"shape": ["T", 3, 6]}
  %8: f32[2] = const() {"data": [1.0, 0.009999999776482582]}
  %9: f32[T, 4] = rope_table(%positions, %8) {"scale": 1.0}
  %10: f32[T, 3, 6] = rope(%7, %9) {"interleave": false}
  %11: f32[3, T, 6] = transpose(%10) {"axes": [1, 0, 2]}
  %cache: f32[N, 6] = input()
  %13: i32[T] = token_slots(%positions, %sequence, %page_table) {"page_size": 4}
  %x: f32[T, 8] = input()
  %wk: f32[6, 8] = param()
  %16: f32[T, 6] = linear(%x, %wk)
  %17: f32[T, 1] = mean(%16) {"axis": -1, "keepdims": true}
  %18: f32[T, 6] = sub(%16, %17)
  %k_norm: f32[6] = param()
  %20: f32[T, 6] = rms_norm(%18, %k_norm) {"eps": 1e-06}
  %k_norm.bias: f32[6] = param()
  %22: f32[T, 6] = add(%20, %k_norm.bias)
  %23: f32[T, 1, 6] = reshape(%22) {"shape": ["T", 1, 6]}
  %24: f32[T, 1, 6] = rope(%23, %9) {"interleave": false}
  %25: f32[T, 6] = reshape(%24) {"shape": ["T", 6]}
  %26: f32[N, 6] = scatter_rows(%cache, %13, %25)
  %27: i32[4*P*S] = context_slots(%page_table) {"page_size": 4}
  %28: f32[4*P*S, 6] = take(%26, %27)
  %29: f32[6, 4*P*S] = transpose(%28) {"axes": [1, 0]}
  %30: f32[3, T, 4*P*S] = matmul(%11, %29)
  %31: f32[3, T, 4*P*S] = relu(%30)
  %weights_proj: f32[3, 8] = param()
  %33: f32[T, 3] = linear(%x, %weights_proj)
  %34: f32[3, T] = transpose(%33) {"axes": [1, 0]}
  %35: f32[3, T, 1] = reshape(%34) {"shape": [3, "T", 1]}
  %36: f32[3, T, 4*P*S] = mul(%31, %35)
  %37: f32[T, 4*P*S] = sum(%36) {"axis": 0, "keepdims": false}
  %38: f32[] = const() {"data": -Infinity}
  %39: f32[T, 4*P*S] = where(%3, %37, %38)
  %40: bool[T, 4*P*S] = top_k_mask(%39) {"k": 5}
  %41: f32[T, 4*P*S] = cast(%40) {"dtype": "f32"}
  return mask=%41, cache=%26
"""


def test_an_indexer_becomes_a_write_and_a_choice(golden: Golden) -> None:
    before = graph(INDEXER)
    after, count = changed(FuseIndex(), before)
    assert count == 2
    assert [after.count(op) for op in ("index_write", "index_topk", "chosen_mask", "top_k_mask")] == [1, 1, 1, 0]
    golden.check(str(after))
    assert_same_meaning(before, after)


def test_keys_are_written_in_the_type_of_their_cache() -> None:
    text = INDEXER.replace("%cache: f32[", "%cache: bf16[").replace("%26: f32[", "%26: bf16[")
    after, count = changed(FuseIndex(), graph(text))
    assert (count, after.result("cache").dtype) == (2, "bf16")
    assert_same_meaning(graph(text), after)


# What is replaced, and by what; one of both rewrites still applies.
NEAR_MISSES = {
    "mean-added": ("%18: f32[T, 6] = sub(%16, %17)", "%18: f32[T, 6] = add(%16, %17)"),
    "products-of-either-sign": ("%31: f32[3, T, 4*P*S] = relu(%30)", "%31: f32[3, T, 4*P*S] = sin(%30)"),
    "finite-mask": ('%38: f32[] = const() {"data": -Infinity}', '%38: f32[] = const() {"data": -1.0}'),
    "key-before-the-bias": ("%23: f32[T, 1, 6] = reshape(%22)", "%23: f32[T, 1, 6] = reshape(%20)"),
}


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_misses_stay(name: str) -> None:
    old, new = NEAR_MISSES[name]
    assert old in INDEXER
    before = graph(INDEXER.replace(old, new))
    after, count = changed(FuseIndex(), before)
    assert count == 1
    assert_same_meaning(before, after)
