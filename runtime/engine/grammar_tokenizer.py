"""The tokenizer as llguidance is given it: texts that grammars ask for never become added tokens.

The package tokenizes what a grammar forces, and makes an added token of the text of one, such as "</think>" in an
`enum`; it then forbids it, as such tokens have no text for it, and the answer fails. So they get names that no text
has, and their texts are spelled. A grammar still refers to them by their ids, `<[7]>`; one in Lark that calls them by
their names gets the tokenizer as it is.
"""

from __future__ import annotations

import json
from typing import Any

from dsv3c.runtime.engine.lark_rules import token_names

_MARK = "\U0010fffd"  # of the private use area


def is_hidden_for(name: str, text: str) -> bool:
    """Whether added tokens may be hidden, for the value of a parameter."""
    return name != "grammar" or not token_names(text)


def without_added_texts(tokenizer: str) -> str:
    """For the content of a tokenizer.json. A token that others are merged of keeps its text. What is hidden is special,
    or its name would be a text that any string may have."""
    content = json.loads(tokenizer)
    vocabulary = content.get("model", {}).get("vocab")
    if not isinstance(vocabulary, dict):
        return tokenizer
    added = content.get("added_tokens") or []
    merged = _merged(content["model"].get("merges") or [])
    hidden = {token["content"]: f"{_MARK}{token['id']}{_MARK}" for token in added if token["content"] not in merged}
    for token in added:
        if token["content"] in hidden:
            token |= {"content": hidden[token["content"]], "special": True}
    content["model"]["vocab"] = {hidden.get(text, text): number for text, number in vocabulary.items()}
    content["post_processor"] = None  # it may name them, and stands around texts alone
    return json.dumps(content, ensure_ascii=False)


def _merged(merges: list[Any]) -> set[str]:
    """All tokens that merges name, and what they make."""
    pairs = (merge.split(" ", 1) if isinstance(merge, str) else merge for merge in merges)
    return {text for pair in pairs for text in (*pair, "".join(pair))}
