"""Every mistake the compiler can report: one small class a mistake, as in dsv3c.runtime.errors."""

from __future__ import annotations

from dsv3c.runtime.errors import Dsv3cError as Dsv3cError  # the base of all

# --- IR and passes ----------------------------------------------------------------------------------------------------


class CompilerFault(Dsv3cError):
    """Base of what the compiler alone can be at fault for, not what it was given."""


def is_fault(error: Exception) -> bool:
    """Whether it is the compiler's own, neither of what it was given nor of the machine."""
    return isinstance(error, CompilerFault) or not isinstance(error, (Dsv3cError, MemoryError, OSError))


class IrSyntaxError(Dsv3cError):
    message = "not an IR graph: {reason}\n  in: {line}"
    reason: str
    line: str


class IrLineError(IrSyntaxError):
    """The same, in a text of many lines: `number` is the line's, from 1 on."""

    message = "not an IR graph: {reason}\n  in line {number}: {line}"
    number: int


class BadDumpError(Dsv3cError):
    message = "{path} is not the dump of a graph: {reason}"
    hint = "dsv3c compile CHECKPOINT --dump-to DIR writes dumps"


class TypeRuleError(CompilerFault):
    """An operation was applied to operands that its typing rule refuses."""

    message = "{op}({operands}): {reason}"


class VerifyError(CompilerFault):
    message = "the graph is wrong {where}: {reason}\n{context}"
    hint = "this is a fault of the compiler; run again with DSV3C_DEBUG=3 and --dump-to to see each graph"
    where: str
    reason: str
    context: str


class WrongGraphError(Dsv3cError):
    message = "the graph of {path} is wrong: {reason}\n{context}"
    hint = "mend the text; --no-verify takes it as it is"


class NotEvaluableError(Dsv3cError):
    message = "the graph cannot be evaluated: {reason}"


class OutputsDifferError(Dsv3cError):
    message = "the graphs before and after differ by more than {tolerance:g} of the largest value in {names}"
    hint = "quantise, and pack for integer products, round: they need a larger --tolerance"


class UnknownOpError(Dsv3cError):
    message = "no operation is called {op!r}"


# --- Checkpoints ------------------------------------------------------------------------------------------------------


class CheckpointError(Dsv3cError):
    """Base of all faults of the files of a checkpoint."""


class UnreadableFileError(CheckpointError):
    message = "cannot read {path}: {reason}"


class NoFolderError(UnreadableFileError):
    hint = "give the folder of a downloaded Hugging Face checkpoint, with config.json and *.safetensors, or a GGUF file"


class PointerFileError(CheckpointError):
    message = "{path} is not the file itself but a pointer of git-lfs to it"
    hint = "run `git lfs pull` in that folder"


class NoWeightsError(CheckpointError):
    message = "{path} holds neither model.safetensors nor model.safetensors.index.json, nor weights of torch.save"
    hint = "give the folder of a Hugging Face checkpoint with its weights"


class NoIndexError(NoWeightsError):
    message = "{path} holds {found}, but not {missing}"
    hint = "download what is missing; a model in one file has it as model.safetensors"


class CompiledError(NoWeightsError):
    message = "{path} is an artifact: it is compiled already"
    hint = "run it with `dsv3c generate`; to compile for another target or format give the checkpoint that it came from"


class GgufError(NoWeightsError):
    message = "{path} holds {found}, but no safetensors"
    hint = "give the GGUF file itself: dsv3c compile FOLDER/MODEL.gguf, of a split one any part"


class TorchFileError(CheckpointError):
    message = "{path} is not a file of weights as torch.save writes them: {reason}"
    hint = "download it again, or write the model's safetensors with save_pretrained of transformers"


class PickledNameError(CheckpointError):
    message = "{path} is a pickle that asks for {name}, which is neither a tensor nor a container"
    hint = "nothing of it was run; take the model's safetensors, or write the state_dict alone with torch.save"


class ManyFilesError(NoWeightsError):
    message = "{path} holds {found}, and nothing says which of them are the weights"
    hint = "leave the one file of weights there, or the index pytorch_model.bin.index.json with its files"


class ChangedFileError(CheckpointError):
    message = "{path} had {expected} bytes when it was opened and has {found} now"
    hint = "do not write to a checkpoint while it is read"


class JsonError(CheckpointError):
    message = "{path} is not valid JSON: {reason}"


class MissingConfigKeyError(CheckpointError):
    message = "{path} has no value for {key!r}"


class ConfigValueError(CheckpointError):
    message = "{path}: {key} is {value}, expected {expected}"


class ConfigConflictError(CheckpointError):
    message = "{path}: {reason}"


class UnsupportedConfigError(CheckpointError):
    message = "{path}: {key} = {value} is not supported: {reason}"


class UnknownModelTypeError(CheckpointError):
    message = "{path}: model_type {model_type} is not one this compiler knows"
    hint = "known: {known}"


class SafetensorsError(CheckpointError):
    message = "{path} is not a valid safetensors file: {reason}"


class GgufFormatError(CheckpointError):
    message = "{path} is not a GGUF file that can be read: {reason}"
    hint = "download it again; another file of the model may do, such as Q8_0 or BF16"


class GgufModelError(CheckpointError):
    message = "{path} has a model of architecture {architecture}, which this compiler does not know"
    hint = "known: {known}"


class GgufSplitError(CheckpointError):
    message = "{path} is one part of a split model: {reason}"
    hint = "put all parts into one folder, under the names that they were published with"


class GgufMissingError(Dsv3cError):
    message = "weights in {format} are decoded by the package gguf, which is not installed"
    hint = "pip install 'dsv3c[gguf]'"


class IndexFormatError(CheckpointError):
    message = "{path}: {reason}"


class PathEscapeError(CheckpointError):
    message = "the checkpoint {folder} may not use the file {name}: it does not lie in that folder"
    hint = "if you trust the file, put it into the folder, or a link to it, and name it so in the index"


class MissingShardError(CheckpointError):
    message = "{path} names the shard {shard}, which does not exist"
    hint = "the download is incomplete"


class ShardContentError(CheckpointError):
    message = "the index and {path} disagree about the tensor {tensor}: {reason}"


class DuplicateTensorError(CheckpointError):
    message = "the tensor {tensor} is in two files: {first} and {second}"


class SameTensorError(CheckpointError):
    message = "{path} has {first} and {second}, which are names of the same tensor"


class MissingTensorError(CheckpointError):
    message = "{path} lacks tensors that its config.json asks for, at least {count}: {names}"


class UnexpectedTensorError(CheckpointError):
    message = "{path} has {count} tensors that its config.json leaves no place for: {names}"


class TensorShapeError(CheckpointError):
    message = "{path}: {tensor!r} has shape {found}, expected {expected}"


class TensorDtypeError(CheckpointError):
    message = "{path}: {tensor!r} is stored as {found}, expected {expected}"


class MissingScaleError(CheckpointError):
    message = "{path}: {tensor!r} is stored as {found} but {reason}"


class UnknownQuantisationError(CheckpointError):
    message = "{path}: quantization_config has the quant_method {method}, which cannot be read"
    hint = "known: {known}; or give the checkpoint that it was made from"


class LeftOutError(CheckpointError):
    message = "{path}: {tensor!r} is quantised, but quantization_config leaves out {module}: {entry}"
    hint = "config.json and the weights are not of the same checkpoint: download both again"


class GroupIndexError(CheckpointError):
    message = "{path}: {tensor!r} puts column {column} into group {found}, expected one from 0 to {highest}"


class ZeroPointError(CheckpointError):
    message = "{path}: {tensor!r} is {found} at {position}, expected a number from 0 to {highest}"
    hint = "programs disagree on how such a point is read; quantise again, without it (GPTQ: checkpoint_format gptq_v2)"


class StrayScaleError(CheckpointError):
    message = "{path}: {tensor!r} is a scale, but {weight!r} is stored as {found}"
    hint = "a copy whose weights were decoded has no use for scales: leave them out, in the index too"


class NonFiniteWeightError(CheckpointError):
    message = "{path}: {tensor!r} is {found} at {position}, expected a finite number"


class WeightRangeError(CheckpointError):
    message = "{tensor!r} is {found:.5g} at {position}, too large for {format}: it would become infinity"
    hint = "choose a wider format, such as {wider}: --quant, --head-quant for the head, --embed-quant for the embedding"


class ScaleValueError(CheckpointError):
    message = "{path}: the scale {tensor!r} is {found} at {position}, expected a finite number above 0"


class UnknownTensorError(CheckpointError):
    message = "the checkpoint has no tensor called {tensor!r}"


class AdapterError(CheckpointError):
    """Base of all faults of an adapter that is to be merged."""


class NoAdapterError(AdapterError):
    message = "{path} is no adapter: {reason}"
    hint = "give a folder as PEFT's save_pretrained writes it, with adapter_config.json and adapter_model.safetensors"


class PickledAdapterError(AdapterError):
    message = "{path} holds adapter_model.bin alone: pickled weights cannot be read, they can run code"
    hint = "load it with PEFT and write it again: save_pretrained(FOLDER, safe_serialization=True)"


class AdapterUnsupportedError(AdapterError):
    message = "{path} has {what}, which cannot be merged: {reason}"
    hint = (
        "supported are LoRA of linear layers, experts, embedding and head, with patterns of ranks and alphas, rslora "
        "and modules_to_save; for another one compile what PEFT's merge_and_unload and save_pretrained write"
    )


class EmptyAdapterError(AdapterError):
    message = "{path} changes nothing: it has no tensors"
    hint = "save the adapter again, after training it"


class AdapterTargetError(AdapterError):
    message = "{path} changes {name}, and the model has no such {kind}"
    hint = "the nearest are {nearest}; is it an adapter of another model?"


class AdapterTensorError(AdapterError):
    message = "{path} has {count} tensors that are neither factors of LoRA nor weights: {names}"
    hint = "save the adapter again with PEFT"


class AdapterPairError(AdapterError):
    message = "{path} has {tensor} without {missing}"
    hint = "the file is incomplete: save or download the adapter again"


class AdapterRankError(AdapterError):
    message = "{path}: {tensor} is of rank {found}, adapter_config.json says {expected}"
    hint = "r and rank_pattern decide on the scale: the config and the weights must be of the same adapter"


class TokenizerVocabularyError(CheckpointError):
    message = "{path}: {reason}"
    hint = "the tokenizer and the weights must be of the same model"


class TokenizerFormatError(CheckpointError):
    message = "{path} is not a tokenizer: {reason}"
    hint = "copy the file from where the checkpoint comes from again"


class TiktokenError(CheckpointError):
    message = "{path} is not a tiktoken vocabulary: {reason}"
    hint = "copy the file from where the checkpoint comes from again"


class UnknownVocabularyError(CheckpointError):
    message = "{path} cannot become a tokenizer.json: {reason}"


class BadOptionError(Dsv3cError):
    message = "{option} is {value!r}; expected {expected}"


class FormatRefusedError(Dsv3cError):
    message = "the target {target} has no kernels for weights in {format}"
    hint = "it has {known}; {format} is there for {others}. A checkpoint in any format is decoded and rounded again"


class PlanError(Dsv3cError):
    """Base of all faults of a quant-plan.json."""

    hint = "dsv3c plan CHECKPOINT --quant auto --target-bpw 4.25 --write-plan FILE writes one that is right"


class PlanInvalidError(PlanError):
    message = "{path} is no plan of formats: {reason}"


class PlanNameError(PlanError):
    message = "{path} names {name}, which is no weight of this model"
    hint = "the nearest are {nearest}; a pattern such as layers.*.experts.* names several"


class PlanFormatError(PlanError):
    message = "{path} gives {name} the format {format}, which is none"
    hint = "use {known}"


class PlanFormatRefusedError(PlanError):
    message = "{path} gives {name} the format {format}, for which the target {target} has no kernels"
    hint = "it has {known}"


class BudgetError(Dsv3cError):
    message = "no choice of formats keeps {what} within {budget}: the least possible is {least}"
    hint = "raise {option}{otherwise}"


class OutputExistsError(Dsv3cError):
    message = "{path} exists already"
    hint = "choose another folder with -o, or pass --overwrite to replace it"


class InterruptedRunError(Dsv3cError):
    message = "an interrupted run into {path} was of other options: {differences}"
    hint = "compile as then to go on with it, choose another folder with -o, or pass --restart, which discards {folder}"


class OutputNameError(Dsv3cError):
    message = "{path} cannot be the path of an artifact: {reason}"
    hint = "choose another folder with -o; libraries that load artifacts do not open such names"


class UnwritableOutputError(Dsv3cError):
    message = "cannot write to {path}: {reason}"
    hint = "choose another place: a folder that this user may write to, and a name that its file system takes"


class NoRoomError(Dsv3cError):
    message = "cannot write {path}: {reason}"
    hint = "make room there, or raise the limit of file sizes (ulimit -f); TMPDIR names the disk of temporary files"


class ToolHangsError(Dsv3cError):
    message = "a program has not ended after {seconds} s: {command}"
    hint = "try that command by hand; CC names another C compiler"


class NotAnArtifactError(Dsv3cError):
    message = "{path} is not an artifact, and is not overwritten: {reason}"
    hint = "choose another folder with -o, or move away what is there"


class WrittenWrongError(CompilerFault):
    message = "what was written for {target} does not load: {reason}"
    hint = "this is a mistake in dsv3c, not in the checkpoint: please report it with this message; nothing was kept"


class ForeignFileError(Dsv3cError):
    message = "{path} is there already, is not {kind}, and is not overwritten"
    hint = "choose another place, or move it away"


class UnknownPassError(Dsv3cError):
    message = "no pass is called {name!r}; the passes are {known}"


class BadPassError(Dsv3cError):
    message = "{text!r} is no pass: {reason}"


class UnknownFormError(Dsv3cError):
    message = "the target {target} has no form called {name!r}; its forms are {known}"


class NotAViewError(CompilerFault):
    message = "{value!r} cannot be read in place"
    hint = "this is a fault of the compiler: a pass left a reordering of activations where kernels need a view"


class NotTunableError(Dsv3cError):
    message = "{path} cannot be tuned: {reason}"
    hint = "tune its checkpoint instead: dsv3c tune CHECKPOINT"


class TunerMissingError(Dsv3cError):
    message = "the search needs the package optuna, which is not installed"
    hint = "pip install 'dsv3c[tune]'"


class NoLocalTargetError(Dsv3cError):
    message = "nothing can be compiled for this machine's CPU, to compare with: {reason}"
    hint = "compile elsewhere, and compare artifacts that this machine runs"


class SweepFileError(Dsv3cError):
    message = "{path} is no table of `dsv3c eval --sweep`: {reason}"
    hint = "name another file with -o; nothing is overwritten that is not such a table"


class SweepDiffersError(Dsv3cError):
    message = "{path} has figures of {what}"
    hint = "name another file with -o, or remove it"


class StatisticsError(Dsv3cError):
    message = "what {tokens} tokens of calibration say of a matrix is not finite (its {matrix})"
    hint = "calibrate with another text, or choose --method rtn; if that fails too, the checkpoint's weights overflow"


# --- Calibration ------------------------------------------------------------------------------------------------------


class CalibrationError(Dsv3cError):
    """Base of all faults of a text for calibration."""


class EmptyCalibrationError(CalibrationError):
    message = "{path} is empty: there is nothing to calibrate on"
    hint = "give a text of the kind that the model is to read and write, some pages long"


class BinaryCalibrationError(CalibrationError):
    message = "{path} is no text: byte {at} is not UTF-8, or a zero"
    hint = 'give a text in UTF-8, or *.jsonl with {{"text": …}} or {{"messages": […]}} in each line'


class ShortCalibrationError(CalibrationError):
    message = "{path} has {found} tokens in sequences of at least two; calibration needs {least} or more"
    hint = "give a longer text; some ten thousand tokens are good for mixtures of experts"


class CalibrationLineError(CalibrationError):
    message = "{path}, line {number}: {reason}"
    hint = 'each line of *.jsonl is an object with a "text", or with "messages" for the chat template'


class NoTokenizerError(CalibrationError):
    message = "{path} has no tokenizer.json, without which a text cannot be calibrated on"
    hint = "put one there, or compile with --method rtn or search, which take no text"
