"""Structured output: which tokens a JSON schema, a grammar or a regular expression allows, by the package llguidance.

A grammar is compiled once a model and text (`Grammars`). Each text that follows it has a `Constraint`, a processor: it
is a function of the history, although the matcher behind it has a state, which is moved to where the history is.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dsv3c.runtime.engine.grammar_ends import endless_part
from dsv3c.runtime.engine.history import History
from dsv3c.runtime.engine.lanes import NO_TOKENS, common_length
from dsv3c.runtime.engine.processors.filters import Floats
from dsv3c.runtime.errors import GrammarFailed, GrammarInvalid, GuidanceMissing, TokenizerUnsuitable
from dsv3c.runtime.turns import Turns

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

    from dsv3c.runtime.text.tokenizer import Tokenizer

KEPT = 32  # compiled grammars
_LONGEST = 300  # characters of a reason
# How json.dumps writes, and most texts that models have read. One way of spacing makes most of it forced, and no text
# can be blank for ever; a schema's own "x-guidance" goes before it.
_JSON = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Constraint:
    """A processor for one text, or for the beams of one search: ids that the grammar forbids after the answer so far
    get -inf. An end token is allowed exactly where the grammar may end. Raises GrammarFailed, in all it does."""

    def __init__(self, matcher: LLMatcher, vocab_size: int, end_tokens: frozenset[int]) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._end_tokens = end_tokens
        self._ends = np.array(sorted(end_tokens), np.intp)
        self._taken = NO_TOKENS  # what the matcher has consumed
        self._allowed: NDArray[np.bool_] | None = None  # after that; bool[V], once it was asked for

    def __call__(self, logits: Floats, history: History) -> None:
        logits[~self._mask(history)] = -np.inf

    def forced(self, history: History) -> list[int]:
        """The tokens that must come next; none where there is a choice."""
        self._follow(history)
        tokens = self._matcher.compute_ff_tokens()
        self._require_sound()
        beyond = (at for at, token in enumerate(tokens) if token in self._end_tokens or token >= self._vocab_size)
        return tokens[: next(beyond, len(tokens))]

    def finished(self, history: History) -> bool:
        """Whether the text can only end."""
        return self._matcher.is_accepting() and int(self._mask(history).sum()) == self._ends.size

    def _mask(self, history: History) -> NDArray[np.bool_]:
        self._follow(history)
        if self._allowed is None:
            bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
            self._require_sound()
            allowed = np.unpackbits(bits, count=self._vocab_size, bitorder="little").view(np.bool_)
            allowed[self._ends] = self._matcher.is_accepting()
            self._allowed = allowed
        return self._allowed

    def _follow(self, history: History) -> None:
        """Forget what this text does not have (tokens of another beam, or taken back), take in what is new."""
        tokens = history.generated
        common = common_length(self._taken, tokens)
        if common == self._taken.size == tokens.size:
            return
        self._matcher.rollback(self._taken.size - common)
        self._matcher.consume_tokens(tokens[common:].tolist())
        self._require_sound()
        self._taken, self._allowed = tokens.copy(), None

    def _require_sound(self) -> None:
        if self._matcher.is_error():
            raise GrammarFailed(tokens=self._taken.size, reason=_reason(self._matcher.get_error()))


class Grammar:
    """One that is compiled; any number of texts may follow it."""

    def __init__(self, matcher: LLMatcher, vocab_size: int, end_tokens: frozenset[int]) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._end_tokens = end_tokens
        self._turns = Turns()

    def constraint(self) -> Constraint:
        with self._turns:
            return Constraint(self._matcher.deep_copy(), self._vocab_size, self._end_tokens)


class _Key(NamedTuple):
    name: str  # of the parameter
    text: str
    end_tokens: frozenset[int]


class Grammars:
    """What is compiled for one model, whose logits have a row for each of `vocab_size` ids: some more than the
    tokenizer has, or some less. Threads may share it. Raises GuidanceMissing."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._guidance = _guidance()
        self._json = tokenizer.to_json()
        self._ids = max(tokenizer.id_bound, vocab_size)
        self._vocab_size = vocab_size
        self._tokenizer: LLTokenizer | None = None
        self._found: OrderedDict[_Key, Grammar] = OrderedDict()
        self._turns = Turns()

    def find(self, name: str, text: str, end_tokens: frozenset[int]) -> Grammar:
        """That of a parameter, for texts that these tokens end. Raises GrammarInvalid, TokenizerUnsuitable."""
        key = _Key(name, text, end_tokens)
        with self._turns:
            found = self._found.pop(key, None) or self._compiled(key)
            self._found[key] = found  # last
            if len(self._found) > KEPT:
                self._found.popitem(last=False)
            return found

    def _compiled(self, key: _Key) -> Grammar:
        if not key.end_tokens:
            reason = "an end token says that the text has ended, and the model names none; give eos_token_id"
            raise GrammarInvalid(name=key.name, reason=reason)
        llguidance = self._guidance
        tokenizer = self._tokenizer_for(key.end_tokens)
        limits = llguidance.LLParserLimits(verbose_errors=False)
        matcher = llguidance.LLMatcher(tokenizer, self._source(key), log_level=0, limits=limits)
        _require_valid(matcher, key.name)
        endless = endless_part(key.name, key.text)
        if endless is not None:
            raise GrammarInvalid(name=key.name, reason=f"it has no end: {endless}")
        first = matcher.deep_copy()
        first.compute_bitmask()
        _require_valid(first, key.name)
        return Grammar(matcher, self._vocab_size, key.end_tokens)

    def _source(self, key: _Key) -> str:
        matcher: type[LLMatcher] = self._guidance.LLMatcher
        try:
            if key.name == "json_schema":
                return matcher.grammar_from_json_schema(key.text, defaults=_JSON)
            return matcher.grammar_from_regex(key.text) if key.name == "regex" else matcher.grammar_from_lark(key.text)
        except ValueError as error:
            raise GrammarInvalid(name=key.name, reason=_reason(str(error))) from error

    def _tokenizer_for(self, end_tokens: frozenset[int]) -> LLTokenizer:
        """Made once, unless requests have end tokens of their own."""
        ends = sorted(end_tokens)
        if self._tokenizer is None or sorted(self._tokenizer.eos_tokens) != ends:
            try:
                self._tokenizer = self._guidance.LLTokenizer(self._json, self._ids, ends)
            except ValueError as error:
                raise TokenizerUnsuitable(reason=_reason(str(error))) from error
        return self._tokenizer


def _guidance() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise GuidanceMissing(reason=error) from None
    return llguidance


def _require_valid(matcher: LLMatcher, name: str) -> None:
    if matcher.is_error():
        raise GrammarInvalid(name=name, reason=_reason(matcher.get_error()))


def _reason(error: str) -> str:
    """The package's report in a line: without the excerpts of the source, which are indented."""
    if error.startswith("NoExtension"):
        return "it allows no text here"
    lines = [line.strip() for line in error.splitlines() if not line.startswith(("   ", "<"))]
    text = " ".join(line for line in lines if line).replace("regex parse error: error:", "regex parse error:")
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
