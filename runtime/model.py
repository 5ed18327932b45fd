"""A loaded model: logits, generation, perplexity."""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Many
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from dsv3c.runtime.artifact.artifact import Artifact
from dsv3c.runtime.devices.device import CPU_FAMILIES, Device, Floats, Placement, family_of
from dsv3c.runtime.devices.split import place
from dsv3c.runtime.engine.cache import Sequence
from dsv3c.runtime.engine.conversations import Conversations
from dsv3c.runtime.engine.engine import Engine, Ticket
from dsv3c.runtime.engine.expert_stats import WINDOW, ExpertStats, choice_of, counting
from dsv3c.runtime.engine.generation import Event, Generation, Task, settings
from dsv3c.runtime.engine.generation_config import usable
from dsv3c.runtime.engine.grammar import Grammar, Grammars
from dsv3c.runtime.engine.params import SamplingParams
from dsv3c.runtime.engine.prefix_cache import PrefixCache
from dsv3c.runtime.engine.session import Chunk, Ints, Request, Session, Want, floats
from dsv3c.runtime.engine.speculation import choice
from dsv3c.runtime.errors import (
    ContextInvalid,
    ContextOverflow,
    DraftDiffers,
    EmptyPrompt,
    MalformedJson,
    ManifestInvalid,
    ModelClosed,
    ParameterInvalid,
    StepInvalid,
    TokenizerMissing,
    UnknownEntry,
)
from dsv3c.runtime.text.prompts import Prompt, Prompts

if TYPE_CHECKING:
    from dsv3c.runtime.text.tokenizer import Tokenizer


class Config(Mapping[str, Any]):
    """The model's config fields, read-only, as a mapping and as attributes, named as in HF's config.json."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._fields = MappingProxyType(dict(fields))

    def __getitem__(self, name: str) -> Any:
        return self._fields[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._fields:
            raise AttributeError(f"the model's config has no field {name!r}")
        return self._fields[name]

    def __repr__(self) -> str:
        return f"Config({dict(self._fields)!r})"


@dataclass(frozen=True)
class Perplexity:
    """Mean negative log-likelihood (natural log) over `tokens` predictions, and its exponential."""

    nll: float
    tokens: int

    @property
    def perplexity(self) -> float:
        return math.exp(self.nll) if self.nll < 700 else math.inf


@dataclass(frozen=True)
class Serving:
    """What requests a model is loaded for.

    context: tokens one sequence may hold, max_batch: full sequences the cache has room for. speculate: who drafts,
    "mtp" for the model's own layer, "ngram" for the text itself, or the path of a smaller artifact; None: nobody.
    prefix_cache: whether pages of former requests are kept for those that begin alike.
    """

    context: int | None = None
    max_batch: int | None = None
    speculate: str | os.PathLike[str] | None = None
    prefix_cache: bool = True


class Model:
    """One artifact on one device. Threads may share it: their steps take turns.

    `context` is the number of tokens one sequence may hold, `max_batch` how many full sequences the cache has room
    for. Made by `dsv3c.runtime.load`.
    """

    def __init__(
        self, artifact: Artifact, device: Device, context: int, serving: Serving = Serving(), draft: Model | None = None
    ) -> None:
        self.artifact = artifact
        self.config = Config(artifact.manifest.model)
        self.context = context
        self.session = Session(artifact.plan, device, artifact.manifest.vocab_size)
        self._lock = self.session.turns
        self._draft = draft
        self._prompts = Prompts(artifact, context)
        own = weakref.proxy(self)  # what a model holds goes with its last user, not with a collection some time later
        self._grammars = Grammars(lambda: own.tokenizer, artifact.manifest.vocab_size)
        self._generation_config, _ = usable(_generation_config(artifact), artifact.manifest.vocab_size)
        self.defaults = defaults_of(artifact)
        prefixes = PrefixCache(self.session.pool) if serving.prefix_cache else None
        self._conversations = Conversations(self.session, artifact, prefixes, context)
        draft_session = None if draft is None else draft.session
        self.engine = Engine(self.session, prefixes, choice.speculator(serving.speculate, self.session, draft_session))

    @staticmethod
    def load(artifact: Artifact, placement: Placement, serving: Serving) -> Model:
        """Map and allocate everything. Raises ContextInvalid, what `place` raises, DraftDiffers."""
        plan = artifact.plan
        longest = min(plan.context, artifact.manifest.model.get("max_position_embeddings", plan.context))
        length = _count("context", serving.context, longest, plan.context)
        batch = _count("max_batch", serving.max_batch, 1, plan.bounds.S)
        choice.check(serving.speculate, plan)
        pages = (-(-length // plan.page_size) + choice.further_pages(serving.speculate, plan)) * batch
        # Kernels count slots in 32 bits.
        if pages * plan.page_size > 2**31 - 1:
            raise ContextInvalid(name="max_batch", value=batch, limit=(2**31 - 1) // length)
        chosen, device = place(artifact, pages * plan.page_size, placement)
        draft = None
        try:
            path = choice.draft_path(serving.speculate)
            if path is not None:
                threads = placement.threads if family_of(artifact) in CPU_FAMILIES else None
                beside = Placement(threads=threads, numa=placement.numa)
                small = Artifact.open(path)
                few = min(batch, small.plan.bounds.S)
                draft = Model.load(small, beside, Serving(max_batch=few, prefix_cache=False))
            model = Model(chosen, device, length, serving, draft)
            if draft is not None:
                model._require_same_tokens(draft)
            return model
        except BaseException:
            device.close()
            if draft is not None:
                draft.close()
            raise

    @property
    def tokenizer(self) -> Tokenizer:
        """Read on first use. Raises TokenizerMissing, TokenizerMalformed."""
        return self._prompts.tokenizer

    @property
    def has_tokenizer(self) -> bool:
        return self._prompts.has_tokenizer

    @property
    def end_tokens(self) -> frozenset[int]:
        """Ids that end an answer, from generation_config.json and the model's config."""
        sources = (self._generation_config.get("eos_token_id"), self.config.get("eos_token_ids"))
        found = [token for value in sources for token in (value if isinstance(value, list | tuple) else [value])]
        return frozenset(token for token in found if type(token) is int)

    def logits(self, token_ids: ArrayLike) -> Floats:
        """f32 [T, V] for T token ids that start cold, in a sequence of their own."""
        ids = self._checked(token_ids)
        out = np.empty((ids.size, self.session.vocab_size), np.float32)
        for chunk in self._cold(ids, "all"):
            out[chunk.start : chunk.start + chunk.count] = chunk.logits
        return out

    def hidden(self, token_ids: ArrayLike) -> Floats:
        """f32 [T, D]: states after the final norm, of T token ids that start cold. Raises UnknownEntry."""
        ids = self._checked(token_ids)
        states = []
        for chunk in self._cold(ids, "none"):
            if chunk.hidden is None:
                raise UnknownEntry(name="hidden", known=", ".join(self.artifact.plan.entries))
            states.append(chunk.hidden.copy())
        return np.concatenate(states)

    def mtp_logits(self, hidden: Floats, next_tokens: ArrayLike) -> Floats:
        """f32 [T, V] of the first multi-token prediction module, which starts cold: row t predicts the token after
        `next_tokens[t]`, given hidden [T, D] of the tokens before them. Raises UnknownEntry if there is none."""
        entry = self.artifact.plan.entries.get("mtp")
        if entry is None:
            raise UnknownEntry(name="mtp", known=", ".join(self.artifact.plan.entries))
        ids = self._checked(next_tokens)
        states = floats("hidden", hidden)
        if states.ndim != 2 or states.shape[0] != ids.size:
            raise StepInvalid(where="hidden", reason=f"has the shape {states.shape} for {ids.size} tokens")
        out = np.empty((ids.size, self.session.vocab_size), np.float32)
        size = min(entry.max_tokens, self.artifact.plan.bounds.R)
        with self._lock, _Lease(self) as sequence:
            sequence.reserve(ids.size)
            for start in range(0, ids.size, size):
                count = min(size, ids.size - start)
                span = slice(start, start + count)
                steps = (np.arange(start, start + count), np.zeros(count, np.int32), [sequence.pages], np.arange(count))
                out[span] = self.session.step(ids[span], *steps, entry="mtp", hidden=states[span]).logits
        return out

    def generate(self, prompt: Prompt, add_bos: bool | None = None, **how: Any) -> Generation:
        """The answer to a text, token ids or chat messages. Of several results (`num_return_sequences`) the first, with
        the others in `others`.

        how: fields of SamplingParams, and what `submit` takes. What is not given comes from generation_config.json.
        add_bos: whether a text begins with the BOS, by default what `Tokenizer.encode` says; ids are taken as they are,
        and a chat template writes its own. Raises a class of RequestFault.
        """
        first, *others = self.submit(prompt, add_bos, **how).results()
        return replace(first, others=tuple(others))

    def generate_batch(self, prompts: Many[Prompt], add_bos: bool | None = None, **how: Any) -> list[Generation]:
        """As `generate`, for many prompts side by side; answers in the order of the prompts. Raises the first fault,
        after the other requests were cancelled."""
        tickets: list[Ticket] = []
        try:
            tickets += [self.submit(prompt, add_bos, **how) for prompt in prompts]
            found = [ticket.results() for ticket in tickets]
        except BaseException:
            for ticket in tickets:
                ticket.cancel()
            raise
        return [replace(first, others=tuple(others)) for first, *others in found]

    def stream(self, prompt: Prompt, add_bos: bool | None = None, **how: Any) -> Iterator[Event]:
        """As `generate`, one event a token. Closing the iterator early gives the cache pages back.

        Faults of the request are raised here, before the first event is asked for; it is handed in with that.
        """
        return self._events(self.task(prompt, add_bos, **how))

    def submit(self, prompt: Prompt, add_bos: bool | None = None, **how: Any) -> Ticket:
        """Hand a request in, from any thread or coroutine: it takes part in every step that somebody waits for.

        how: fields of SamplingParams, and priority: requests with a lower one (0) wait for those with a higher one.
        overflow: "stop" ends a text that fills the context, "slide" goes on with its beginning and its end. speculate:
        False for none, if the model was loaded with it. experts: whether those that its tokens visit are counted.
        """
        return self.hand_in(self.task(prompt, add_bos, **how))

    def task(self, prompt: Prompt, add_bos: bool | None = None, **how: Any) -> Task:
        """What `submit` hands in, which takes longest to make of a prompt that is long or a grammar that is new."""
        params, request = settings(self.defaults, how, self.has_tokenizer)
        slides = request.overflow == "slide"
        ids = self._checked(self._prompts.encode(prompt, add_bos, any_length=slides), slides)
        params.checked(self.session.vocab_size).limit(ids.size)
        return Task(
            prompt=ids,
            params=params,
            end_tokens=params.end_tokens(self.end_tokens),
            vocab_size=self.session.vocab_size,
            context=self.context,
            decode=self.tokenizer.decode if self.has_tokenizer else None,
            overflow=request.overflow,
            priority=request.priority,
            speculate=request.speculate,
            grammar=self._grammar(params),
            experts=choice_of(self.session, self.config) if request.experts else None,
        )

    def hand_in(self, task: Task) -> Ticket:
        """Raises ParameterInvalid for one that no step holds."""
        return self.engine.submit(task, self._max_pages)

    def parameters(self, how: Mapping[str, Any]) -> SamplingParams:
        """How `submit` generates with these parameters: what is not given has the model's default. Raises
        UnknownParameter, ParameterInvalid, TokenizerMissing, and for a grammar what `submit` raises."""
        params, _ = settings(self.defaults, how, self.has_tokenizer)
        self._grammar(params)
        return params

    def encode(self, prompt: Prompt, add_bos: bool | None = None) -> list[int]:
        """The token ids that a prompt stands for, however many the context holds."""
        ids: list[int] = self.session.tokens(self._prompts.encode(prompt, add_bos, any_length=True)).tolist()
        return ids

    def require_room(self, text: str) -> None:
        """Encoding takes memory: a text that cannot fit is told before. Raises PromptTooLong."""
        self._prompts.require_room(text)

    def perplexity(self, token_ids: ArrayLike, window: int = 512) -> Perplexity:
        """Over windows ids[window·i : window·i + window + 1], each starting cold; a last short one counts as well."""
        ids = self.session.tokens(token_ids)
        if ids.size < 2:
            raise EmptyPrompt()
        if type(window) is not int or not 1 <= window <= self.context:
            raise ParameterInvalid(
                name="window", value=window, reason=f"it must be an integer from 1 to {self.context}"
            )
        total = 0.0
        for start in range(0, ids.size - 1, window):
            part = ids[start : start + window + 1]
            for chunk in self._cold(part[:-1], "all"):
                targets = part[chunk.start + 1 : chunk.start + chunk.count + 1]
                total += float(_nll(chunk.logits, targets).sum())
        return Perplexity(total / (ids.size - 1), ids.size - 1)

    def save_session(self, path: str | os.PathLike[str], tokens: ArrayLike, extra: Mapping[str, Any] = {}) -> None:
        """Save a text with what is cached of it, for `restore_session` of the same artifact. extra: further JSON. An
        earlier one is replaced. Raises SaveRefused."""
        self._require_open()
        self._conversations.save(Path(path), self.session.tokens(tokens), extra)

    def restore_session(self, path: str | os.PathLike[str]) -> tuple[Ints, Mapping[str, Any]]:
        """The tokens and the extra of `save_session`. A prompt that begins with these tokens is not read again. Raises
        SavedInvalid, SavedNewer, SavedDamaged, SavedElsewhere, SavedTooLong, OutOfPages."""
        self._require_open()
        return self._conversations.restore(Path(path))

    def save_prefixes(self, path: str | os.PathLike[str]) -> int:
        """Save all that the prefix cache holds, for `restore_prefixes` of the same artifact; an earlier file is
        replaced. Returns the number of tokens. Raises SaveRefused."""
        self._require_open()
        return self._conversations.save_prefixes(Path(path))

    def restore_prefixes(self, path: str | os.PathLike[str]) -> int:
        """Prompts that begin as those before `save_prefixes` are not read again, as far as the cache has room: what was
        used last comes first. Returns the number of tokens. Raises SavedInvalid, SavedNewer, SavedDamaged,
        SavedElsewhere, and then nothing changed."""
        self._require_open()
        return self._conversations.restore_prefixes(Path(path))

    def new_sequence(self) -> Sequence:
        """An empty sequence for `session.run`; it holds at most `context` tokens. Close it to free its pages."""
        self._require_open()
        return self.session.new_sequence(self._max_pages)

    def count_experts(self, window: int = WINDOW) -> AbstractContextManager[ExpertStats]:
        """While it is open, count the experts of all tokens that the model computes, for whomever, and apart those of
        the last `window` tokens. Entering raises NoExperts, ExpertsUnknown, ParameterInvalid."""
        return counting(self.session, self.config, window)

    def report(self) -> dict[str, Any]:
        """What loading obtained: device, kernel level, threads, bytes of each kind, huge pages, free cache pages."""
        self._require_open()
        pool = self.session.pool
        pages = {"context": self.context, "cache_pages": pool.pages, "cache_pages_free": pool.free_pages}
        return {**self.session.device.report(), **pages, **self.engine.report()}

    def close(self) -> None:
        """Give all memory back; safe to call twice."""
        self.session.close()
        if self._draft is not None:
            self._draft.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _max_pages(self) -> int:
        return -(-self.context // self.artifact.plan.page_size)

    def _events(self, task: Task) -> Iterator[Event]:
        yield from self.hand_in(task)

    def _grammar(self, params: SamplingParams) -> Grammar | None:
        """Raises TokenizerMissing, GuidanceMissing, TokenizerUnsuitable, GrammarInvalid."""
        if params.guide is None:
            return None
        if not self.has_tokenizer:
            raise TokenizerMissing(what=params.guide[0])
        return self._grammars.find(*params.guide, params.end_tokens(self.end_tokens))

    def _checked(self, token_ids: ArrayLike, slides: bool = False) -> Ints:
        self._require_open()
        ids = self.session.tokens(token_ids)
        if ids.size == 0:
            raise EmptyPrompt()
        if ids.size > self.context and not slides:
            raise ContextOverflow(tokens=ids.size, context=self.context, largest=self.artifact.plan.context)
        return ids

    def _cold(self, ids: Ints, want: Want) -> Iterator[Chunk]:
        # The lock spans the whole run: chunks are views that the next step overwrites.
        with self._lock, _Lease(self) as sequence:
            yield from self.session.chunks([Request(sequence, ids, want)])

    def _require_same_tokens(self, draft: Model) -> None:
        """Raises DraftDiffers unless the draft's ids are those of the same tokens."""
        sizes = self.session.vocab_size, draft.session.vocab_size
        path = draft.artifact.folder
        if sizes[0] != sizes[1]:
            raise DraftDiffers(path=path, reason=f"it has {sizes[1]} tokens, the model has {sizes[0]}")
        if not (self.has_tokenizer and draft.has_tokenizer):
            return
        differ = self.tokenizer.differences(draft.tokenizer)
        if differ:
            raise DraftDiffers(path=path, reason=f"token {differ[0]} is not the same in both")

    def _require_open(self) -> None:
        if self.session.closed:
            raise ModelClosed()


class _Lease:
    """A sequence of the model for the length of a `with`."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._sequence = model.new_sequence()

    def __enter__(self) -> Sequence:
        return self._sequence

    def __exit__(self, *exception: object) -> None:
        with self._model._lock:
            self._sequence.close()


def defaults_of(artifact: Artifact) -> SamplingParams:
    """How a model generates where nothing else is said."""
    config, _ = usable(_generation_config(artifact), artifact.manifest.vocab_size)
    defaults = SamplingParams.from_generation_config(config)
    has_tokenizer = "tokenizer.json" in artifact.manifest.files
    return defaults if has_tokenizer else defaults.updated({"stop": ()})  # ids alone have no strings


def _generation_config(artifact: Artifact) -> Mapping[str, Any]:
    try:
        return artifact.optional_json("generation_config.json")
    except (MalformedJson, ManifestInvalid):  # defaults, without which the model runs as well
        return {}


def _count(name: str, value: int | None, default: int, limit: int) -> int:
    if value is None:
        return min(default, limit)
    if type(value) is not int or not 1 <= value <= limit:
        raise ContextInvalid(name=name, value=value, limit=limit)
    return value


def _nll(logits: Floats, targets: Ints) -> Floats:
    """f32[n]: -log softmax(logits)[target] for logits [n, V]."""
    best = logits.max(axis=1)
    total = np.log(np.exp(logits - best[:, None]).sum(axis=1))
    found: Floats = total + best - logits[np.arange(targets.size), targets]
    return found
