"""Artifacts for Vulkan: SPIR-V modules on the devices of a Vulkan 1.2 driver, through the package `vulkan`."""
