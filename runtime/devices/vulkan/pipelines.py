"""SPIR-V modules as compute pipelines, and the driver's cache of them in a file.

The cache lies beside the artifact, else in the user's cache folder. Its name has the driver's own identifier and
version, and it begins with a hash of the rest: a file that is damaged, or from elsewhere, is passed over.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dsv3c.runtime.artifact.artifact import Artifact
from dsv3c.runtime.artifact.dispatches import Form
from dsv3c.runtime.devices.vulkan.binding import check, guarded
from dsv3c.runtime.devices.vulkan.gpu import Gpu
from dsv3c.runtime.devices.vulkan.subgroups import Stage
from dsv3c.runtime.errors import KernelMissing, ModuleInvalid

_MAGIC = (0x07230203).to_bytes(4, "little")  # of SPIR-V
_CACHE_LIMIT = 1 << 30


class Pipelines:
    """A pipeline for each function, and the layouts by number of operands: bindings 0, 1, … of set 0.

    forms: each with its number of operands. Raises KernelMissing, ModuleInvalid, HashMismatch, DeviceMemoryRefused.
    """

    def __init__(self, gpu: Gpu, artifact: Artifact, forms: Iterable[tuple[Form, int]]) -> None:
        self._gpu = gpu
        self.set_layouts: dict[int, Any] = {}
        self.layouts: dict[int, Any] = {}
        self.of: dict[str, Any] = {}
        self._cache = _CacheFile(gpu, artifact)
        try:
            for form, operands in forms:
                if operands not in self.layouts:
                    self._add_layout(operands)
                code = _module(artifact, form.function)
                self.of[form.function] = self._pipeline(code, form, self.layouts[operands])
        except BaseException:
            self.close()
            raise
        self._cache.save()

    def close(self) -> None:
        vk, device = self._gpu.vk, self._gpu.handle
        self._cache.close()
        for pipeline in self.of.values():
            vk.vkDestroyPipeline(device, pipeline, None)
        for layout in self.layouts.values():
            vk.vkDestroyPipelineLayout(device, layout, None)
        for layout in self.set_layouts.values():
            vk.vkDestroyDescriptorSetLayout(device, layout, None)

    def _add_layout(self, operands: int) -> None:
        vk, device = self._gpu.vk, self._gpu.handle
        bindings = [
            vk.VkDescriptorSetLayoutBinding(
                binding=i,
                descriptorType=vk.VK_DESCRIPTOR_TYPE_STORAGE_BUFFER,
                descriptorCount=1,
                stageFlags=vk.VK_SHADER_STAGE_COMPUTE_BIT,
            )
            for i in range(operands)
        ]
        wanted = vk.VkDescriptorSetLayoutCreateInfo(pBindings=bindings)
        self.set_layouts[operands] = vk.vkCreateDescriptorSetLayout(device, wanted, None)
        layout = vk.VkPipelineLayoutCreateInfo(pSetLayouts=[self.set_layouts[operands]])
        self.layouts[operands] = vk.vkCreatePipelineLayout(device, layout, None)

    def _pipeline(self, code: bytes, form: Form, layout: Any) -> Any:
        vk, device = self._gpu.vk, self._gpu.handle
        with guarded(vk, self._gpu.name, f"the kernel {form.function}", len(code)):
            module = vk.vkCreateShaderModule(device, vk.VkShaderModuleCreateInfo(codeSize=len(code), pCode=code), None)
            constants = {i: value for name in form.requires for i, value in self._gpu.capabilities[name].items()}
            stage = Stage(vk, module, constants)
            wanted = vk.VkComputePipelineCreateInfo(stage=stage.info, layout=layout)
            try:
                return vk.vkCreateComputePipelines(device, self._cache.handle, 1, [wanted], None)[0]
            finally:
                vk.vkDestroyShaderModule(device, module, None)


def _module(artifact: Artifact, function: str) -> bytes:
    name = f"kernels/{function}.spv"
    if name not in artifact.manifest.files:
        raise KernelMissing(path=artifact.folder, name=function)
    code = artifact.checked_bytes(name)
    if len(code) % 4 or not code.startswith(_MAGIC):
        reason = "it does not begin with SPIR-V's magic number, or ends within a word"
        raise ModuleInvalid(path=artifact.folder / name, reason=reason)
    return code


class _CacheFile:
    """The driver's pipeline cache, with what the file had in it."""

    def __init__(self, gpu: Gpu, artifact: Artifact) -> None:
        self._gpu = gpu
        properties = gpu.physical.properties
        driver = f"{bytes(properties.pipelineCacheUUID).hex()}-{properties.driverVersion:x}"
        kernels = hashlib.sha256(artifact.manifest.files["plan.json"].sha256.encode()).hexdigest()[:16]
        beside = artifact.folder.parent / f".{artifact.folder.name}.pipelines"
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dsv3c" / "pipelines"
        self._paths = [beside / f"{driver}.bin", home / f"{kernels}-{driver}.bin"]
        self._loaded = next((data for path in self._paths if (data := _read(path)) is not None), b"")
        vk = gpu.vk
        content = vk.ffi.from_buffer(self._loaded) if self._loaded else None
        wanted = vk.VkPipelineCacheCreateInfo(initialDataSize=len(self._loaded), pInitialData=content)
        self.handle = vk.vkCreatePipelineCache(gpu.handle, wanted, None)

    def save(self) -> None:
        """Write what the driver has gathered, if that is more than was read. A cache that cannot be kept costs time
        at the next start and nothing else."""
        data = self._content()
        if not data or data == self._loaded:
            return
        for path in self._paths:
            try:
                _write(path, data)
                return
            except OSError:
                continue

    def close(self) -> None:
        self._gpu.vk.vkDestroyPipelineCache(self._gpu.handle, self.handle, None)

    def _content(self) -> bytes:
        vk, device = self._gpu.vk, self._gpu.handle
        size = vk.ffi.new("size_t*")
        check(vk, vk.lib.vkGetPipelineCacheData(device, self.handle, size, vk.ffi.NULL))
        data = vk.ffi.new("char[]", max(size[0], 1))
        check(vk, vk.lib.vkGetPipelineCacheData(device, self.handle, size, data))
        return bytes(vk.ffi.buffer(data, size[0]))


def _read(path: Path) -> bytes | None:
    """The content behind a hash that fits, else None."""
    try:
        if path.stat().st_size > _CACHE_LIMIT:
            return None
        data = path.read_bytes()
    except OSError:
        return None
    content = data[32:]
    return content if content and hashlib.sha256(content).digest() == data[:32] else None


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all: another process may read at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(content).digest() + content)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
