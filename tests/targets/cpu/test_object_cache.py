"""The cache of compiled kernels: what is taken from it is what would have been compiled, and nothing else is taken."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path

import pytest
import tvm
import tvm_ffi

from dsv3c.compiler.core.target import Planned
from dsv3c.compiler.driver.pipeline import compile_checkpoint
from dsv3c.compiler.errors import BadOptionError
from dsv3c.compiler.formats.table import WeightFormat
from dsv3c.compiler.options import CompileOptions
from dsv3c.targets.calls.elementwise import Add, Swiglu
from dsv3c.targets.calls.linear import Linear
from dsv3c.targets.calls.operands import Rows
from dsv3c.targets.cpu import library, object_cache
from dsv3c.targets.cpu.children import in_children
from dsv3c.targets.cpu.emit import emit
from dsv3c.targets.cpu.kernels import build
from dsv3c.targets.cpu.object_cache import KernelCacheError, ObjectCache
from dsv3c.targets.link.platforms import ARM_LINUX
from dsv3c.targets.x86.levels import LEVELS
from tests.checkpoints import tiny_config, write_checkpoint

LEVEL = LEVELS[0]
ADD = {"add": build(Add(Rows(4), 16), LEVEL)}
LINEAR = Linear(Rows(4), 32, 64, WeightFormat.parse("int8"))


@pytest.fixture
def cache(tmp_path: Path) -> ObjectCache:
    return ObjectCache.at(tmp_path / "cache")


@pytest.fixture
def nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_module(module: object, level: object) -> None:
        pytest.fail("a kernel is compiled")

    monkeypatch.setattr(library, "compile_module", compile_module)


def entries(cache: ObjectCache) -> list[Path]:
    return sorted(cache.folder.iterdir())


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_libraries_have_the_same_bytes_without_a_cache_with_an_empty_and_with_a_full_one(
    cache: ObjectCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = Planned({}, {}, 0, (), {}, {}, {Add(Rows(4), 16): "add_0", Swiglu(Rows(4), 16): "swiglu_0"})
    names = ("without", "empty", "full")
    for name, used in zip(names, (None, cache, cache), strict=True):
        if name == "full":
            kept = files_of(cache.folder)
            monkeypatch.setattr(library, "compile_module", None)  # of processes that are forked from this one, too
        emit(planned, [LEVEL], used).write_kernels(tmp_path / name, lambda count: None)
    without, empty, full = (files_of(tmp_path / name) for name in names)
    assert without == empty == full
    assert files_of(cache.folder) == kept and len(kept) == 2


@pytest.mark.thorough
def test_an_artifact_has_the_same_bytes_without_a_cache_with_an_empty_and_with_a_full_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path / "tiny", tiny_config(num_hidden_layers=2))
    target = "x86:levels=x86-64-v3+x86-64-v3-vnni"  # they have kernels in common
    plain = CompileOptions(target=target, max_tokens=8)
    compile_checkpoint(tmp_path / "tiny", tmp_path / "without", plain)
    cached = dataclasses.replace(plain, cache_dir=tmp_path / "cache")
    compile_checkpoint(tmp_path / "tiny", tmp_path / "empty", cached)
    kept = files_of(tmp_path / "cache")
    monkeypatch.setattr(library, "compile_module", None)
    compile_checkpoint(tmp_path / "tiny", tmp_path / "full", cached)
    without, empty, full = (files_of(tmp_path / name) for name in ("without", "empty", "full"))
    assert "kernels/x86-64-v3-vnni.so" in without
    assert without == empty == full
    assert files_of(tmp_path / "cache") == kept


def test_the_key_has_all_of_a_kernel() -> None:
    """What TVM reads back from the text that is hashed is the kernel, its constants and imported LLVM IR included."""
    for level in LEVELS:
        module = library.module_of({"linear": build(LINEAR, level)})
        assert tvm_ffi.structural_equal(tvm.ir.load_json(tvm.ir.save_json(module)), module)


def test_whatever_changes_the_object_changes_its_key(cache: ObjectCache, tmp_path: Path) -> None:
    def key(functions: dict[str, object], level=LEVEL, cache: ObjectCache = cache) -> str:
        return cache._key(library.module_of(functions), level)

    other_level = dataclasses.replace(LEVEL, mattr=("+avxvnni",))
    keys = [
        key(ADD),
        key({"sum": ADD["add"]}),  # the name is in its messages
        key({"add": build(Add(Rows(4), 17), LEVEL)}),
        key({"add": build(Swiglu(Rows(4), 16), LEVEL)}),
        key({"add": build(LINEAR, LEVEL)}),
        key({"add": build(LINEAR, LEVEL.tuned(dataclasses.replace(LEVEL.tuning, word_unroll=2)))}),
        key(ADD, other_level),
        key(ADD, dataclasses.replace(LEVEL, mcpu="x86-64-v2")),
        key(ADD, dataclasses.replace(LEVEL, platform=ARM_LINUX)),
        key(ADD, cache=dataclasses.replace(cache, compiler="another")),
    ]
    assert len(set(keys)) == len(keys)
    assert key(dict(ADD)) == keys[0] == key(ADD, dataclasses.replace(LEVEL, name="another", absorbed_rate=0.5))


def test_another_version_of_what_compiles_takes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def compiler() -> str:
        return ObjectCache.at(tmp_path).compiler

    first = compiler()
    assert compiler() == first
    with monkeypatch.context() as patch:
        patch.setattr(object_cache, "version", lambda package: "0.0")
        assert compiler() != first
    with monkeypatch.context() as patch:
        patch.setattr(tvm, "__version__", "0.0")
        assert compiler() != first
    (tmp_path / "library.py").write_text("# another way to compile")
    monkeypatch.setattr(library, "__file__", str(tmp_path / "library.py"))
    assert compiler() != first


def test_what_was_compiled_is_not_compiled_again(
    cache: ObjectCache, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    first = cache.compile_object(ADD, LEVEL, tmp_path / "first.o").read_bytes()
    assert first == library.compile_object(ADD, LEVEL, tmp_path / "plain.o").read_bytes()
    request.getfixturevalue("nothing_is_compiled")
    again = ObjectCache.at(cache.folder).compile_object(ADD, LEVEL, tmp_path / "again.o")
    assert again.read_bytes() == first


@pytest.mark.parametrize("damage", ["short", "empty", "flipped", "renamed"])
def test_what_is_damaged_is_compiled_anew(damage: str, cache: ObjectCache, tmp_path: Path) -> None:
    right = cache.compile_object(ADD, LEVEL, tmp_path / "first.o").read_bytes()
    (entry,) = entries(cache)
    content = entry.read_bytes()
    cache.compile_object({"sum": ADD["add"]}, LEVEL, tmp_path / "sum.o")
    (other,) = (path for path in entries(cache) if path != entry)
    wrong = {
        "short": content[:-7],
        "empty": b"",
        "flipped": content[:99] + bytes([content[99] ^ 1]) + content[100:],
        "renamed": other.read_bytes(),  # whole, and of another kernel
    }
    entry.write_bytes(wrong[damage])
    assert cache.compile_object(ADD, LEVEL, tmp_path / "again.o").read_bytes() == right
    assert entry.read_bytes() == content


def test_what_stands_in_the_place_of_an_entry_is_told(cache: ObjectCache, tmp_path: Path) -> None:
    cache.compile_object(ADD, LEVEL, tmp_path / "first.o")
    (entry,) = entries(cache)
    entry.unlink()
    entry.mkdir()
    with pytest.raises(KernelCacheError, match=r"cannot be kept in .*Is a directory"):
        cache.compile_object(ADD, LEVEL, tmp_path / "again.o")
    assert entries(cache) == [entry]


def test_processes_share_a_folder(cache: ObjectCache, tmp_path: Path) -> None:
    def compile(number: int) -> None:
        cache.compile_object(ADD, LEVEL, tmp_path / f"{number}.o")

    in_children([lambda number=number: compile(number) for number in range(4)], lambda number: None, tmp_path)
    assert len({(tmp_path / f"{number}.o").read_bytes() for number in range(4)}) == 1
    assert [len(path.name) for path in entries(cache)] == [64]  # and no temporary file


def test_what_killed_processes_left_is_removed_and_nothing_else(cache: ObjectCache) -> None:
    names = {"old": f"{'0' * 64}.{'1' * 8}.tmp", "new": f"{'2' * 64}.{'3' * 8}.tmp", "foreign": "notes.tmp"}
    for name in names.values():
        (cache.folder / name).touch()
    long_ago = time.time() - 2 * object_cache._STALE_SECONDS
    for name in ("old", "foreign"):
        os.utime(cache.folder / names[name], (long_ago, long_ago))
    ObjectCache.at(cache.folder)
    assert {path.name for path in entries(cache)} == {names["new"], names["foreign"]}


def test_a_folder_that_cannot_be_written_is_told_before_the_work(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "tiny", tiny_config())
    (tmp_path / "file").touch()
    for folder, reason in ((tmp_path / "file", "File exists"), (tmp_path / "file" / "below", "Not a directory")):
        options = CompileOptions(max_tokens=8, cache_dir=folder)
        with pytest.raises(KernelCacheError, match=f"cannot be kept in {folder}: {reason}"):
            compile_checkpoint(tmp_path / "tiny", tmp_path / "out", options)
    with pytest.raises(
        BadOptionError, match="expected none for the target metal, whose kernels are compiled each time"
    ):
        options = CompileOptions(target="metal", cache_dir=tmp_path / "cache")
        compile_checkpoint(tmp_path / "tiny", tmp_path / "out", options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "tiny"]


def test_a_folder_that_fills_up_fails_the_compilation_and_is_left_clean(
    cache: ObjectCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        write(path, data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(KernelCacheError, match="No space left on device\n  hint: name another folder with --cache-dir"):
        cache.compile_object(ADD, LEVEL, tmp_path / "first.o")
    assert entries(cache) == []
