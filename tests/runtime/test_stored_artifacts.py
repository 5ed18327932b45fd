"""Artifacts that older versions wrote still load and compute what they did (`python -m tests.make_golden_artifact`)."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import numpy as np
import pytest

from dsv3c import runtime
from dsv3c.runtime.artifact.artifact import FORMAT_VERSION, Artifact, verify
from tests.conftest import GOLDENS

STORED = GOLDENS / "artifacts"
VERSIONS = tuple(range(1, FORMAT_VERSION + 1))
GLIBC = (2, 34)  # the C library that the stored kernels were linked with
# The kernels are stored too, so only another C library's exp can change a logit; a bfloat16 of the cache that is then
# rounded the other way moves it by this share.
LIMIT = 1e-2


def runs_here() -> str | None:
    """Why the stored kernels cannot run on this machine; None when they can."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"the stored kernels are for Linux on x86-64, this is {sys.platform} on {platform.machine()}"
    name, version = platform.libc_ver()
    if name != "glibc" or tuple(map(int, version.split("."))) < GLIBC:
        return f"the stored kernels need glibc {GLIBC[0]}.{GLIBC[1]}, this is {name or 'another C library'} {version}"
    return None


@pytest.mark.parametrize("version", VERSIONS)
def test_every_format_version_is_stored_and_whole(version: int) -> None:
    folder = STORED / f"v{version}" / "model"
    assert Artifact.open(folder).manifest.content["format_version"] == version
    assert verify(folder).extra == ()


@pytest.mark.isa("avx2", "fma", "f16c", "bmi2")
@pytest.mark.skipif(runs_here() is not None, reason=str(runs_here()))
@pytest.mark.parametrize("version", VERSIONS)
def test_a_stored_artifact_computes_what_it_did(version: int) -> None:
    folder = STORED / f"v{version}"
    expected = dict(np.load(folder / "expected.npz"))
    tokens = expected["tokens"]
    with runtime.load(folder / "model") as model:
        assert_close(model.logits(tokens), expected["logits"])
        assert_close(model.mtp_logits(model.hidden(tokens[:-1]), tokens[1:]), expected["mtp"])
        count = expected["greedy"].size
        found = model.generate(tokens, temperature=0, max_new_tokens=count, ignore_eos=True).token_ids
    assert found == tuple(expected["greedy"])


def test_a_format_version_comes_with_a_version_of_dsv3c_to_update_to() -> None:
    """An older runtime refuses a newer artifact with the version that wrote it."""
    writers = [Artifact.open(STORED / f"v{version}" / "model").manifest.dsv3c_version for version in VERSIONS]
    numbers = [tuple(map(int, writer.split("."))) for writer in writers]
    assert numbers == sorted(set(numbers))


@pytest.mark.parametrize("version", VERSIONS)
def test_caches_have_their_widths_whatever_the_version(version: int) -> None:
    plan = Artifact.open(STORED / f"v{version}" / "model").plan
    found = [(cache.name, cache.layer, cache.dtype, cache.width) for cache in plan.caches]
    assert found == [(f"cache.{layer}", layer, "bfloat16", 40) for layer in range(4)]
    assert plan.slot_bytes == 4 * 40 * 2


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= LIMIT * np.abs(expected).max()


def test_no_stored_artifact_is_of_a_version_to_come() -> None:
    assert sorted(path.name for path in Path(STORED).iterdir()) == sorted(f"v{version}" for version in VERSIONS)
