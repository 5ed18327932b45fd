"""Attention over what an indexer chooses, from a checkpoint to the steps of both runtimes: two layers that choose, and
one that takes the choice of the second, each with a cache of latents, and of keys where it chooses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dsv3c import runtime
from dsv3c.compiler.checkpoint import Checkpoint
from dsv3c.compiler.driver.pipeline import compile_checkpoint
from dsv3c.compiler.options import CompileOptions
from dsv3c.runtime.engine.session import Request
from dsv3c.targets.x86.levels import LEVELS
from tests.checkpoints import tiny_config, write_checkpoint
from tests.conformance.runs import Batch, GraphStepper, traced
from tests.targets.cpu.native.binding import Model

LEVEL = LEVELS[0]
CONFIG = tiny_config(
    "glm_moe_dsa", vocab_size=48, mlp_layer_types=["dense"] * 3, max_position_embeddings=128, index_n_heads=17
)
IDS = np.random.default_rng(1).integers(0, 48, 60).astype(np.int32)
pytestmark = pytest.mark.isa(*LEVEL.requires)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    write_checkpoint(folder, CONFIG)
    return folder


@pytest.fixture(scope="module")
def folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact for x86 with caches in float32, with `native`."""
    out = tmp_path_factory.mktemp("sparse") / "artifact"
    target = f"x86:levels={LEVEL.name}"
    compile_checkpoint(checkpoint, out, CompileOptions(quant="float32", target=target, emit=("native",)))
    return out


def computed(checkpoint: Path) -> np.ndarray:
    """The logits of all tokens, by numpy."""
    source = Checkpoint.open(checkpoint)
    span = np.arange(IDS.size, dtype=np.int32)
    pages = np.arange(4, dtype=np.int32)[None]
    return GraphStepper(traced(source), source.read).step(Batch(IDS, span, np.zeros_like(span), pages))


def test_the_runtime_computes_what_numpy_does(checkpoint: Path, folder: Path) -> None:
    expected = computed(checkpoint)
    with runtime.load(folder, threads=1) as model:
        assert [cache.name for cache in model.artifact.plan.caches] == [
            "cache.0",
            "cache.0.index",
            "cache.1",
            "cache.1.index",
            "cache.2",
        ]
        assert not {"prefill", "short_prefill"} & model.artifact.plan.entries.keys(), "what is chosen is never rebuilt"
        found = model.logits(IDS)
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_short_contexts_are_rebuilt_and_longer_ones_find_their_keys(tmp_path: Path) -> None:
    """Of a prompt that is chosen whole, steps of many and of one have the dense forms; what comes behind it chooses by
    the keys that they left. Both runtimes take the same entries."""
    (tmp_path / "checkpoint").mkdir()
    write_checkpoint(tmp_path / "checkpoint", {**CONFIG, "index_topk": 40})
    out, target = tmp_path / "artifact", f"x86:levels={LEVEL.name}"
    compile_checkpoint(tmp_path / "checkpoint", out, CompileOptions(quant="float32", target=target, emit=("native",)))
    expected, parts = computed(tmp_path / "checkpoint"), (IDS[:37], IDS[37:38], IDS[38:58], IDS[58:])
    ran = []
    with runtime.load(out, threads=1) as model:
        entries, device = model.artifact.plan.entries, model.session.device
        assert not any(entry.cuts for entry in entries.values()), "layers that share a choice stay together"
        run, device.run = device.run, lambda entry: (ran.append(entry), run(entry))
        sequence = model.new_sequence()
        found = [model.session.run([Request(sequence, part, "all")])[0] for part in parts]
    assert ran == ["short_prefill", "short_decode", "decode", "decode"]
    assert np.abs(np.concatenate(found) - expected).max() <= 1e-4 * np.abs(expected).max()
    native = Model(out, max_batch=1, threads=1)
    handle = native.sequence()
    for part, rows in zip(parts, found, strict=True):
        np.testing.assert_array_equal(native.run((handle, part, "all"))[0], rows)
    native.close()


def test_a_step_of_many_gives_the_bits_of_steps_of_one_with_any_threads(folder: Path) -> None:
    with runtime.load(folder, threads=1) as model:
        whole = model.logits(IDS)
    with runtime.load(folder, threads=3, max_batch=2) as model:
        sequence = model.new_sequence()
        for at in range(IDS.size):
            (found,) = model.session.run([Request(sequence, IDS[at : at + 1], "last")])
            np.testing.assert_array_equal(found[-1], whole[at])


def test_pages_of_all_caches_are_copied_behind_a_fork_and_used_again(folder: Path) -> None:
    """In both runtimes the logits are the same bits as those of one step."""
    with runtime.load(folder, threads=1, max_batch=3) as model:
        whole = model.logits(IDS)
        first = model.new_sequence()
        model.session.run([Request(first, IDS[:37], "none")])
        second = first.fork()
        for sequence in (first, second):
            (found,) = model.session.run([Request(sequence, IDS[37:45], "last")])
            np.testing.assert_array_equal(found[-1], whole[44])
        second.truncate(20)
        model.session.run([Request(second, IDS[:15], "none")])
        second.truncate(20)
        (found,) = model.session.run([Request(second, IDS[20:], "last")])
        np.testing.assert_array_equal(found[-1], whole[-1])
    native = Model(folder, max_batch=3, threads=1)
    np.testing.assert_array_equal(native.logits(IDS), whole)
    one = native.sequence()
    native.run((one, IDS[:37], "none"))
    other = native.fork(one, 37)
    for handle in (one, other):
        (found,) = native.run((handle, IDS[37:45], "last"))
        np.testing.assert_array_equal(found[-1], whole[44])
        native.free(handle)
    native.close()


def test_saved_prefixes_and_sessions_have_the_keys_of_indexers(folder: Path, tmp_path: Path) -> None:
    prompt = IDS[:49].tolist()
    with runtime.load(folder, threads=1) as model:
        expected = model.generate(prompt, max_new_tokens=9, temperature=0).token_ids
        assert model.save_prefixes(tmp_path / "prefixes") >= 3
        model.save_session(tmp_path / "session", prompt)
    for name in ("prefixes", "session"):
        with runtime.load(folder, threads=1) as model:
            restore = model.restore_prefixes if name == "prefixes" else model.restore_session
            restore(tmp_path / name)
            found = model.generate(prompt, max_new_tokens=9, temperature=0)
            assert found.token_ids == expected
            assert found.cached_tokens >= 48, "nothing of the restored pages is read again"
