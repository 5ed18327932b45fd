"""The Metal target on a real GPU: every kernel, then the bundled model. Skipped off macOS; see run_on_mac.sh."""

import json
import subprocess

import numpy as np
import pytest

from dsv3c import runtime
from dsv3c.compiler.driver import pipeline
from dsv3c.compiler.options import CompileOptions
from dsv3c.runtime.devices.metal.gpu import choose
from dsv3c.targets.link.platforms import Platform
from dsv3c.targets.metal.library import LIBRARY
from tests.conformance.runs import relative_error
from tests.conftest import BUNDLED_MODEL
from tests.device.metal import Runner
from tests.targets.gpu.op_tests import GpuOpTests

pytestmark = pytest.mark.needs("macos")


class TestMetalGpu(GpuOpTests):
    @pytest.fixture(scope="class")
    def runner(self, tmp_path_factory):
        return Runner(choose(None), tmp_path_factory.mktemp("libraries")).run


@pytest.fixture(scope="module", params=["Apple's linker", pytest.param("ziglang", marks=pytest.mark.needs("ziglang"))])
def artifact(request, tmp_path_factory):
    """Linked as on a Mac, and as on all other systems."""
    folder = tmp_path_factory.mktemp("metal") / "float32"
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "ziglang":
            patch.setattr(Platform, "is_this", False)
        pipeline.compile_checkpoint(BUNDLED_MODEL, folder, CompileOptions(target="metal", quant="float32"))
    return folder


@pytest.fixture(scope="module")
def model(artifact):
    with runtime.load(artifact) as loaded:
        yield loaded


def test_the_library_is_signed(artifact):
    done = subprocess.run(["codesign", "--verify", "--verbose", artifact / "kernels" / LIBRARY], check=False)
    assert done.returncode == 0


def test_float32_gives_the_reference_logits(model):
    reference = np.load(BUNDLED_MODEL / "reference_logits.npz")
    assert relative_error(model.logits(reference["ids"])[reference["rows"]], reference["logits"]) <= 1e-4


def test_float32_writes_the_reference_tokens(model):
    reference = json.loads((BUNDLED_MODEL / "reference_greedy.json").read_text(encoding="utf-8"))
    wanted = reference["greedy_ids"]
    found = model.generate(reference["prompt"], temperature=0, max_new_tokens=len(wanted))
    assert list(found.token_ids) == wanted
