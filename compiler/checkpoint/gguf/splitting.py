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
_CJK = "[一-龥぀-ゟ゠-ヿ]+"


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


def _words(digits: str, letters: str = r"\p{L}+", before: str = f"{_CONTRACTIONS}|") -> str:
    return rf"{before}[^\r\n\p{{L}}\p{{N}}]?{letters}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"


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
        r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼι"
        r"ῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻"
        r"𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+",
        r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
        r"\s+$",
        "[一-龥ࠀ-一가-퟿]+",
        r"\p{N}",
    )
)
_DEEPSEEK_CODER = Splitting((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}"))
_KIMI = Splitting(
    (r"\p{Han}+|" + _cased(rf"[{_UPPER}&&[^\p{{Han}}]]", rf"[{_LOWER}&&[^\p{{Han}}]]", r"\p{N}{1,3}", r"[\r\n]*"),)
)
_YOUTU = Splitting(
    (
        rf"[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|{_CJK}",
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
