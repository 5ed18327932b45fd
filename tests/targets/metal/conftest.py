"""Artifacts for Metal, and a device that runs them on this CPU: the shim behind TVM's own interfaces."""

import pytest

from dsv3c.runtime.devices.metal import device as metal
from tests.targets.metal import loader

_MetalDevice = metal.MetalDevice


@pytest.fixture(scope="session")
def mac_linker():
    """For tests of what is linked for Macs."""


@pytest.fixture(scope="session")
def artifacts(mac_linker, bundled_artifact):
    """The bundled model's artifact for Metal in a weight format."""
    return lambda quant: bundled_artifact(quant, "metal")


@pytest.fixture(scope="session")
def open_cpu(gpp, tmp_path_factory):
    """For MetalDevice: a Gpu whose memory is that of this CPU."""
    folder = tmp_path_factory.mktemp("libraries")
    return lambda wanted: loader.CpuGpu(folder)


@pytest.fixture(scope="session")
def modules(tmp_path_factory, open_cpu):
    """The modules that devices have loaded, in order; devices run on this CPU from here on."""
    loaded = loader.install(tmp_path_factory.mktemp("modules"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metal, "MetalDevice", lambda *given: _MetalDevice(*given, open_gpu=open_cpu))
        yield loaded
