"""Structured output: which tokens a JSON schema, a grammar or a regular expression allows, by the package llguidance.

A grammar is compiled once a model and text (`Grammars`). Each text that follows it has a `Constraint`, a processor: it
is a function of the history, although the matcher behind it has a state, which is moved to where the history is.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dsv3c.runtime.engine.grammar_ends import endless_part
from dsv3c.runtime.engine.grammar_tokenizer import is_hidden_for, without_added_texts
from dsv3c.runtime.engine.history import History
from dsv3c.runtime.engine.lanes import NO_TOKENS, common_length
from dsv3c.runtime.engine.processors.filters import Floats
from dsv3c.runtime.errors import GrammarFailed, GrammarInvalid, GuidanceMissing, TokenizerUnsuitable
from dsv3c.runtime.turns import Turns

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from llguidance._lib import JsonCompileOptions

    from dsv3c.runtime.text.tokenizer import Tokenizer

KEPT = 32  # compiled grammars
_SYMBOLS = 20_000  # of a grammar: compiling takes the square of them, a second for these, and holds up all threads
_LONGEST = 300  # characters of a reason
# How json.dumps writes, and most texts that models have read. One way of spacing makes most of it forced, and no text
# can be blank for ever; a schema's own "x-guidance" goes before it.
_JSON: JsonCompileOptions = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


Bits = NDArray[np.uint8]  # one of each id, the lowest first

# What eight logits gain by a byte of a mask.
_BANS = np.where(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little"), 0, -np.inf)
_BANS = _BANS.astype(np.float32)


class _Tokens(NamedTuple):
    """The ids that logits have a row for, and those of them that end a text; the mask has what llguidance adds."""

    vocab_size: int
    ends: frozenset[int]
    end_mask: Bits


class Constraint:
    """A processor for one text, or for the beams of one search: ids that the grammar forbids after the answer so far
    get -inf. An end token is allowed exactly where the grammar may end. Raises GrammarFailed, in all it does."""

    def __init__(self, matcher: LLMatcher, tokens: _Tokens) -> None:
        self._matcher = matcher
        self._tokens = tokens
        self._taken = NO_TOKENS  # what the matcher has consumed
        self._mask: Bits | None = None  # of what may come after that, once it was asked for

    def __call__(self, logits: Floats, history: History) -> None:
        # Eight ids at a time: choosing by a bool for each takes ten times as long.
        logits += _BANS.take(self._allowed(history), axis=0).reshape(-1)[: logits.size]

    def forced(self, history: History) -> list[int]:
        """The tokens that must come next; none where there is a choice."""
        self._follow(history)
        tokens = self._matcher.compute_ff_tokens()
        self._require_sound()
        ends, size = self._tokens.ends, self._tokens.vocab_size
        beyond = (at for at, token in enumerate(tokens) if token in ends or token >= size)
        return tokens[: next(beyond, len(tokens))]

    def finished(self, history: History) -> bool:
        """Whether the text can only end."""
        return np.array_equal(self._allowed(history), self._tokens.end_mask)

    def _allowed(self, history: History) -> Bits:
        self._follow(history)
        if self._mask is None:
            mask, ends = np.frombuffer(self._matcher.compute_bitmask(), np.uint8), self._tokens.end_mask
            self._require_sound()
            # An end token may be one of a text, too, as an end it comes where the grammar may end alone.
            self._mask = mask | ends if self._matcher.is_accepting() else mask & ~ends
        return self._mask

    def _follow(self, history: History) -> None:
        """Forget what this text does not have (tokens of another beam, or taken back), take in what is new."""
        tokens = history.generated
        common = common_length(self._taken, tokens)
        if common == self._taken.size == tokens.size:
            return
        self._matcher.rollback(self._taken.size - common)
        self._matcher.consume_tokens(tokens[common:].tolist())
        self._require_sound()
        self._taken, self._mask = tokens.copy(), None

    def _require_sound(self) -> None:
        if self._matcher.is_error():
            raise GrammarFailed(tokens=self._taken.size, reason=_reason(self._matcher.get_error()))


class Grammar:
    """One that is compiled; any number of texts may follow it."""

    def __init__(self, matcher: LLMatcher, tokens: _Tokens) -> None:
        self._matcher = matcher
        self._tokens = tokens
        self._turns = Turns()

    def constraint(self) -> Constraint:
        with self._turns:
            return Constraint(self._matcher.deep_copy(), self._tokens)


class _Key(NamedTuple):
    name: str  # of the parameter
    text: str
    end_tokens: frozenset[int]


class Grammars:
    """What is compiled for one model, whose logits have a row for each of `vocab_size` ids: some more than the
    tokenizer has, or some less. Threads may share it; no step waits for what takes long here."""

    def __init__(self, read_tokenizer: Callable[[], Tokenizer], vocab_size: int) -> None:
        self._read_tokenizer = read_tokenizer
        self._vocab_size = vocab_size
        self._guidance: Any = None
        self._tokenizers: dict[bool, LLTokenizer] = {}  # by whether added tokens are hidden
        self._found: OrderedDict[_Key, Grammar] = OrderedDict()
        self._turns = Turns()

    def find(self, name: str, text: str, end_tokens: frozenset[int]) -> Grammar:
        """That of a parameter, for texts that these tokens end.

        Raises GuidanceMissing, GrammarInvalid, TokenizerUnsuitable, and what reading the tokenizer raises.
        """
        key = _Key(name, text, end_tokens)
        with self._turns:
            self._guidance = self._guidance or _guidance()
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
        tokenizer = self._tokenizer_for(key.end_tokens, hidden=is_hidden_for(key.name, key.text))
        limits = llguidance.LLParserLimits(verbose_errors=False, max_grammar_size=_SYMBOLS)
        matcher = llguidance.LLMatcher(tokenizer, self._source(key), log_level=0, limits=limits)
        _require_valid(matcher, key.name)
        endless = endless_part(key.name, key.text)
        if endless is not None:
            raise GrammarInvalid(name=key.name, reason=f"it has no end: {endless}")
        first = matcher.deep_copy()
        mask = first.compute_bitmask()
        _require_valid(first, key.name)
        return Grammar(matcher, _Tokens(self._vocab_size, key.end_tokens, _mask_of(key.end_tokens, len(mask))))

    def _source(self, key: _Key) -> str:
        matcher: type[LLMatcher] = self._guidance.LLMatcher
        try:
            if key.name == "json_schema":
                return matcher.grammar_from_json_schema(key.text, defaults=_JSON)
            return matcher.grammar_from_regex(key.text) if key.name == "regex" else matcher.grammar_from_lark(key.text)
        except ValueError as error:
            raise GrammarInvalid(name=key.name, reason=_reason(str(error))) from error

    def _tokenizer_for(self, end_tokens: frozenset[int], *, hidden: bool) -> LLTokenizer:
        """Made once, unless requests have end tokens of their own."""
        ends, found = sorted(end_tokens), self._tokenizers.get(hidden)
        if found is None or sorted(found.eos_tokens) != ends:
            tokenizer = self._read_tokenizer()
            content = without_added_texts(tokenizer.to_json()) if hidden else tokenizer.to_json()
            ids = max(tokenizer.id_bound, self._vocab_size)
            try:
                found = self._tokenizers[hidden] = self._guidance.LLTokenizer(content, ids, ends)
            except ValueError as error:
                raise TokenizerUnsuitable(reason=_reason(str(error))) from error
        return found


def _guidance() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise GuidanceMissing(reason=error) from None
    return llguidance


def _mask_of(tokens: frozenset[int], size: int) -> Bits:
    bits = np.zeros(8 * size, np.uint8)
    bits[sorted(tokens)] = 1
    return np.packbits(bits, bitorder="little")


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
