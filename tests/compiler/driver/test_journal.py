"""A compilation that was killed is gone on with: what it wrote is kept where it is right, and nothing else is."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsv3c.compiler.checkpoint import Checkpoint
from dsv3c.compiler.driver import contents, journal, pipeline, weights
from dsv3c.compiler.driver.workplace import JOURNAL, MAKING
from dsv3c.compiler.errors import InterruptedRunError
from dsv3c.compiler.options import CompileOptions
from dsv3c.compiler.quantisation import choice, input_scales
from dsv3c.compiler.quantisation.calibration.text import CalibrationText
from dsv3c.runtime.progress import Silent
from tests.checkpoints import tiny_config, write_checkpoint
from tests.compiler.driver.fake_target import FakeTarget

INT4, INT8 = (CompileOptions(quant=quant, method="rtn") for quant in ("int4-g32", "int8"))
PIECES = 20

pytestmark = pytest.mark.usefixtures("fake_target")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    write_checkpoint(folder, tiny_config())
    return folder


@pytest.fixture(scope="module")
def killed_run(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which a run was killed that had written PIECES."""
    folder = tmp_path_factory.mktemp("killed")
    kill(tiny, folder / "out", PIECES)
    return folder


@pytest.fixture
def place(killed_run: Path, tmp_path: Path) -> Path:
    """A copy of it: where `out` is to be."""
    subprocess.run(["cp", "-a", f"{killed_run}/.", str(tmp_path)], check=True)
    return tmp_path / "out"


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """What is evaluated of weights."""
    found: list[object] = []
    evaluate = weights.ops.evaluate
    monkeypatch.setattr(
        weights.ops, "evaluate", lambda values, *rest: (found.append(values), evaluate(values, *rest))[1]
    )
    yield found


def some_text() -> CalibrationText:
    """Stands for a calibration: the tiny checkpoint has no tokenizer."""
    ids = np.random.default_rng(0).integers(0, 96, (2, 24)).astype(np.int32)
    return CalibrationText(tuple(ids), "some.txt", "")


def kill(checkpoint: Path, out: Path, pieces: int, method: str = "rtn") -> None:
    """A copy of this process compiles, and is killed when it has recorded so many pieces."""
    pid = os.fork()
    if pid == 0:
        try:
            compile_until_killed(checkpoint, out, pieces, method)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def compile_until_killed(checkpoint: Path, out: Path, pieces: int, method: str) -> None:
    record, left = journal.FileJournal.record, iter(range(pieces))

    def recorded(self: journal.FileJournal, *given: Any) -> None:
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        record(self, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal.FileJournal, "record", recorded)
        patch.setattr(pipeline.targets, "get", lambda name: FakeTarget())
        patch.setattr(input_scales, "ALPHAS", (0.0, 0.5))
        if method != "rtn":
            patch.setattr(pipeline, "read_calibration", lambda *_: some_text())
        pipeline.compile_checkpoint(checkpoint, out, CompileOptions(quant="int4-g32", method=method))


def workplace(out: Path) -> Path:
    (folder,) = out.parent.glob(f".{out.name}.*.partial")
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def whole(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Every file of a run that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.targets, "get", lambda name: FakeTarget())
        pipeline.compile_checkpoint(tiny, out, INT4)
    return content(out)


def test_what_is_gone_on_with_is_equal_to_the_bit_and_not_made_again(
    tiny: Path, place: Path, whole: dict[str, bytes], evaluated: list[object]
) -> None:
    kept = (workplace(place) / JOURNAL).read_text().count('"piece"')
    assert 0 < kept <= PIECES
    told: list[str] = []

    class Telling(Silent):
        def tell(self, text: str) -> None:
            told.append(text)

    pipeline.compile_checkpoint(tiny, place, INT4, Telling())
    assert content(place) == whole
    assert [path.name for path in place.parent.iterdir()] == ["out"]
    assert any("goes on where an interrupted run stopped" in text for text in told)
    resumed = len(evaluated)
    pipeline.compile_checkpoint(tiny, place.with_name("again"), INT4)
    assert resumed == len(evaluated) - resumed - kept


def flip_a_byte(folder: Path) -> None:
    offset = json.loads((folder / JOURNAL).read_text().splitlines()[5])["spans"][0][0]
    with (folder / MAKING / journal.WEIGHTS).open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def cut_a_line(folder: Path) -> None:
    text = (folder / JOURNAL).read_bytes()
    (folder / JOURNAL).write_bytes(text[:-20])


def spoil_the_journal(folder: Path) -> None:
    lines = (folder / JOURNAL).read_bytes().splitlines(keepends=True)
    (folder / JOURNAL).write_bytes(b"".join([lines[0], b"\x00\xff\n[]\n{}\n", *lines[1:]]))


@pytest.mark.parametrize("spoil", [flip_a_byte, cut_a_line, spoil_the_journal])
def test_what_is_not_right_of_it_is_made_again(
    spoil: Callable[[Path], None], tiny: Path, place: Path, whole: dict[str, bytes]
) -> None:
    spoil(workplace(place))
    pipeline.compile_checkpoint(tiny, place, INT4)
    assert content(place) == whole


def lose_the_weights(folder: Path) -> None:
    (folder / MAKING / journal.WEIGHTS).unlink()


def lose_the_journal(folder: Path) -> None:
    (folder / JOURNAL).unlink()


def keep_the_first_line(folder: Path) -> None:
    (folder / JOURNAL).write_text((folder / JOURNAL).read_text().splitlines(keepends=True)[0])


@pytest.mark.parametrize("lose", [lose_the_weights, lose_the_journal, keep_the_first_line])
def test_a_run_of_which_nothing_is_left_is_cleared_away_by_any_other(
    lose: Callable[[Path], None], tiny: Path, place: Path
) -> None:
    lose(workplace(place))
    pipeline.compile_checkpoint(tiny, place, INT8)
    assert [path.name for path in place.parent.iterdir()] == ["out"]


def test_with_other_options_nothing_is_lost_and_it_is_said(tiny: Path, place: Path, whole: dict[str, bytes]) -> None:
    before = content(workplace(place))
    with pytest.raises(InterruptedRunError, match=r"was of other options: quant int4-g32, now int8\n.*--restart"):
        pipeline.compile_checkpoint(tiny, place, INT8)
    assert content(workplace(place)) == before
    pipeline.compile_checkpoint(tiny, place, INT4)
    assert content(place) == whole


def test_a_checkpoint_that_changed_is_said(tiny: Path, place: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed"
    subprocess.run(["cp", "-r", str(tiny), str(changed)], check=True)
    os.utime(changed / "model.safetensors", ns=(1, 1))
    with pytest.raises(
        InterruptedRunError, match=r"files of the checkpoint .* now: 'config\.json', 'model\.safetensors'"
    ):
        pipeline.compile_checkpoint(changed, place, INT4)


def run_of(tiny: Path, **options: Any) -> journal.Run:
    return journal.Run.of(Checkpoint.open(tiny), CompileOptions(**options), b"")


def test_what_differs_is_said_and_nothing_else(tiny: Path, tmp_path: Path) -> None:
    text, other = tmp_path / "text.txt", tmp_path / "other" / "text.txt"
    other.parent.mkdir()
    text.write_text("words")
    other.write_text("more words")
    with_text, without = run_of(tiny, calibration=text), run_of(tiny)
    assert without.differences(with_text) == "calibration text.txt, now none"
    assert with_text.differences(without) == "calibration none, now text.txt"
    assert with_text.differences(run_of(tiny, calibration=other)) == "a calibration text that is another now"
    mixed = run_of(tiny, formats={"head": "int8", "layers.0.mlp.down_proj": "int4-g32"})
    assert without.differences(mixed) == "other formats of 'head', 'layers.0.mlp.down_proj'"
    assert without.differences(dataclasses.replace(without, layout="")) == "another layout of the weights"


def test_a_restart_discards_it(tiny: Path, place: Path) -> None:
    pipeline.compile_checkpoint(tiny, place, dataclasses.replace(INT8, restart=True))
    assert [path.name for path in place.parent.iterdir()] == ["out"]


def test_an_old_artifact_stays_until_what_is_gone_on_with_is_whole(
    tiny: Path, place: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = workplace(place)
    aside = killed.rename(killed.with_name("aside"))
    pipeline.compile_checkpoint(tiny, place, INT8)
    aside.rename(killed)
    before = content(place)
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(contents, "manifest", lambda *_: 1 / 0)
        pipeline.compile_checkpoint(tiny, place, dataclasses.replace(INT4, overwrite=True))
    assert content(place) == before


def test_a_run_that_fails_leaves_no_journal(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "manifest", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pipeline.compile_checkpoint(tiny, tmp_path / "out", INT4)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", ["gptq", "qronos", "awq"])
def test_what_a_method_rounded_is_not_rounded_again(
    method: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """qronos needs what is in the file for the layers behind it, awq the scales that are in it."""
    rounded: list[object] = []
    round_weight = choice.round_weight
    monkeypatch.setattr(pipeline, "read_calibration", lambda *_: some_text())
    monkeypatch.setattr(input_scales, "ALPHAS", (0.0, 0.5))  # fewer, for time
    monkeypatch.setattr(choice, "round_weight", lambda *args: (rounded.append(args), round_weight(*args))[1])
    options = CompileOptions(quant="int4-g32", method=method)
    pipeline.compile_checkpoint(tiny, tmp_path / "whole", options)
    expected = len(rounded)
    kill(tiny, tmp_path / "out", PIECES, method)
    monkeypatch.setattr(input_scales, "errors", None)  # scales of inputs are not searched again
    pipeline.compile_checkpoint(tiny, tmp_path / "out", options)
    assert len(rounded) - expected < expected - PIECES // 2
    assert content(tmp_path / "out") == content(tmp_path / "whole")
