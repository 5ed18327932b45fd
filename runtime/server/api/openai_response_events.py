"""A response of OpenAI's API as it is written: the events of its stream, and the items that they come to."""

from __future__ import annotations

import secrets
from typing import Any

from dsv3c.runtime.server.api.openai_parts import now, scored_json
from dsv3c.runtime.server.deltas import CallArguments, CallBegun, Delta, Ended, Scored, Text, Thought, Usage
from dsv3c.runtime.server.errors import Told

Event = dict[str, Any]  # its `type` is also the name of the event
# Of a kind of item: of its part, the names of its events, and the field of its text.
_TEXT = ("output_text", "response.output_text", "text")
_THOUGHT = ("reasoning_text", "response.reasoning_text", "text")
_CALL = (None, "response.function_call_arguments", "arguments")


class ResponseWriter:
    """Takes the deltas of one answer. What the events say is what `response` is after the last of them."""

    def __init__(self, head: dict[str, Any]) -> None:
        """head: what the response repeats of the request."""
        self.response: dict[str, Any] = {
            "id": new_id("resp"),
            "object": "response",
            "created_at": now(),
            "completed_at": None,
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            **head,
            "output": [],
            "usage": None,
        }
        self.output: list[dict[str, Any]] = self.response["output"]
        self._open: str | None = None  # type of the item that goes on
        self._text = ""  # of it
        self._logprobs: list[dict[str, Any]] = []
        self._count = 0  # of events

    def start(self) -> list[Event]:
        return [self._whole("response.created"), self._whole("response.in_progress")]

    def take(self, delta: Delta) -> list[Event]:
        if isinstance(delta, Text):
            return self._more("message", delta.text, delta.logprobs)
        if isinstance(delta, Thought):
            return self._more("reasoning", delta.text, ())
        if isinstance(delta, CallBegun):
            item = {"id": new_id("fc"), "type": "function_call", "call_id": delta.id, "name": delta.name}
            return self._begin({**item, "arguments": ""})
        if isinstance(delta, CallArguments):
            self._text += delta.text
            return [self._event(f"{_CALL[1]}.delta", delta=delta.text)]
        assert isinstance(delta, Ended)
        return self._end(delta)

    def failed(self, error: Told) -> list[Event]:
        code = "rate_limit_exceeded" if error.status == 429 else "server_error"
        self.response |= {"status": "failed", "error": {"code": code, "message": error.message}}
        return [self._whole("response.failed")]

    def _more(self, kind: str, text: str, logprobs: tuple[Scored, ...]) -> list[Event]:
        if not text and not logprobs:
            return []
        begun = [] if self._open == kind else self._begin(_EMPTY[kind]())
        self._text += text
        scored = [scored_json(token) for token in logprobs]
        self._logprobs += scored
        of_text = {"logprobs": scored} if kind == "message" else {}
        return [*begun, self._event(f"{_PARTS[kind][1]}.delta", content_index=0, delta=text, **of_text)]

    def _begin(self, item: dict[str, Any]) -> list[Event]:
        stopped = self._stop("completed")
        self._open = item["type"]
        item["status"] = "in_progress"
        self.output.append(item)
        begun = self._numbered({"type": "response.output_item.added", "output_index": self._index, "item": dict(item)})
        part = self._part()
        added = [] if part is None else [self._event("response.content_part.added", content_index=0, part=part)]
        return [*stopped, begun, *added]

    def _stop(self, status: str) -> list[Event]:
        """End the item that goes on."""
        if self._open is None:
            return []
        item, (_, name, field) = self.output[-1], _PARTS[self._open]
        part = self._part()
        place = {} if part is None else {"content_index": 0}
        of_text = {"logprobs": self._logprobs} if self._open == "message" else {}
        events = [self._event(f"{name}.done", **place, **{field: self._text}, **of_text)]
        if part is not None:
            item["content"] = [part]
            events.append(self._event("response.content_part.done", content_index=0, part=part))
        else:
            item["arguments"] = self._text
        item["status"] = status
        events.append(self._numbered({"type": "response.output_item.done", "output_index": self._index, "item": item}))
        self._open, self._text, self._logprobs = None, "", []
        return events

    def _end(self, ended: Ended) -> list[Event]:
        whole = ended.reason != "length"
        status = "completed" if whole else "incomplete"
        events = self._stop(status)
        details = None if whole else {"reason": "max_output_tokens"}
        self.response |= {"status": status, "incomplete_details": details, "usage": _usage(ended.usage)}
        self.response["completed_at"] = now() if whole else None
        return [*events, self._whole(f"response.{status}")]

    def _part(self) -> dict[str, Any] | None:
        """The one part of the item, as far as it has come; a call has none."""
        if self._open == "function_call":
            return None
        kind = _PARTS[self._open or ""][0]
        of_text = {"annotations": [], "logprobs": list(self._logprobs)} if self._open == "message" else {}
        return {"type": kind, "text": self._text, **of_text}

    def _event(self, name: str, **more: Any) -> Event:
        """Of the item that goes on."""
        return self._numbered({"type": name, "item_id": self.output[-1]["id"], "output_index": self._index, **more})

    def _whole(self, name: str) -> Event:
        return self._numbered({"type": name, "response": {**self.response, "output": list(self.output)}})

    def _numbered(self, event: Event) -> Event:
        self._count += 1
        return {**event, "sequence_number": self._count - 1}

    @property
    def _index(self) -> int:
        return len(self.output) - 1


_PARTS = {"message": _TEXT, "reasoning": _THOUGHT, "function_call": _CALL}
_EMPTY = {
    "message": lambda: {"id": new_id("msg"), "type": "message", "role": "assistant", "content": []},
    "reasoning": lambda: {"id": new_id("rs"), "type": "reasoning", "summary": [], "content": []},
}


def new_id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(16)}"


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
        "output_tokens": usage.completion,
        "output_tokens_details": {"reasoning_tokens": usage.thoughts},
        "total_tokens": usage.prompt + usage.completion,
    }
