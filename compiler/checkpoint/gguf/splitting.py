"""How a text is split before its pieces are merged to tokens, by the names that llama.cpp has for it.

The expressions are those of the models' own files: tokenizer.json of DeepSeek-V3, DeepSeek-V2, Youtu, GLM-4.7-Flash and
others, tokenization_kimi.py of Kimi-K2. Which model has which name: llama.cpp, conversion/base.py
(`get_vocab_base_pre`); which names split alike: src/llama-vocab.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_CJK = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_CJK_OR_HANGUL = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
# Letters that have cases, as code points.
_CASED = """
41-5a 61-7a b5 c0-d6 d8-f6 f8-1ba 1bc-1bf 1c4-293 295-2af 370-373 376 377 37b-37d 37f 386 388-38a 38c 38e-3a1
3a3-3f5 3f7-481 48a-52f 531-556 10a0-10c5 13a0-13f5 13f8-13fd 1c90-1cba 1cbd-1cbf 1d00-1d2b 1d6b-1d77 1d79-1d9a
1e00-1f15 1f18-1f1d 1f20-1f45 1f48-1f4d 1f50-1f57 1f59 1f5b 1f5d 1f5f-1f7d 1f80-1fb4 1fb6-1fbc 1fbe 1fc2-1fc4
1fc6-1fcc 1fd0-1fd3 1fd6-1fdb 1fe0-1fec 1ff2-1ff4 1ff6-1ffc 2102 2107 210a-2113 2115 2119-211d 2124 2126 2128
212a-212d 212f-2134 2139 213c-213f 2145-2149 214e 2183 2184 2c00-2c7b 2c7e-2ce4 2ceb-2cee 2cf2 2cf3 a640-a66d
a680-a69b a722-a76f a771-a787 a78b-a78e ab70-abbf fb00-fb06 fb13-fb17 ff21-ff3a ff41-ff5a 10400-1044f
104b0-104d3 104d8-104fb 10c80-10cb2 10cc0-10cf2 118a0-118df 1e900-1e943
"""


def _ranges(points: str) -> str:
    """A class of an expression of code points and ranges of them, in hex."""
    return "".join("-".join(chr(int(end, 16)) for end in found.split("-")) for found in points.split())


@dataclass(frozen=True)
class Splitting:
    """patterns: each splits further what those before it left, and its matches are pieces too; none: as GPT-2 splits.

    whole: a piece that is a token is not taken apart. begins: whether texts begin with BOS where the file says nothing.
    """

    patterns: tuple[str, ...] = ()
    whole: bool = False
    begins: bool = False

    def pre_tokenizer(self) -> dict[str, Any]:
        """As tokenizer.json has it."""
        steps: list[dict[str, Any]] = [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
            for pattern in self.patterns
        ]
        to_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": not steps}
        return {"type": "Sequence", "pretokenizers": [*steps, to_bytes]}


def _words(digits: str) -> str:
    return rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"


def _cased(upper: str, lower: str, digits: str, symbols: str) -> str:
    """Words that begin with capitals, or are capitals, each with its contraction."""
    start = r"[^\r\n\p{L}\p{N}]?"
    words = f"{start}{upper}*{lower}+{_CONTRACTIONS}?|{start}{upper}+{lower}*{_CONTRACTIONS}?"
    return rf"{words}|{digits}| ?[^\s\p{{L}}\p{{N}}]+{symbols}|{_SPACES}"


_DEEPSEEK_V3 = Splitting(
    (
        r"\p{N}{1,3}",
        _CJK,
        r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
        rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}",
    )
)
_DEEPSEEK_LLM = Splitting(
    (
        r"[\r\n]",
        rf"\s?[{_ranges(_CASED)}]+",
        "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
        r"\s+$",
        _CJK_OR_HANGUL,
        r"\p{N}",
    )
)
_DEEPSEEK_CODER = Splitting((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK_OR_HANGUL, r"\p{N}"))
_KIMI = Splitting(
    (r"\p{Han}+|" + _cased(rf"[{_UPPER}&&[^\p{{Han}}]]", rf"[{_LOWER}&&[^\p{{Han}}]]", r"\p{N}{1,3}", r"[\r\n]*"),)
)
_YOUTU = Splitting(
    (
        "[\uac00-\ud7a3\u3131-\u318e]+"
        "|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f\ufe30-\ufe4f]+"
        f"|[\u3105-\u312f]+|{_CJK}",
        _cased(f"[{_UPPER}]", f"[{_LOWER}]", r"\p{N}", r"[\r\n/]*"),
    ),
    whole=True,
)
_GPT_4O = Splitting((_cased(f"[{_UPPER}]", f"[{_LOWER}]", r"\p{N}{1,3}", r"[\r\n/]*"),))

SPLITTINGS: Mapping[str, Splitting] = {
    "deepseek-v3": _DEEPSEEK_V3,
    "joyai-llm": _DEEPSEEK_V3,
    "hunyuan-dense": _DEEPSEEK_V3,
    "deepseek-llm": _DEEPSEEK_LLM,
    "deepseek-coder": _DEEPSEEK_CODER,
    "kimi-k2": _KIMI,
    "youtu": _YOUTU,
    "glm4": Splitting((_words(r"\p{N}{1,3}"),), whole=True),
    "glm5": Splitting((_words(r"\p{N}{1,3}"),), whole=True),
    "llama-bpe": Splitting((_words(r"\p{N}{1,3}"),), whole=True, begins=True),
    "qwen2": Splitting((_words(r"\p{N}"),)),
    "gpt-4o": _GPT_4O,
    "kanana2": _GPT_4O,
    "gpt-2": Splitting(),
    "gigachat": Splitting(),
}
