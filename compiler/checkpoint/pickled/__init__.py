"""Weights as torch.save writes them, read without torch; nothing is constructed but tensors and containers."""

from dsv3c.compiler.checkpoint.pickled.torch_file import TorchFile

__all__ = ["TorchFile"]
