"""Adapters of PEFT's LoRA, merged into the tensors of a checkpoint when these are read."""

from dsv3c.compiler.checkpoint.lora.adapter import Adapter
from dsv3c.compiler.checkpoint.lora.merge import Merged, merged

__all__ = ["Adapter", "Merged", "merged"]
