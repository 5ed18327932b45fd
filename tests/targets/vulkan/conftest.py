"""The Vulkan device of this machine; tests that need it skip with the reason where there is none."""

import shutil

import pytest


@pytest.fixture(scope="session")
def glslc():
    if shutil.which("glslc") is None:
        pytest.skip("no glslc (Debian package glslc)")


@pytest.fixture(scope="session")
def device():
    """A Runner on the first Vulkan device."""
    try:
        import vulkan as vk
    except ImportError:
        pytest.skip("no package vulkan (pip install 'dsv3c[vulkan]')")
    except OSError as error:
        pytest.skip(f"no Vulkan loader (Debian package libvulkan1): {error}")
    from tests.targets.vulkan.runner import Runner

    try:
        runner = Runner()
    except (vk.VkError, vk.VkException, IndexError) as error:
        pytest.skip(f"no Vulkan device (Debian package mesa-vulkan-drivers): {type(error).__name__}")
    yield runner
    runner.close()
