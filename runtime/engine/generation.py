"""What a request asks for, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from dsv3c.runtime.engine.expert_stats import RequestExperts
from dsv3c.runtime.engine.grammar import Grammar
from dsv3c.runtime.engine.params import SamplingParams
from dsv3c.runtime.engine.session import Ints
from dsv3c.runtime.errors import ParameterInvalid, TokenizerMissing
from dsv3c.runtime.text.stream import Decode

FinishReason = Literal["stop", "length", "time", "cancelled"]
Overflow = Literal["stop", "slide"]


@dataclass(frozen=True)
class TokenLogprobs:
    """Natural logarithms of the model's own probabilities, before any processor: of the token that was taken, and of
    the likeliest, best first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Drafted:
    """Speculation over one answer: how many tokens were proposed, how many of them were right, in how many steps."""

    proposed: int = 0
    accepted: int = 0
    steps: int = 0

    @property
    def acceptance(self) -> float:
        return self.accepted / self.proposed if self.proposed else 0.0


@dataclass(frozen=True)
class Generation:
    """One whole answer. token_ids are without the end token.

    finish_reason is "stop" (end token or stop string), "length" (max_new_tokens, or the context is used up), "time"
    (max_time) or "cancelled". Times are of the steps that the request took part in, and leave out what the consumer
    took. cached_tokens: of the prompt, what the prefix cache spared. dropped_tokens: what slid out of the context.
    forced_tokens: of the answer, what a grammar left no choice about, so that it was not drawn.
    score: of a beam, the sum of its log-probabilities with the length penalty. experts: that its tokens visited, where
    they were asked for; of all beams together. others: further results of the request,
    in their order.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    prompt_seconds: float
    decode_seconds: float
    steps: int
    logprobs: tuple[TokenLogprobs, ...] = ()
    cached_tokens: int = 0
    dropped_tokens: int = 0
    forced_tokens: int = 0
    drafted: Drafted = field(default_factory=Drafted)
    score: float | None = None
    experts: RequestExperts | None = None
    others: tuple[Generation, ...] = ()

    @property
    def first_token_seconds(self) -> float:
        return self.prompt_seconds

    @property
    def prompt_tokens_per_second(self) -> float:
        read = self.prompt_tokens - self.cached_tokens
        return read / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def decode_tokens_per_second(self) -> float:
        """Tokens after the first, which comes out of the prompt's last step."""
        return self.steps / self.decode_seconds if self.decode_seconds else 0.0


@dataclass(frozen=True)
class Event:
    """One token of a stream: text that became certain with it (may be empty). The last one of a result has the
    generation.

    The last event may have no token: an end token, or text that was held back, comes without one. index: of the
    result, where a request has several.
    """

    text: str
    token_id: int | None = None
    generation: Generation | None = None
    index: int = 0
    logprobs: TokenLogprobs | None = None

    @property
    def finish_reason(self) -> FinishReason | None:
        return None if self.generation is None else self.generation.finish_reason


@dataclass(frozen=True)
class Task:
    """One prompt with all that is needed to answer it.

    context: tokens that the text may have. overflow: what happens to one that gets longer, "stop" ends it, "slide" goes
    on with its beginning and its end. priority: lower ones wait for higher ones. speculate:
    whether drafts may be made for it. grammar: what the answer follows. experts: as `choice_of` says, if they are to be
    counted. over: makes, for each answer but beams, what is told its text as it becomes certain, and says when that is
    all of it.
    """

    prompt: Ints
    params: SamplingParams
    end_tokens: frozenset[int]
    vocab_size: int
    context: int
    decode: Decode | None
    overflow: Overflow = "stop"
    priority: int = 0
    speculate: bool = True
    grammar: Grammar | None = None
    experts: tuple[int, int] | None = None
    over: Callable[[], Callable[[str], bool]] | None = None

    @property
    def limit(self) -> int:
        """New tokens at most."""
        limit = self.params.limit(self.prompt.size)
        return limit if self.overflow == "slide" else min(limit, self.context - self.prompt.size)


@dataclass(frozen=True)
class RequestOptions:
    """What a request says beside its parameters. Raises ParameterInvalid."""

    priority: int = 0
    overflow: Overflow = "stop"
    speculate: bool = True
    experts: bool = False

    def __post_init__(self) -> None:
        wrong = {
            "priority": type(self.priority) is not int and "it must be an integer",
            "overflow": self.overflow not in get_args(Overflow) and 'it must be "stop" or "slide"',
            "speculate": type(self.speculate) is not bool and "it must be True or False",
            "experts": type(self.experts) is not bool and "it must be True or False",
        }
        for name, reason in wrong.items():
            if reason:
                raise ParameterInvalid(name=name, value=getattr(self, name), reason=reason)


def settings(
    defaults: SamplingParams, how: Mapping[str, Any], has_tokenizer: bool
) -> tuple[SamplingParams, RequestOptions]:
    """What `how` says of a request to a model with these defaults. Raises UnknownParameter, ParameterInvalid, and
    TokenizerMissing for stop strings that a model without one cannot look for."""
    options = RequestOptions(**{name: how[name] for name in _OPTIONS if name in how})
    params = defaults.updated({name: value for name, value in how.items() if name not in _OPTIONS})
    if params.stop and not has_tokenizer:
        raise TokenizerMissing(what="a stop string")
    return params, options


_OPTIONS = tuple(each.name for each in fields(RequestOptions))
