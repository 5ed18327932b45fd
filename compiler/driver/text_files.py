"""The files of a checkpoint that make text of tokens, checked before the long work of compiling begins."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

from dsv3c.compiler.checkpoint import ModelConfig
from dsv3c.compiler.checkpoint.errors import UnknownVocabularyError, UnreadableFileError
from dsv3c.compiler.checkpoint.files import exists, quote
from dsv3c.compiler.checkpoint.sides import (
    DEFAULTS,
    TEMPLATE,
    TOKENIZER,
    TOKENIZER_CONFIG,
    is_converted,
    side_bytes,
    side_object,
    side_path,
    usable_tokenizer,
    write_sides,
)
from dsv3c.compiler.checkpoint.tiktoken import VOCABULARY
from dsv3c.compiler.errors import NoTokenizerError
from dsv3c.runtime.engine.generation_config import usable
from dsv3c.runtime.text.tokenizer import Tokenizer

_ONLY_IDS = "there is no tokenizer.json: the artifact will take and give token ids only"
_WAYS = {  # to get one, by the file that stands for it
    "tokenizer.model": (
        "make one of tokenizer.model (AutoTokenizer.from_pretrained(folder).save_pretrained(folder) with transformers)"
        " and compile again"
    ),
    "vocab.json": (
        "make one of vocab.json (AutoTokenizer.from_pretrained(folder).save_pretrained(folder) with transformers)"
        " and compile again"
    ),
}
_OTHER_WAY = "if the checkpoint's source has one, put it beside config.json and compile again"


def check(checkpoint: Path, config: ModelConfig) -> tuple[str, ...]:
    """Sentences about what is missing, or left out because it is of no use.

    Raises CheckpointError for a file that is none of its kind, TokenizerMalformed for a tokenizer.json that the runtime
    could not read.
    """
    _, defaults = usable(side_object(checkpoint, DEFAULTS) or {}, config.vocab_size)
    tokenizer_config = side_object(checkpoint, TOKENIZER_CONFIG) or {}
    _check_template(checkpoint)
    try:
        data = side_bytes(checkpoint, TOKENIZER)
    except UnknownVocabularyError as error:
        return (f"{_ONLY_IDS}; {error}; {_OTHER_WAY}", *defaults)
    if data is None:
        ways = (way for name, way in _WAYS.items() if exists(checkpoint / name))
        return (f"{_ONLY_IDS}; {next(ways, _OTHER_WAY)}", *defaults)
    tokenizer = Tokenizer(side_path(checkpoint, TOKENIZER), tokenizer_config, data=data)
    made = (f"{TOKENIZER} is made from {VOCABULARY}",) if is_converted(checkpoint) else ()
    return (*made, *_odd_settings(tokenizer, tokenizer_config), *defaults)


def tokenizer_of(checkpoint: Path) -> Tokenizer:
    """The tokenizer of a checkpoint, with its chat template. Raises NoTokenizerError, and errors as `check`."""
    data = usable_tokenizer(checkpoint)
    if data is None:
        raise NoTokenizerError(path=checkpoint)
    template = side_bytes(checkpoint, TEMPLATE)
    config = side_object(checkpoint, TOKENIZER_CONFIG) or {}
    return Tokenizer(side_path(checkpoint, TOKENIZER), config, template, data)


def settle(checkpoint: Path, artifact: Path, config: ModelConfig) -> None:
    """Give an artifact the files for text of its checkpoint, in the form that the runtime reads."""
    write_sides(checkpoint, artifact)
    settle_defaults(artifact, config)


def settle_defaults(artifact: Path, config: ModelConfig) -> None:
    """Leave what is of no use out of an artifact's generation_config.json."""
    path = artifact / DEFAULTS
    if not exists(path):
        return
    found = side_object(artifact, DEFAULTS) or {}
    kept, _ = usable(found, config.vocab_size)
    same = json.dumps(kept, sort_keys=True) == json.dumps(found, sort_keys=True)  # 20.0 equals 20, but is another text
    if not same or path.read_bytes().startswith(codecs.BOM_UTF8):
        path.write_text(json.dumps(kept, indent=2) + "\n", encoding="ascii")  # half of a surrogate pair is no UTF-8


def _odd_settings(tokenizer: Tokenizer, config: dict[str, Any]) -> list[str]:
    notes = []
    for role in ("bos", "eos"):
        wanted, token = config.get(f"add_{role}_token"), tokenizer.special_token(f"{role}_token")
        if wanted is not None and not isinstance(wanted, bool):
            notes.append(f"{TOKENIZER_CONFIG}: add_{role}_token is {quote(wanted)}, neither true nor false; left out")
        if wanted is True and (token is None or tokenizer.token_id(token) is None):
            named = quote(config.get(f"{role}_token"))
            notes.append(f"{TOKENIZER_CONFIG}: add_{role}_token is true, but {role}_token is {named}; none is added")
    template = config.get("chat_template")
    if template is not None and not isinstance(template, str | list):
        notes.append(f"{TOKENIZER_CONFIG}: chat_template is {quote(template)}, no text; the artifact has no chats")
    return notes


def _check_template(checkpoint: Path) -> None:
    data = side_bytes(checkpoint, TEMPLATE)
    if data is None:
        return
    path = side_path(checkpoint, TEMPLATE)
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UnreadableFileError(path=path, reason=f"byte {error.start} is not UTF-8") from error
