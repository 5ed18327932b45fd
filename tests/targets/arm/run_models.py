"""Runs inside the emulator, or on any machine: what artifacts compute, as one JSON line each and arrays in files.

`run_models.py REFERENCE.npz FOLDER COUNT:ARTIFACT...` prints the first COUNT tokens of each artifact and writes
FOLDER/NAME.npz: its logits of the reference's rows, and those of 64 sequences of one token.
"""

import json
import sys
from pathlib import Path

import numpy as np

import dsv3c.runtime

reference, folder, *artifacts = sys.argv[1:]
with np.load(reference) as stored:
    ids, rows = stored["ids"], stored["rows"]
for count, artifact in ((item.partition(":")[0], Path(item.partition(":")[2])) for item in artifacts):
    with dsv3c.runtime.load(artifact, threads=2) as model:
        tokens = model.generate("Once upon a time", max_new_tokens=int(count), temperature=0).token_ids
        single = [model.logits([token])[0] for token in range(0, 2048, 32)]
        np.savez(Path(folder, artifact.name), reference=model.logits(ids)[rows], single=single)
        found = {"name": artifact.name, "level": model.report()["level"], "tokens": list(tokens)}
        print(json.dumps(found), flush=True)
