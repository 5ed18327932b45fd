"""Texts, tokenizers and chat templates."""

from __future__ import annotations

from dsv3c.runtime.errors.base import ArtifactFault, RequestFault


class TokenizerMissing(RequestFault):
    message = "the artifact has no tokenizer.json, {what} needs one"
    hint = "pass token ids (generate --ids), or compile from a checkpoint with a tokenizer.json"


class TokenizerMalformed(ArtifactFault):
    message = "{path}: {reason}"
    hint = "copy the file from the checkpoint again, then compile again"


class TextInvalid(RequestFault):
    message = "cannot encode the text: {reason}"
    hint = "pass valid Unicode text"


class TemplateMissing(RequestFault):
    message = "the artifact has no chat template"
    hint = "pass a plain prompt; this checkpoint comes without a chat_template in tokenizer_config.json"


class TemplateFailed(RequestFault):
    message = "chat template: {reason}"
    hint = "the template comes from the checkpoint's tokenizer_config.json; check the messages it was given"


class TemplateTooCostly(RequestFault):
    message = "chat template: {reason}"
    hint = "the template of this checkpoint is broken or hostile; do not trust its source"


class TemplateProcessMissing(RequestFault):
    message = "the process that renders chat templates cannot be started: {reason}"
    hint = "name a Python 3.11 or newer with DSV3C_PYTHON, or pass prompts that are rendered already"


class MessagesInvalid(RequestFault):
    message = "messages: {reason}"
    hint = "pass a list of dicts, each with a string `role` and `content`"
