"""Write tests/goldens/artifacts/v<format version>: python -m tests.make_golden_artifact

A small artifact as this version of dsv3c compiles it, and what it computes: later versions must still load it and give
the same. One is made for each format version, when that version is new; it is not made again. Only the lowest kernel
level is kept, so that it stays small and runs on every machine of the target.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from dsv3c import runtime
from dsv3c.compiler.driver import artifact
from dsv3c.compiler.driver.pipeline import compile_checkpoint
from dsv3c.compiler.options import CompileOptions
from dsv3c.runtime.artifact.artifact import FORMAT_VERSION, MANIFEST
from tests.checkpoints import YARN, tiny_config, write_checkpoint
from tests.conftest import GOLDENS

FOLDER = GOLDENS / "artifacts" / f"v{FORMAT_VERSION}"
# Two steps, the first long enough for the materialised form of attention; the prompt crosses a page of 16.
OPTIONS = CompileOptions(quant="int4-g32", max_tokens=32, max_rows=8, max_sequences=2)
PROMPT_TOKENS, NEW_TOKENS = 37, 16


def main() -> None:
    if FOLDER.exists():
        sys.exit(f"{FOLDER} exists: what an older dsv3c wrote is the point of it, so it is not made again")
    config = tiny_config("deepseek_v3", num_nextn_predict_layers=1, rope_scaling=YARN)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder, "tiny")
        write_checkpoint(checkpoint, config)
        compile_checkpoint(checkpoint, FOLDER / "model", OPTIONS)
    keep_lowest_level(FOLDER / "model")
    write_expected(FOLDER / "model", FOLDER / "expected.npz", config["vocab_size"])


def keep_lowest_level(folder: Path) -> None:
    """Remove the kernel libraries of all levels but the lowest, from the folder and from the manifest."""
    path = folder / MANIFEST
    manifest = json.loads(path.read_text(encoding="utf-8"))
    lowest, *others = manifest["target"]["levels"]
    for level in others:
        (folder / level["file"]).unlink()
        del manifest["files"][level["file"]]
    manifest["target"]["levels"] = [lowest]
    artifact.write_json(path, manifest)


def write_expected(folder: Path, path: Path, vocab_size: int) -> None:
    """tokens i32 [T], logits f32 [T, V], greedy: the tokens after them, mtp f32 [T-1, V]."""
    tokens = np.random.default_rng(0).integers(2, vocab_size, PROMPT_TOKENS, dtype=np.int32)
    with runtime.load(folder) as model:
        greedy = model.generate(tokens, temperature=0, max_new_tokens=NEW_TOKENS, ignore_eos=True).token_ids
        mtp = model.mtp_logits(model.hidden(tokens[:-1]), tokens[1:])
        np.savez_compressed(path, tokens=tokens, logits=model.logits(tokens), greedy=np.array(greedy), mtp=mtp)


if __name__ == "__main__":
    main()
