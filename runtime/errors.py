"""The base of all errors of dsv3c, and every mistake the runtime can report: one small class a mistake.

A class carries its message as a template and a hint that says what to do. The fields of the template are keyword
arguments of the constructor and stay readable as attributes. `code` is a stable name for machine-readable reports.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self


class Dsv3cError(Exception):
    """Base of all errors that name a fault of the input or the machine (exit code 1)."""

    message: ClassVar[str] = "{text}"
    hint: ClassVar[str] = ""

    def __init__(self, **fields: Any) -> None:
        for name, value in fields.items():
            setattr(self, name, value)
        text = self.message.format(**fields)
        hint = self.hint.format(**fields)
        super().__init__(f"{text}\n  hint: {hint}" if hint else text)

    def again(self) -> Self:
        """The same error, to be raised in another place or thread."""
        return type(self)(**vars(self))

    @property
    def code(self) -> str:
        return type(self).__name__


class RuntimeFault(Dsv3cError):
    """Base of all faults of an artifact, a machine or a request that the runtime names."""


# ---- the artifact on disk


class ArtifactFault(RuntimeFault):
    """Base of everything that is wrong with the files of an artifact."""


class ArtifactMissing(ArtifactFault):
    message = "{path} is not an artifact: {reason}"
    hint = "pass the folder that `dsv3c compile` wrote; it holds manifest.json, plan.json and weights.safetensors"


class FileUnreadable(ArtifactFault):
    message = "cannot read {path}: {reason}"
    hint = "check that the file exists and that this user may read it"


class FileNotRegular(ArtifactFault):
    message = "{path} is {kind}, an artifact holds regular files and links to them"
    hint = "put the real file there, or compile again"


class PathEscapes(ArtifactFault):
    message = "manifest.json names the file {name!r}, which lies outside of the artifact folder"
    hint = "do not use this artifact: names are relative, with no `..` and no backslash; compile again"


class FileSizeWrong(ArtifactFault):
    message = "{path} has {actual} bytes, manifest.json says {expected}"
    hint = "the file was truncated or replaced; copy the artifact again or compile again"


class FileTooLarge(ArtifactFault):
    message = "{path} has {actual} bytes, more than the {limit} this format allows"
    hint = "the file is damaged or not what its name says; compile again"


class HashMismatch(ArtifactFault):
    message = "{path} has the sha256 {actual}, manifest.json says {expected}"
    hint = "the file changed after compilation; copy the artifact again or compile again"


class FilesDamaged(ArtifactFault):
    message = "{count} of the artifact's files do not match their sha256: {names}"
    hint = "copy the artifact again or compile again"


class MalformedJson(ArtifactFault):
    message = "{path} is not valid JSON: {reason}"
    hint = "the file was truncated or edited; copy the artifact again or compile again"


class ManifestInvalid(ArtifactFault):
    message = "manifest.json: {where}: {reason}"
    hint = "compile the model again with this version of dsv3c"


class PlanInvalid(ArtifactFault):
    message = "plan.json: {where}: {reason}"
    hint = "compile the model again with this version of dsv3c"


class FormatNewer(ArtifactFault):
    message = "{path} has format version {found}, this dsv3c reads up to {known}"
    hint = "update dsv3c to at least the version that compiled the artifact ({writer})"


class WeightsInvalid(ArtifactFault):
    message = "weights.safetensors: {where}: {reason}"
    hint = "the file is damaged; copy the artifact again or compile again"


class WeightsLost(ArtifactFault):
    message = "{path} could not be read while the model ran: it was made shorter, or its disk fails"
    hint = "load the model again once the file is whole; replace an artifact in use by renaming, never by writing to it"


class PlanNotOfKernels(ArtifactFault):
    message = "{path} is not the plan that the kernels of {library} were compiled for"
    hint = "one of the two was edited, or they come from different compilations; compile again"


# ---- the machine


class WrongMachine(RuntimeFault):
    message = "the artifact is compiled for {wanted}, this machine is {found}"
    hint = "compile for this machine: dsv3c compile --target {suggestion}"


class UnknownIsaLevel(RuntimeFault):
    message = "DSV3C_ISA names the kernel level {level!r}, the artifact has {known}"
    hint = "set DSV3C_ISA to one of these, or unset it to let the runtime choose"


class UnknownCapability(RuntimeFault):
    message = "DSV3C_WITHOUT names {name!r}; what kernels of the artifact ask of a device: {known}"
    hint = "set DSV3C_WITHOUT to some of these, joined by commas, or unset it"


class IsaNotSupported(RuntimeFault):
    message = "kernel level {level} needs the CPU features {missing}, which this CPU lacks; the artifact has {known}"
    hint = (
        "unset DSV3C_ISA and DSV3C_WITHOUT where they are set, or compile without --levels; x86 CPUs need AVX2, FMA "
        "and F16C at least, older ones cannot run any artifact"
    )


class LibraryInvalid(RuntimeFault):
    message = "{path} cannot be loaded as a kernel library: {reason}"
    hint = "compile the model again on or for this system"


class KernelMissing(RuntimeFault):
    message = "{path} does not export {name!r}, which plan.json calls"
    hint = "plan and kernels come from different compilations; compile again"


class KernelFailed(RuntimeFault):
    message = "{path} calls the kernel {name} with what it does not take: {reason}"
    hint = "the plan was edited, or is not of these kernels; compile again"


class Forked(RuntimeFault):
    message = "the model was loaded before this process was forked, and {device} cannot be used on both sides"
    hint = "load the model after the fork, or start processes by spawn (multiprocessing.set_start_method)"


class NoDevice(RuntimeFault):
    message = "no device module runs the target {target!r}; known: {known}"
    hint = "update dsv3c, or compile for one of the known targets"


class OnnxRuntimeMissing(RuntimeFault):
    message = "the package onnxruntime cannot be imported: {reason}"
    hint = "pip install onnxruntime, or onnxruntime-gpu for the CUDA provider"


class ProviderMissing(RuntimeFault):
    message = "this build of ONNX Runtime ({version}) has no provider {provider}; it has {known}"
    hint = "pip install onnxruntime-gpu for cuda, onnxruntime-webgpu for webgpu, or compile with --target onnx"


class GraphInvalid(RuntimeFault):
    message = "ONNX Runtime refuses {path}: {reason}"
    hint = "manifest.json names the version it was checked with (target.onnxruntime); update, or compile again"


class GraphFailed(RuntimeFault):
    message = "ONNX Runtime failed to run the graph of {entry}: {reason}"
    hint = "run `dsv3c verify`, and compile the model again if it finds nothing"


class NoCallTimes(RuntimeFault):
    message = "{what} has no kernel calls of ours that could be timed one by one"
    hint = "{instead}"


class BadPlacement(RuntimeFault):
    message = "the layers cannot be shared out: {reason}"
    hint = "{instead}"


class CannotSplit(RuntimeFault):
    message = "{path} cannot run a part of the layers: {reason}"
    hint = "compile both artifacts from the same checkpoint, with the same --max-tokens and --max-sequences"


class DeviceApiMissing(RuntimeFault):
    message = "{api} cannot be used: {reason}"
    hint = "{get}"


class NoDeviceFound(RuntimeFault):
    message = "{api} finds no device: {reason}"
    hint = "{get}"


class UnknownDevice(RuntimeFault):
    message = "no {api} device is {name!r}; there are {known}"
    hint = "--device takes a number, a part of one name, or a type; `dsv3c doctor` lists the devices"


class DeviceNotChosen(RuntimeFault):
    message = "--device is {name!r}, but artifacts for {target} leave no choice of a device"
    hint = "leave it out"


class ThreadsNotChosen(RuntimeFault):
    message = "--threads is {threads}, but artifacts for {target} run on a GPU as a whole"
    hint = "leave it out; with --gpu-layers it counts for the layers on the CPU"


class DeviceLacks(RuntimeFault):
    message = "{device} cannot run this artifact: {lacks}"
    hint = "{hint_text}"


class DeviceMemoryShort(RuntimeFault):
    message = "{device} has {available} bytes of memory, {needed} are needed: {parts}"
    hint = "lower context or max_batch when loading, take another --device, or compile with fewer bits (--quant)"


class DeviceMemoryRefused(RuntimeFault):
    message = "{device} refused {bytes} bytes for {what}"
    hint = "close other programs that use the device, lower context or max_batch, or take another --device"


class DriverFailed(RuntimeFault):
    message = "the driver of {device} refused {what}: {reason}"
    hint = "update the driver, or compile the model again; if it happens again, this is a mistake in dsv3c"


class DeviceLost(RuntimeFault):
    message = "{device} was lost while it ran {what}"
    hint = "load the model again; if it happens again, look into the system's log for the driver's reason"


class ModuleInvalid(RuntimeFault):
    message = "{path} is no SPIR-V module: {reason}"
    hint = "compile the model again"


class MemoryRefused(RuntimeFault):
    message = "the system refused {bytes} bytes for {what}"
    hint = "lower context or max_batch when loading, or free memory"


class ThreadsInvalid(RuntimeFault):
    message = "threads is {value!r}, it must be an integer from 1 to {limit}"
    hint = "leave it out for one thread on each performance core that this process may use"


# ---- requests


class RequestFault(RuntimeFault):
    """Base of everything that is wrong with one request; the model stays usable."""


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


# ---- what is saved of the caches


class SaveRefused(RequestFault):
    message = "cannot save the {what} as {path}: {reason}"
    hint = "make room on the disk, or give another path; what was there before is unchanged"


class SavedInvalid(RequestFault):
    message = "{path} is no saved {what}: {reason}"
    hint = "give a file that a {what} was saved to, or a path where nothing is yet"


class SavedDamaged(RequestFault):
    message = "{path} is a damaged {what}: {reason}"
    hint = "it was cut off or changed after it was saved; copy it again, or delete it to begin anew"


class SavedNewer(RequestFault):
    message = "{path} has the {what} format {found}, this dsv3c reads up to {known}"
    hint = "update dsv3c to at least the version that saved it ({writer})"


class SavedElsewhere(RequestFault):
    message = "{path} was saved with another artifact than {artifact}: {made}"
    hint = (
        "run it with that artifact on the same devices, or give another path to begin anew; rows of a cache are of "
        "use only to the weights that computed them"
    )


class SavedTooLong(ContextOverflow):
    message = "{path} has {tokens} tokens, the context holds {context}"
    hint = "load with a larger context (the plan allows {largest}), or give another path to begin anew"


# ---- measuring


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


# ---- text


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
