"""plan.json edited, with its hash in the manifest: it is told by the kernels, and none of them runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from dsv3c.runtime.artifact.artifact import Artifact

# In a process of its own, since what goes wrong here may take the process along. Prints what was raised, and how often.
EDITS = """
import collections, copy, hashlib, json, random, sys
from pathlib import Path
from dsv3c import runtime
from dsv3c.runtime.errors import RuntimeFault

folder, choose = Path(sys.argv[1]), random.Random(7)
plan, manifest = (json.loads((folder / name).read_text()) for name in ("plan.json", "manifest.json"))

def edit(content):
    buffers, calls = content["buffers"], content["entries"]["decode"]["calls"]
    call, other = choose.choice(calls), choose.choice(calls)
    kind = choose.randrange(9)
    if kind == 0: call[1][choose.randrange(len(call[1]))] = choose.randrange(len(buffers))
    elif kind == 1: call[1].pop()
    elif kind == 2: call[1].append(0)
    elif kind == 3: call[0], other[0] = other[0], call[0]
    elif kind == 4: call[1], other[1] = other[1], call[1]
    elif kind == 5: choose.choice(buffers)["size"] = choose.choice([1, 64, 4096, 2**40])
    elif kind == 6: content[choose.choice(["page_size", "arena_bytes"])] = choose.choice([1, 8, 64])
    elif kind == 7: choose.choice(buffers)["width"] = choose.choice([1, 64, 4096, 2**40])
    else: choose.choice(buffers)["dtype"] = choose.choice(["float32", "int32", "int8", "uint16"])

found = collections.Counter()
for _ in range(120):
    changed = copy.deepcopy(plan)
    edit(changed)
    data = json.dumps(changed).encode()
    (folder / "plan.json").write_bytes(data)
    files = {**manifest["files"], "plan.json": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}}
    (folder / "manifest.json").write_text(json.dumps({**manifest, "files": files}))
    try:
        with runtime.load(folder, threads=1, context=64) as model:
            model.logits([1, 2, 3])
        found["ran"] += 1
    except RuntimeFault as error:
        found[error.code] += 1
print(json.dumps(found))
"""


def test_no_edit_reaches_a_kernel(folder: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    level = Path(Artifact.open(folder).manifest.target.levels[0].file)
    shutil.copytree(folder, small, copy_function=os.link)
    for name in ("plan.json", "manifest.json"):
        (small / name).unlink()
        shutil.copyfile(folder / name, small / name)
    environment = {**os.environ, "DSV3C_ISA": level.stem}
    command = [sys.executable, "-c", EDITS, str(small)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.pop("PlanNotOfKernels") > 50
    assert found.keys() <= {"PlanInvalid", "ContextInvalid"}
