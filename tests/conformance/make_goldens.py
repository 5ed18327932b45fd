"""Write tests/goldens/conformance/*.npz, logits of transformers: python -m tests.conformance.make_goldens [CONFIG …]

One file a config, with config.json as text, the seed of the weights, the two token sequences, and the logits of some of
their tokens: both sides of the page boundary at 16, the last of the prompt, all that are decoded. The weights are made
again from the seed, so a file stays small and a test needs numpy alone.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from tests.conformance.cases import PROMPTS, case, seed_of
from tests.conformance.configs import CONFIGS
from tests.conformance.reference import Reference

FOLDER = Path(__file__).parents[1] / "goldens" / "conformance"


def main(names: list[str]) -> None:
    """Write the files of these configs, of all when none is named."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, config in CONFIGS.items():
        if names and name not in names:
            continue
        made = case(name)
        with tempfile.TemporaryDirectory() as folder:
            reference = Reference(made.write(Path(folder)))
            content = {"config": np.array(json.dumps(dict(config))), "seed": np.array(seed_of(name))}
            for index, (tokens, prompt) in enumerate(zip(made.sequences, PROMPTS, strict=True)):
                rows = np.array([0, 1, 15, 16, *range(prompt - 1, tokens.size)], np.int32)
                content |= {f"tokens.{index}": tokens, f"rows.{index}": rows}
                content[f"logits.{index}"] = reference.logits(tokens)[rows]
            if made.has_mtp:
                tokens = made.sequences[1]
                content["mtp"] = reference.mtp_logits(made, tokens)
        np.savez_compressed(FOLDER / f"{name}.npz", **content)
        print(f"{name}: {(FOLDER / f'{name}.npz').stat().st_size} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
