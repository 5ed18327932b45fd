"""Reading a Hugging Face checkpoint: its config, its tensors and their decoding, all checked against each other."""

from dsv3c.compiler.checkpoint.config import ModelConfig, load_config
from dsv3c.compiler.checkpoint.files import model_name
from dsv3c.compiler.checkpoint.reader import Checkpoint
from dsv3c.compiler.checkpoint.rope import RopeScaling

__all__ = ["Checkpoint", "ModelConfig", "RopeScaling", "load_config", "model_name"]
