"""Write tests/goldens/engine: what transformers generates with the bundled model in float32, and what its logits
processors make of real logits: python -m tests.conformance.make_engine_goldens

`decoding.json`: `prompts` are lists of ids, cut from the model's eval.txt, each with the BOS before it. `ways` has for
each way of decoding its `params` (fields of SamplingParams, besides max_new_tokens, which is `new_tokens`) and
`results`: for each prompt a list of the texts that it gives, best first, one where `num_return_sequences` is not among
the parameters. A text is {"tokens", "score"}: the new ids, with the end token where one ended it, and for beams the sum
of the log-probabilities by the length penalty (without beams null). Prompts are those for which transformers in float64
gives the same tokens: none of them hangs on how float32 rounds.

`processors.npz`: `prompt.I` and `answer.I` are the ids of text I, `logits.I` f32 [V] those after it; `end_tokens`;
`cases` is JSON, for each case its name and `params`. What transformers makes of the logits of text I in case C is in
three arrays: `C.I.banned` (bits: -inf), `C.I.changed` (bits: neither -inf nor the logit that was there), `C.I.values`
f32 of those. `scores_of` of tests/runtime/engine/processors/test_goldens.py puts them together.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer

from dsv3c.compiler.checkpoint import Checkpoint
from tests.checkpoints import write_safetensors
from tests.conformance.reference import Reference
from tests.conftest import BUNDLED_MODEL, GOLDENS

FOLDER = GOLDENS / "engine"
PROMPTS = 50
LENGTHS = (4, 6, 9, 13, 18, 24, 31, 39, 60)  # of prompts
GROUP = 6  # prompts of one length, which are generated together
NEW_TOKENS = 32
FULL_STOP = [1, 16]  # the model's end token, and its id of "."

WAYS: Mapping[str, Mapping[str, Any]] = {
    "greedy": {},
    "greedy to a full stop": {"eos_token_id": FULL_STOP},
    "4 beams": {"num_beams": 4},
    "4 beams to a full stop": {"num_beams": 4, "eos_token_id": FULL_STOP},
    "short": {"num_beams": 4, "eos_token_id": FULL_STOP, "length_penalty": 0.6},
    "long": {"num_beams": 4, "eos_token_id": FULL_STOP, "length_penalty": 2.0},
    "early": {"num_beams": 4, "eos_token_id": FULL_STOP, "early_stopping": True},
    "never early": {"num_beams": 4, "eos_token_id": FULL_STOP, "early_stopping": "never"},
    "never early, long": {"num_beams": 4, "eos_token_id": FULL_STOP, "early_stopping": "never", "length_penalty": 2.0},
    "3 results": {"num_beams": 4, "eos_token_id": FULL_STOP, "num_return_sequences": 3},
    "no repeats": {"num_beams": 4, "no_repeat_ngram_size": 2, "repetition_penalty": 1.2},
}

CASES: Mapping[str, Mapping[str, Any]] = {
    "repetition": {"repetition_penalty": 1.3},
    "repetition rewarded": {"repetition_penalty": 0.8},
    "bias": {"logit_bias": {14: 5.0, 16: -7.5, 300: 2.0}},
    "bigrams": {"no_repeat_ngram_size": 2},
    "unigrams": {"no_repeat_ngram_size": 1},
    "bad words": {"bad_words_ids": [[14], [1], [272, 324], [261, 460, 854]]},
    "min length": {"min_length": 60},
    "min new tokens": {"min_new_tokens": 20},
    "suppressed": {"suppress_tokens": [1, 14, 16, 261]},
    "temperature": {"do_sample": True, "temperature": 0.7},
    "top-k": {"do_sample": True, "top_k": 20},
    "top-p": {"do_sample": True, "top_p": 0.9},
    "min-p": {"do_sample": True, "min_p": 0.05},
    "typical-p": {"do_sample": True, "typical_p": 0.8},
    "typical-p low": {"do_sample": True, "typical_p": 0.2},
    "top-k top-p": {"do_sample": True, "temperature": 1.3, "top_k": 50, "top_p": 0.8},
    "all filters": {"do_sample": True, "temperature": 0.8, "top_k": 80, "top_p": 0.95, "min_p": 0.01, "typical_p": 0.9},
    "all bans": {
        "repetition_penalty": 1.2,
        "no_repeat_ngram_size": 3,
        "bad_words_ids": [[14], [272, 324]],
        "min_length": 70,
        "min_new_tokens": 40,
        "suppress_tokens": [261],
    },
    "all": {
        "do_sample": True,
        "temperature": 0.9,
        "top_k": 100,
        "top_p": 0.98,
        "min_p": 0.005,
        "typical_p": 0.95,
        "repetition_penalty": 1.1,
        "no_repeat_ngram_size": 2,
        "min_new_tokens": 40,
        "suppress_tokens": [16],
    },
}
_OURS = {"logit_bias"}  # transformers knows it by another name
TEXTS = ((0, 30), (14, 16), (40, 40))  # prompts of `decoding.json` and how many greedy tokens follow


class Generator:
    """The bundled model in transformers, dequantised."""

    def __init__(self, folder: Path) -> None:
        checkpoint = Checkpoint.open(BUNDLED_MODEL)
        config = json.loads((BUNDLED_MODEL / "config.json").read_text(encoding="utf-8"))
        del config["quantization_config"]
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        tensors = {
            name.replace("*", str(index)): part
            for name in checkpoint.shapes
            for index, part in enumerate(checkpoint.parts(name))
        }
        write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
        self.model = Reference(folder).model
        self.model.generation_config = transformers.GenerationConfig(bos_token_id=0, eos_token_id=1, pad_token_id=2)

    @torch.no_grad()
    def generate(self, prompts: list[list[int]], params: Mapping[str, Any], new_tokens: int = NEW_TOKENS) -> list[Any]:
        """For each prompt, all of one length, its texts as `decoding.json` has them."""
        ids = torch.tensor(prompts)
        out = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens,
            do_sample=False,
            output_scores=True,
            return_dict_in_generate=True,
            **params,
        )
        found = out.get("sequences_scores")
        scores = [None] * len(prompts) if found is None else found.tolist()
        ends = params.get("eos_token_id", [1])
        rows = [_ended(row, ends) for row in out.sequences[:, ids.shape[1] :].tolist()]
        texts = [{"tokens": tokens, "score": score} for tokens, score in zip(rows, scores, strict=True)]
        each = len(texts) // len(prompts)
        return [texts[index : index + each] for index in range(0, len(texts), each)]

    @torch.no_grad()
    def logits(self, tokens: list[int]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """f32 [V] after these."""
        found: np.ndarray[Any, np.dtype[np.float32]] = self.model(torch.tensor([tokens])).logits[0, -1].numpy()
        return found

    def processed(self, prompt: list[int], answer: list[int], logits: Any, params: Mapping[str, Any]) -> Any:
        """f32 [V]: what the processors that `generate` builds make of a row of logits."""
        config = copy.deepcopy(self.model.generation_config)
        named = {name: value for name, value in params.items() if name not in _OURS}
        if "logit_bias" in params:
            named["sequence_bias"] = {(token,): bias for token, bias in params["logit_bias"].items()}
        config.update(**named)
        config._eos_token_tensor = torch.tensor([1])
        processors = self.model._get_logits_processor(config, input_ids_seq_length=len(prompt), device="cpu")
        return processors(torch.tensor([prompt + answer]), torch.from_numpy(logits.copy())[None])[0].numpy()

    def widened(self) -> Generator:
        """The same in float64."""
        other = copy.copy(self)
        other.model = copy.deepcopy(self.model).double()
        return other


def _ended(tokens: list[int], ends: list[int]) -> list[int]:
    """Up to the first end token, behind which rows are filled up."""
    for index, token in enumerate(tokens):
        if token in ends:
            return tokens[: index + 1]
    return tokens


def candidates() -> list[list[list[int]]]:
    """Groups of prompts of one length: pieces of paragraphs, two of a group from where their paragraph ends."""
    text = (BUNDLED_MODEL / "eval.txt").read_text(encoding="utf-8")
    tokenizer = Tokenizer.from_file(str(BUNDLED_MODEL / "tokenizer.json"))
    paragraphs = iter([ids for part in text.split("\n") if len(ids := tokenizer.encode(part).ids) > max(LENGTHS)])
    groups = [[next(paragraphs) for _ in range(GROUP)] for _ in LENGTHS]
    return [
        [[ids[0], *ids[1 - n :]] if at < 2 else ids[:n] for at, ids in enumerate(group)]
        for n, group in zip(LENGTHS, groups, strict=True)
    ]


def decoding(generator: Generator) -> dict[str, Any]:
    exact, prompts = generator.widened(), list[list[int]]()
    results: dict[str, list[Any]] = {name: [] for name in WAYS}
    for group in candidates():
        found = {name: generator.generate(group, params) for name, params in WAYS.items()}
        wide = {name: exact.generate(group, params) for name, params in WAYS.items()}
        for index, prompt in enumerate(group):
            same = all(tokens_of(found[name][index]) == tokens_of(wide[name][index]) for name in WAYS)
            print(f"{len(prompt)} tokens: {'as' if same else 'not as'} in float64", flush=True)
            if same and len(prompts) < PROMPTS:
                prompts.append(prompt)
                for name in WAYS:
                    results[name].append(found[name][index])
    assert len(prompts) == PROMPTS, "more groups are needed"
    ways = {name: {"params": dict(params), "results": results[name]} for name, params in WAYS.items()}
    return {"new_tokens": NEW_TOKENS, "prompts": prompts, "ways": ways}


def tokens_of(texts: list[Any]) -> list[list[int]]:
    return [text["tokens"] for text in texts]


def processors(generator: Generator, prompts: list[list[int]]) -> dict[str, Any]:
    content: dict[str, Any] = {"cases": np.array(json.dumps(CASES)), "end_tokens": np.array([1], np.int32)}
    for text, (index, count) in enumerate(TEXTS):
        prompt = prompts[index]
        answer = generator.generate([prompt], {}, count)[0][0]["tokens"]
        logits = generator.logits(prompt + answer)
        content |= {f"prompt.{text}": np.int32(prompt), f"answer.{text}": np.int32(answer), f"logits.{text}": logits}
        for case, params in CASES.items():
            found = generator.processed(prompt, answer, logits, params)
            banned, changed = np.isneginf(found), ~np.isneginf(found) & (found != logits)
            content[f"{case}.{text}.banned"] = np.packbits(banned)
            content[f"{case}.{text}.changed"] = np.packbits(changed)
            content[f"{case}.{text}.values"] = found[changed]
    return content


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        generator = Generator(Path(folder))
    made = decoding(generator)
    (FOLDER / "decoding.json").write_text(_text(made), encoding="utf-8")
    np.savez_compressed(FOLDER / "processors.npz", **processors(generator, made["prompts"]))
    for path in sorted(FOLDER.iterdir()):
        print(f"{path.name}: {path.stat().st_size} bytes")


def _text(made: dict[str, Any]) -> str:
    """JSON with a line for each prompt and each of its results."""

    def rows(values: list[Any], indent: str) -> str:
        return "[\n" + ",\n".join(indent + json.dumps(value, separators=(",", ":")) for value in values) + "]"

    ways = ",\n".join(
        f'  {json.dumps(name)}: {{"params": {json.dumps(way["params"])}, "results": {rows(way["results"], "    ")}}}'
        for name, way in made["ways"].items()
    )
    prompts = rows(made["prompts"], "  ")
    return f'{{"new_tokens": {made["new_tokens"]}, "prompts": {prompts},\n"ways": {{\n{ways}\n}}}}\n'


if __name__ == "__main__":
    main()
