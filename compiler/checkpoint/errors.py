"""What can be wrong with the files of a checkpoint. Those of a hub and of adapters stand beside what reads these."""

from __future__ import annotations

from dsv3c.compiler.errors import CheckpointError, Dsv3cError


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


class TokenizerVocabularyError(CheckpointError):
    message = "{path}: {reason}"
    hint = "the tokenizer and the weights must be of the same model"


class TiktokenError(CheckpointError):
    message = "{path} is not a tiktoken vocabulary: {reason}"
    hint = "copy the file from where the checkpoint comes from again"


class UnknownVocabularyError(CheckpointError):
    message = "{path} cannot become a tokenizer.json: {reason}"
