from __future__ import annotations

import numpy as np
import pytest

from dsv3c.compiler.core.ir import parse_type
from dsv3c.passes.fuse_mla import FuseMla
from tests.conftest import Golden
from tests.passes.evaluation import assert_same_meaning, changed, graph

ATTENTION = """
  %x: f32[T, 8] = input()
  %positions: i32[T] = input()
  %sequence: i32[T] = input()
  %page_table: i32[S, P] = input()
  %cache: f32[N, 10] = input()
  %inv_freq: f32[2] = const() {"data": [1.0, 0.1]}
  %table: f32[T, 4] = rope_table(%positions, %inv_freq) {"scale": 1.0}
  %w_kv_a: f32[10, 8] = param()
  %kv_a: f32[T, 10] = linear(%x, %w_kv_a)
  %latent: f32[T, 6] = slice(%kv_a) {"axis": -1, "start": 0, "stop": 6}
  %norm: f32[6] = param()
  %normed: f32[T, 6] = rms_norm(%latent, %norm) {"eps": 0.001}
  %key: f32[T, 4] = slice(%kv_a) {"axis": -1, "start": 6, "stop": 10}
  %heads: f32[T, 1, 4] = reshape(%key) {"shape": ["T", 1, 4]}
  %turned: f32[T, 1, 4] = rope(%heads, %table) {"interleave": true}
  %flat: f32[T, 4] = reshape(%turned) {"shape": ["T", 4]}
  %row: f32[T, 10] = concat(%normed, %flat) {"axis": -1}
  %slots: i32[T] = token_slots(%positions, %sequence, %page_table) {"page_size": 4}
  %written: f32[N, 10] = scatter_rows(%cache, %slots, %row)
  %w_q: f32[18, 8] = param()
  %q: f32[T, 18] = linear(%x, %w_q)
  %q_heads: f32[T, 2, 9] = reshape(%q) {"shape": ["T", 2, 9]}
  %q_nope: f32[T, 2, 5] = slice(%q_heads) {"axis": -1, "start": 0, "stop": 5}
  %q_nope_t: f32[2, T, 5] = transpose(%q_nope) {"axes": [1, 0, 2]}
  %q_rope: f32[T, 2, 4] = slice(%q_heads) {"axis": -1, "start": 5, "stop": 9}
  %q_pe: f32[T, 2, 4] = rope(%q_rope, %table) {"interleave": true}
  %q_pe_t: f32[2, T, 4] = transpose(%q_pe) {"axes": [1, 0, 2]}
  %seen: i32[4*P*S] = context_slots(%page_table) {"page_size": 4}
  %context: f32[4*P*S, 10] = take(%written, %seen)
  %c: f32[4*P*S, 6] = slice(%context) {"axis": -1, "start": 0, "stop": 6}
  %w_kv_b: f32[16, 6] = param()
  %kv: f32[4*P*S, 16] = linear(%c, %w_kv_b)
  %kv_heads: f32[4*P*S, 2, 8] = reshape(%kv) {"shape": ["4*P*S", 2, 8]}
  %k_nope: f32[4*P*S, 2, 5] = slice(%kv_heads) {"axis": -1, "start": 0, "stop": 5}
  %k_nope_t: f32[2, 5, 4*P*S] = transpose(%k_nope) {"axes": [1, 2, 0]}
  %value: f32[4*P*S, 2, 3] = slice(%kv_heads) {"axis": -1, "start": 5, "stop": 8}
  %value_t: f32[2, 4*P*S, 3] = transpose(%value) {"axes": [1, 0, 2]}
  %k_pe: f32[4*P*S, 4] = slice(%context) {"axis": -1, "start": 6, "stop": 10}
  %k_pe_t: f32[4, 4*P*S] = transpose(%k_pe) {"axes": [1, 0]}
  %score_nope: f32[2, T, 4*P*S] = matmul(%q_nope_t, %k_nope_t)
  %score_pe: f32[2, T, 4*P*S] = matmul(%q_pe_t, %k_pe_t)
  %score: f32[2, T, 4*P*S] = add(%score_nope, %score_pe)
  %scale: f32[] = const() {"data": 0.3}
  %scaled: f32[2, T, 4*P*S] = mul(%score, %scale)
  %mask: bool[T, 4*P*S] = context_mask(%positions, %sequence, %page_table) {"page_size": 4}
  %never: f32[] = const() {"data": -Infinity}
  %masked: f32[2, T, 4*P*S] = where(%mask, %scaled, %never)
  %probability: f32[2, T, 4*P*S] = softmax(%masked)
  %mixed: f32[2, T, 3] = matmul(%probability, %value_t)
  %attended: f32[T, 2, 3] = transpose(%mixed) {"axes": [1, 0, 2]}
  return attended=%attended, cache=%written
"""


@pytest.mark.parametrize("form", ["absorbed", "materialized"])
def test_attention_becomes_one_write_and_one_read_of_the_cache(form: str, golden: Golden) -> None:
    before = graph(ATTENTION)
    after, count = changed(FuseMla(form), before)
    assert count == 2
    assert after.count("mla_write") == after.count(f"mla_{form}") == 1
    golden.check(str(after))
    assert_same_meaning(before, after)


CHOSEN = ATTENTION.replace(
    '%mask: bool[T, 4*P*S] = context_mask(%positions, %sequence, %page_table) {"page_size": 4}',
    """%qi: f32[T, 3, 6] = input()
  %weights: f32[T, 3] = input()
  %keys: f32[N, 6] = input()
  %chosen: i32[T, 3] = index_topk(%qi, %weights, %keys, %positions, %sequence, %page_table) {"k": 3, "page_size": 4}
  %mask: bool[T, 4*P*S] = chosen_mask(%chosen, %sequence, %page_table) {"page_size": 4}""",
)


@pytest.mark.parametrize("form", ["absorbed", "materialized"])
def test_attention_over_what_is_chosen_is_absorbed_in_both_forms(form: str, golden: Golden) -> None:
    before = graph(CHOSEN)
    after, count = changed(FuseMla(form), before)
    assert (count, after.count("mla_sparse"), after.count("chosen_mask")) == (2, 1, 0)
    if form == "absorbed":
        golden.check(str(after))
    assert_same_meaning(before, after)


def test_what_another_sequence_has_chosen_is_no_mask_of_attention() -> None:
    other = CHOSEN.replace("chosen_mask(%chosen, %sequence,", "chosen_mask(%chosen, %positions,")
    _, count = changed(FuseMla("absorbed"), graph(other))
    assert count == 1


def test_both_forms_mean_the_same() -> None:
    absorbed, materialized = (changed(FuseMla(form), graph(ATTENTION))[0] for form in ("absorbed", "materialized"))
    assert_same_meaning(absorbed, materialized)


def test_the_key_weight_is_absorbed_transposed_per_head() -> None:
    after, _ = changed(FuseMla("absorbed"), graph(ATTENTION))
    q_latent = after.result("attended").inputs[0].inputs[0]
    assert q_latent.inputs[1].op == "transpose"
    assert q_latent.inputs[1].type == parse_type("f32[2, 6, 5]")
    assert after.result("attended").inputs[1].type == parse_type("f32[2, 3, 6]")


def test_a_latent_row_within_a_joined_product_is_sliced() -> None:
    text = ATTENTION.replace("%w_kv_a: f32[10, 8]", "%w_kv_a: f32[13, 8]").replace(
        "%kv_a: f32[T, 10]", "%kv_a: f32[T, 13]"
    )
    text = text.replace(
        'slice(%kv_a) {"axis": -1, "start": 0, "stop": 6}', 'slice(%kv_a) {"axis": -1, "start": 3, "stop": 9}'
    )
    text = text.replace(
        'slice(%kv_a) {"axis": -1, "start": 6, "stop": 10}', 'slice(%kv_a) {"axis": -1, "start": 9, "stop": 13}'
    )
    after, count = changed(FuseMla("absorbed"), graph(text))
    assert count == 2
    kv_a = after.result("cache").inputs[1]
    assert (kv_a.op, kv_a.attrs) == ("slice", {"axis": -1, "start": 3, "stop": 13})
    assert_same_meaning(graph(text), after)


def test_the_cache_is_written_in_its_own_dtype() -> None:
    text = ATTENTION.replace("%cache: f32[", "%cache: bf16[").replace("%written: f32[", "%written: bf16[")
    after, _ = changed(FuseMla("absorbed"), graph(text))
    assert after.result("cache").dtype == "bf16"
    assert_same_meaning(graph(text), after, rtol=1e-2, atol=1e-2)


# What is replaced, by what, and how much of the pass still applies.
NEAR_MISSES = {
    "finite-mask": ('%never: f32[] = const() {"data": -Infinity}', '%never: f32[] = const() {"data": -1.0}', 1),
    "swapped-parts": ('%k_nope: f32[4*P*S, 2, 5] = slice(%kv_heads) {"axis": -1, "start": 0, "stop": 5}',
                      '%k_nope: f32[4*P*S, 2, 5] = slice(%kv_heads) {"axis": -1, "start": 3, "stop": 8}', 1),
    "scores-subtracted": ("add(%score_nope, %score_pe)", "sub(%score_nope, %score_pe)", 1),
    "row-reversed": ("%row: f32[T, 10] = concat(%normed, %flat)", "%row: f32[T, 10] = concat(%flat, %normed)", 1),
    "key-from-elsewhere": ('%key: f32[T, 4] = slice(%kv_a) {"axis": -1, "start": 6, "stop": 10}',
                           '%key: f32[T, 4] = slice(%kv_a) {"axis": -1, "start": 5, "stop": 9}', 1),
    "key-of-another-input": ('%heads: f32[T, 1, 4] = reshape(%key) {"shape": ["T", 1, 4]}',
                             "%heads: f32[T, 1, 4] = input()", 1),
    "three-parts": ('%row: f32[T, 10] = concat(%normed, %flat)',
                    '%half: f32[T, 2] = slice(%flat) {"axis": -1, "start": 0, "stop": 2}\n'
                    '%row: f32[T, 10] = concat(%normed, %half, %half)', 1),
}  # fmt: skip


@pytest.mark.parametrize("name", NEAR_MISSES)
@pytest.mark.parametrize("form", ["absorbed", "materialized"])
def test_near_misses_keep_their_meaning(name: str, form: str) -> None:
    old, new, applied = NEAR_MISSES[name]
    assert old in ATTENTION
    before = graph(ATTENTION.replace(old, new, 1))
    after, count = changed(FuseMla(form), before)
    assert count == applied
    assert_same_meaning(before, after)


def test_a_head_size_cut_in_two_by_rope_is_refused() -> None:
    """Two heads of half the size are not the one key head that mla_write rotates."""
    text = ATTENTION.replace('%heads: f32[T, 1, 4] = reshape(%key) {"shape": ["T", 1, 4]}',
                             '%heads: f32[T, 2, 2] = reshape(%key) {"shape": ["T", 2, 2]}\n'
                             '%short: f32[1] = const() {"data": [1.0]}\n'
                             '%narrow: f32[T, 2] = rope_table(%positions, %short) {"scale": 1.0}')  # fmt: skip
    text = text.replace("%turned: f32[T, 1, 4] = rope(%heads, %table)", "%turned: f32[T, 2, 2] = rope(%heads, %narrow)")
    after, count = changed(FuseMla("absorbed"), graph(text))
    assert count == 1
    assert after.count("mla_write") == 0
    assert_same_meaning(graph(text), after)


def test_a_refusal_says_why(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSV3C_DEBUG", "2")
    old, new, _ = NEAR_MISSES["key-from-elsewhere"]
    FuseMla("absorbed").run(graph(ATTENTION.replace(old, new)))
    err = capsys.readouterr().err
    assert "fuse-mla: Write: no match; nearest: <slice : f32[T, 6]> and <slice : f32[T, 4]> are not neighbours" in err
    assert "fuse-mla: Attention: 1 rewrites" in err


def test_attention_over_one_token_of_context_returns_its_value() -> None:
    """With one visible row the softmax is 1: the result is that row's value, in both forms."""
    from tests.passes.evaluation import leaves, results

    before = graph(ATTENTION)
    given = leaves(before) | {"positions": np.zeros(2, np.int32), "sequence": np.array([0, 1], np.int32)}
    given["x"] = given["x"][:2]
    for form in ("absorbed", "materialized"):
        found = results(changed(FuseMla(form), before)[0], given)
        rows = found["cache"][[20, 0]][:, :6]
        values = np.einsum("tl,hdl->thd", rows, given["w_kv_b"].reshape(2, 8, 6)[:, 5:])
        np.testing.assert_allclose(found["attended"], values, rtol=1e-4, atol=1e-5)
