"""The Vulkan device of this machine; tests that need it skip with the reason where there is none."""

import pytest

from dsv3c.compiler import pipeline
from dsv3c.compiler.options import CompileOptions
from dsv3c.runtime.errors import RuntimeFault
from dsv3c.runtime.vulkan.instance import Instance
from dsv3c.targets.vulkan.spirv import NoShaderCompiler, find_compiler
from tests.conftest import BUNDLED_MODEL


@pytest.fixture(scope="session")
def glslc():
    """Whatever compiles shaders here."""
    try:
        return find_compiler()
    except NoShaderCompiler as error:
        pytest.skip(str(error).splitlines()[0])


@pytest.fixture(scope="session")
def vulkan():
    """The name of the device that is taken for want of a choice."""
    try:
        instance = Instance()
    except RuntimeFault as fault:
        pytest.skip(str(fault).splitlines()[0])
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
def artifacts(glslc, tmp_path_factory):
    """The bundled model's artifact for Vulkan in a weight format; each format is compiled once a session."""
    folder = tmp_path_factory.mktemp("vulkan")

    def artifact(quant):
        if not (folder / quant).exists():
            options = CompileOptions(target="vulkan", quant=quant)
            pipeline.compile_checkpoint(BUNDLED_MODEL, folder / quant, options)
        return folder / quant

    return artifact
