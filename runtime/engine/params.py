"""How to generate: parameters under the names of Hugging Face transformers and of ONNX Runtime GenAI.

Each has one check of its own; what goes against another is a `_Clash`. Of two that clash the one that was asked for
stays and the model's default gives way, so that a default never keeps a model from generating.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from dsv3c.runtime.artifact import strict_json
from dsv3c.runtime.artifact.jsonfile import MAX_JSON_VALUES
from dsv3c.runtime.engine.generation_config import PARAMETERS, usable
from dsv3c.runtime.errors import ParameterInvalid, UnknownParameter

_SHOWN = 60  # characters of a value in an error
MAX_NEW_TOKENS = 256  # where nothing says how long the answer may be

GUIDES = ("json_schema", "grammar", "regex")

EarlyStopping = bool | Literal["never"]


@dataclass(frozen=True)
class SamplingParams:
    """How to generate. Raises ParameterInvalid for a value that makes no sense, alone or beside another.

    temperature 0 takes the likeliest token, and so do beams, which follow the `num_beams` likeliest texts. Off are
    top_k 0, top_p, typical_p and repetition_penalty 1, and min_p, the other penalties and no_repeat_ngram_size 0.
    Lengths: `new` ones count the answer, the others the prompt too; max_new_tokens goes before max_length, and both
    are cut to what the context holds. eos_token_id replaces the model's end tokens, ignore_eos goes on after them.
    seed None draws a fresh one. stop: strings that end the text (they are not part of it). logit_bias: pairs of an id
    and what its logit gains. logprobs: how many likeliest ids are told beside each token, None for not even its own
    probability. max_time: seconds after which an answer ends. The answer follows one of json_schema (a mapping, or its
    text), grammar (Lark, in llguidance's dialect) and regex, if given.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    seed: int | None = None
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    no_repeat_ngram_size: int = 0
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    suppress_tokens: tuple[int, ...] = ()
    logit_bias: tuple[tuple[int, float], ...] = ()
    max_new_tokens: int | None = None
    max_length: int | None = None
    min_new_tokens: int = 0
    min_length: int = 0
    num_beams: int = 1
    num_beam_groups: int = 1
    diversity_penalty: float = 0.0
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = False
    num_return_sequences: int = 1
    stop: tuple[str, ...] = ()
    eos_token_id: tuple[int, ...] | None = None
    ignore_eos: bool = False
    logprobs: int | None = None
    max_time: float | None = None
    json_schema: str | None = None
    grammar: str | None = None
    regex: str | None = None
    sampled_temperature: float = field(default=1.0, repr=False, compare=False)  # what do_sample=True alone stands for

    def __post_init__(self) -> None:
        for name in _CHECKS:
            object.__setattr__(self, name, _checked(name, getattr(self, name)))
        values = vars(self)
        for clash in _CLASHES:
            if clash.found(values):
                name = clash.names[0]
                raise ParameterInvalid(name=name, value=_brief(values[name]), reason=clash.reason.format_map(values))

    @property
    def greedy(self) -> bool:
        """Whether no token is drawn: the likeliest is taken, or beams are followed."""
        return self.temperature == 0

    @property
    def forbids(self) -> bool:
        """Whether an id may be forbidden somewhere, whatever its logit."""
        banned = self.suppress_tokens or self.bad_words_ids or any(bias == -math.inf for _, bias in self.logit_bias)
        return bool(banned or self.no_repeat_ngram_size or self.min_new_tokens or self.min_length)

    @property
    def guide(self) -> tuple[str, str] | None:
        """What the answer has to follow: the name of the parameter, and its text."""
        texts = ((name, vars(self)[name]) for name in GUIDES)
        return next((guide for guide in texts if guide[1] is not None), None)

    def limit(self, prompt_length: int) -> int:
        """The most tokens of an answer to a prompt of that length. Raises ParameterInvalid where there is none."""
        if self.max_new_tokens is not None:
            return self.max_new_tokens
        if self.max_length is None:
            return max(MAX_NEW_TOKENS, self.min_new_tokens, self.min_length - prompt_length)
        if self.max_length <= prompt_length:
            reason = f"the prompt alone has {prompt_length} tokens; raise it, or give max_new_tokens instead"
            raise ParameterInvalid(name="max_length", value=self.max_length, reason=reason)
        return self.max_length - prompt_length

    def end_tokens(self, model: frozenset[int]) -> frozenset[int]:
        """Ids that end an answer of a model with such ones of its own."""
        if self.ignore_eos:
            return frozenset()
        return model if self.eos_token_id is None else frozenset(self.eos_token_id)

    def checked(self, vocab_size: int) -> SamplingParams:
        """These parameters, all of whose ids a vocabulary of that size has. Raises ParameterInvalid."""
        used = {
            "bad_words_ids": [token for word in self.bad_words_ids for token in word],
            "suppress_tokens": self.suppress_tokens,
            "logit_bias": [token for token, _ in self.logit_bias],
            "eos_token_id": self.eos_token_id or (),
        }
        for name, tokens in used.items():
            beyond = max(tokens, default=0)
            if beyond >= vocab_size:
                reason = f"the model has no token {beyond}, its ids go from 0 to {vocab_size - 1}"
                raise ParameterInvalid(name=name, value=getattr(self, name), reason=reason)
        return self

    def updated(self, changes: Mapping[str, Any]) -> SamplingParams:
        """These parameters with some replaced, under any of their names. Raises UnknownParameter, ParameterInvalid.

        do_sample=False is temperature 0; do_sample=True is a temperature that is not, the model's if none is given.
        What is replaced stays, and what it clashes with gives way.
        """
        given = _by_field(changes)
        if "do_sample" in given:
            given["temperature"] = self._temperature(given.pop("do_sample"), given.get("temperature"))
        given = {name: _checked(name, value) for name, value in given.items()}
        return SamplingParams(**_settled({**vars(self), **given}, frozenset(given)))

    @staticmethod
    def from_generation_config(config: Mapping[str, Any]) -> SamplingParams:
        """Defaults of a checkpoint's generation_config.json: greedy unless it says `do_sample`.

        max_length is none of them: with a long prompt it leaves no room for an answer.
        """
        said, _ = usable(config, 2**31)
        values = {_ALIASES.get(name, name): said[name] for name in PARAMETERS if name in said}
        drawing, temperature = values.pop("do_sample", False), values.get("temperature", 1.0)
        sampled, values["temperature"] = temperature or 1.0, temperature if drawing else 0.0
        return SamplingParams(**_settled({**vars(_NEUTRAL), **values, "sampled_temperature": sampled}, frozenset()))

    def _temperature(self, sampled: Any, given: Any) -> Any:
        _checked("do_sample", sampled)
        if not sampled:
            return 0.0
        if given is None:
            return self.temperature or self.sampled_temperature
        if given == 0:
            reason = "that draws nothing, and do_sample is True; raise it, or give do_sample=False"
            raise ParameterInvalid(name="temperature", value=given, reason=reason)
        return given


_ALIASES = {"random_seed": "seed", "stop_strings": "stop"}


def _by_field(changes: Mapping[str, Any]) -> dict[str, Any]:
    known = [*_CHECKS, *_FLAGS, *_ALIASES]
    given: dict[str, Any] = {}
    for name, value in changes.items():
        if name not in known:
            raise UnknownParameter(name=name, known=", ".join(known))
        if _ALIASES.get(name, name) in given:
            reason = f"it is another name of {_other(name)}; give one of them"
            raise ParameterInvalid(name=name, value=value, reason=reason)
        given[_ALIASES.get(name, name)] = value
    return given


def _other(name: str) -> str:
    others = {field: alias for alias, field in _ALIASES.items()}
    return _ALIASES.get(name) or others[name]


# ---- each alone

Check = Callable[[Any], Any]  # the value as it is kept; raises ValueError


def _number(low: float, high: float = math.inf) -> Check:
    def check(value: Any) -> float:
        value = value.item() if isinstance(value, np.number) else value
        real = isinstance(value, int | float) and not isinstance(value, bool)
        # An integer beyond the range of float compares fine but cannot be used.
        if not real or not low <= value <= high or not -1e300 <= value <= 1e300:
            raise ValueError
        return float(value)

    return check


def _integer(low: int) -> Check:
    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < low:
            raise ValueError
        return int(value)

    return check


def _optional(check: Check) -> Check:
    return lambda value: None if value is None else check(value)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


def _early_stopping(value: Any) -> EarlyStopping:
    return value if value == "never" else _flag(value)


def _listed(value: Any) -> tuple[Any, ...]:
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if not isinstance(value, list | tuple):
        raise ValueError
    return tuple(value)


_id = _integer(0)


def _ids(value: Any) -> tuple[int, ...]:
    return tuple(_id(token) for token in _listed(value))


def _some_ids(value: Any) -> tuple[int, ...]:
    found = _ids([value] if isinstance(value, int | np.integer) else value)
    if not found:
        raise ValueError
    return found


def _words(value: Any) -> tuple[tuple[int, ...], ...]:
    words = tuple(_ids(word) for word in _listed(value))
    if not all(words):
        raise ValueError
    return words


def _biases(value: Any) -> tuple[tuple[int, float], ...]:
    pairs = [_listed(pair) for pair in (value.items() if isinstance(value, Mapping) else _listed(value))]
    if not all(len(pair) == 2 for pair in pairs):
        raise ValueError
    found = {_id(_from_json(token)): _bias(bias) for token, bias in pairs}
    if len(found) != len(pairs):
        raise ValueError
    return tuple(sorted(found.items()))


def _from_json(token: Any) -> Any:
    """Keys of JSON objects are texts."""
    return int(token) if isinstance(token, str) and token.isascii() and token.isdigit() and len(token) < 10 else token


def _bias(value: Any) -> float:
    return -math.inf if value == -math.inf else _number(-math.inf)(value)


def _texts(value: Any) -> tuple[str, ...]:
    texts = _listed([value] if isinstance(value, str) else value)
    if not all(isinstance(text, str) and text for text in texts):
        raise ValueError
    return texts


def _schema(value: Any) -> str:
    """Its text; the order of properties is that of the answer."""
    text = json.dumps(dict(value)) if isinstance(value, Mapping) else _text(value)
    try:
        found = strict_json.parse(text.encode(), MAX_JSON_VALUES)
    except ValueError as error:
        raise ParameterInvalid(name="json_schema", value=_brief(text), reason=f"it is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError
    return text


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError
    value.encode()  # no lone surrogates
    return value


_SMALLEST = math.ulp(0.0)
_FLAG = (_flag, "it must be True or False")
_COUNT = (_integer(0), "it must be an integer that is not negative (0 is off)")
_PENALTY = (_number(-math.inf), "it must be a finite number (0 is off)")
_LENGTH = "it must be an integer of at least 1"

_CHECKS: Mapping[str, tuple[Check, str]] = {
    "temperature": (_number(0), "it must be a finite number that is not negative"),
    "top_k": _COUNT,
    "top_p": (_number(_SMALLEST, 1), "it must be above 0 and at most 1 (1 is off)"),
    "min_p": (_number(0, 1), "it must be from 0 to 1 (0 is off)"),
    "typical_p": (_number(_SMALLEST, 1), "it must be above 0 and at most 1 (1 is off)"),
    "seed": (_optional(_integer(0)), "it must be an integer that is not negative"),
    "repetition_penalty": (_number(_SMALLEST), "it must be a finite number above 0 (1 is off)"),
    "frequency_penalty": _PENALTY,
    "presence_penalty": _PENALTY,
    "no_repeat_ngram_size": _COUNT,
    "bad_words_ids": (_words, "it must be a list of words, each a list of one or more token ids"),
    "suppress_tokens": (_ids, "it must be a list of token ids"),
    "logit_bias": (_biases, "it must be a mapping of token ids to numbers, which are finite or -inf"),
    "max_new_tokens": (_optional(_integer(1)), _LENGTH),
    "max_length": (_optional(_integer(1)), _LENGTH),
    "min_new_tokens": _COUNT,
    "min_length": _COUNT,
    "num_beams": (_integer(1), "it must be an integer of at least 1 (1 is off)"),
    "num_beam_groups": (_integer(1), "it must be an integer of at least 1 (1 is off)"),
    "diversity_penalty": (_number(0), "it must be a finite number that is not negative (0 is off)"),
    "length_penalty": (_number(-math.inf), "it must be a finite number (0 compares sums, 1 means)"),
    "early_stopping": (_early_stopping, 'it must be True, False or "never"'),
    "num_return_sequences": (_integer(1), _LENGTH),
    "stop": (_texts, "it must be non-empty strings"),
    "eos_token_id": (_optional(_some_ids), "it must be a token id or a list of them; for none give ignore_eos=True"),
    "ignore_eos": _FLAG,
    "logprobs": (_optional(_integer(0)), "it must be an integer that is not negative"),
    "max_time": (_optional(_number(_SMALLEST)), "it must be a finite number of seconds above 0"),
    "json_schema": (_optional(_schema), "it must be a JSON schema: an object, or the text of one"),
    "grammar": (_optional(_text), "it must be the text of a grammar"),
    "regex": (_optional(_text), "it must be the text of a regular expression"),
}
_FLAGS = ("do_sample",)  # parameters that are no field: they say how to read another


def _checked(name: str, value: Any) -> Any:
    check, reason = _CHECKS.get(name, _FLAG)
    try:
        return check(value)
    except (ValueError, TypeError, OverflowError, RecursionError):
        raise ParameterInvalid(name=name, value=_brief(value), reason=reason) from None


def _brief(value: Any) -> Any:
    """As an error shows it: a long text by its beginning."""
    return f"{value[:_SHOWN]}…" if isinstance(value, str) and len(value) > _SHOWN else value


# ---- one beside another


@dataclass(frozen=True)
class _Clash:
    """Values of `names` that do not go together. The first is the one the error is about, and it gives way first."""

    names: tuple[str, ...]
    found: Callable[[Mapping[str, Any]], bool]
    reason: str


def _given(*names: str) -> Callable[[Mapping[str, Any]], bool]:
    """Whether all of them are, of those that are None or False by default."""
    return lambda values: all(values[name] not in (None, False) for name in names)


_CLASHES = (
    _Clash(
        ("min_new_tokens", "max_new_tokens"),
        lambda v: v["max_new_tokens"] is not None and v["min_new_tokens"] > v["max_new_tokens"],
        "it is above max_new_tokens, which is {max_new_tokens}; lower the one or raise the other",
    ),
    _Clash(
        ("min_length", "max_length"),
        lambda v: v["max_length"] is not None and v["min_length"] > v["max_length"],
        "it is above max_length, which is {max_length}; lower the one or raise the other",
    ),
    _Clash(
        ("min_new_tokens", "max_length"),
        lambda v: None is v["max_new_tokens"] is not v["max_length"] and v["min_new_tokens"] >= v["max_length"],
        "max_length, which is {max_length} with the prompt, has no room for so many; lower the one or raise the other",
    ),
    _Clash(
        ("num_beams", "temperature"),
        lambda v: v["num_beams"] > 1 and v["temperature"] > 0,
        "beams follow the likeliest texts and draw nothing, while temperature is {temperature}; give do_sample=False "
        "(temperature 0), or num_beams=1 to draw",
    ),
    _Clash(
        ("num_beam_groups", "num_beams"),
        lambda v: v["num_beams"] % v["num_beam_groups"] != 0,
        "groups have equally many beams, and num_beams is {num_beams}; make num_beams a multiple of it",
    ),
    _Clash(
        ("diversity_penalty", "num_beam_groups"),
        lambda v: v["diversity_penalty"] > 0 and v["num_beam_groups"] == 1,
        "it keeps groups of beams apart, and there is one; give num_beam_groups above 1, or 0 for no penalty",
    ),
    _Clash(
        ("num_beam_groups", "diversity_penalty"),
        lambda v: v["num_beam_groups"] > 1 and v["diversity_penalty"] == 0,
        "without a penalty all groups find the same; give diversity_penalty above 0, or num_beam_groups=1",
    ),
    _Clash(
        ("num_return_sequences", "num_beams"),
        lambda v: 1 < v["num_beams"] < v["num_return_sequences"],
        "there are no more results than beams, and num_beams is {num_beams}; raise num_beams or lower it",
    ),
    _Clash(
        ("num_return_sequences", "num_beams", "temperature"),
        lambda v: v["num_return_sequences"] > 1 == v["num_beams"] and v["temperature"] == 0,
        "all results would be the same; draw them (temperature above 0), follow as many beams (num_beams), or give 1",
    ),
    *(
        _Clash(
            (name, other),
            _given(name, other),
            f"an answer follows one of {', '.join(GUIDES)}, and {other} is given; leave one of them out",
        )
        for name, other in itertools.combinations(GUIDES, 2)
    ),
    *(
        _Clash(
            ("ignore_eos", name),
            _given("ignore_eos", name),
            f"{name} says where the answer ends; leave one of them out",
        )
        for name in GUIDES
    ),
)


def _settled(values: dict[str, Any], given: frozenset[str]) -> dict[str, Any]:
    """`values`, of which those that are not given have what is off, as far as others clash with them."""
    for clash in _CLASHES:
        for name in clash.names:
            if name not in given and clash.found(values):
                values[name] = getattr(_NEUTRAL, name)
    return values


_NEUTRAL = SamplingParams()
