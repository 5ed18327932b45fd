"""Defaults of a checkpoint: every value that others write means something here, or is left out and told."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dsv3c.runtime.engine.generation_config import PARAMETERS, usable
from dsv3c.runtime.engine.params import SamplingParams

NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("name", "found", "meant"),
    [
        *(("top_k", value, 0) for value in (-1, 0, -1.0, 0.0)),
        *(("top_k", value, 20) for value in (20, 20.0)),
        ("top_k", 10**9, 10**9),
        *(("top_k", value, 2**31 - 1) for value in (2**31, 10**30, 1e30)),
        *(("top_p", value, 1.0) for value in (0, 0.0, -1, 1, 1.0)),
        ("top_p", 0.95, 0.95),
        *(("min_p", value, 0.0) for value in (0, -1, 0.0)),
        ("min_p", 0.05, 0.05),
        *(("repetition_penalty", value, 1.0) for value in (0, -1, 1, 1.0)),
        ("repetition_penalty", 1.1, 1.1),
        *(("typical_p", value, 1.0) for value in (0, -1, 1)),
        ("diversity_penalty", -1, 0.0),
        *((name, -2, -2.0) for name in ("length_penalty", "frequency_penalty", "presence_penalty")),
        *((name, value, 1) for name in ("num_beams", "num_beam_groups", "num_return_sequences") for value in (0, 1.0)),
        *((name, -1, 0) for name in ("min_length", "min_new_tokens", "no_repeat_ngram_size")),
        *(("early_stopping", value, meant) for value, meant in ((True, True), (0, False), ("never", "never"))),
        ("max_new_tokens", 64.0, 64),
        ("stop_strings", "end", ["end"]),
        ("stop_strings", ["a", "b"], ["a", "b"]),
        ("max_time", 3, 3.0),
        ("suppress_tokens", [3, 4.0], [3, 4]),
        ("bad_words_ids", [[3, 4.0], [5]], [[3, 4], [5]]),
        *(("temperature", value, float(value)) for value in (0, 0.6, 2)),
        *(("do_sample", value, True) for value in (True, 1, 1.0)),
        *(("do_sample", value, False) for value in (False, 0)),
        ("eos_token_id", 3, 3),
        ("eos_token_id", 3.0, 3),
        ("eos_token_id", [3, 4.0, 0], [3, 4, 0]),
        ("eos_token_id", [], None),
        *((name, None, None) for name in ("top_k", "top_p", "temperature", "do_sample", "eos_token_id")),
    ],
)
def test_values_have_one_form(name: str, found: Any, meant: Any) -> None:
    kept, notes = usable({name: found}, 100)
    assert (kept.get(name), notes) == (meant, ())
    assert type(kept.get(name)) is type(meant)


@pytest.mark.parametrize(
    ("name", "found", "left"),
    [
        *(("top_k", value, None) for value in ("20", True, 2.5, NAN, INFINITY, [1], 10**400)),
        *(("top_p", value, None) for value in ("0.9", 1.5, True, NAN, INFINITY, {})),
        *(("min_p", value, None) for value in ("", 2, NAN)),
        *(("repetition_penalty", value, None) for value in ("1", INFINITY, 10**400, True)),
        *(("temperature", value, None) for value in ("hot", -1, NAN, INFINITY, True, [0.6])),
        *(("do_sample", value, None) for value in ("false", "true", 2, [])),
        *(("eos_token_id", value, None) for value in (-1, 100, "</s>", True, 1.5, [100], [[1]])),
        ("eos_token_id", [1, 100, -1, 2], [1, 2]),
        ("suppress_tokens", [1, -1, 2], [1, 2]),
        ("bad_words_ids", [[1], [], [2, 100], 3], [[1]]),
        *(("max_new_tokens", value, None) for value in (0, -1, "64", 1.5)),
        *(("num_beams", value, None) for value in ("4", 1.5, [4])),
        *(("early_stopping", value, None) for value in ("always", 2)),
        *(("stop_strings", value, None) for value in ("", ["a", ""], 3)),
        *(("max_time", value, None) for value in (0, -1, "1")),
    ],
)
def test_what_is_of_no_use_is_left_out_and_told(name: str, found: Any, left: Any) -> None:
    kept, notes = usable({name: found, "other": 1}, 100)
    assert kept.pop("other") == 1
    assert kept == ({} if left is None else {name: left})
    assert len(notes) == 1 and name in notes[0] and len(notes[0]) < 300


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3),
)
names = st.sampled_from([*PARAMETERS, "eos_token_id", "max_length", "seed", "stop", "logit_bias"])


@given(st.dictionaries(names, json_values))
@example({"suppress_tokens": 0})
def test_no_default_keeps_a_model_from_generating(config: dict[str, Any]) -> None:
    kept, _ = usable(config, 100)
    assert usable(kept, 100) == (kept, ())
    assert SamplingParams.from_generation_config(config)  # an artifact made before has the file as it was
    params = SamplingParams.from_generation_config(kept)
    assert params.checked(100).limit(10**6) >= 1
