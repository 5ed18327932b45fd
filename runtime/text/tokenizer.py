"""Text to token ids and back, by the files a checkpoint brings: tokenizer.json and tokenizer_config.json.

No code of a checkpoint is ever run; its chat template runs in a sandbox (`chat_template`).
"""

from __future__ import annotations

import codecs
from collections.abc import Container, Mapping
from collections.abc import Sequence as Many
from functools import cached_property
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokenizers

from dsv3c.runtime.artifact.jsonfile import read_bytes, require_few_values
from dsv3c.runtime.errors import (
    ParameterInvalid,
    TemplateFailed,
    TemplateMissing,
    TextInvalid,
    TokenizerMalformed,
    TokensInvalid,
)
from dsv3c.runtime.text.token_bound import bytes_of_longest_token, has_byte_names
from dsv3c.runtime.turns import Turns

if TYPE_CHECKING:
    from dsv3c.runtime.text.chat_template import ChatTemplate

TOKENIZER_LIMIT = 64 << 20
_TOKENIZER_VALUES = 1_500_000
_SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")
_SHORT = 1 << 18  # characters that cost little to encode, whatever comes of them


class Tokenizer:
    """Wraps a `tokenizers.Tokenizer`. `config` is the content of tokenizer_config.json (may be empty), `chat_template`
    that of chat_template.jinja, which goes before the one in `config`.

    data: the content of `path`, where it has been read. Threads may share it. Raises TokenizerMalformed, FileTooLarge,
    MalformedJson.
    """

    def __init__(
        self,
        path: Path,
        config: Mapping[str, Any],
        chat_template: str | bytes | None = None,
        data: bytes | None = None,
    ) -> None:
        self._turns = Turns()  # at decoding; apart from the other, since steps wait for it, and a long text takes long
        self._reading = Turns()  # at encoding
        data = (read_bytes(path, TOKENIZER_LIMIT) if data is None else data).removeprefix(codecs.BOM_UTF8)
        require_few_values(data, path, _TOKENIZER_VALUES)
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
        self._template_file = chat_template
        self._template: ChatTemplate | None = None

    @property
    def vocab_size(self) -> int:
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    @property
    def id_bound(self) -> int:
        """One more than the largest id."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def to_json(self) -> str:
        """What tokenizer.json says, without settings of training."""
        return self._tokenizer.to_str()

    def encode(self, text: str, add_bos: bool | None = None) -> list[int]:
        """Ids of a text as a prompt: what begins a text, the text, what ends it.

        The post-processor of tokenizer.json puts special tokens around it. Where tokenizer_config.json has
        `add_bos_token` or `add_eos_token`, that decides: true adds the BOS first or the EOS last, false leaves it out.
        A text that has the token there already gets no second one. `add_bos` goes before `add_bos_token`.

        Raises TextInvalid, ParameterInvalid.
        """
        if not isinstance(add_bos, bool | None):
            raise ParameterInvalid(name="add_bos", value=add_bos, reason="it must be True, False or None")
        encoding = self._encoding(text, True)
        ids, added = list(encoding.ids), list(encoding.special_tokens_mask)
        begin = self._flag("add_bos_token") if add_bos is None else add_bos
        bos, eos = self._special_id("bos_token"), self._special_id("eos_token")
        if bos is not None:
            _settle(ids, added, bos, begin, 0)
        elif add_bos:
            reason = "tokenizer_config.json names no bos_token that tokenizer.json has"
            raise ParameterInvalid(name="add_bos", value=add_bos, reason=reason)
        if eos is not None:
            _settle(ids, added, eos, self._flag("add_eos_token"), -1)
        return ids

    def encode_plain(self, text: str) -> list[int]:
        """Ids of a text as it is, for one that already begins with its special tokens."""
        return list(self._encoding(text, False).ids)

    def least_tokens(self, text: str) -> int:
        """At least so many tokens a long text becomes, told without encoding it; 0 where nothing is known."""
        if len(_text(text)) <= _SHORT or (longest := self._bytes_of_longest_token) is None:
            return 0
        return -(-len(text.encode("utf-8", "surrogatepass")) // longest)

    @cached_property
    def _bytes_of_longest_token(self) -> int | None:
        return bytes_of_longest_token(self._tokenizer)

    def decode(self, ids: Many[int], kept: Container[int] = ()) -> str:
        """Text of ids without special tokens, but for those that are kept; bytes that are not UTF-8 become U+FFFD.
        Unknown ids give nothing.

        Raises TokensInvalid.
        """
        try:
            numbers = [index(token) for token in ids]
        except TypeError as error:
            raise TokensInvalid(reason=str(error)) from error
        if kept:
            numbers = [token for token in numbers if token in kept or token not in self._special_ids]
        try:
            with self._turns:
                return self._tokenizer.decode(numbers, skip_special_tokens=not kept)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            raise TokenizerMalformed(path=self._path, reason=f"cannot decode: {str(error)[:200]}") from error

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        added = self._tokenizer.get_added_tokens_decoder()
        return frozenset(token for token, content in added.items() if content.special)

    def token_id(self, token: str) -> int | None:
        """Id of a token by its text, e.g. a special token."""
        try:
            found: int | None = self._tokenizer.token_to_id(_text(token))
        except UnicodeEncodeError:  # a lone surrogate is no text of a token
            return None
        return found

    def token(self, token_id: int) -> str | None:
        """The name of a token in the vocabulary, which of byte-level BPE has a character for each byte."""
        found: str | None = self._tokenizer.id_to_token(token_id)
        return found

    @cached_property
    def byte_level(self) -> bool:
        """Whether names of tokens have a character for each byte."""
        return has_byte_names(self._tokenizer)

    def differences(self, other: Tokenizer) -> list[int]:
        """Ids that do not stand for the same token in both, in order; what only one of them has is left out."""
        own, others = ({i: t for t, i in each._tokenizer.get_vocab(True).items()} for each in (self, other))
        return sorted(token for token in own.keys() & others.keys() if own[token] != others[token])

    def special_token(self, name: str) -> str | None:
        """A special token by its role in tokenizer_config.json: bos_token, eos_token, pad_token, …"""
        value = self._config.get(_text(name))
        if isinstance(value, dict):
            value = value.get("content")
        return value if isinstance(value, str) else None

    @property
    def has_chat_template(self) -> bool:
        return self._template_source() is not None

    @property
    def chat_template(self) -> str | None:
        """Its source."""
        return self._template_source()

    def template_mentions(self, word: str) -> bool:
        """Whether the chat template has this word, such as the name of a message's field that it may use."""
        return word in (self._template_source() or "")

    def render_chat(self, messages: Many[Mapping[str, Any]], **variables: Any) -> str:
        """The prompt that the chat template makes of messages, ready for the assistant's answer.

        Raises TemplateMissing, MessagesInvalid, TemplateFailed, TemplateTooCostly, TemplateProcessMissing.
        """
        if self._template is None:
            # Imported here since it is of use to chats alone.
            from dsv3c.runtime.text.chat_template import ChatTemplate

            source = self._template_source()
            if source is None:
                raise TemplateMissing()
            self._template = ChatTemplate(source)
        special = {name: token for name in _SPECIAL_TOKENS if (token := self.special_token(name)) is not None}
        given = {"tools": None, "documents": None, "add_generation_prompt": True, **special, **variables}
        return self._template.render(messages, given)

    def encode_chat(self, messages: Many[Mapping[str, Any]], **variables: Any) -> list[int]:
        """Ids of `render_chat`, which writes special tokens itself."""
        return self.encode_plain(self.render_chat(messages, **variables))

    def _encoding(self, text: str, special: bool) -> tokenizers.Encoding:
        try:
            _text(text).encode("utf-8")  # how Python passes on bytes of a command line that are not UTF-8
        except UnicodeEncodeError as error:
            raise TextInvalid(reason="it has bytes that are not UTF-8, or lone surrogates") from error
        try:
            with self._reading:
                return self._tokenizer.encode(text, add_special_tokens=special)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            raise TextInvalid(reason=str(error)[:200]) from error

    def _flag(self, name: str) -> bool | None:
        value = self._config.get(name)
        return value if isinstance(value, bool) else None

    def _special_id(self, name: str) -> int | None:
        token = self.special_token(name)
        return None if token is None else self.token_id(token)

    def _template_source(self) -> str | None:
        value = self._template_file
        if value is None:
            value = self._config.get("chat_template")
        if isinstance(value, list):  # several by name; the one for plain chat is "default"
            items = [item for item in value if isinstance(item, dict)]
            named = {item["name"]: item.get("template") for item in items if isinstance(item.get("name"), str)}
            value = named.get("default")
        if isinstance(value, bytes):
            try:
                return value.decode("utf-8-sig")
            except UnicodeDecodeError as error:
                raise TemplateFailed(reason=f"byte {error.start} of chat_template.jinja is not UTF-8") from error
        return value if isinstance(value, str) else None


def _settle(ids: list[int], added: list[int], token: int, wanted: bool | None, end: int) -> None:
    """Make `token` stand at one end of the ids, 0 or -1, once, or not at all. added: which ids the post-processor put
    there; a token that the text itself has stays."""
    there = bool(ids) and ids[end] == token
    twice = there and len(ids) > 1 and ids[1 if end == 0 else -2] == token
    if there and added[end] and (wanted is False or twice):
        del ids[end], added[end]
    elif wanted and not there:
        at = 0 if end == 0 else len(ids)
        ids.insert(at, token)
        added.insert(at, 1)


def _text(text: str) -> str:
    if not isinstance(text, str):
        raise TextInvalid(reason=f"it is {type(text).__name__}, not str")
    return text
