"""What can be wrong with an adapter that is to be merged."""

from __future__ import annotations

from dsv3c.compiler.errors import CheckpointError


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
