"""Text to token ids and back, by the files a checkpoint brings: tokenizer.json and tokenizer_config.json.

No code of a checkpoint is ever run; its chat template runs in a sandbox (`chat_template`).
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Many
from functools import cached_property
from operator import index
from pathlib import Path
from typing import Any

import tokenizers

from dsv3c.runtime.errors import TemplateMissing, TextInvalid, TokenizerMalformed, TokensInvalid
from dsv3c.runtime.jsonfile import read_bytes
from dsv3c.runtime.token_bound import bytes_of_longest_token
from dsv3c.runtime.turns import Turns

TOKENIZER_LIMIT = 256 << 20
_SHORT = 1 << 18  # characters that cost little to encode, whatever comes of them


class Tokenizer:
    """Wraps a `tokenizers.Tokenizer`. `config` is the content of tokenizer_config.json (may be empty).

    data: the file, where it has been read. Threads may share it. Raises TokenizerMalformed.
    """

    def __init__(
        self, path: Path, config: Mapping[str, Any], chat_template: str | None = None, data: bytes | None = None
    ) -> None:
        self._turns = Turns()
        data = read_bytes(path, TOKENIZER_LIMIT) if data is None else data
        try:
            self._tokenizer = tokenizers.Tokenizer.from_buffer(data)
            # Settings of training would cut or fill up what users pass.
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of the Rust side is no Exception
            raise TokenizerMalformed(path=path, reason=f"not a tokenizer: {str(error)[:200]}") from error
        self._path = path
        self._config = config
        self._template = chat_template

    @property
    def vocab_size(self) -> int:
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        """Ids of a text with the special tokens the tokenizer adds (such as the begin-of-sentence token)."""
        return self._encode(text, True)

    def encode_plain(self, text: str) -> list[int]:
        """Ids of a text as it is, for one that already begins with its special tokens."""
        return self._encode(text, False)

    def least_tokens(self, text: str) -> int:
        """At least so many tokens a long text becomes, told without encoding it; 0 where nothing is known."""
        if len(_text(text)) <= _SHORT or (longest := self._bytes_of_longest_token) is None:
            return 0
        return -(-len(text.encode("utf-8", "surrogatepass")) // longest)

    @cached_property
    def _bytes_of_longest_token(self) -> int | None:
        return bytes_of_longest_token(self._tokenizer)

    def decode(self, ids: Many[int]) -> str:
        """Text of ids without special tokens; bytes that are not UTF-8 become U+FFFD. Unknown ids give nothing.

        Raises TokensInvalid.
        """
        try:
            numbers = [index(token) for token in ids]
        except TypeError as error:
            raise TokensInvalid(reason=str(error)) from error
        try:
            with self._turns:
                return self._tokenizer.decode(numbers, skip_special_tokens=True)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            raise TokenizerMalformed(path=self._path, reason=f"cannot decode: {str(error)[:200]}") from error

    def token_id(self, token: str) -> int | None:
        """Id of a token by its text, e.g. a special token."""
        found: int | None = self._tokenizer.token_to_id(_text(token))
        return found

    def special_token(self, name: str) -> str | None:
        """A special token by its role in tokenizer_config.json: bos_token, eos_token, pad_token, …"""
        value = self._config.get(_text(name))
        if isinstance(value, dict):
            value = value.get("content")
        return value if isinstance(value, str) else None

    @property
    def has_chat_template(self) -> bool:
        return self._template_source() is not None

    def render_chat(self, messages: Many[Mapping[str, Any]], **variables: Any) -> str:
        """The prompt that the chat template makes of messages, ready for the assistant's answer.

        Raises TemplateMissing, MessagesInvalid, TemplateFailed, TemplateTooCostly.
        """
        # Imported here since jinja2 is of use to chats alone.
        from dsv3c.runtime.chat_template import ChatTemplate

        source = self._template_source()
        if source is None:
            raise TemplateMissing()
        names = ("bos_token", "eos_token", "pad_token", "unk_token")
        special = {name: token for name in names if (token := self.special_token(name)) is not None}
        return ChatTemplate(source).render(messages, {"add_generation_prompt": True, **special, **variables})

    def encode_chat(self, messages: Many[Mapping[str, Any]], **variables: Any) -> list[int]:
        """Ids of `render_chat`, which writes special tokens itself."""
        return self.encode_plain(self.render_chat(messages, **variables))

    def _encode(self, text: str, special: bool) -> list[int]:
        try:
            _text(text).encode("utf-8")  # how Python passes on bytes of a command line that are not UTF-8
        except UnicodeEncodeError as error:
            raise TextInvalid(reason="it has bytes that are not UTF-8, or lone surrogates") from error
        try:
            with self._turns:
                return list(self._tokenizer.encode(text, add_special_tokens=special).ids)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            raise TextInvalid(reason=str(error)[:200]) from error

    def _template_source(self) -> str | None:
        if self._template is not None:
            return self._template
        value = self._config.get("chat_template")
        if isinstance(value, list):  # several by name; the one for plain chat is "default"
            named = {item.get("name"): item.get("template") for item in value if isinstance(item, dict)}
            value = named.get("default")
        return value if isinstance(value, str) else None


def _text(text: str) -> str:
    if not isinstance(text, str):
        raise TextInvalid(reason=f"it is {type(text).__name__}, not str")
    return text
