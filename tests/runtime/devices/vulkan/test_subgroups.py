"""What is asked of the package `vulkan`, some of whose names are None."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from dsv3c.runtime.devices.vulkan import subgroups
from dsv3c.runtime.devices.vulkan.subgroups import Stage


@pytest.fixture(scope="module")
def vk() -> Any:
    import vulkan

    return vulkan


@pytest.mark.needs("vulkan_package")
def test_every_constant_that_is_used_is_known_to_the_package(vk: Any) -> None:
    texts = [path.read_text(encoding="utf-8") for path in Path(subgroups.__file__).parent.glob("*.py")]
    names = {name for text in texts for name in re.findall(r"\bvk\.(VK_\w+)", text)}
    assert len(names) > 20
    assert [name for name in sorted(names) if getattr(vk, name, None) is None] == []


@pytest.mark.needs("vulkan_package")
def test_kernels_with_constants_ask_for_full_subgroups(vk: Any) -> None:
    module = vk.ffi.NULL
    stage, plain = Stage(vk, module, {0: 8, 3: 16}), Stage(vk, module, {})
    full = vk.lib.VK_PIPELINE_SHADER_STAGE_CREATE_REQUIRE_FULL_SUBGROUPS_BIT
    assert stage.info.flags == full != 0 and plain.info.flags == 0
    entries = stage.info.pSpecializationInfo.pMapEntries
    assert [(entries[i].constantID, entries[i].offset, entries[i].size) for i in range(2)] == [(0, 0, 4), (3, 4, 4)]
    assert list(vk.ffi.cast("uint32_t*", stage.info.pSpecializationInfo.pData)[0:2]) == [8, 16]
