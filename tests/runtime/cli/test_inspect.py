from __future__ import annotations

from dsv3c.runtime.cli.inspect import _quantization_rows, _row_of


def test_of_formats_of_single_weights_it_is_told_how_many_have_which() -> None:
    quantization = {"weights": "auto", "formats": {"a": "int4-g64", "b": "int8", "c": "int4-g64"}}
    assert _quantization_rows(quantization) == [("weights", "auto"), ("formats", "2 int4-g64, 1 int8")]
    assert _quantization_rows({"weights": "int8"}) == [("weights", "int8")]


def test_a_cache_of_codes_is_called_by_its_codes() -> None:
    row = {"width": 160, "dtype": "uint8", "bytes_per_token": 160}
    assert _row_of({**row, "codes": "int8"}) == "160 B in int8"
    assert _row_of({"width": 144, "dtype": "bfloat16", "codes": "", "bytes_per_token": 288}) == "144 x bfloat16"
