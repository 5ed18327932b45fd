"""Artifacts for CUDA: cubins on NVIDIA GPUs through the driver's own library; no toolkit, no further package."""
