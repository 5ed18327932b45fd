"""Parameters: values that make no sense alone or beside another, names, defaults that give way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv3c.runtime import errors
from dsv3c.runtime.engine.params import MAX_NEW_TOKENS, SamplingParams

NAN = float("nan")
INF = float("inf")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("temperature", v) for v in (-0.1, NAN, INF, "1", None, True, 10**400)],
        *[("top_k", v) for v in (-1, 1.5, NAN, "3", True)],
        *[("top_p", v) for v in (0, -1, 1.01, NAN, None)],
        *[("min_p", v) for v in (-0.1, 1.1, NAN)],
        *[("repetition_penalty", v) for v in (0, -1, NAN, INF)],
        *[("typical_p", v) for v in (0, -1, 1.01, NAN, None)],
        *[(name, v) for name in ("frequency_penalty", "presence_penalty") for v in (NAN, INF, -INF, "1", None, True)],
        *[("no_repeat_ngram_size", v) for v in (-1, 2.0, None, True)],
        *[("bad_words_ids", v) for v in (3, [3], [[]], [[1], [-1]], [[1.5]], "ab", None, [[True]])],
        *[("suppress_tokens", v) for v in (3, [-1], [1.0], ["a"], None, {1})],
        *[("logit_bias", v) for v in (3, {-1: 1.0}, {1: NAN}, {1: INF}, {"a": 1}, [(1,)], {1: None}, {1: 1, "1": 2})],
        *[(name, v) for name in ("max_new_tokens", "max_length") for v in (0, -1, 1.5, NAN, "9", True)],
        *[(name, v) for name in ("min_new_tokens", "min_length") for v in (-1, 1.5, NAN, None, "9", True)],
        *[(name, v) for name in ("num_beams", "num_beam_groups", "num_return_sequences") for v in (0, -1, 1.0, None)],
        *[("diversity_penalty", v) for v in (-0.1, NAN, INF, None)],
        *[("length_penalty", v) for v in (NAN, INF, None, "1")],
        *[("early_stopping", v) for v in (1, None, "always", 0.0)],
        *[("eos_token_id", v) for v in (-1, 1.0, [], ["</s>"], [1, None], True)],
        *[("logprobs", v) for v in (-1, 1.5, True)],
        *[("max_time", v) for v in (0, -1, NAN, INF, "1", True)],
        *[("do_sample", v) for v in (1, 0, None, "yes")],
        *[("seed", v) for v in (-1, 0.5, "x")],
        *[("stop", v) for v in ("", ("a", ""), (1,), 3, {"a"})],
        *[("ignore_eos", v) for v in (1, None)],
        *[
            ("json_schema", v)
            for v in ("{", "[1]", "true", 3, [1], {"a": NAN}, {"a": {1}}, '{"a": 1, "a": 2}', "[" * 9999)
        ],
        *[(name, v) for name in ("grammar", "regex") for v in (3, b"a", ["a"], "\ud800")],
    ],
    ids=lambda value: str(value)[:20],
)
def test_parameter_invalid(name: str, value: Any) -> None:
    with pytest.raises(errors.ParameterInvalid, match=name):
        SamplingParams().updated({name: value})


def test_unknown_parameter_lists_the_known() -> None:
    with pytest.raises(errors.UnknownParameter, match=r"'temprature'; known: temperature, top_k"):
        SamplingParams().updated({"temprature": 1})


def test_one_stop_string_stands_for_a_list() -> None:
    assert SamplingParams(stop="end").stop == ("end",)  # type: ignore[arg-type]
    assert SamplingParams(max_new_tokens=10**30).max_new_tokens == 10**30


def test_defaults_of_a_checkpoint() -> None:
    config = {"do_sample": True, "temperature": 0.8, "top_p": 0.95, "top_k": None, "eos_token_id": 1, "other": []}
    assert SamplingParams.from_generation_config(config) == SamplingParams(temperature=0.8, top_p=0.95)
    assert SamplingParams.from_generation_config({"do_sample": True}).temperature == 1
    assert SamplingParams.from_generation_config({"temperature": 0.8}).temperature == 0
    odd = {"do_sample": True, "temperature": "hot", "top_k": -1, "top_p": 0, "min_p": 7}
    assert SamplingParams.from_generation_config(odd) == SamplingParams(temperature=1.0)


def test_a_default_that_clashes_with_another_gives_way() -> None:
    def of(**config: Any) -> SamplingParams:
        return SamplingParams.from_generation_config(config)

    assert of(do_sample=True, num_beams=4) == SamplingParams(temperature=1.0)
    assert of(num_beams=4, num_return_sequences=5) == SamplingParams(num_beams=4)
    assert of(max_new_tokens=5, min_new_tokens=9) == SamplingParams(max_new_tokens=5)
    assert of(max_length=20, eos_token_id=3, stop_strings="a") == SamplingParams(stop=("a",))


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({"random_seed": 3}, "seed", 3),
        ({"seed": np.int64(3)}, "seed", 3),
        ({"stop_strings": ["a", "b"]}, "stop", ("a", "b")),
        ({"eos_token_id": 7}, "eos_token_id", (7,)),
        ({"eos_token_id": [7, 8]}, "eos_token_id", (7, 8)),
        ({"suppress_tokens": np.array([1, 2])}, "suppress_tokens", (1, 2)),
        ({"bad_words_ids": [[1, 2], (3,)]}, "bad_words_ids", ((1, 2), (3,))),
        ({"logit_bias": {"5": -100, 3: 2.5}}, "logit_bias", ((3, 2.5), (5, -100.0))),
        ({"logit_bias": [[4, -INF]]}, "logit_bias", ((4, -INF),)),
        ({"early_stopping": "never"}, "early_stopping", "never"),
        ({"logprobs": 0}, "logprobs", 0),
        ({"temperature": np.float32(0.5)}, "temperature", 0.5),
    ],
    ids=str,
)
def test_a_value_has_one_form(changes: dict[str, Any], field: str, value: Any) -> None:
    found = SamplingParams().updated(changes)
    assert getattr(found, field) == value and type(getattr(found, field)) is type(value)
    assert found.updated({}) == found and hash(found) == hash(found.updated({}))


@pytest.mark.parametrize("names", [("seed", "random_seed"), ("stop", "stop_strings"), ("stop_strings", "stop")])
def test_two_names_of_one_parameter_are_not_given_together(names: tuple[str, str]) -> None:
    value: Any = 3 if "seed" in names else "a"
    with pytest.raises(errors.ParameterInvalid, match=f"{names[1]} is .*another name of {names[0]};"):
        SamplingParams().updated(dict.fromkeys(names, value))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"min_new_tokens": 9, "max_new_tokens": 8}, "min_new_tokens is 9: it is above max_new_tokens, which is 8"),
        ({"min_length": 9, "max_length": 8}, "min_length is 9: it is above max_length, which is 8"),
        ({"min_new_tokens": 8, "max_length": 8}, "min_new_tokens is 8: max_length, which is 8 with the prompt"),
        ({"num_beams": 4, "temperature": 0.5}, "num_beams is 4: .*give do_sample=False .*or num_beams=1"),
        ({"num_beams": 4, "do_sample": True}, "num_beams is 4: .*temperature is 1.0; give do_sample=False"),
        ({"num_beams": 4, "num_beam_groups": 3, "diversity_penalty": 1}, "num_beam_groups is 3: .*num_beams is 4"),
        ({"num_beam_groups": 2, "diversity_penalty": 1}, "num_beam_groups is 2: .*num_beams is 1; make num_beams"),
        ({"num_beams": 4, "diversity_penalty": 0.5}, "diversity_penalty is 0.5: .*give num_beam_groups above 1"),
        ({"num_beams": 4, "num_beam_groups": 2}, "num_beam_groups is 2: .*give diversity_penalty above 0"),
        ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences is 3: .*num_beams is 2; raise num_beams"),
        ({"num_return_sequences": 2}, "num_return_sequences is 2: all results would be the same"),
        ({"temperature": 0, "do_sample": True}, "temperature is 0: .*do_sample is True"),
    ],
    ids=str,
)
def test_values_that_do_not_go_together_are_one_error(values: dict[str, Any], says: str) -> None:
    with pytest.raises(errors.ParameterInvalid, match=says):
        SamplingParams().updated(values)
    if "do_sample" not in values:
        with pytest.raises(errors.ParameterInvalid, match=says):
            SamplingParams(**values)


def test_values_that_go_together() -> None:
    SamplingParams(num_beams=4, num_beam_groups=2, diversity_penalty=0.5, num_return_sequences=4, length_penalty=-1)
    SamplingParams(temperature=1, num_return_sequences=9)
    SamplingParams(min_new_tokens=8, max_new_tokens=8, min_length=9, max_length=9)
    SamplingParams(length_penalty=2, early_stopping=True)  # of no effect without beams


@pytest.mark.parametrize(
    ("defaults", "changes", "expected"),
    [
        ({"temperature": 0.8}, {"num_beams": 4}, {"num_beams": 4}),
        ({"num_beams": 4}, {"temperature": 0.8}, {"temperature": 0.8}),
        ({"min_new_tokens": 50}, {"max_new_tokens": 10}, {"max_new_tokens": 10}),
        ({"max_new_tokens": 10}, {"min_new_tokens": 50}, {"min_new_tokens": 50}),
        ({"num_beams": 4, "num_return_sequences": 4}, {"num_beams": 2}, {"num_beams": 2}),
        ({"num_beams": 6, "num_beam_groups": 3, "diversity_penalty": 1}, {"num_beams": 4}, {"num_beams": 4}),
    ],
    ids=str,
)
def test_a_default_gives_way_to_what_is_asked_for(defaults: Any, changes: Any, expected: Any) -> None:
    assert SamplingParams(**defaults).updated(changes) == SamplingParams(**expected)


def test_do_sample_is_a_temperature() -> None:
    plain = SamplingParams()
    cold = SamplingParams.from_generation_config({"temperature": 0.7})
    warm = SamplingParams.from_generation_config({"temperature": 0.7, "do_sample": True})
    assert [each.temperature for each in (plain, cold, warm)] == [0, 0, 0.7]
    assert [each.updated({"do_sample": True}).temperature for each in (plain, cold, warm)] == [1, 0.7, 0.7]
    assert all(each.updated({"do_sample": False}).greedy for each in (plain, cold, warm))
    assert warm.updated({"do_sample": False, "temperature": 2}).greedy
    assert cold.updated({"do_sample": True, "temperature": 2}).temperature == 2
    assert warm.updated({"do_sample": False}).updated({"do_sample": True}).temperature == 0.7
    assert SamplingParams.from_generation_config({"temperature": 0, "do_sample": True}).greedy


@pytest.mark.parametrize(
    ("values", "limit"),
    [
        ({}, MAX_NEW_TOKENS),
        ({"max_new_tokens": 7}, 7),
        ({"max_length": 30}, 20),
        ({"max_length": 300}, 290),
        ({"max_length": 30, "max_new_tokens": 40}, 40),
        ({"max_length": 5, "max_new_tokens": 4}, 4),
        ({"min_new_tokens": 1000}, 1000),
        ({"min_length": 1000}, 990),
    ],
    ids=str,
)
def test_the_most_tokens_after_a_prompt_of_ten(values: dict[str, Any], limit: int) -> None:
    assert SamplingParams(**values).limit(10) == limit


def test_a_length_that_the_prompt_has_already_is_refused() -> None:
    with pytest.raises(errors.ParameterInvalid, match="max_length is 10: the prompt alone has 10 tokens"):
        SamplingParams(max_length=10).limit(10)


def test_what_ends_an_answer() -> None:
    model = frozenset([1, 2])
    assert SamplingParams().end_tokens(model) == model
    assert SamplingParams(eos_token_id=(7,)).end_tokens(model) == {7}
    assert SamplingParams(eos_token_id=(7,), ignore_eos=True).end_tokens(model) == frozenset()


@pytest.mark.parametrize(
    "values",
    [
        {"bad_words_ids": [[1, 2], [100, 1]]},
        {"suppress_tokens": [99, 100]},
        {"logit_bias": {100: 1.0}},
        {"eos_token_id": 100},
    ],
    ids=str,
)
def test_ids_that_the_vocabulary_has_not_are_refused(values: dict[str, Any]) -> None:
    params = SamplingParams().updated(values)
    assert params.checked(101) is params
    (name,) = values
    with pytest.raises(errors.ParameterInvalid, match=f"{name} is .*no token 100, its ids go from 0 to 99"):
        params.checked(100)


DEFAULTS = {
    "temperature": st.sampled_from([0.0, 0.7]),
    "max_new_tokens": st.none() | st.integers(1, 9),
    "min_new_tokens": st.integers(0, 9),
    "max_length": st.none() | st.integers(1, 9),
    "min_length": st.integers(0, 9),
    "num_beams": st.integers(1, 6),
    "num_beam_groups": st.integers(1, 3),
    "diversity_penalty": st.sampled_from([0.0, 1.0]),
    "num_return_sequences": st.integers(1, 6),
}


@given(st.fixed_dictionaries({}, optional=DEFAULTS), st.fixed_dictionaries({}, optional=DEFAULTS))
def test_what_is_refused_is_refused_whatever_the_defaults(config: dict[str, Any], changes: dict[str, Any]) -> None:
    """And what is asked for is what is got."""
    defaults = SamplingParams.from_generation_config({**config, "do_sample": bool(config.get("temperature"))})
    try:
        alone = SamplingParams().updated(changes)
    except errors.ParameterInvalid:
        return
    found = defaults.updated(changes)
    assert {name: getattr(found, name) for name in changes} == {name: getattr(alone, name) for name in changes}


GUIDES: dict[str, Any] = {"json_schema": {"type": "null"}, "grammar": 'start: "a"', "regex": "a"}


@pytest.mark.parametrize("name", GUIDES)
def test_an_answer_follows_one_thing_which_says_where_it_ends(name: str) -> None:
    assert SamplingParams().guide is None
    for other in GUIDES:
        if other != name:
            with pytest.raises(errors.ParameterInvalid, match="follows one of json_schema, grammar, regex"):
                SamplingParams().updated({name: GUIDES[name], other: GUIDES[other]})
    with pytest.raises(errors.ParameterInvalid, match=f"{name} says where the answer ends"):
        SamplingParams().updated({name: GUIDES[name], "ignore_eos": True})


def test_a_schema_keeps_the_order_of_its_properties() -> None:
    schema = {"properties": {"b": {}, "a": {}}}
    assert SamplingParams().updated({"json_schema": schema}).guide == (
        "json_schema",
        '{"properties": {"b": {}, "a": {}}}',
    )
    assert SamplingParams().updated({"json_schema": ' {"b":1}'}).guide == ("json_schema", ' {"b":1}')


def test_a_long_value_is_shown_by_its_beginning() -> None:
    with pytest.raises(errors.ParameterInvalid) as caught:
        SamplingParams().updated({"json_schema": '{"a":' * 5000})
    assert len(str(caught.value)) < 400
