"""What is asked of a model."""

from __future__ import annotations

from dsv3c.runtime.errors.base import RequestFault


class OutOfPages(RequestFault):
    message = "the cache has {free} free pages of {page_size} tokens, {wanted} are needed"
    hint = "load with a larger context or max_batch, or close other sequences first"


class PageMisuse(RequestFault):
    message = "page {page}: {reason}"
    hint = "a sequence may be used only until it is closed, and by one model"


class StepInvalid(RequestFault):
    message = "step: {where}: {reason}"
    hint = "see `bounds` in plan.json for the largest step"


class UnknownEntry(RequestFault):
    message = "the artifact has no entry {name!r}; it has {known}"
    hint = "artifacts have `mtp` where the checkpoint has a layer for multi-token prediction"


class EmptyPrompt(RequestFault):
    message = "the prompt has no tokens"
    hint = "give at least one token"


class TokenOutOfRange(RequestFault):
    message = "token id {token!r} at position {position} is not in 0..{last}"
    hint = "encode the text with this artifact's own tokenizer; the model has no row for a token that was added later"


class TokensInvalid(RequestFault):
    message = "token ids must be a flat sequence of integers: {reason}"
    hint = "pass a list of int or a 1-D integer array"


class ContextOverflow(RequestFault):
    message = "the prompt has {tokens} tokens, the context holds {context}"
    hint = "shorten the prompt, or load with a larger context (the plan allows {largest})"


class PromptTooLong(ContextOverflow):
    message = "the prompt is {characters} characters, at least {tokens} tokens, the context holds {context}"


class ContextInvalid(RequestFault):
    message = "{name} is {value!r}, it must be an integer from 1 to {limit}"
    hint = "a context ends at the length the model was trained for; for more sequences, compile with --max-sequences"


class BenchTooLong(RequestFault):
    message = "the longest test needs a context of {needed} tokens, the model holds {limit}"
    hint = "lower the depth, or the number of tokens to read or generate"


class BenchBatchTooLarge(RequestFault):
    message = "a batch of {batch} sequences is more than a step of this artifact holds, {limit}"
    hint = "compile with --max-sequences {batch}, or measure smaller batches"


class BenchCacheTooLarge(RequestFault):
    message = "the largest batch needs a cache of {needed} tokens, kernels reach {limit}"
    hint = "lower the depth, or the size of the batch"


class ParameterInvalid(RequestFault):
    message = "{name} is {value!r}: {reason}"
    hint = "leave the parameter out to use the model's default"


class UnknownParameter(RequestFault):
    message = "unknown generation parameter {name!r}; known: {known}"
    hint = "check the spelling"


class LogitsNotFinite(RequestFault):
    message = "the model returned logits that are not finite ({value})"
    hint = "the weights hold NaN or infinity, or overflow in this format; run `dsv3c verify`, or compile with float32"


class NoTokenAllowed(RequestFault):
    message = "after {tokens} tokens every token is forbidden"
    hint = (
        "forbid fewer: suppress_tokens, bad_words_ids, no_repeat_ngram_size, logit_bias, min_new_tokens, min_length; "
        "with json_schema, grammar or regex also what these need"
    )


class GuidanceMissing(RequestFault):
    message = "json_schema, grammar and regex need the package llguidance, which cannot be imported: {reason}"
    hint = "pip install 'dsv3c[guidance]', or 'dsv3c-runtime[guidance]' on a device"


class GrammarInvalid(RequestFault):
    message = "{name} cannot be followed: {reason}"
    hint = "llguidance knows most of JSON Schema, its own dialect of Lark, and expressions without look-around"


class GrammarFailed(RequestFault):
    message = "after {tokens} tokens of the answer the grammar cannot be followed any further: {reason}"
    hint = "make the grammar simpler, or its terminals less ambiguous"


class TokenizerUnsuitable(RequestFault):
    message = "this model's tokenizer cannot follow a grammar: {reason}"
    hint = "tokens must be of bytes, as those of byte-level BPE are; leave out json_schema, grammar and regex"


class SpeculationInvalid(RequestFault):
    message = "speculation by {speculate!r} is not to be had: {reason}"
    hint = 'leave it out, or draft by "ngram", which needs nothing, or by the path of a smaller artifact'


class DraftDiffers(RequestFault):
    message = "{path} cannot draft for this model: {reason}"
    hint = "compile a smaller model of the same family, with the same tokenizer.json"


class ModelClosed(RequestFault):
    message = "the model is closed"
    hint = "load it again"
