"""A message of the Anthropic API as it is written: the events of its stream, and what they come to."""

from __future__ import annotations

import json
import secrets
from typing import Any

from dsv3c.runtime.server.deltas import CallArguments, CallBegun, Delta, Ended, Text, Thought, Usage

Event = dict[str, Any]  # its `type` is also the name of the event
PING: Event = {"type": "ping"}
_PARTS = {"text": "text_delta", "thinking": "thinking_delta"}
_STOPS = {"stop": "end_turn", "length": "max_tokens", "calls": "tool_use", "cancelled": "end_turn"}


class MessageWriter:
    """Takes the deltas of one answer. What the events say is what `message` is after the last of them."""

    def __init__(self, model: str, prompt_tokens: int) -> None:
        self.message: dict[str, Any] = {
            "id": f"msg_{secrets.token_hex(12)}",
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": prompt_tokens, "output_tokens": 0},
        }
        self._blocks: list[dict[str, Any]] = self.message["content"]
        self._open: str | None = None  # type of the block that goes on
        self._arguments = ""  # of a call that goes on

    def start(self) -> list[Event]:
        return [{"type": "message_start", "message": {**self.message, "content": []}}, PING]

    def take(self, delta: Delta) -> list[Event]:
        if isinstance(delta, Text | Thought):
            return self._more("text" if isinstance(delta, Text) else "thinking", delta.text)
        if isinstance(delta, CallBegun):
            return self._begin({"type": "tool_use", "id": delta.id, "name": delta.name, "input": {}})
        if isinstance(delta, CallArguments):
            self._arguments += delta.text
            return [self._delta({"type": "input_json_delta", "partial_json": delta.text})]
        assert isinstance(delta, Ended)
        return [*self._stop(), *self._end(delta)]

    def _more(self, kind: str, text: str) -> list[Event]:
        if not text:  # logprobs alone
            return []
        signature = {"signature": ""} if kind == "thinking" else {}
        begun = [] if self._open == kind else self._begin({"type": kind, kind: "", **signature})
        self._blocks[-1][kind] += text
        return [*begun, self._delta({"type": _PARTS[kind], kind: text})]

    def _begin(self, block: dict[str, Any]) -> list[Event]:
        stopped = self._stop()
        self._open = block["type"]
        self._blocks.append(block)
        return [*stopped, {"type": "content_block_start", "index": self._index, "content_block": dict(block)}]

    def _stop(self) -> list[Event]:
        if self._open is None:
            return []
        if self._open == "tool_use":
            self._blocks[-1]["input"], self._arguments = _input(self._arguments), ""
        self._open = None
        return [{"type": "content_block_stop", "index": self._index}]

    def _end(self, ended: Ended) -> list[Event]:
        reason = "stop_sequence" if ended.reason == "stop" and ended.stopped_by else _STOPS[ended.reason]
        stopped = {"stop_reason": reason, "stop_sequence": ended.stopped_by}
        usage = _usage(ended.usage)
        self.message |= {**stopped, "usage": usage}
        return [{"type": "message_delta", "delta": stopped, "usage": usage}, {"type": "message_stop"}]

    def _delta(self, delta: dict[str, Any]) -> Event:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}

    @property
    def _index(self) -> int:
        return len(self._blocks) - 1


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt - usage.cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached,
        "output_tokens": usage.completion,
        "output_tokens_details": {"thinking_tokens": usage.thoughts},
    }


def _input(arguments: str) -> dict[str, Any]:
    """An object in any case: what is none stands in one as it was written."""
    try:
        found = json.loads(arguments)
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {"arguments": arguments}
