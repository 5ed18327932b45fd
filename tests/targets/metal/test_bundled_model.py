"""The bundled model through the whole Metal path but for Apple's compiler and GPU: its kernels run in the shim."""

import json

import numpy as np
import pytest

from dsv3c import runtime, targets
from dsv3c.compiler.checkpoint import Checkpoint
from dsv3c.compiler.driver import lowering
from dsv3c.compiler.options import CompileOptions
from dsv3c.runtime.engine.session import Request
from tests.conformance import runs
from tests.conformance.runs import ArtifactStepper, Batch, GraphStepper, relative_error
from tests.conftest import BUNDLED_MODEL
from tests.targets.gpu.shim.metal import kernels, parameters

REFERENCE = json.loads((BUNDLED_MODEL / "reference_greedy.json").read_text(encoding="utf-8"))
FORMATS = ("float32", "float16", "int4-g32")
TOKENS = 16


@pytest.fixture(scope="module")
def loaded(artifacts, modules):
    """The model in a weight format, and the module that its device loaded."""
    models = {}

    def model(quant):
        if quant not in models:
            models[quant] = runtime.load(artifacts(quant), max_batch=4), modules[-1]
        return models[quant]

    yield model
    for found, _ in models.values():
        found.close()


@pytest.fixture(scope="module")
def checkpoint():
    return Checkpoint.open(BUNDLED_MODEL)


def stepper(checkpoint, quant, entry="decode"):
    """The numpy evaluation of an entry's graph, as the target compiles it."""
    options = CompileOptions(target="metal", quant=quant)
    lowered = lowering.lower(checkpoint.config, checkpoint.shapes, options, targets.get("metal"))
    return GraphStepper(lowered.entries[entry].graph, checkpoint.read)


def random_tokens(length):
    return np.random.default_rng(5).integers(0, 2048, length).astype(np.int32)


def test_float32_gives_the_reference_logits(loaded):
    reference = np.load(BUNDLED_MODEL / "reference_logits.npz")
    found = loaded("float32")[0].logits(reference["ids"])
    assert relative_error(found[reference["rows"]], reference["logits"]) <= 1e-4


def test_float32_writes_the_reference_tokens(loaded):
    found = loaded("float32")[0].generate(REFERENCE["prompt"], temperature=0, max_new_tokens=TOKENS)
    assert list(found.token_ids) == REFERENCE["greedy_ids"][:TOKENS]


@pytest.mark.parametrize("quant", FORMATS[1:])
def test_the_greedy_tokens_are_those_of_the_graph(quant, loaded, checkpoint):
    model, graph = loaded(quant)[0], stepper(checkpoint, quant)
    tokens = list(model.tokenizer.encode(REFERENCE["prompt"]))
    found = model.generate(tokens, temperature=0, max_new_tokens=TOKENS)
    expected, fed = [], np.array(tokens, np.int32)
    for _ in range(TOKENS):
        start = len(tokens) + len(expected) - 1 if expected else 0
        positions = np.arange(start, start + fed.size, dtype=np.int32)
        logits = graph.step(Batch(fed, positions, np.zeros_like(fed), np.arange(4, dtype=np.int32)[None]))
        expected.append(int(logits[-1].argmax()))
        fed = np.array(expected[-1:], np.int32)
    assert list(found.token_ids) == expected


@pytest.mark.parametrize("name", ["chunks of 1", "chunks of 17", "two at once", "second joins"])
def test_every_way_to_cut_sequences_into_steps_gives_the_same_logits(name, loaded):
    sequences = [random_tokens(prompt + runs.DECODED) for prompt in runs.PROMPTS]
    model = ArtifactStepper(loaded("float32")[0])
    expected = runs.run(model, sequences, [[(0, sequences[0].size)], [(1, sequences[1].size)]])
    assert runs.worst(runs.run(model, sequences, runs.schedules()[name]), expected) <= 1e-5


def test_a_fork_writes_into_pages_of_its_own(loaded):
    """The last page of both is partly filled: the device copies it before one of them writes on."""
    model, tokens = loaded("float32")[0], random_tokens(24)
    first = model.new_sequence()
    model.session.run([Request(first, tokens[:20], "none")])
    second = first.fork()
    other = np.concatenate([tokens[:20], tokens[20:][::-1]])
    (changed,) = model.session.run([Request(second, other[20:].copy(), "last")])
    (kept,) = model.session.run([Request(first, tokens[20:], "last")])
    for sequence in (first, second):
        sequence.close()
    assert relative_error(kept, model.logits(tokens)[-1:]) <= 1e-5
    assert relative_error(changed, model.logits(other)[-1:]) <= 1e-5


def test_the_mtp_entry_computes_what_its_graph_says(loaded, checkpoint):
    tokens, model = random_tokens(20), loaded("float32")[0]
    hidden = model.hidden(tokens[:-1])
    positions = np.arange(19, dtype=np.int32)
    batch = Batch(tokens[1:], positions, np.zeros_like(positions), np.arange(2, dtype=np.int32)[None])
    expected = stepper(checkpoint, "float32", "mtp").step(batch, hidden)
    assert relative_error(model.mtp_logits(hidden, tokens[1:]), expected) <= 1e-4


@pytest.mark.parametrize("tokens", [1, 5, 40])
def test_launches_are_those_of_the_plans_dispatches(tokens, loaded, artifacts):
    """Functions, grids and threads of one step, read from plan.json by another reader than the runtime's."""
    model, module = loaded("float32")
    plan = json.loads((artifacts("float32") / "plan.json").read_text())
    control = [tokens, 1]
    expected = []
    for name, _ in plan["entries"]["decode"]["calls"]:
        rows = plan["dispatches"][name]
        form = next(row for row in rows if row["most_rows"] is None or control[row["rows"]] <= row["most_rows"])
        axes = [-(-times * (1 if i is None else control[i]) // tile) for times, i, tile, _ in form["grid"]]
        grid = [
            count if axis[3] is None else min(count, axis[3]) for axis, count in zip(form["grid"], axes, strict=True)
        ]
        if min(grid) > 0:
            expected.append((form["function"], (*grid, *[1] * (3 - len(grid))), plan["threads"]))
    module.launches.clear()
    sequence = model.new_sequence()
    model.session.run([Request(sequence, random_tokens(tokens), "last")])
    sequence.close()
    assert module.launches == expected


@pytest.mark.parametrize("quant", FORMATS)
def test_texts_stay_within_what_every_mac_compiles(quant, artifacts):
    """Each text alone is a whole program, without what is newer than MSL 2.3 and without infinities, which the fast
    mathematics of TVM's runtime may not keep; at most 31 buffers, nothing but buffers and positions."""
    texts = sorted((artifacts(quant) / "kernels").glob("*.metal"))
    assert texts
    for path in texts:
        text = path.read_text()
        found = kernels(text)
        assert list(found) == [path.stem]
        attributes = [attribute for _, _, attribute, _ in parameters(found[path.stem])]
        buffers = [int(index) for _, _, attribute, index in parameters(found[path.stem]) if attribute == "buffer"]
        assert buffers == list(range(len(buffers))) and len(buffers) <= 31
        assert set(attributes) <= {"buffer", "threadgroup_position_in_grid", "thread_position_in_threadgroup"}
        assert text.startswith("// Function: ") and "using namespace metal;" in text
        for word in ("bfloat", "INFINITY", "inf", "NAN", "nan", "atomic", "#include <simd"):
            assert word not in text


def test_the_manifest_says_what_the_texts_are(artifacts):
    manifest = json.loads((artifacts("float32") / "manifest.json").read_text())
    assert (manifest["target"]["name"], manifest["target"]["modules"]) == ("metal", "msl-2.3")
