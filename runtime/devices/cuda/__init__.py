"""Artifacts for CUDA: a fat binary on NVIDIA GPUs through the driver's own library; no toolkit, no further package."""
