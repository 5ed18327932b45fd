"""The Vulkan device and shader compilers of this machine; tests are left out where one that they use is not there."""

import pytest

from dsv3c.runtime.devices.vulkan.instance import Instance
from dsv3c.targets.vulkan.spirv import find_compiler, find_dot_compiler, find_matrix_compiler


@pytest.fixture(scope="session")
def shader_compiler():
    """Whatever compiles shaders here."""
    return find_compiler()


@pytest.fixture(scope="session")
def matrix_compiler():
    """A program that knows cooperative matrices."""
    return find_matrix_compiler()


@pytest.fixture(scope="session")
def dots_compiler():
    """A program that knows integer dot products."""
    return find_dot_compiler()


@pytest.fixture(scope="session")
def vulkan():
    """The name of the device that is taken for want of a choice."""
    instance = Instance()
    name = instance.choose(None).name
    instance.close()
    return name


@pytest.fixture(scope="session")
def device(vulkan):
    """A Runner on the first Vulkan device."""
    from tests.targets.vulkan.runner import Runner

    runner = Runner()
    yield runner
    runner.close()


@pytest.fixture(scope="session")
def artifacts(shader_compiler, bundled_artifact):
    """The bundled model's artifact for Vulkan in a weight format."""
    return lambda quant: bundled_artifact(quant, "vulkan")
