"""Names that tensors have in checkpoints that were saved from inside a wrapper, or without the head."""

from __future__ import annotations

from collections.abc import Mapping

from dsv3c.compiler.checkpoint.stored import StoredTensor, renamed

# What training programs wrap a model in: DistributedDataParallel, torch.compile, Lightning, FSDP, PEFT.
_WRAPPERS = ("module.", "_orig_mod.", "_forward_module.", "_fsdp_wrapped_module.", "base_model.model.")
_EMBEDDING = "embed_tokens.weight"


def settled(stored: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors by the names that Hugging Face publishes: without wrappers, and with `model.` where the inner model
    was saved by itself, whose tables and layers have nothing before their names. Raises SameTensorError."""
    names = {name: name for name in stored}
    if not names:
        return {}
    while wrapper := next((each for each in _WRAPPERS if all(name.startswith(each) for name in names.values())), None):
        names = {at: name.removeprefix(wrapper) for at, name in names.items()}
    if any(name.startswith("model.model.") for name in names.values()):  # an attribute `model` of what was trained
        names = {at: name.removeprefix("model.") for at, name in names.items()}
    if _EMBEDDING in names.values():
        names = {at: name if name.startswith("lm_head.") else f"model.{name}" for at, name in names.items()}
    return renamed((name, stored[at]) for at, name in names.items())
