"""What a model is measured with."""

from __future__ import annotations

from dsv3c.runtime.errors.base import RequestFault


class TextFileInvalid(RequestFault):
    message = "{path} is no text to measure with: {reason}"
    hint = "pass a file of plain text in UTF-8"


class TextTooShort(RequestFault):
    message = "{name} is too short to measure with: it has {tokens} tokens, at least {least} are needed"
    hint = "pass a longer text; the standard error falls with the root of its length"


class VocabulariesDiffer(RequestFault):
    message = "{path} and {other} cannot be compared: {reason}"
    hint = "compare models with the same vocabulary, such as two formats of one checkpoint"


class CompilerNeeded(RequestFault):
    message = "{path} is a checkpoint, which the runtime alone cannot compile"
    hint = "give an artifact, made by `dsv3c compile CHECKPOINT --quant float32`"
