"""Artifacts that lack what the bundled one has: a prefill entry, a tokenizer, quantised weights, a bfloat16 cache."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from dsv3c import runtime
from dsv3c.compiler.driver.pipeline import compile_checkpoint
from dsv3c.compiler.options import CompileOptions
from dsv3c.runtime.engine.session import Request
from dsv3c.targets.cpu.native import write_native
from dsv3c.targets.x86 import levels as x86
from tests.checkpoints import tiny_config, write_checkpoint
from tests.selection import shortlist
from tests.targets.cpu.elf import binds_to_itself
from tests.targets.cpu.native.binding import Failure, Model

SHAPES = {
    "deepseek_v2": {"topk_method": "group_limited_greedy"},
    "deepseek_v3": {"num_nextn_predict_layers": 1, "q_lora_rank": None, "max_position_embeddings": 100},
    "youtu": {},
    "minicpm3": {},
    "mistral4": {},
    "longcat_flash": {},
}


@pytest.mark.parametrize("model_type", shortlist(SHAPES, ["deepseek_v3"]))
def test_small_steps_and_float32(model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(x86, "LEVELS", x86.LEVELS[:1])
    write_checkpoint(tmp_path / "model", tiny_config(model_type, **SHAPES[model_type]))
    out = tmp_path / "out"
    bounds = {"max_tokens": 7, "max_rows": 3, "max_sequences": 2}
    compile_checkpoint(tmp_path / "model", out, CompileOptions(quant="float32", emit=("native",), **bounds))
    entries = json.loads((out / "plan.json").read_text(encoding="utf-8"))["entries"]
    assert "prefill" not in entries
    native = Model(out, max_batch=2, threads=1)
    random = np.random.default_rng(0)
    with runtime.load(out, max_batch=2, threads=1) as model:
        assert (native.info.context, native.info.vocab_size) == (model.context, model.config.vocab_size)
        batch = [(random.integers(0, 96, count), want) for count, want in ((30, "last"), (9, "all"), (17, "none"))]
        sequences = [native.sequence() for _ in batch]
        found = native.run(*[(sequence, ids, want) for sequence, (ids, want) in zip(sequences, batch, strict=True)])
        expected = model.session.run([Request(model.new_sequence(), ids.astype(np.int32), want) for ids, want in batch])
        assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
        for kind in ("off", "ngram", *(("mtp",) if native.info.has_mtp else ())):
            params = {"seed": 3, "temperature": 0.5, "max_new_tokens": 30}
            assert (
                native.generate([5, 6, 5, 6], kind, **params).token_ids
                == model.generate([5, 6, 5, 6], **params).token_ids
            )
    assert native.info.has_mtp == (model_type == "deepseek_v3")
    for sequence in sequences:
        native.free(sequence)
    with pytest.raises(Failure) as failed:
        native.encode("text")
    assert failed.value.status == "NO_TOKENIZER"
    with pytest.raises(Failure, match="NO_TOKENIZER: this model was compiled without a tokenizer: there is no text to"):
        native.generation([5], stop=["a"])
    if not native.info.has_mtp:
        with pytest.raises(Failure, match="BAD_ARGUMENT: this model has no layer for multi-token prediction"):
            native.generation([5], "mtp")
    native.close()


# C hands weights on by the types of their parts, and int8, int4-g32 and float32 have all of these.
@pytest.mark.thorough
@pytest.mark.parametrize("quant", ["fp8", "mxfp4", "nf4-g64"])
def test_codes_that_stand_for_floats(quant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(x86, "LEVELS", x86.LEVELS[:1])
    write_checkpoint(tmp_path / "model", tiny_config())
    out, ids = tmp_path / "out", np.arange(3, 12, dtype=np.int32)
    compile_checkpoint(tmp_path / "model", out, CompileOptions(quant=quant, emit=("native",), max_tokens=16))
    native = Model(out, threads=1)
    with runtime.load(out, threads=1) as model:
        np.testing.assert_array_equal(native.logits(list(ids)), model.logits(ids))
    native.close()


def test_another_kind_of_tokenizer_leaves_token_ids(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns("native")))
    content = json.loads((copy / "tokenizer.json").read_text(encoding="utf-8"))
    (copy / "tokenizer.json").write_text(json.dumps(content | {"normalizer": {"type": "NFC"}}), encoding="utf-8")
    (note,) = write_native(copy)
    assert note == "native: takes and prints token ids only, since tokenizer.json has a normaliser"
    model = Model(copy)
    assert not model.info.has_tokenizer
    assert model.logits([1, 2, 3]).shape == (3, 2048)
    model.close()


def test_a_library_calls_itself_and_not_that_of_another_model_in_its_process(folder: Path) -> None:
    assert binds_to_itself(folder / "native" / "libdsv3c_model.so")
