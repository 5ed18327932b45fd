"""The files of a checkpoint that make text of tokens, checked before the long work of compiling begins."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

from dsv3c.compiler.checkpoint import ModelConfig
from dsv3c.compiler.checkpoint.files import exists, quote, read_bytes, read_object, refuse_pointer
from dsv3c.compiler.checkpoint.tiktoken import VOCABULARY
from dsv3c.compiler.checkpoint.tokenizer import CONFIG_LIMIT, TOKENIZER_CONFIG, tokenizer_data, usable_tokenizer
from dsv3c.compiler.checkpoint.tokenizer import TOKENIZER as TOKENIZER
from dsv3c.compiler.driver.artifact import copy_side_files
from dsv3c.compiler.errors import NoTokenizerError, UnknownVocabularyError, UnreadableFileError
from dsv3c.runtime.engine.generation_config import usable
from dsv3c.runtime.text.tokenizer import Tokenizer

DEFAULTS = "generation_config.json"
TEMPLATE = "chat_template.jinja"
_TEMPLATE_LIMIT = 1 << 20
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


def check(folder: Path, config: ModelConfig) -> tuple[str, ...]:
    """Sentences about what is missing, or left out because it is of no use.

    Raises CheckpointError for a file that is none of its kind, TokenizerMalformed for a tokenizer.json that the runtime
    could not read.
    """
    _, defaults = usable(_optional_object(folder, DEFAULTS), config.vocab_size)
    tokenizer_config = _optional_object(folder, TOKENIZER_CONFIG)
    _check_template(folder)
    try:
        data = tokenizer_data(folder)
    except UnknownVocabularyError as error:
        return (f"{_ONLY_IDS}; {error}; {_OTHER_WAY}", *defaults)
    if data is None:
        ways = (way for name, way in _WAYS.items() if exists(folder / name))
        return (f"{_ONLY_IDS}; {next(ways, _OTHER_WAY)}", *defaults)
    tokenizer = Tokenizer(folder / TOKENIZER, tokenizer_config, data=data)
    made = () if exists(folder / TOKENIZER) else (f"{TOKENIZER} is made from {VOCABULARY}",)
    return (*made, *_odd_settings(tokenizer, tokenizer_config), *defaults)


def tokenizer_of(folder: Path) -> Tokenizer:
    """The tokenizer of a checkpoint, with its chat template. Raises NoTokenizerError, and errors as `check`."""
    data = usable_tokenizer(folder)
    if data is None:
        raise NoTokenizerError(path=folder)
    template = read_bytes(folder / TEMPLATE, _TEMPLATE_LIMIT) if exists(folder / TEMPLATE) else None
    return Tokenizer(folder / TOKENIZER, _optional_object(folder, TOKENIZER_CONFIG), template, data)


def settle(checkpoint: Path, artifact: Path, config: ModelConfig) -> None:
    """Give an artifact the files for text of its checkpoint, in the form that the runtime reads."""
    copy_side_files(checkpoint, artifact)
    make_tokenizer(checkpoint, artifact)
    settle_defaults(artifact, config)


def make_tokenizer(checkpoint: Path, artifact: Path) -> None:
    """Give an artifact the tokenizer.json that its checkpoint has in another form."""
    data = None if exists(artifact / TOKENIZER) else usable_tokenizer(checkpoint)
    if data is not None:
        (artifact / TOKENIZER).write_bytes(data)


def settle_defaults(artifact: Path, config: ModelConfig) -> None:
    """Leave what is of no use out of an artifact's generation_config.json."""
    path = artifact / DEFAULTS
    if not exists(path):
        return
    found = _optional_object(artifact, DEFAULTS)
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


def _check_template(folder: Path) -> None:
    if not exists(folder / TEMPLATE):
        return
    path = folder / TEMPLATE
    data = read_bytes(path, _TEMPLATE_LIMIT)
    refuse_pointer(data, path)
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UnreadableFileError(path=path, reason=f"byte {error.start} is not UTF-8") from error


def _optional_object(folder: Path, name: str) -> dict[str, Any]:
    return read_object(folder / name, CONFIG_LIMIT) if exists(folder / name) else {}
