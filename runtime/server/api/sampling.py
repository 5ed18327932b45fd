"""How to generate, as the APIs of OpenAI's kind say it: their names, besides the engine's own where they have none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dsv3c.runtime.server.fields import Body

MOST_RESULTS, MOST_TOP_LOGPROBS, MOST_STOPS = 128, 20, 32
_FLOATS = {
    "temperature": (0.0, 100.0),
    "top_p": (0.0, 1.0),
    "presence_penalty": (-100.0, 100.0),
    "frequency_penalty": (-100.0, 100.0),
    "min_p": (0.0, 1.0),
    "typical_p": (0.0, 1.0),
    "repetition_penalty": (0.0, 100.0),
    "repeat_penalty": (0.0, 100.0),
    "max_time": (0.0, 86400.0),
}
_INTEGERS = {
    "n": (1, MOST_RESULTS),
    "top_k": (-1, 1 << 31),
    "min_tokens": (0, 1 << 31),
    "no_repeat_ngram_size": (0, 1 << 16),
    "seed": (-(1 << 63), (1 << 64) - 1),
}
_FLAGS = ("ignore_eos", "experts")
_TEXTS = ("grammar", "regex")
_FIELDS = {  # what a field is in the engine, where it has another name
    "n": "num_return_sequences",
    "repeat_penalty": "repetition_penalty",
    "min_tokens": "min_new_tokens",
}
_LEAST_TOP_P = 1e-6  # less than the likeliest token has, of any vocabulary: it alone is left
_ANY_OBJECT: Mapping[str, Any] = {"type": "object"}


def how_of(body: Body) -> tuple[dict[str, Any], dict[str, str]]:
    """Fields of SamplingParams, and what the body calls them, for errors."""
    how: dict[str, Any] = {}
    fields: dict[str, str] = {}

    def take(name: str, value: Any, where: str | None = None) -> None:
        if value is not None:
            field = _FIELDS.get(name, name)
            how[field], fields[field] = value, where or body.where(name)

    for name, (low, high) in _FLOATS.items():
        take(name, body.number(name, low, high))
    for name, (least, most) in _INTEGERS.items():
        take(name, body.integer(name, least, most))
    for name in _FLAGS:
        take(name, body.flag(name))
    for name in _TEXTS:
        take(name, body.text(name))
    take("stop", body.texts("stop", MOST_STOPS))
    bias = body.inner("logit_bias")
    take("logit_bias", None if bias is None else bias.values)
    take("json_schema", *_schema(body))
    if how.get("seed") == -1:  # a fresh one, as others write it
        del how["seed"], fields["seed"]
    if "seed" in how:
        how["seed"] %= 1 << 63
    if how.get("top_p") == 0:
        how["top_p"] = _LEAST_TOP_P
    if how.get("top_k") == -1:  # off
        how["top_k"] = 0
    if how.get("num_return_sequences", 1) > 1 and "temperature" not in how:
        how["do_sample"] = True  # several results are asked for to be different
    return how, fields


def _schema(body: Body) -> tuple[Any, str | None]:
    """Of `response_format`, and where it stands."""
    wanted = body.inner("response_format")
    kind = None if wanted is None else wanted.choice("type", ("text", "json_object", "json_schema"))
    if wanted is None or kind == "text":
        return None, None
    if kind is None:
        raise wanted.missing("type", "text, json_object or json_schema")
    if kind == "json_object":
        given = wanted.inner("schema")  # llama-server's way
        return (_ANY_OBJECT, wanted.path) if given is None else (given.values, given.path)
    named = wanted.inner("json_schema")
    schema = None if named is None else named.inner("schema")
    if named is None:
        raise wanted.missing("json_schema", "an object with a schema")
    if schema is None:
        raise named.missing("schema", "a JSON schema")
    return schema.values, schema.path


def length_of(body: Body, *names: str) -> tuple[int | None, str]:
    """The most tokens of the answer, and the name it was given by: the first of those that are there."""
    for name in names:
        value = body.integer(name, 1, 1 << 31)
        if value is not None:
            return value, body.where(name)
    return None, names[0]
