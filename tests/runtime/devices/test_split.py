"""A model on two devices: the same bits as on one, wherever it is cut."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dsv3c.runtime.artifact.artifact import Artifact
from dsv3c.runtime.artifact.plan_reader import parse_plan
from dsv3c.runtime.artifact.weights import Tensor
from dsv3c.runtime.devices.cpu.device import CpuDevice
from dsv3c.runtime.devices.device import Device
from dsv3c.runtime.devices.split import SplitDevice, above, below, layer_count, open_split
from dsv3c.runtime.engine import saved_prefixes
from dsv3c.runtime.engine.prefix_cache import PrefixCache
from dsv3c.runtime.engine.saved import restore, save
from dsv3c.runtime.engine.session import Request, Session
from dsv3c.runtime.errors import CannotSplit, NoCallTimes, PlanInvalid, SavedElsewhere
from tests.runtime import toy
from tests.runtime.slots import SPANS, check_rows

SLOTS = 1024
LAYERS = 4  # of the bundled model, without that of multi-token prediction
Floats = NDArray[np.float32]


@pytest.fixture(scope="module")
def folder(bundled_artifact: Callable[..., Path]) -> Path:
    return bundled_artifact("int8")


@pytest.fixture(scope="module")
def artifact(folder: Path) -> Artifact:
    return Artifact.open(folder)


def on_cpu(artifact: Artifact) -> Device:
    return CpuDevice(artifact, SLOTS, 2)


@pytest.fixture
def shared(artifact: Artifact) -> Iterator[Callable[[int], Session]]:
    """A session whose last layers run on a second device."""
    opened: list[Device] = []

    def session(upper_layers: int) -> Session:
        upper, device = open_split(artifact, artifact, upper_layers, on_cpu, on_cpu)
        opened.append(device)
        return Session(upper.plan, device, artifact.manifest.vocab_size)

    yield session
    for device in opened:
        device.close()


def logits_of(session: Session) -> list[Floats]:
    """Of a long and a short prompt side by side, read in pieces, then of single steps, and of one behind a fork."""
    rng = np.random.default_rng(3)
    long, short = session.new_sequence(), session.new_sequence()
    found: list[Floats] = []

    def run(*requests: tuple[Any, int]) -> None:
        wanted = [Request(sequence, session.tokens(rng.integers(0, 2048, n)), "all") for sequence, n in requests]
        found.extend(session.run(wanted))

    run((long, 600), (short, 3))
    for _ in range(3):
        run((long, 1), (short, 1))
    run((short.fork(), 2), (short, 1))
    return found


@pytest.fixture(scope="module")
def expected(artifact: Artifact) -> list[Floats]:
    device = on_cpu(artifact)
    found = logits_of(Session(artifact.plan, device, artifact.manifest.vocab_size))
    device.close()
    return found


@pytest.mark.parametrize("upper_layers", range(1, LAYERS + 1))
def test_the_bits_do_not_depend_on_the_cut(
    upper_layers: int, shared: Callable[[int], Session], expected: list[Floats]
) -> None:
    found = logits_of(shared(upper_layers))
    assert len(found) == len(expected)
    for here, there in zip(found, expected, strict=True):
        np.testing.assert_array_equal(here, there)


def test_multi_token_prediction_runs_on_the_upper_side(artifact: Artifact, shared: Callable[[int], Session]) -> None:
    def drafts(session: Session) -> Floats:
        hidden = session.step([5, 6, 7], [0, 1, 2], [0] * 3, [[0]], [2]).hidden
        assert hidden is not None
        return session.step([6, 7, 8], [0, 1, 2], [0] * 3, [[0]], [2], "mtp", hidden.copy()).logits.copy()

    whole = on_cpu(artifact)
    np.testing.assert_array_equal(
        drafts(shared(2)), drafts(Session(artifact.plan, whole, artifact.manifest.vocab_size))
    )
    whole.close()


@pytest.mark.parametrize("upper_layers", range(1, LAYERS))
def test_both_sides_say_which_experts_tokens_visit(
    upper_layers: int, artifact: Artifact, shared: Callable[[int], Session]
) -> None:
    def experts(session: Session) -> dict[int, list[int]]:
        session.step([5, 6, 7], [0, 1, 2], [0] * 3, [[0]], [2])
        return {layer: ids.tolist() for layer, ids in session.device.experts("decode").items()}

    whole = on_cpu(artifact)
    expected = experts(Session(artifact.plan, whole, artifact.manifest.vocab_size))
    assert expected.keys() == {1, 2, 3} and all(len(ids) == 3 * 4 for ids in expected.values())
    assert experts(shared(upper_layers)) == expected
    whole.close()


def test_experts_that_one_side_does_not_know_are_not_told_by_the_other(artifact: Artifact) -> None:
    entries = {name: replace(entry, experts={}) for name, entry in artifact.plan.entries.items()}
    older = replace(artifact, plan=replace(artifact.plan, entries=MappingProxyType(entries)))
    for upper, lower in ((artifact, older), (older, artifact)):
        _, device = open_split(upper, lower, 2, on_cpu, on_cpu)
        assert device.experts("decode") == {}
        device.close()


def test_rows_of_slots_are_read_and_written_on_both_sides(artifact: Artifact, shared: Callable[[int], Session]) -> None:
    check_rows(shared(2).device, artifact.plan, *SPANS[1])


def test_a_saved_conversation_has_the_rows_of_both_sides_and_names_both_artifacts(
    artifact: Artifact, tmp_path: Path
) -> None:
    found = []
    for place in (tmp_path / "talk", None):
        upper, device = open_split(artifact, artifact, 2, on_cpu, on_cpu)
        session = Session(upper.plan, device, artifact.manifest.vocab_size)
        tokens = session.tokens(range(5, 45))
        if place is not None:
            sequence = session.new_sequence()
            session.run([Request(sequence, tokens, "none")])
            save(place, session, upper, sequence, tokens)
            with pytest.raises(SavedElsewhere):
                restore(place, session, artifact, 100)
        else:
            sequence = restore(tmp_path / "talk", session, upper, 100).sequence
        found += session.run([Request(sequence, session.tokens([7]), "last")])
        device.close()
    np.testing.assert_array_equal(*found)


def test_a_saved_prefix_cache_has_the_rows_of_both_sides(artifact: Artifact, tmp_path: Path) -> None:
    found = []
    for first in (True, False):
        upper, device = open_split(artifact, artifact, 2, on_cpu, on_cpu)
        session = Session(upper.plan, device, artifact.manifest.vocab_size)
        prefixes, tokens = PrefixCache(session.pool), session.tokens([5 + step % 40 for step in range(100)])
        if first:
            sequence = session.new_sequence()
            session.run([Request(sequence, tokens, "none")])
            prefixes.insert(sequence, tokens)
            sequence.close()
            saved_prefixes.save(tmp_path / "pages", session, upper, prefixes)
        else:
            saved_prefixes.restore(tmp_path / "pages", session, upper, prefixes)
        sequence = session.new_sequence()
        there = prefixes.match(sequence, tokens)
        assert there > 0
        found += session.run([Request(sequence, tokens[there:], "last")])
        device.close()
    np.testing.assert_array_equal(*found)


def test_each_side_has_its_own_weights_and_caches_only(artifact: Artifact) -> None:
    sides: list[Artifact] = []

    def noted(side: Artifact) -> Device:
        sides.append(side)
        return on_cpu(side)

    _, device = open_split(artifact, artifact, 1, noted, noted)
    lower, upper = ({buffer.tensor for buffer in side.plan.buffers if buffer.kind == "weight"} for side in sides)
    layers = [[cache.layer for cache in side.plan.caches] for side in sides]
    assert layers == [[0, 1, 2], [3, 4]]  # the upper side has that of multi-token prediction, too
    assert all(f"layers.{layer}." in " ".join(lower) for layer in range(3))
    assert not any(f"layers.{layer}." in " ".join(upper) for layer in range(3))
    assert device.report()["cache_bytes"] == SLOTS * artifact.plan.slot_bytes
    device.close()


def test_calls_are_not_timed_one_by_one(artifact: Artifact) -> None:
    _, device = open_split(artifact, artifact, 1, on_cpu, on_cpu)
    assert isinstance(device, SplitDevice)
    with pytest.raises(NoCallTimes):
        device.run_timed("decode")
    device.close()


def test_nothing_stays_open_when_the_upper_side_cannot_be_opened(artifact: Artifact) -> None:
    closed: list[bool] = []

    class Lower(CpuDevice):
        def close(self) -> None:
            closed.append(True)
            super().close()

    def refused(side: Artifact) -> Device:
        raise MemoryError

    with pytest.raises(MemoryError):
        open_split(artifact, artifact, 1, lambda side: Lower(side, SLOTS, 1), refused)
    assert closed == [True]


def changed(artifact: Artifact, **plan: Any) -> Artifact:
    return replace(artifact, plan=replace(artifact.plan, **plan))


def test_artifacts_that_do_not_fit_are_refused(artifact: Artifact) -> None:
    entries = {name: replace(entry, cuts=()) for name, entry in artifact.plan.entries.items()}
    old = changed(artifact, entries=MappingProxyType(entries))
    other = replace(
        artifact, manifest=replace(artifact.manifest, content={**artifact.manifest.content, "source": {"files": {}}})
    )
    small = changed(artifact, bounds=replace(artifact.plan.bounds, T=64))
    assert layer_count(artifact) == LAYERS
    for lower, reason in ((old, "compile it again"), (other, "another checkpoint"), (small, "bounds")):
        with pytest.raises(CannotSplit, match=reason):
            open_split(artifact, lower, 1, on_cpu, on_cpu)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("first", -1),
        ("first", 10**6),
        ("first", None),
        ("kept", [10**6]),
        ("kept", 3),
        ("residual", 0),
        ("residual", 10**6),
        ("readers", [[0]]),
        ("readers", [[0, 10**6]]),
        ("readers", [[-1, 0]]),
        ("readers", [["a", "b"]]),
        ("readers", [[30, 0]]),
    ],
)
def test_a_cut_that_does_not_fit_the_plan_is_refused(artifact: Artifact, key: str, value: Any) -> None:
    content = json.loads((artifact.folder / "plan.json").read_text(encoding="utf-8"))
    content["entries"]["decode"]["cuts"][1][key] = value
    with pytest.raises(PlanInvalid, match=key):
        parse_plan(content, artifact.tensors, artifact.manifest.vocab_size)


def test_a_side_keeps_all_caches_of_its_layers_as_they_are() -> None:
    content = toy.plan_content()
    logits, hidden, high = 8, 9, [12, 13]
    calls = [["low", [0, 6, 7, hidden]], ["high", [hidden, *high, logits]]]
    cuts = [{"first": first, "kept": [], "residual": hidden, "readers": [[1, 0]]} for first in (0, 1)]
    content["entries"] = {"decode": content["entries"]["decode"] | {"calls": calls, "cuts": cuts}}
    plan = parse_plan(content, {"scale": Tensor("float32", (1,), 128, 4)}, toy.VOCAB)
    for layer, side in enumerate((below(plan, 1), above(plan, 1))):
        found = [(cache.name, cache.layer, cache.dtype, cache.width) for cache in side.caches]
        assert found == [(f"cache.{layer}", layer, "float32", 4), (f"cache.{layer}.codes", layer, "int8", 3)]
        assert side.slot_bytes == plan.slot_bytes // 2
