from __future__ import annotations

from dsv3c.runtime.cli.inspect import _quantization_rows


def test_of_formats_of_single_weights_it_is_told_how_many_have_which() -> None:
    quantization = {"weights": "auto", "formats": {"a": "int4-g64", "b": "int8", "c": "int4-g64"}}
    assert _quantization_rows(quantization) == [("weights", "auto"), ("formats", "2 int4-g64, 1 int8")]
    assert _quantization_rows({"weights": "int8"}) == [("weights", "int8")]
