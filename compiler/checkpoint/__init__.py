"""Reading a Hugging Face checkpoint, or a GGUF file: config, tensors and their decoding, checked against each other."""

from dsv3c.compiler.checkpoint.config import ModelConfig
from dsv3c.compiler.checkpoint.origin import model_name
from dsv3c.compiler.checkpoint.reader import Checkpoint
from dsv3c.compiler.checkpoint.rope import RopeScaling

__all__ = ["Checkpoint", "ModelConfig", "RopeScaling", "model_name"]
