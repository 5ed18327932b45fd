"""What a model is asked, as token ids: texts by its tokenizer, chats by its template, ids as they are."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Many
from typing import TYPE_CHECKING, Any

import numpy as np

from dsv3c.runtime.artifact.artifact import Artifact
from dsv3c.runtime.errors import PromptTooLong, TokenizerMissing
from dsv3c.runtime.turns import Turns

if TYPE_CHECKING:
    from dsv3c.runtime.text.tokenizer import Tokenizer

Message = Mapping[str, Any]
Prompt = str | Many[int] | Many[Message] | np.ndarray[Any, np.dtype[Any]]

_TOKENIZER, _TEMPLATE = "tokenizer.json", "chat_template.jinja"
_LIMIT = 64 << 20  # bytes of each


class Prompts:
    """Of one artifact, whose text files are read at once: another one that takes its place has other files.

    context: tokens that the model holds. Threads may share it.
    """

    def __init__(self, artifact: Artifact, context: int) -> None:
        self._artifact = artifact
        self._context = context
        self._reading = Turns()
        self._tokenizer: Tokenizer | None = None
        names = (name for name in (_TOKENIZER, _TEMPLATE) if name in artifact.manifest.files)
        self._files = {name: artifact.checked_bytes(name, _LIMIT) for name in names}
        self._config = artifact.optional_json("tokenizer_config.json")

    @property
    def has_tokenizer(self) -> bool:
        return _TOKENIZER in self._artifact.manifest.files

    @property
    def tokenizer(self) -> Tokenizer:
        """Read on first use. Raises TokenizerMissing, TokenizerMalformed."""
        with self._reading:
            if self._tokenizer is None:
                self._tokenizer = self._read()
            return self._tokenizer

    def encode(self, prompt: Prompt, add_bos: bool | None, *, any_length: bool) -> Any:
        """Ids of a text or of chat messages; what is neither as it is, unchecked. Raises PromptTooLong unless it may
        have any length."""
        if isinstance(prompt, str):
            if not any_length:
                self.require_room(prompt)
            return self.tokenizer.encode(prompt, add_bos)
        if isinstance(prompt, list | tuple) and prompt and isinstance(prompt[0], Mapping):
            text = self.tokenizer.render_chat(prompt)
            if not any_length:
                self.require_room(text)
            return self.tokenizer.encode_plain(text)
        return prompt

    def require_room(self, text: str) -> None:
        """Encoding takes memory: a text that cannot fit is told before. Raises PromptTooLong."""
        least = self.tokenizer.least_tokens(text)
        if least > self._context:
            largest = self._artifact.plan.context
            raise PromptTooLong(characters=len(text), tokens=least, context=self._context, largest=largest)

    def _read(self) -> Tokenizer:
        # Imported here since token ids alone do without the package.
        from dsv3c.runtime.text.tokenizer import Tokenizer

        if not self.has_tokenizer:
            raise TokenizerMissing(what="text")
        path, files = self._artifact.folder / _TOKENIZER, self._files
        tokenizer = Tokenizer(path, self._config, files.get(_TEMPLATE), files[_TOKENIZER])
        self._files = {}
        return tokenizer
