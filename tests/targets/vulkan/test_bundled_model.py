"""The bundled model on a Vulkan device: the reference's logits and tokens in float32, else what its graph says."""

import json
import subprocess
import sys

import numpy as np
import pytest

from dsv3c import runtime, targets
from dsv3c.compiler.checkpoint import Checkpoint
from dsv3c.compiler.driver import lowering, pipeline
from dsv3c.compiler.options import CompileOptions
from dsv3c.runtime.engine.session import Request
from tests.conformance import runs
from tests.conformance.runs import ArtifactStepper, Batch, GraphStepper, relative_error
from tests.conftest import BUNDLED_MODEL
from tests.runtime.engine_checks import check_batches, check_drafts
from tests.runtime.experts import counted, visited
from tests.waiting import PATIENCE

ROUNDED = ("float16", "fp8", "int8", "int4-g32", "int4-g32-asym")
LENGTHS = (9, 40)
# The cache is bfloat16 there: a value between two of its numbers may fall to either side. It was 2.3e-4 at most.
CACHE_ROUNDING = 2e-3
# Matrices have float16 factors, of a relative error of 5e-4: on lavapipe of Mesa 26.2 it was 5.4e-3 at most.
MATRIX_ROUNDING = 1e-2


@pytest.fixture(scope="module")
def loaded(artifacts, vulkan):
    """The model in a weight format on the device."""
    models = {}

    def model(quant):
        if quant not in models:
            models[quant] = runtime.load(artifacts(quant), max_batch=4)
        return models[quant]

    yield model
    for found in models.values():
        found.close()


@pytest.fixture(scope="module")
def checkpoint():
    return Checkpoint.open(BUNDLED_MODEL)


def stepper(checkpoint, quant, entry="decode"):
    """The numpy evaluation of an entry's graph, as the target compiles it."""
    options = CompileOptions(target="vulkan", quant=quant)
    lowered = lowering.lower(checkpoint.config, checkpoint.shapes, options, targets.get("vulkan"))
    read = checkpoint.coded if quant == "fp8" else checkpoint.read
    return GraphStepper(lowered.entries[entry].graph, read)


def random_tokens(lengths):
    generator = np.random.default_rng(5)
    return [generator.integers(0, 2048, length).astype(np.int32) for length in lengths]


def test_the_experts_of_a_step_are_those_of_the_definition(loaded, checkpoint):
    (tokens,) = random_tokens((9,))
    model = loaded("float32")
    with model.count_experts() as stats:
        model.logits(tokens)
        model.generate([5, 6, 7], max_new_tokens=3, temperature=0, ignore_eos=True)  # whose tokens the device draws
    assert stats.tokens == 9 + 3 + 2
    with model.count_experts() as stats:
        model.logits(tokens)
    truth = counted(visited(checkpoint, tokens), 16)
    assert {layer: found.counts.tolist() for layer, found in stats.layers.items()} == truth


def test_float32_gives_the_reference_logits(loaded):
    reference = np.load(BUNDLED_MODEL / "reference_logits.npz")
    found = loaded("float32").logits(reference["ids"])
    assert relative_error(found[reference["rows"]], reference["logits"]) <= 1e-4


def test_weights_larger_than_a_device_binds_are_used_in_parts(loaded, tmp_path):
    """The same to the bit; of 1 MiB at most are then the embedding, the head and the experts of a layer."""
    options = CompileOptions(target="vulkan:binding=1", quant="float32")
    pipeline.compile_checkpoint(BUNDLED_MODEL, tmp_path / "out", options)
    (tokens,) = random_tokens([17])
    with runtime.load(tmp_path / "out") as model:
        weights = [buffer for buffer in model.artifact.plan.buffers if buffer.kind == "weight"]
        assert max(buffer.bytes for buffer in weights) <= 1 << 20
        assert sum(buffer.offset > 0 for buffer in weights) > 20
        for count in (1, 17):
            expected = loaded("float32").logits(tokens[:count])
            np.testing.assert_array_equal(model.logits(tokens[:count]), expected)


def test_both_forms_of_attention_agree(loaded):
    model, tokens = ArtifactStepper(loaded("float32"), "decode"), random_tokens([9, 20])
    schedule = [[(0, 5), (1, 20)], [(0, 4)]]
    rebuilt = runs.run(ArtifactStepper(loaded("float32"), "prefill"), tokens, schedule)
    assert runs.worst(rebuilt, runs.run(model, tokens, schedule)) <= 1e-4


def test_float32_writes_the_reference_tokens(loaded):
    reference = json.loads((BUNDLED_MODEL / "reference_greedy.json").read_text(encoding="utf-8"))
    wanted = reference["greedy_ids"]
    found = loaded("float32").generate(reference["prompt"], temperature=0, max_new_tokens=len(wanted))
    assert list(found.token_ids) == wanted


@pytest.mark.parametrize("quant", ROUNDED)
def test_rounded_models_compute_what_their_graph_says(quant, loaded, checkpoint):
    """Prompts of two sequences in one ragged step, then single tokens of both: logits, and the tokens they choose."""
    model, graph = ArtifactStepper(loaded(quant)), stepper(checkpoint, quant)
    sequences = random_tokens(LENGTHS)
    together = [[(0, 6), (1, 30)], *[[(1, 1), (0, 1)]] * 3, [(1, 7)]]
    found, expected = runs.run(model, sequences, together), runs.run(graph, sequences, together)
    plain = loaded(quant).report()["matrices"] is None
    assert runs.worst(found, expected) <= (CACHE_ROUNDING if plain else MATRIX_ROUNDING)
    chosen = [np.concatenate(logits).argmax(-1) for logits in (found, expected)]
    assert np.mean(chosen[0] == chosen[1]) >= 0.95


@pytest.mark.parametrize("quant", ["int4-g32"])
def test_the_greedy_tokens_are_those_of_the_graph(quant, loaded, checkpoint):
    prompt = json.loads((BUNDLED_MODEL / "reference_greedy.json").read_text(encoding="utf-8"))["prompt"]
    model, graph = loaded(quant), stepper(checkpoint, quant)
    tokens = list(model.tokenizer.encode(prompt))
    found = model.generate(tokens, temperature=0, max_new_tokens=12)
    expected, fed = [], np.array(tokens, np.int32)
    for _ in range(12):
        start = 0 if not expected else len(tokens) + len(expected) - 1
        positions = np.arange(start, start + fed.size, dtype=np.int32)
        logits = graph.step(Batch(fed, positions, np.zeros_like(fed), np.arange(4, dtype=np.int32)[None]))
        expected.append(int(logits[-1].argmax()))
        fed = np.array(expected[-1:], np.int32)
    assert list(found.token_ids) == expected


@pytest.mark.parametrize("name", ["chunks of 1", "chunks of 17", "two at once", "second joins"])
def test_every_way_to_cut_sequences_into_steps_gives_the_same_logits(name, loaded):
    sequences = random_tokens([prompt + runs.DECODED for prompt in runs.PROMPTS])
    model = ArtifactStepper(loaded("float32"))
    expected = runs.run(model, sequences, [[(0, sequences[0].size)], [(1, sequences[1].size)]])
    assert runs.worst(runs.run(model, sequences, runs.schedules()[name]), expected) <= 1e-5


def test_a_long_prompt_is_read_in_steps_as_large_as_the_plan_allows(loaded):
    (tokens,) = random_tokens([700])
    model = loaded("float32")
    whole = model.logits(tokens)
    with_sequence = model.new_sequence()
    alone = [model.session.run([Request(with_sequence, tokens[i : i + 100], "last")])[0] for i in range(0, 700, 100)]
    with_sequence.close()
    assert relative_error(np.concatenate(alone), whole[99::100]) <= 1e-5


def test_a_fork_writes_into_pages_of_its_own(loaded):
    """The last page of both is partly filled: the device copies it before one of them writes on."""
    model, (tokens,) = loaded("float32"), random_tokens([24])
    first = model.new_sequence()
    model.session.run([Request(first, tokens[:20], "none")])
    second = first.fork()
    (changed,) = model.session.run([Request(second, tokens[20:][::-1].copy(), "last")])
    (kept,) = model.session.run([Request(first, tokens[20:], "last")])
    for sequence in (first, second):
        sequence.close()
    assert relative_error(kept, model.logits(tokens)[-1:]) <= 1e-5
    assert relative_error(changed, model.logits(np.concatenate([tokens[:20], tokens[20:][::-1]]))[-1:]) <= 1e-5


def test_the_mtp_entry_computes_what_its_graph_says(loaded, checkpoint):
    (tokens,) = random_tokens([20])
    model, graph = loaded("float32"), stepper(checkpoint, "float32", "mtp")
    hidden = model.hidden(tokens[:-1])
    positions = np.arange(19, dtype=np.int32)
    batch = Batch(tokens[1:], positions, np.zeros_like(positions), np.arange(2, dtype=np.int32)[None])
    assert relative_error(model.mtp_logits(hidden, tokens[1:]), graph.step(batch, hidden)) <= 1e-4


def test_the_commands_run_on_the_device(artifacts, vulkan):
    def command(*arguments):
        line = [sys.executable, "-m", "dsv3c.runtime", *arguments]
        done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=PATIENCE)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    folder = str(artifacts("int4-g32"))
    told = command("generate", folder, "-p", "Once", "--max-new-tokens", "4", "--device", "0", "--json")
    assert (told["new_tokens"], told["device"]["name"]) == (4, vulkan)
    report = command("bench", folder, "-p", "8", "-n", "2", "-r", "1", "--per-op", "-o", "json")
    assert {row["test"] for row in report["tests"]} == {"pp8", "tg2"}
    assert vulkan in {row["name"] for row in command("doctor", "--json")["devices"]["vulkan"]["devices"]}


def test_a_batch_is_answered_as_each_prompt_alone(loaded):
    check_batches(loaded("float32"))


@pytest.mark.parametrize("drafter", ["mtp", "ngram"])
def test_drafts_that_the_device_verifies_change_no_text(drafter, loaded, artifacts, vulkan):
    with runtime.load(artifacts("float32"), context=256, max_batch=4, speculate=drafter) as drafted:
        check_drafts(drafted, loaded("float32"))
