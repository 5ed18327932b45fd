"""Files of torch.save, made opcode by opcode: read without torch, and never more than tensors and containers."""

from __future__ import annotations

import os
import pickle
import random
import struct
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3c.compiler.checkpoint import Checkpoint
from dsv3c.compiler.checkpoint.errors import PickledNameError, TorchFileError
from dsv3c.compiler.checkpoint.pickled import TorchFile, machine
from dsv3c.compiler.checkpoint.pickled.machine import Machine, Malformed
from dsv3c.compiler.errors import CheckpointError
from tests.checkpoints import tiny_config, write_checkpoint
from tests.torch_files import (
    ORDERED_DICT,
    dictionary,
    integer,
    legacy_bytes,
    pickled,
    storage,
    tensor,
    text,
    weights,
    write_legacy,
    write_torch,
    write_torch_shards,
    write_zip,
)

TENSORS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.array([1.5, -2.0], ml_dtypes.bfloat16),
    "c": np.array(3.0, np.float16),
    "d": np.zeros((0, 4), np.float64),
    "e": np.arange(3, dtype=np.int64),
}
A = storage("Float", "0", 6)
DATA = {"0": np.arange(6, dtype=np.float32).tobytes()}


@pytest.mark.parametrize("write", [write_torch, write_legacy])
def test_tensors_are_those_that_were_saved(write: object, tmp_path: Path) -> None:
    file = TorchFile(write(tmp_path / "a.bin", TENSORS))  # type: ignore[operator]
    assert {name: info.shape for name, info in file.tensors.items()} == {n: t.shape for n, t in TENSORS.items()}
    assert [info.dtype for info in file.tensors.values()] == ["F32", "BF16", "F16", "F64", "I64"]
    for name, value in TENSORS.items():
        assert file.array(name).tobytes() == value.tobytes()


def test_data_is_mapped_and_not_read(tmp_path: Path) -> None:
    file = TorchFile(write_torch(tmp_path / "a.bin", TENSORS))
    assert not file.array("a").flags.owndata and not file.array("a").flags.writeable
    os.truncate(tmp_path / "a.bin", 10)
    with pytest.raises(CheckpointError, match="bytes when it was opened"):
        file.array("a")


def test_views_share_a_storage(tmp_path: Path) -> None:
    views = {"whole": tensor(A, (2, 3), (3, 1)), "turned": tensor(A, (3, 2), (1, 3)), "row": tensor(A, (3,), (1,), 3)}
    file = TorchFile(write_zip(tmp_path / "a.pt", dictionary(views), DATA))
    whole = file.array("whole")
    assert np.array_equal(file.array("turned"), whole.T) and np.array_equal(file.array("row"), whole[1])


def test_a_number_may_stand_for_a_few(tmp_path: Path) -> None:
    file = TorchFile(write_zip(tmp_path / "a.pt", dictionary({"a": tensor(A, (4, 3), (0, 1), 2)}), DATA))
    assert file.array("a").tolist() == [[2, 3, 4]] * 4


def test_parameters_types_of_elements_and_protocol_4(tmp_path: Path) -> None:
    parameter = b"ctorch._utils\n_rebuild_parameter\n(" + tensor(A, (6,), (1,)) + b"\x88" + ORDERED_DICT + b"tR"
    raw = b"(" + text("storage") + b"ctorch.storage\nUntypedStorage\n" + text("1") + text("cpu") + integer(2) + b"tQ"
    made = b"(" + raw + integer(0) + b"(" + integer(2) + b"t(" + integer(1) + b"t\x89N"
    fp8 = b"ctorch._utils\n_rebuild_tensor_v3\n" + made + b"ctorch\nfloat8_e4m3fn\ntR"
    named = b"\x8c\x0bcollections\x8c\x0bOrderedDict\x93)R\x94"
    content = named + b"(" + text("p") + parameter + text("f") + fp8 + b"u"
    file = TorchFile(write_zip(tmp_path / "a.pt", content, {**DATA, "1": b"\x38\x40"}))
    assert file.array("p").tolist() == list(range(6))
    assert file.tensors["f"].dtype == "F8_E4M3" and file.array("f").tolist() == [0x38, 0x40]


@pytest.mark.parametrize("key", ["state_dict", "model", "module"])
def test_weights_may_stand_in_the_state_of_a_training(key: str, tmp_path: Path) -> None:
    content = b"}(" + text("epoch") + integer(3) + text(key) + dictionary({"a": tensor(A, (6,), (1,))}) + b"u"
    assert list(TorchFile(write_zip(tmp_path / "a.ckpt", content, DATA)).tensors) == ["a"]


@pytest.mark.parametrize("form", ["zip", "legacy", "shards", "ckpt"])
def test_a_checkpoint_of_pickles_is_that_of_safetensors(form: str, tmp_path: Path) -> None:
    stored = write_checkpoint(tmp_path, tiny_config(num_hidden_layers=2), dtype="bfloat16")
    expected = Checkpoint.open(tmp_path)
    whole = {name: expected.read(name) for name in expected.shapes}
    (tmp_path / "model.safetensors").unlink()
    if form == "shards":
        names = list(stored)
        parts = {"p-1.bin": {n: stored[n] for n in names[::2]}, "p-2.bin": {n: stored[n] for n in names[1::2]}}
        write_torch_shards(tmp_path, parts)
    else:
        name = "weights.ckpt" if form == "ckpt" else "pytorch_model.bin"
        (write_legacy if form == "legacy" else write_torch)(tmp_path / name, stored)
    found = Checkpoint.open(tmp_path)
    assert found.shapes == expected.shapes
    assert all(np.array_equal(found.read(name), value) for name, value in whole.items())
    assert any(name.endswith((".bin", ".ckpt")) for name in found.files())


class Call:
    def __reduce__(self) -> object:
        return os.system, ("touch ran",)


@pytest.mark.parametrize("protocol", [2, 4])
def test_what_names_a_callable_is_refused_by_its_name_and_not_run(protocol: int, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "pytorch_model.bin", "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps({"a": Call()}, protocol=protocol))
    before = set(Path().iterdir())
    with pytest.raises(PickledNameError, match=r"asks for '(posix|nt)\.system'.*\n.*nothing of it was run"):
        TorchFile(tmp_path / "pytorch_model.bin")
    assert set(Path().iterdir()) == before


@pytest.mark.parametrize(
    "name",
    ["builtins eval", "torch._utils _rebuild_qtensor", "torch load", "collections Counter",
     "torch.storage _load_from_bytes", "numpy.core.multiarray _reconstruct",
     "torch._utils _rebuild_tensor_v2.__globals__"],
)  # fmt: skip
@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_names_beside_the_known_ones_are_refused(name: str, form: str, tmp_path: Path) -> None:
    content = b"c" + name.replace(" ", "\n").encode() + b"\n)R"
    path = tmp_path / "a.bin"
    if form == "zip":
        write_zip(path, content, {})
    else:
        path.write_bytes(legacy_bytes(content, {}))
    with pytest.raises(PickledNameError, match=name.replace(" ", r"\.")):
        TorchFile(path)


CONTENTS = {
    "holds no dictionary of tensors": b"N",
    "tensor 'a' reaches beyond its storage": dictionary({"a": tensor(A, (7,), (1,))}),
    "tensor 'b' reaches beyond its storage": dictionary({"b": tensor(A, (2, 2), (5, 1))}),
    "tensor 'c' reaches beyond its storage": dictionary({"c": tensor(A, (2,), (1,), 5)}),
    "no storage for the tensor 'd'": dictionary({"d": tensor(storage("Float", "9", 6), (6,), (1,))}),
    "made of something other than a storage": dictionary({"a": tensor(b"N", (6,), (1,))}),
    "more numbers than the file has bytes": dictionary({"a": tensor(A, (1000, 1000), (0, 0))}),
    "with other signs than it has": dictionary({"a": tensor(A, (6,), (1,))[:-2] + b"}" + text("neg") + b"\x88stR"}),
    "2 sizes and 1 strides": dictionary({"a": tensor(A, (2, 3), (1,))}),
    "other than a storage, an": dictionary({"a": tensor(A, (2, -3), (3, 1))}),
    "calls what is no function": b"N)R",
    "too few or too many": b"ctorch._utils\n_rebuild_tensor_v2\n)R",
    "an OrderedDict is made of something": b"ccollections\nOrderedDict\n(]tR",
    "opcode 0x69": b"i",
    "opcode 0x81": b"N)\x81",
    "takes more than it has": b"t",
    "asks for what it has not kept": b"h\x09",
    "a key is neither": b"}(NNu",
    "appends to what is no list": b"NNa",
    "sets items of what is no dictionary": b"](NNu",
    "sets attributes": b"N}b",
    "persistent id that is no storage": b"NQ",
    "a storage that is none": b"(" + text("storage") + b"N" + text("0") + text("cpu") + integer(1) + b"tQ",
    "a part of another": storage("Float", "0", 6, behind=b"(NNt"),
    "a text that is none": b"X\x01\x00\x00\x00\xff",
    "a text of": b"X\xff\xff\xff\x7f",
    "protocol 9": b"\x80\x09",
    "a name that is no text": b"NN\x93",
}


@pytest.mark.parametrize("reason", CONTENTS)
def test_what_is_wrong_with_a_pickle_is_told(reason: str, tmp_path: Path) -> None:
    with pytest.raises(TorchFileError, match=reason):
        TorchFile(write_zip(tmp_path / "a.bin", CONTENTS[reason], DATA))


def test_what_is_wrong_with_a_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    good = write_torch(path, TENSORS).read_bytes()
    two = weights({"a": TENSORS["a"]}, behind=b"N")
    files = {
        "it is empty": b"",
        "truncated": good[:-30],
        "opcode 0x6e": b"nothing",
        "begins as no file": pickled(integer(3)),
        "big-endian": legacy_bytes(two, {"0": (6, DATA["0"])}, little=False),
        "no storage '7'": legacy_bytes(two, {"7": (6, DATA["0"])}),
        "'0' reaches beyond": legacy_bytes(two, {"0": (1 << 60, DATA["0"])}),
        "no storage for": legacy_bytes(two, {}),
        "not where the directory": good.replace(b"PK\x03\x04", b"PK\x03\x05"),
        "announces": good[:-12] + struct.pack("<H", 99) + good[-10:],
        "does not fit": good[:-6] + b"\xff\xff\xff\x7f" + good[-2:],
    }
    for reason, data in files.items():
        path.write_bytes(data)
        with pytest.raises(TorchFileError, match=reason):
            TorchFile(path)
    for content, reason in (({"order": b"big"}, "big-endian"), ({"method": zipfile.ZIP_DEFLATED}, "is compressed")):
        with pytest.raises(TorchFileError, match=reason):
            TorchFile(write_zip(path, weights(TENSORS), DATA, **content))  # type: ignore[arg-type]


def test_steps_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "MAX_STEPS", 1000)
    assert Machine(memoryview(b"N" * 999 + b".")).run() is None
    for step in (b"N", b"]", b"(", b"}q\x00"):
        with pytest.raises(Malformed, match="more than 1000 steps"):
            Machine(memoryview(step * 1001)).run()


@settings(max_examples=80)
@given(st.integers(0, 2**32), st.sampled_from(["zip", "legacy"]))
def test_any_file_opens_or_is_a_typed_error(tmp_path_factory: pytest.TempPathFactory, seed: int, form: str) -> None:
    chance, path = random.Random(seed), tmp_path_factory.getbasetemp() / f"fuzz.{form}"
    data = bytearray((write_torch if form == "zip" else write_legacy)(path, TENSORS).read_bytes())
    for _ in range(chance.randrange(1, 6)):
        at = chance.randrange(len(data))
        change = chance.randrange(3)
        data[at : at + (change == 1)] = bytes([chance.randrange(256)]) if change < 2 else b""
        data = data[: chance.randrange(len(data))] if change == 2 and chance.random() < 0.2 else data
    path.write_bytes(bytes(data))
    try:
        file = TorchFile(path)
        for name in file.tensors:
            file.array(name).tobytes()
    except CheckpointError as error:
        str(error).encode()


@settings(max_examples=100)
@given(
    st.lists(
        st.sampled_from([*b"()]}tasueqrhjNJKMGXUTcRbQ.", 0x80, 0x85, 0x86, 0x87, 0x88, 0x8A, 0x8C, 0x93, 0x94])
        | st.integers(0, 255)
    )
)
def test_any_opcodes_run_or_are_a_typed_error(codes: list[int]) -> None:
    try:
        Machine(memoryview(bytes(codes))).run()
    except ValueError as error:
        str(error).encode()
