"""Runs inside the emulator, or on any machine: logits of token sequences by artifacts, in files.

`run_sequences.py FOLDER PROMPT ARTIFACT...`: for each artifact FOLDER/NAME.npz has `tokens.0`, `tokens.1` and so on.
FOLDER/NAME.out.npz gets `logits.0` and so on: the first PROMPT tokens in one call, the others one by one.
"""

import json
import sys
from pathlib import Path

import numpy as np

import dsv3c.runtime
from dsv3c.runtime.engine.session import Request

folder, prompt, *artifacts = sys.argv[1:]
for artifact in map(Path, artifacts):
    with np.load(Path(folder, f"{artifact.name}.npz")) as stored:
        texts = [stored[f"tokens.{index}"] for index in range(len(stored.files))]
    found = {}
    with dsv3c.runtime.load(artifact, threads=2) as model:
        for index, tokens in enumerate(texts):
            sequence, rows = model.new_sequence(), []
            for part in (tokens[: int(prompt)], *tokens[int(prompt) :, None]):
                rows.append(model.session.run([Request(sequence, part, "all")])[0])
            sequence.close()
            found[f"logits.{index}"] = np.concatenate(rows)
        print(json.dumps({"name": artifact.name, "level": model.report()["level"]}), flush=True)
    np.savez(Path(folder, f"{artifact.name}.out.npz"), **found)
