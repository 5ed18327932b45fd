"""The tokenizer in C against the package `tokenizers`, with the pre-tokenisers of the model family."""

from __future__ import annotations

import copy
import ctypes
import itertools
import json
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from dsv3c.compiler.errors import TokenizerFormatError
from dsv3c.runtime.text import tokenizer as runtime_tokenizer
from dsv3c.targets.cpu import native
from dsv3c.targets.cpu.native import regex
from dsv3c.targets.cpu.native.regex import Program, Unsupported
from dsv3c.targets.cpu.native.tokenizer_table import tokenizer_table
from dsv3c.targets.link.platforms import find_c_compiler
from tests.conftest import BUNDLED_MODEL
from tests.selection import shortlist
from tests.targets.cpu.native.binding import Failure, Library, TextModel

DRIVER = Path(__file__).with_name("tokenizer_driver.c")
SOURCES = [native.SOURCES / name for name in ("tokenizer.c", "split.c", "merge.c", "utf8.c", "error.c")]

DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
DEEPSEEK_V2 = (
    r"[\r\n]",
    r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽ]+",
    r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
    r"\s+$",
    r"[一-龥ࠀ-一가-퟿]+",
)
GLM4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
)
KIMI = (
    r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)


def splits(patterns: tuple[str, ...], digits: bool = False) -> Any:
    steps = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    steps += [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    return pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


PRE_TOKENIZERS: dict[str, Callable[[], Any]] = {
    "deepseek-v3": lambda: splits(DEEPSEEK_V3),
    "deepseek-v2": lambda: splits(DEEPSEEK_V2, digits=True),
    "glm4": lambda: splits(GLM4),
    "kimi": lambda: splits(KIMI),
    "byte-level": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
}


@cache
def trained(kind: str, ignore_merges: bool = False) -> Tokenizer:
    """A small BPE tokenizer with that pre-tokeniser, added tokens that overlap, and ids before and behind a text."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = PRE_TOKENIZERS[kind]()
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, special_tokens=["<bos>", "<eos>"])
    corpus = (BUNDLED_MODEL / "eval.txt").read_text(encoding="utf-8")[:20000]
    tokenizer.train_from_iterator([corpus, "昨日は ひらがな カタカナ 漢字 12345 ÄÖÜ\r\n\t don't I'LL " * 20], trainer)
    tokenizer.add_tokens([AddedToken(text, normalized=n) for text, n in (("<t", True), ("<th>", False), ("ab", True))])
    tokenizer.add_special_tokens(["<｜User｜>", "<｜Us"])
    ends = [("<bos>", 0), ("<eos>", 1)]
    tokenizer.post_processor = processors.TemplateProcessing("<bos> $A <eos>", special_tokens=ends)
    return tokenizer


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    path = tmp_path_factory.mktemp("driver") / "driver.so"
    compile_driver(path, "-shared", "-fPIC", "-fvisibility=hidden", "-O2")
    found = Library(path)
    found.c.driver_open.restype = ctypes.c_void_p
    return found


def compile_driver(path: Path, *flags: str) -> None:
    warnings = ("-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror")
    files = ["-I", str(native.SOURCES), str(DRIVER), *map(str, SOURCES)]
    subprocess.run([*find_c_compiler(), *warnings, *flags, "-o", str(path), *files], check=True)


@pytest.fixture(scope="session")
def opened(library: Library, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., TextModel]:
    tables = []  # the library uses them where they lie

    @cache
    def model(kind: str, ignore_merges: bool = False) -> TextModel:
        path = tmp_path_factory.mktemp("table") / "tokenizer.json"
        trained(kind, ignore_merges).save(str(path))
        tables.append(tokenizer_table(path))
        size = ctypes.c_size_t(len(tables[-1]))
        return TextModel(library, ctypes.c_void_p(library.c.driver_open(tables[-1], size)))

    return model


@pytest.fixture(scope="session", params=shortlist(PRE_TOKENIZERS, ["deepseek-v3"]))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


PIECES = (
    *(" ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u3000", "\u2028", "\x85", "\0", "'s", "'LL", "'ſ", "don't", "I'VE"),
    *("<t", "<th>", "<｜User｜>", "<｜Us", "<bos>", "ab", "aab", "漢字", "かな", "한국어", "é", "e\u0301", "ß", "İ"),
    *("ǅ", "٣", "12345", "Ⅷ", "½", "!?…", "«»", "\u200d", "👩\u200d👧", "🏳\ufe0f", "\U0001d518", "\U0001f9ff"),
    *("\U00010400", "\ufffd", "\ue000", "hello", "World"),
)
texts = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=6)), max_size=12).map("".join)
any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@settings(max_examples=300)
@given(text=st.one_of(texts, any_text), special=st.booleans())
def test_ids_are_those_of_tokenizers(opened: Callable[..., TextModel], kind: str, text: str, special: bool) -> None:
    expected = trained(kind).encode(text, add_special_tokens=special).ids
    assert opened(kind).encode(text, special) == expected


@settings(max_examples=300)
@given(ids=st.lists(st.integers(0, 950), max_size=40))
def test_text_is_that_of_tokenizers(opened: Callable[..., TextModel], kind: str, ids: list[int]) -> None:
    pieces = opened(kind).decode(ids)
    assert b"".join(pieces).decode() == trained(kind).decode(ids, skip_special_tokens=True)
    for piece in pieces:
        piece.decode()  # no character is ever cut


@settings(max_examples=200)
@given(text=texts)
def test_a_word_of_the_vocabulary_can_go_before_merges(opened: Callable[..., TextModel], text: str) -> None:
    expected = trained("glm4", ignore_merges=True).encode(text).ids
    assert opened("glm4", ignore_merges=True).encode(text) == expected


def test_every_character_goes_into_the_same_class(opened: Callable[..., TextModel], kind: str) -> None:
    points = [point for point in range(1, 0x110000) if not 0xD800 <= point < 0xE000]
    points = [point for point in points if point < 0x32000 or point % (31 if point >= 0xE0000 else 997) == 0]
    for start in range(0, len(points), 4096):
        text = "".join(f"a{chr(point)}1{chr(point)} {chr(point)}" for point in points[start : start + 4096])
        assert opened(kind).encode(text, False) == trained(kind).encode(text, add_special_tokens=False).ids, start


def test_the_bundled_books(opened: Callable[..., TextModel], kind: str) -> None:
    text = (BUNDLED_MODEL / "eval.txt").read_text(encoding="utf-8")
    assert opened(kind).encode(text) == trained(kind).encode(text).ids


def test_long_words_take_no_quadratic_time(opened: Callable[..., TextModel]) -> None:
    text = "the" * 100_000
    assert opened("glm4").encode(text, False) == trained("glm4").encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("data", [b"\xff", b"a\xc3", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90\x80\x80", b"\xe2\x82"])
def test_what_is_no_utf8_is_refused(opened: Callable[..., TextModel], data: bytes) -> None:
    with pytest.raises(Failure) as failed:
        opened("glm4").encode(data)
    assert failed.value.status == "BAD_TEXT"


def test_damaged_tables_are_refused_or_harmless(tmp_path: Path) -> None:
    trained("deepseek-v3").save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "table").write_bytes(tokenizer_table(tmp_path / "tokenizer.json"))
    (tmp_path / "text").write_bytes("".join(PIECES).encode())
    sanitizers = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", "-O1")
    compile_driver(tmp_path / "driver", *sanitizers)
    command = [str(tmp_path / "driver"), str(tmp_path / "table"), str(tmp_path / "text"), "3000"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert 0 < int(done.stdout) < 3000


CHANGES: dict[str, dict[str, Any]] = {
    "a normaliser": {"normalizer": {"type": "NFC"}},
    "a decoder other than ByteLevel": {"decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True}},
    "the pre-tokeniser Whitespace": {"pre_tokenizer": {"type": "Whitespace"}},
    "a pre-tokeniser without ByteLevel": {"pre_tokenizer": {"type": "Sequence", "pretokenizers": []}},
    "the post-processor BertProcessing": {
        "post_processor": {"type": "BertProcessing", "sep": ["a", 0], "cls": ["b", 1]}
    },
}


@pytest.mark.parametrize("reason", CHANGES)
def test_other_tokenizers_are_said_to_be_unsupported(tmp_path: Path, reason: str) -> None:
    content = json.loads((BUNDLED_MODEL / "tokenizer.json").read_text(encoding="utf-8"))
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content | CHANGES[reason]), encoding="utf-8")
    with pytest.raises(Unsupported, match=reason):
        tokenizer_table(path)


BEYOND = (
    *(r"(ab)+", r"a*?", r"(?<=a)b", r"\bword", "a|", "^a", "(?!ab)c", r"\s*", "x{2", ".", "a{2}+", "a{0,99999}b{3"),
    *("(" * 33 + "a" + ")" * 33, "(?:" * 1000 + "a" + ")" * 1000, "a" * 4097, "a{1000000000}", "a{٣}", "(?i"),
    *("[a", "(a", "a)", r"\p{", r"\p{Nonsense}", "[z-a]"),
)


@pytest.mark.parametrize("pattern", BEYOND, ids=lambda pattern: pattern[:20])
def test_patterns_beyond_the_language_are_refused(pattern: str) -> None:
    with pytest.raises(Unsupported, match="pattern"):
        Program().add(pattern)


@pytest.mark.parametrize(
    "pattern", ["[a", "(a", "a)", "a*?", "(" * 33 + "a" + ")" * 33], ids=lambda pattern: pattern[:20]
)
def test_files_with_such_patterns_are_refused(tmp_path: Path, pattern: str) -> None:
    content = json.loads((BUNDLED_MODEL / "tokenizer.json").read_text(encoding="utf-8"))
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, byte_level]}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises((Unsupported, TokenizerFormatError), match=r"pattern|Oniguruma"):
        tokenizer_table(path)


SPECIAL = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
PIECES_AROUND = {
    "<b>": {"SpecialToken": {"id": "<b>", "type_id": 0}},
    "<e>": {"SpecialToken": {"id": "<e>", "type_id": 0}},
    "$A": {"Sequence": {"id": "A", "type_id": 0}},
}


def small_tokenizer(around: str) -> dict[str, Any]:
    """A tokenizer.json that knows "a", "b", "ab" and two special tokens; `around`: what its post-processor makes."""
    single = [PIECES_AROUND[name] for name in around.split()]
    tokens = {name: {"id": name, "ids": [number], "tokens": [name]} for number, name in enumerate(("<b>", "<e>"), 3)}
    processor = {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": tokens}
    return {
        "version": "1.0",
        "added_tokens": [{"id": number, "content": name, **SPECIAL} for number, name in ((3, "<b>"), (4, "<e>"))],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": processor if around else None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "<b>": 3, "<e>": 4}, "merges": ["a b"]},
    }


def open_table(library: Library, table: bytes) -> TextModel:
    return TextModel(library, ctypes.c_void_p(library.c.driver_open(table, ctypes.c_size_t(len(table)))))


@pytest.mark.parametrize("around", ["", "$A", "<b> $A", "<b> $A <e>"])
def test_what_stands_around_a_text_is_that_of_the_python_runtime(library: Library, tmp_path: Path, around: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(small_tokenizer(around)))
    flags = (None, True, False, "yes")
    for begin, end, bos in itertools.product(flags, flags, ("<b>", {"content": "<b>"}, "<unknown>", None)):
        config = {"add_bos_token": begin, "add_eos_token": end, "bos_token": bos, "eos_token": "<e>"}
        table, known = tokenizer_table(path, config), runtime_tokenizer.Tokenizer(path, config)
        model = open_table(library, table)
        for text in ("ab", "", "<b>ab", "<b>", "ab<e>", "<b>ab<e>", "<b>a<b>"):
            assert model.encode(text, 1) == known.encode(text), (config, text)
            assert model.encode(text, 2) == known.encode(text, add_bos=False), (config, text)
            assert model.encode(text, 0) == known.encode_plain(text)


def paths_in(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield from paths_in(item, (*path, key))


ODD: tuple[Any, ...] = (
    *(
        None,
        True,
        -1,
        0,
        7,
        1.5,
        10**9,
        2**32,
        10**30,
        "",
        "a",
        "a b c",
        "\ud800",
        "Ġ",
        [],
        [[]],
        ["a"],
        [["a", "b", "c"]],
    ),
    *(
        {},
        {"type": "Sequence"},
        {"type": "ByteLevel"},
        {"type": "BPE"},
        {"id": "A"},
        {"Regex": "(" * 99},
        {"Regex": "a*"},
    ),
)
WORDS = (
    "a",
    "b",
    "ab",
    "<b>",
    "<e>",
    "A",
    "",
    "a b",
    "#version",
    "Isolated",
    "Removed",
    "Digits",
    "ByteLevel",
    "(a|b)",
    "a?",
)


def changed(random: Random, value: Any) -> Any:
    """Another value, mostly of the same type."""
    if random.random() < 0.3:
        return copy.deepcopy(random.choice(ODD))
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return random.choice((0, 1, 3, 5, 99, 1 << 22, 2**32 - 1))
    return random.choice(WORDS) if isinstance(value, str) else value


SPLIT = {"type": "Split", "pattern": {"Regex": " ?a+|b"}, "behavior": "Isolated", "invert": False}


@pytest.fixture
def few_characters(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a class holds is asked of few characters only, which is faster."""
    monkeypatch.setattr(regex, "_PROBED", (range(0x300),))
    monkeypatch.setattr(regex, "_UNIFORM", ())
    cached = (regex._of_character, regex._of_class, regex._same_letters)
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


@pytest.mark.usefixtures("few_characters")
def test_any_tokenizer_gives_a_table_or_a_typed_error(library: Library, tmp_path: Path) -> None:
    random = Random(0)
    outcomes: Counter[str] = Counter()
    for _ in range(700):
        content = copy.deepcopy(small_tokenizer("<b> $A <e>"))
        byte_level = {**content["pre_tokenizer"], "use_regex": False}
        content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [copy.deepcopy(SPLIT), byte_level]}
        for _ in range(random.randint(1, 2)):
            *above, key = random.choice([path for path in paths_in(content) if path] or [("version",)])
            place = content
            for step in above:
                place = place[step]
            place[key] = changed(random, place[key])
            if random.random() < 0.1:
                del place[key]
        (tmp_path / "tokenizer.json").write_text(json.dumps(content))
        try:
            table = tokenizer_table(
                tmp_path / "tokenizer.json", {"bos_token": random.choice(ODD), "add_bos_token": True}
            )
        except (TokenizerFormatError, Unsupported) as error:
            outcomes[type(error).__name__] += 1
            continue
        outcomes["table"] += 1
        model = open_table(library, table)
        assert model.handle.value, content
        model.encode("ab b<b>aab")
    assert min(outcomes.values()) > 50 and len(outcomes) == 3


REGEX_PARTS = (
    *(
        "a",
        "é",
        " ?",
        r"\s",
        r"\p{L}",
        r"\P{N}",
        r"\p{",
        "[",
        "]",
        "[^",
        "-",
        "(",
        ")",
        "(?:",
        "(?i:",
        "(?!",
        "(?=",
        "|",
    ),
    *("?", "*", "+", "{", "}", "{2}", "{1,3}", "{,", "^", "$", ".", "\\", r"\n", r"\b", "&&", r"\x", "0", "\ud800"),
)


@pytest.mark.usefixtures("few_characters")
def test_patterns_of_many_classes_are_refused() -> None:
    pattern = "|".join(f"[a{chr(0x100 + i)}]" for i in range(regex.CLASSES_LIMIT + 1))
    with pytest.raises(Unsupported, match="classes of characters"):
        Program().add(pattern)


@pytest.mark.usefixtures("few_characters")
def test_patterns_by_the_thousand_do_not_exhaust_the_stack(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, content = tmp_path / "tokenizer.json", small_tokenizer("")
    byte_level = {**content["pre_tokenizer"], "use_regex": False}
    for count in (regex.STAGES_LIMIT, regex.STAGES_LIMIT + 1):
        content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [SPLIT] * count + [byte_level]}
        path.write_text(json.dumps(content))
        if count == regex.STAGES_LIMIT:
            expected = Tokenizer.from_file(str(path)).encode("ab").ids
            assert open_table(library, tokenizer_table(path)).encode("ab") == expected
            continue
        with pytest.raises(Unsupported, match="more than 64 patterns"):
            tokenizer_table(path)
        monkeypatch.setattr(regex, "STAGES_LIMIT", count)
        assert not open_table(library, tokenizer_table(path)).handle.value


@pytest.mark.usefixtures("few_characters")
def test_any_pattern_gives_steps_or_a_typed_error() -> None:
    random = Random(0)
    outcomes: Counter[bool] = Counter()
    for _ in range(1500):
        program = Program()
        try:
            program.add("".join(random.choices(REGEX_PARTS, k=random.randint(1, 8))))
            outcomes[True] += 1
        except Unsupported:
            outcomes[False] += 1
    assert min(outcomes.values()) > 50
