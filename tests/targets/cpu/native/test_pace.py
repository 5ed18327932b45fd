"""How many drafts are made, on a machine whose times are known: never much slower than none, faster where that pays."""

from __future__ import annotations

import ctypes
import subprocess
from dataclasses import dataclass

import numpy as np
import pytest

from dsv3c.targets.cpu import native

MOST, SOURCES = 7, 4


class Pace(ctypes.Structure):
    _fields_ = (
        ("step", ctypes.c_double * (MOST + 2)),
        ("draft", ctypes.c_double * (MOST + 1)),
        ("row", ctypes.c_double),
        ("truth", ctypes.c_double * SOURCES),
        ("tested", ctypes.c_uint32 * SOURCES),
        ("plain", ctypes.c_uint32),
        ("budget", ctypes.c_double),
    )


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    out = tmp_path_factory.mktemp("pace") / "pace.so"
    command = ["cc", "-std=c11", "-O1", "-shared", "-fPIC", "-o", out, native.SOURCES / "pace.c", "-lm"]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(out))


@dataclass(frozen=True)
class World:
    """Times in plain steps. row: what a further row takes; draft: a draft of the MTP layer does, 0 for those out of
    the text; truth: how often a draft comes true; noise: how often a step takes five times as long."""

    row: float
    draft: float
    truth: float
    noise: float = 0.0

    def seconds(self, drafts: int) -> float:
        return 1 + self.row * drafts + self.draft * drafts

    def gain(self, drafts: int) -> float:
        """Over plain steps, of always so many drafts."""
        return sum(self.truth**i for i in range(drafts + 1)) / self.seconds(drafts)


def generate(library: ctypes.CDLL, world: World, tokens: int, seed: int = 0) -> float:
    """The gain of an answer of so many tokens."""
    pace, random = Pace(), np.random.default_rng(seed)
    source, made, spent, waiting = 0 if world.draft else 3, 0, 0.0, 0
    library.pace_begin(ctypes.byref(pace))

    def measured(seconds: float) -> ctypes.c_double:
        return ctypes.c_double(seconds * (5 if random.random() < world.noise else 1))

    while made < tokens:
        drafts = library.pace_choose(ctypes.byref(pace), source, MOST, waiting)
        if drafts and world.draft:
            if waiting > MOST + 1:
                spent += waiting * world.draft / 4
                library.pace_caught_up(ctypes.byref(pace), waiting, measured(waiting * world.draft / 4))
            library.pace_took_drafts(ctypes.byref(pace), drafts, measured(drafts * world.draft))
        library.pace_took(ctypes.byref(pace), drafts + 1, measured(1 + world.row * drafts))
        spent += world.seconds(drafts)
        accepted = 0
        for _ in range(drafts or int(source != 0)):
            true = random.random() < world.truth
            library.pace_learn(ctypes.byref(pace), source, ctypes.c_bool(true))
            if not true:
                break
            accepted += bool(drafts)
        made += accepted + 1
        waiting = accepted + 1 if drafts else min(waiting + 1, 31)
    return made / spent


ROWS, TRUTHS = (0.02, 0.2, 0.5, 1.0), (0.0, 0.3, 0.6, 0.95)


@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize("draft", [0.0, 0.03, 0.4])
def test_drafts_never_make_an_answer_much_slower(library: ctypes.CDLL, draft: float, noise: float) -> None:
    for row in ROWS:
        for truth in TRUTHS:
            world = World(row, draft, truth, noise)
            gains = [generate(library, world, 250, seed) for seed in range(3)]
            assert np.mean(gains) > (0.95 if noise else 0.98), world


@pytest.mark.parametrize("draft", [0.0, 0.03])
def test_drafts_that_pay_are_made(library: ctypes.CDLL, draft: float) -> None:
    for row in ROWS[:2]:
        for truth in TRUTHS[2:]:
            world = World(row, draft, truth)
            best = max(world.gain(drafts) for drafts in range(MOST + 1))
            assert generate(library, world, 1000) > 1 + 0.75 * (best - 1), world
