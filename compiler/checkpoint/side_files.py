"""The check that the files which the runtime reads later can be read at all, so that a broken one is told at once."""

from __future__ import annotations

from pathlib import Path

from dsv3c.compiler.checkpoint.files import exists, read_bytes, read_object, refuse_pointer

OBJECTS = ("generation_config.json", "tokenizer_config.json")
TEMPLATE = "chat_template.jinja"
MAX_OBJECT_BYTES = 16 << 20  # a tokenizer_config.json may list a thousand tokens and hold templates
MAX_TEMPLATE_BYTES = 1 << 20


def check_side_files(folder: Path) -> None:
    """Raises UnreadableFileError, PointerFileError or JsonError for one that is there; none has to be."""
    for name in OBJECTS:
        if exists(folder / name):
            read_object(folder / name, MAX_OBJECT_BYTES)
    if exists(folder / TEMPLATE):
        refuse_pointer(read_bytes(folder / TEMPLATE, MAX_TEMPLATE_BYTES), folder / TEMPLATE)
