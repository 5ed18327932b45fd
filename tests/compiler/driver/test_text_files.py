"""What is said of the files for text before the long work, and what the artifact gets of them."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dsv3c.compiler.checkpoint import Checkpoint
from dsv3c.compiler.checkpoint.errors import JsonError, PointerFileError, UnreadableFileError
from dsv3c.compiler.driver.text_files import check, settle, settle_defaults, tokenizer_of
from dsv3c.compiler.errors import CheckpointError, NoTokenizerError
from dsv3c.runtime.errors import TokenizerMalformed
from tests.checkpoints import tiny_config, write_checkpoint, write_tokenizer

BOM = b"\xef\xbb\xbf"
BYTES_ALONE = b"".join(base64.b64encode(bytes([byte])) + b" %d\n" % byte for byte in range(256))
KIMI = "tokenization_kimi.TikTokenTokenizer"


@pytest.fixture
def source(tmp_path: Path) -> Checkpoint:
    config = tiny_config()
    write_checkpoint(tmp_path, config)
    write_tokenizer(tmp_path, config["vocab_size"])
    return Checkpoint.open(tmp_path)


def notes(source: Checkpoint, **files: Any) -> tuple[str, ...]:
    """Notes with further files, by their name with __ for the dot; bytes, or what goes into them as JSON."""
    for name, content in files.items():
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (source.path / name.replace("__", ".")).write_bytes(data)
    return check(source.path, source.config)


def test_files_that_are_right_are_worth_no_words(source: Checkpoint) -> None:
    config = {"add_bos_token": True, "add_eos_token": False, "bos_token": "<b>", "chat_template": "x"}
    defaults = {"top_k": -1, "eos_token_id": [1]}
    assert notes(source, tokenizer_config__json=config, generation_config__json=defaults) == ()
    assert notes(source, chat_template__jinja=BOM + "ü".encode()) == ()
    data = (source.path / "tokenizer.json").read_bytes()
    assert notes(source, tokenizer__json=BOM + data, tokenizer_config__json=BOM + b"{}") == ()


@pytest.mark.parametrize(
    ("beside", "way"),
    [
        ("tiktoken.model", "no token for the byte 0x00"),
        ("tokenizer.model", "save_pretrained"),
        ("other", "put it beside"),
    ],
)
def test_without_a_tokenizer_a_way_to_one_is_named(source: Checkpoint, beside: str, way: str) -> None:
    (source.path / "tokenizer.json").unlink()
    (source.path / beside).write_text("IQ== 0\n")
    (note,) = notes(source, tokenizer_config__json={"auto_map": {"AutoTokenizer": [KIMI, None]}})
    assert "token ids only" in note and way in note


def test_a_tiktoken_vocabulary_becomes_the_tokenizer_of_the_artifact(source: Checkpoint, tmp_path: Path) -> None:
    (source.path / "tokenizer.json").unlink()
    (source.path / "tiktoken.model").write_bytes(BYTES_ALONE)
    (note,) = notes(source, tokenizer_config__json={"auto_map": {"AutoTokenizer": [KIMI, None]}})
    assert note == "tokenizer.json is made from tiktoken.model"
    assert tokenizer_of(source.path).encode_plain("ab") == [97, 98]
    artifact = tmp_path / "artifact"
    artifact.mkdir()
    settle(source.path, artifact, source.config)
    assert len((artifact / "tokenizer.json").read_bytes()) > 1000
    assert {path.name for path in artifact.iterdir()} == {"tokenizer.json", "tokenizer_config.json"}
    assert "tiktoken.model" in Checkpoint.open(source.path).files()


def test_a_vocabulary_of_an_unknown_class_is_told(source: Checkpoint, tmp_path: Path) -> None:
    (source.path / "tokenizer.json").unlink()
    (source.path / "tiktoken.model").write_bytes(BYTES_ALONE)
    (note,) = notes(source, tokenizer_config__json={"tokenizer_class": "OtherTokenizer"})
    assert "token ids only" in note and "'OtherTokenizer'" in note
    (tmp_path / "artifact").mkdir()
    settle(source.path, tmp_path / "artifact", source.config)
    assert not (tmp_path / "artifact" / "tokenizer.json").exists()
    with pytest.raises(NoTokenizerError):
        tokenizer_of(source.path)


@pytest.mark.parametrize(
    ("files", "part"),
    [
        ({"tokenizer_config__json": {"add_bos_token": "yes"}}, "neither true nor false"),
        ({"tokenizer_config__json": {"add_bos_token": True}}, "bos_token is None; none is added"),
        ({"tokenizer_config__json": {"add_bos_token": True, "bos_token": "<x>"}}, "bos_token is '<x>'"),
        ({"tokenizer_config__json": {"add_eos_token": True, "eos_token": [1]}}, "eos_token is [1]"),
        ({"tokenizer_config__json": {"chat_template": 3}}, "chat_template is 3"),
        ({"generation_config__json": {"top_p": "x"}}, "top_p is 'x'"),
        ({"generation_config__json": {"eos_token_id": [1, 96]}}, "eos_token_id is [96]"),
    ],
)
def test_what_is_left_out_is_told(source: Checkpoint, files: dict[str, Any], part: str) -> None:
    (note,) = notes(source, **files)
    assert part in note


@pytest.mark.parametrize("name", ["tokenizer_config__json", "generation_config__json"])
@pytest.mark.parametrize("data", [b"", b"[]", b"{", b'{"a": NaN}', b'{"a": 1, "a": 2}', b"\xff", b"\xff\xfe{\0}\0"])
def test_what_is_no_json_object_is_refused(source: Checkpoint, name: str, data: bytes) -> None:
    with pytest.raises(JsonError, match=name.replace("__", ".")):
        notes(source, **{name: data})


def test_what_no_such_file_can_be_is_refused(source: Checkpoint) -> None:
    with pytest.raises(UnreadableFileError, match="byte 1 is not UTF-8"):
        notes(source, chat_template__jinja=b"a\xff")
    with pytest.raises(UnreadableFileError, match="longer than"):
        notes(source, chat_template__jinja=b"a" * ((1 << 20) + 1))
    (source.path / "chat_template.jinja").unlink()
    with pytest.raises(UnreadableFileError, match="longer than"):
        notes(source, tokenizer_config__json=b" " * ((16 << 20) + 1))


@pytest.mark.parametrize("part", [{"merges": ["a"]}, {"merges": [["a", "b", "c"]]}, {"type": "Magic"}, {"vocab": {}}])
def test_a_tokenizer_is_read_as_the_runtime_reads_it(source: Checkpoint, part: dict[str, Any]) -> None:
    content = json.loads((source.path / "tokenizer.json").read_text(encoding="utf-8"))
    content["model"] |= {"merges": [["!", "#"]], **part}
    with pytest.raises((TokenizerMalformed, CheckpointError)):
        notes(source, tokenizer__json=content)


def test_a_tokenizer_may_be_a_link(source: Checkpoint) -> None:
    (source.path / "tokenizer.json").rename(source.path / "blob")
    (source.path / "tokenizer.json").symlink_to("blob")
    assert notes(source) == ()


@pytest.mark.parametrize(
    ("stored", "kept"),
    [
        (b'{"top_k": -1, "top_p": 0, "x": [1]}', {"top_k": 0, "top_p": 1.0, "x": [1]}),
        (b'{"top_k": 20.0}', {"top_k": 20}),
        (b'{"top_k": "many", "eos_token_id": [1, 999]}', {"eos_token_id": [1]}),
        (BOM + b'{"top_k": 5}', {"top_k": 5}),
        (b'{"top_k": 20.0, "x": "\\ud800 \xc3\xbc"}', {"top_k": 20, "x": "\ud800 \u00fc"}),
    ],
)
def test_an_artifact_gets_defaults_in_one_form(
    source: Checkpoint, tmp_path: Path, stored: bytes, kept: dict[str, Any]
) -> None:
    path = tmp_path / "generation_config.json"
    path.write_bytes(stored)
    settle_defaults(tmp_path, source.config)
    found = json.loads(path.read_bytes())
    assert found == kept and all(type(found[name]) is type(value) for name, value in kept.items())


def test_defaults_that_are_right_stay_as_they_are(source: Checkpoint, tmp_path: Path) -> None:
    settle_defaults(tmp_path, source.config)
    assert not (tmp_path / "generation_config.json").exists()
    data = b'{"top_k":   5,\n "do_sample":true}'
    (tmp_path / "generation_config.json").write_bytes(data)
    settle_defaults(tmp_path, source.config)
    assert (tmp_path / "generation_config.json").read_bytes() == data


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer_config.json", "chat_template.jinja"])
def test_pointers_and_what_is_no_file_are_refused(name: str, source: Checkpoint) -> None:
    path = source.path / name
    changes: list[tuple[Callable[[], object], type[CheckpointError]]] = [
        (lambda: path.write_bytes(POINTER), PointerFileError),
        (lambda: path.write_bytes(bytes((16 << 20) + 1)), UnreadableFileError),
        (lambda: os.mkfifo(path), UnreadableFileError),
        (lambda: path.symlink_to("nothing"), UnreadableFileError),
    ]
    for make, error in changes:
        make()
        with pytest.raises(error, match=name):
            check(source.path, source.config)
        path.unlink()
