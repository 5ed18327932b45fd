"""Render a checkpoint's chat template, which is untrusted Jinja code: in a sandbox, in a process of its own.

The sandbox keeps attributes out of reach. The process is ended by the system when a template takes more time or memory
than a chat could need, whatever it does to take it (`template_process`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from collections.abc import Sequence as Many
from typing import Any

from dsv3c.runtime.errors import MessagesInvalid, TemplateTooCostly
from dsv3c.runtime.text.template_process import TemplateProcess

SECONDS = 1.0  # of CPU time
_SOURCE_LIMIT = 1 << 20


class ChatTemplate:
    """A template and the process that renders it; templates may share one."""

    def __init__(self, source: str, process: TemplateProcess | None = None) -> None:
        if len(source) > _SOURCE_LIMIT:
            raise TemplateTooCostly(reason=f"it has {len(source)} characters")
        self._source = source
        self._process = process or TemplateProcess()

    def render(self, messages: Many[Mapping[str, Any]], variables: Mapping[str, Any]) -> str:
        """Text of the messages; these and the variables are what JSON can hold.

        Raises MessagesInvalid, TemplateFailed, TemplateTooCostly, TemplateProcessMissing.
        """
        _check_messages(messages)
        request = {"source": self._source, "messages": messages, "variables": variables, "seconds": SECONDS}
        return self._process.render(_encoded(request), SECONDS)


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, list | tuple) or not messages:
        raise MessagesInvalid(reason="must be a list of at least one message")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise MessagesInvalid(reason=f"message {index} has no string `role`")


def _encoded(request: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(request, default=_plain).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise MessagesInvalid(reason=f"they, or what is given with them, are no JSON: {error}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} has no form in it")
