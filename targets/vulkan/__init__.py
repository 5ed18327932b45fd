"""Vulkan: kernels of dsv3c.targets.gpu as GLSL, compiled to SPIR-V by glslc when the artifact is made."""
