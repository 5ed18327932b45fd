"""A conversation with a model: what was said, how the next answer is asked for, what it came to."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Many
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from dsv3c.runtime.cli import decoding
from dsv3c.runtime.errors import ContextOverflow, ParameterInvalid, RequestFault
from dsv3c.runtime.text.thoughts import CLOSE, OPEN, Piece, ThoughtFilter, hidden_tags, opened_by

if TYPE_CHECKING:
    from dsv3c.runtime.engine.engine import Ticket
    from dsv3c.runtime.engine.generation import Generation
    from dsv3c.runtime.model import Model

Messages = list[dict[str, Any]]
_ONE = ("num_return_sequences", "logprobs")  # what a chat has no place for


class ChatMissing(RequestFault):
    message = "the artifact has no {what}, so it cannot chat"
    hint = "give it texts to go on with: dsv3c generate OUT -p TEXT"


class ConversationFull(ContextOverflow):
    message = "the conversation has {tokens} tokens, the context holds {context}"
    hint = "/reset begins anew, /params overflow=slide forgets its middle, --context N holds more (up to {largest})"


@dataclass
class Totals:
    """Of all answers so far."""

    answers: int = 0
    tokens: int = 0
    seconds: float = 0.0


class Conversation:
    """messages: without the system's, which is `system`. tokens: what the model has read and written of it. last: the
    last answer. `cancel` may come from any thread, all else from one."""

    def __init__(self, model: Model, how: dict[str, Any], system: str | None = None) -> None:
        """Raises ChatMissing for a model that cannot chat."""
        if not model.has_tokenizer:
            raise ChatMissing(what="tokenizer")
        if not model.tokenizer.has_chat_template:
            raise ChatMissing(what="chat template")
        self.model = model
        self.how = how
        self.system = system
        self.messages: Messages = []
        self.tokens: list[int] = []
        self.last: Generation | None = None
        self.totals = Totals()
        self._ticket: Ticket | None = None
        self._cancelled = False
        self._tags = hidden_tags(model.tokenizer, (OPEN, CLOSE))

    @property
    def all_messages(self) -> Messages:
        return self._with_system(self.messages)

    def reset(self) -> None:
        """Forget what was said; the system's message and the parameters stay."""
        self.messages, self.tokens = [], []

    def take_up(self, messages: Many[dict[str, Any]]) -> None:
        """Go on with these."""
        first = messages[0] if messages else {}
        told = first.get("role") == "system" and isinstance(first.get("content"), str)
        self.reset()
        self.system = first["content"] if told else None
        self.messages = list(messages[1:] if told else messages)

    def set_parameters(self, changes: dict[str, Any]) -> None:
        """Parameters of the answers to come; None takes one back. Raises UnknownParameter, ParameterInvalid."""
        for name, value in changes.items():
            if name in _ONE and value is not None:
                raise ParameterInvalid(name=name, value=value, reason="a chat takes one answer, as a text")
        words = changes.get("bad_words")
        if isinstance(words, str):
            changes = {**changes, "bad_words": [words]}
        elif words is not None and not (isinstance(words, list) and all(isinstance(w, str) and w for w in words)):
            raise ParameterInvalid(name="bad_words", value=words, reason="it must be one or several texts")
        how = {name: value for name, value in {**self.how, **changes}.items() if value is not None}
        self.model.parameters({name: value for name, value in how.items() if name != "bad_words"})
        self.how = how

    def ask(self, text: str) -> Iterator[Piece]:
        """The answer as it comes. It belongs to the conversation then, also where it was cancelled; of one that fails
        nothing stays. Raises RequestFault, ConversationFull among them."""
        self._cancelled = False
        asked: Messages = [*self.messages, {"role": "user", "content": text}]
        prompt = self.model.tokenizer.render_chat(self._with_system(asked))
        ids = self.model.tokenizer.encode_plain(prompt)
        opened = opened_by(prompt)
        thoughts, written, told = ThoughtFilter(opened), [OPEN] if opened else [], list[Piece]()
        self._ticket = ticket = self._submit(ids)
        if self._cancelled:
            ticket.cancel()
        for event in ticket:
            written.append(event.text)
            for each in thoughts.push(event.text):
                told.append(each)
                yield each
            self.last = event.generation or self.last
        for each in thoughts.flush():
            told.append(each)
            yield each
        assert self.last is not None
        self._count(self.last)
        if self.last.finish_reason == "cancelled" and not told:
            return
        self.messages = [*asked, self._answer("".join(written), told)]
        self.tokens = [*ids, *self.last.token_ids]

    def cancel(self) -> None:
        """End the answer that is under way; what there is of it stays."""
        self._cancelled = True
        ticket = self._ticket
        if ticket is not None:
            ticket.cancel()

    def _with_system(self, messages: Messages) -> Messages:
        return [{"role": "system", "content": self.system}, *messages] if self.system else messages

    def _submit(self, ids: list[int]) -> Ticket:
        how = decoding.with_word_ids(decoding.with_length(self.how, self.model.context), self.model.tokenizer)
        try:
            task = self.model.task(ids, **{"num_return_sequences": 1, **how})
        except ContextOverflow as error:
            largest = self.model.artifact.plan.context
            raise ConversationFull(tokens=len(ids), context=self.model.context, largest=largest) from error
        # Thoughts are told by their tags, also where these are special tokens.
        return self.model.hand_in(replace(task, decode=partial(self.model.tokenizer.decode, kept=self._tags)))

    def _answer(self, written: str, told: Many[Piece]) -> dict[str, Any]:
        """The message for the history. The template leaves thoughts out, or has a field for them."""
        thoughts = "".join(piece.text for piece in told if piece.thought)
        if not thoughts or not self.model.tokenizer.template_mentions("reasoning_content"):
            return {"role": "assistant", "content": written}
        text = "".join(piece.text for piece in told if not piece.thought)
        return {"role": "assistant", "content": text, "reasoning_content": thoughts.rstrip()}

    def _count(self, answer: Generation) -> None:
        self.totals.answers += 1
        self.totals.tokens += len(answer.token_ids)
        self.totals.seconds += answer.prompt_seconds + answer.decode_seconds
