"""Caches are inputs with a row for each slot: what their types and names say of them."""

from __future__ import annotations

from dsv3c.compiler.core.caches import cache_name, cache_of, caches_of, is_cache
from dsv3c.compiler.core.ir import Graph, TensorType, parse_graph

TEXT = """graph {name} {{
  %tokens: i32[T] = input()
  %rows: f32[N, 4] = param()
  %cache.{first}: bf16[N, 40] = input()
  %cache.{second}: {type} = input()
  return a=%tokens, b=%rows, c=%cache.{first}, d=%cache.{second}
}}"""


def graph(name: str, first: str, second: str, type: str) -> Graph:
    return parse_graph(TEXT.format(name=name, first=first, second=second, type=type))


def test_the_type_of_an_input_says_that_it_is_a_cache_and_how_wide() -> None:
    caches = [cache_of(value) for value in graph("g", "3", "3.codes", "i8[N, 2, 64]").values() if is_cache(value)]
    assert [(cache.name, cache.layer, cache.part) for cache in caches] == [
        ("cache.3", 3, ""),
        ("cache.3.codes", 3, "codes"),
    ]
    assert [(cache.dtype, cache.width, cache.slot_bytes) for cache in caches] == [
        ("bfloat16", 40, 80),
        ("int8", 128, 128),
    ]


def test_caches_of_several_graphs_are_listed_once_by_layer() -> None:
    graphs = (graph("decode", "10", "2", "f32[N, 3]"), graph("prefill", "10", "2.keys", "f16[N, 5]"))
    assert [cache.name for cache in caches_of(graphs)] == ["cache.2", "cache.2.keys", "cache.10"]


def test_names_tell_layer_and_part() -> None:
    assert (cache_name(4), cache_name(4, "keys")) == ("cache.4", "cache.4.keys")
    (value,) = parse_graph("graph g {\n  %cache.4.keys: f32[N] = input()\n  return a=%cache.4.keys\n}").values()
    assert cache_of(value).type == TensorType("f32", ("N",)) and cache_of(value).width == 1


def test_a_cache_of_codes_is_bytes_with_scales_and_has_a_name_of_its_own() -> None:
    first, second = caches_of([graph("g", "3", "3.codes", "fp8-at512[N, 576]")])
    assert (first.format, first.stored) == ("bfloat16", first.type)
    assert (second.format, second.dtype, second.width, second.stored_width) == ("fp8", "uint8", 576, 592)
    assert second.slot_bytes == 592 and second.zeros(5).shape == (5,) and second.zeros(5).nbytes == 5 * 592
