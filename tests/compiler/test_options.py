from __future__ import annotations

from pathlib import Path

import pytest

from dsv3c.compiler.errors import BadOptionError
from dsv3c.compiler.options import CompileOptions, debug_level


@pytest.mark.parametrize(
    ("quant", "head", "embedding", "cache"),
    [
        ("float32", "float32", "float32", "f32"),
        ("float16", "float16", "float16", "bf16"),
        ("bfloat16", "bfloat16", "bfloat16", "bf16"),
        ("int8", "int8", "bfloat16", "bf16"),
        ("int8-g64", "int8", "bfloat16", "bf16"),
        ("int4-g32-asym", "int8", "bfloat16", "bf16"),
    ],
)
def test_head_embedding_and_cache_follow_the_weights(quant: str, head: str, embedding: str, cache: str) -> None:
    options = CompileOptions(quant=quant)
    assert options.resolved_head_quant == head
    assert options.resolved_embed_quant == embedding
    assert options.resolved_cache_dtype == cache


def test_what_is_given_is_taken() -> None:
    options = CompileOptions(quant="int8", head_quant="float32", embed_quant="int8", cache_dtype="f32")
    assert options.resolved_head_quant == "float32"
    assert options.resolved_embed_quant == "int8"
    assert options.resolved_cache_dtype == "f32"


@pytest.mark.parametrize("name", ["max_tokens", "max_rows", "max_sequences"])
@pytest.mark.parametrize("value", [0, -1, 65537])
def test_bounds_of_a_step_have_bounds(name: str, value: int) -> None:
    with pytest.raises(BadOptionError, match=f"{name} is {value}; expected a number from 1 to 65536"):
        CompileOptions(**{name: value})  # type: ignore[arg-type]


def test_the_cache_dtype_is_one_of_five() -> None:
    with pytest.raises(BadOptionError, match="cache_dtype is 'f64'; expected f32, f16, bf16, int8 or fp8"):
        CompileOptions(cache_dtype="f64")
    assert CompileOptions(cache_dtype="int8").resolved_cache_dtype == "int8"


def test_options_are_equal_and_hash_by_value() -> None:
    assert CompileOptions(quant="int8") == CompileOptions()
    assert hash(CompileOptions()) == hash(CompileOptions())


def test_the_manifest_gets_what_changes_the_artifact() -> None:
    plain = CompileOptions()
    steered = CompileOptions(stop_after="pack", dump_to=Path("graphs"), cache_dir=Path("kernels"), overwrite=True)
    assert plain.to_dict() == steered.to_dict()
    assert plain.to_dict() != CompileOptions(max_tokens=8).to_dict()
    assert {"target", "quant", "head_quant", "max_tokens"} <= plain.to_dict().keys()


@pytest.mark.parametrize(("text", "level"), [("", 0), ("0", 0), ("3", 3)])
def test_the_debug_level_is_read_from_the_environment(text: str, level: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSV3C_DEBUG", text)
    assert debug_level() == level


def test_no_debug_level_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DSV3C_DEBUG", raising=False)
    assert debug_level() == 0


@pytest.mark.parametrize("text", ["yes", "-1", "1.5", "²"])
def test_another_debug_level_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSV3C_DEBUG", text)
    with pytest.raises(BadOptionError, match=r"DSV3C_DEBUG is .*; expected a number from 0 to 4"):
        debug_level()
