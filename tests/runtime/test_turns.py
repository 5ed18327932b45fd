"""What forks and the end of a process do to models: nothing that is not said."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from dsv3c import runtime
from dsv3c.runtime.errors import Forked
from dsv3c.runtime.model import Model
from dsv3c.runtime.turns import Turns
from tests.runtime import toy
from tests.waiting import until

PROMPT = [5, 17, 42]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    return toy.write_artifact(folder / "toy", library=toy.build_library(folder))


@pytest.fixture
def model(folder: Path):
    with runtime.load(folder, threads=2, max_batch=3) as model:
        yield model


def in_child(work: Callable[[], object]) -> str:
    """What `work` gives in a forked child, as text; the name of what it raises."""
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        try:
            said = str(work())
        except BaseException as error:
            said = type(error).__name__
        os.write(write, said.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    assert os.waitpid(child, 0)[1] == 0
    return said


def taken(turns: Turns) -> bool:
    """Whether another thread has its turn."""
    if not turns.try_enter():
        return True
    turns.leave()
    return False


def answer(model: Model) -> tuple[int, ...]:
    return model.generate(PROMPT, max_new_tokens=20, temperature=0, ignore_eos=True).token_ids


def test_memory_is_not_shared_with_a_fork(model: Model) -> None:
    device = model.session.device
    arrays = [*device._arrays[:10]]  # inputs, caches, results
    for array in arrays:
        array[:1] = 1
    in_child(lambda: [array.fill(7) for array in arrays])
    assert [int(array[0]) for array in arrays] == [1] * len(arrays)


def test_parent_and_child_answer_alike(model: Model) -> None:
    right = str(answer(model))
    assert [in_child(lambda: answer(model)) for _ in range(2)] == [right] * 2
    assert str(answer(model)) == right


def test_a_stream_goes_on_on_both_sides(model: Model) -> None:
    whole = answer(model)
    events = model.stream(PROMPT, max_new_tokens=20, temperature=0, ignore_eos=True)
    first = [next(events).token_id for _ in range(5)]

    def rest() -> tuple[int | None, ...]:
        return (*first, *(event.token_id for event in events))[:20]

    assert in_child(rest) == str(whole) == str(rest())


def test_a_child_does_not_wait_for_a_thread_it_does_not_have(model: Model) -> None:
    right = str(answer(model))
    model.session.device.library.function("toy_pause")(200_000)
    step = threading.Thread(target=model.logits, args=([1],))
    step.start()
    until(lambda: taken(model.session.turns))  # it pauses in a kernel

    def ask() -> tuple[int, ...]:
        model.session.device.library.function("toy_pause")(0)
        return answer(model)

    assert in_child(ask) == right
    step.join()
    model.session.device.library.function("toy_pause")(0)
    assert str(answer(model)) == right


def test_the_turn_of_the_thread_that_forks_stays_its_own() -> None:
    turns = Turns()
    with turns:
        assert in_child(lambda: turns.__exit__(None, None, None)) == "None"


def test_multiprocessing_forks(model: Model) -> None:
    context = multiprocessing.get_context("fork")
    with context.Pool(2, initializer=_take, initargs=(model,)) as pool:
        assert pool.map(_ask, range(4)) == [answer(model)] * 4


_taken: list[Model] = []


def _take(model: Model) -> None:
    _taken.append(model)


def _ask(number: int) -> tuple[int, ...]:
    return answer(_taken[0])


def test_what_cannot_be_forked_says_so(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(model.session.device), "forks", False)
    assert in_child(lambda: answer(model)) == Forked.__name__
    assert in_child(lambda: model.close()) == "None"  # and leaves the device alone
    assert len(answer(model)) == 20


EXIT = """
import sys, threading, time
from dsv3c import runtime
model = runtime.load(sys.argv[1])
model.session.device.library.function("toy_pause")(20_000)
def work():
    while True:
        model.logits([1, 2, 3])
for _ in range(2):
    threading.Thread(target=work, daemon=True).start()
while model.session.turns.try_enter():
    model.session.turns.leave()
    time.sleep(0.001)
"""


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("", 0),
        ("sys.exit(3)", 3),
        ("for event in model.stream([1], max_new_tokens=9): sys.exit(0)", 0),
        ("raise KeyboardInterrupt", -2),
    ],
)
def test_a_process_ends_while_a_thread_is_in_a_kernel(folder: Path, end: str, code: int) -> None:
    done = subprocess.run([sys.executable, "-c", EXIT + end, str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert done.stderr == "" or code == -2


def test_a_forked_child_may_end_by_itself(folder: Path) -> None:
    script = EXIT + "import os\nif os.fork() == 0: sys.exit(5)\nprint(os.waitstatus_to_exitcode(os.wait()[1]))"
    done = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "5\n"), done.stderr
