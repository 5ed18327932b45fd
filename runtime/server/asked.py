"""What is asked for, whatever the API, in the engine's terms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Messages = tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Tool:
    """A function that the model may call. content: the whole of it as chat templates take it."""

    name: str
    content: Mapping[str, Any]


@dataclass(frozen=True)
class ToolChoice:
    """name: of the one tool that has to be called, if it is that one. single: whether one call is the most."""

    kind: Literal["auto", "none", "required"] = "auto"
    name: str | None = None
    single: bool = False


@dataclass(frozen=True)
class Asked:
    """model: None for the server's first. messages: of a chat, as templates take them; or else prompts, each a text or
    ids. how: fields of SamplingParams and what else `Model.submit` takes. variables: of the chat template. fields: what
    the API calls what is named in `how`, and the prompt, for errors. echo: whether the prompt is told before its
    answer. complete: whether the answer goes on after the prompt; else it is told alone.
    """

    model: str | None = None
    messages: Messages = ()
    prompts: tuple[str | tuple[int, ...], ...] = ()
    how: Mapping[str, Any] = field(default_factory=dict)
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = ToolChoice()
    variables: Mapping[str, Any] = field(default_factory=dict)
    fields: Mapping[str, str] = field(default_factory=dict)
    echo: bool = False
    complete: bool = True

    @property
    def results(self) -> int:
        """Of each prompt."""
        found: int = self.how.get("num_return_sequences", 1)
        return found

    @property
    def count(self) -> int:
        """Sequences that it takes."""
        return self.results * max(1, len(self.prompts))
