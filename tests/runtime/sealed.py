"""Saved files taken apart and put together again with the hash that fits."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def parts(whole: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """The header and `about`."""
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    begin, end = (8 + length + offset for offset in header["about"]["data_offsets"])
    return header, json.loads(whole[begin:end])


def resealed(whole: bytes, header: dict[str, Any], about: Any = None) -> bytes:
    """The file with another header, or another `about`, and the hash that fits."""
    length = int.from_bytes(whole[:8], "little")
    data = whole[8 + length : -32]
    if about is not None:
        begin, end = parts(whole)[0]["about"]["data_offsets"]
        content = json.dumps(about).encode()
        data = data[:begin] + content + b" " * (end - begin - len(content)) + data[end:]
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 64)
    sealed = len(text).to_bytes(8, "little") + text + data
    return sealed + hashlib.sha256(sealed).digest()
