"""The CUDA device over a driver on host memory: the bundled model's tokens, and what it asks of the driver."""

import json
import threading
from contextlib import closing

import numpy as np
import pytest

from dsv3c import runtime, targets
from dsv3c.compiler.checkpoint import Checkpoint
from dsv3c.compiler.driver import lowering
from dsv3c.compiler.options import CompileOptions
from dsv3c.runtime.artifact.artifact import Artifact
from dsv3c.runtime.devices.cuda import device as cuda_device
from dsv3c.runtime.devices.cuda import memory
from dsv3c.runtime.devices.cuda.device import CudaDevice
from dsv3c.runtime.engine.session import Request, Session
from tests.conformance import runs
from tests.conformance.runs import ArtifactStepper, Batch, GraphStepper, relative_error
from tests.conftest import BUNDLED_MODEL
from tests.runtime.experts import visited
from tests.runtime.slots import SPANS, check_rows

SLOTS = 64
# The cache is bfloat16 there: a value between two of its numbers may fall to either side.
CACHE_ROUNDING = 2e-3
# Of logits, where products on tensor cores take activations as bfloat16, with errors of up to 2^-8 of each.
BF16_PRODUCTS = 3e-2
TOKENS = np.arange(3, 24, dtype=np.int32)


@pytest.fixture
def artifact(compiled, fake):
    found = compiled("int4-g32")
    fake.register(found)
    return Artifact.open(found.folder)


@pytest.fixture
def opened(artifact):
    """Opens devices, which are closed when the test ends."""
    devices = []

    def device(slots=SLOTS, wanted=None):
        devices.append(CudaDevice(artifact, slots, wanted))
        return devices[-1]

    yield device
    for found in devices:
        found.close()


def logits(device, artifact):
    """Of all of TOKENS, in one step and then the last of them again, one by one."""
    session = Session(artifact.plan, device, artifact.manifest.vocab_size)
    sequence = session.new_sequence()
    (first,) = session.run([Request(sequence, TOKENS, "all")])
    more = [session.run([Request(sequence, TOKENS[i : i + 1], "last")])[0] for i in range(3)]
    return np.concatenate([first, *more])


@pytest.fixture
def loaded(compiled, fake):
    models = []

    def model(quant):
        fake.register(compiled(quant))
        models.append(runtime.load(compiled(quant).folder, max_batch=4))
        return models[-1]

    yield model
    for found in models:
        found.close()


def test_float32_writes_the_reference_tokens_and_gives_its_logits(loaded):
    reference = json.loads((BUNDLED_MODEL / "reference_greedy.json").read_text(encoding="utf-8"))
    wanted, model = reference["greedy_ids"][:24], loaded("float32")
    assert list(model.generate(reference["prompt"], temperature=0, max_new_tokens=24).token_ids) == wanted
    stored = np.load(BUNDLED_MODEL / "reference_logits.npz")
    rows = stored["rows"][stored["rows"] < 48]
    assert rows.size
    found = model.logits(stored["ids"][:48])
    assert relative_error(found[rows], stored["logits"][: rows.size]) <= 1e-4


@pytest.mark.parametrize("quant", ["float16", "int4-g32"])
def test_rounded_models_compute_what_their_graph_says_and_write_its_tokens(quant, loaded):
    prompt = json.loads((BUNDLED_MODEL / "reference_greedy.json").read_text(encoding="utf-8"))["prompt"]
    model, checkpoint = loaded(quant), Checkpoint.open(BUNDLED_MODEL)
    options = CompileOptions(target="cuda", quant=quant)
    lowered = lowering.lower(checkpoint.config, checkpoint.shapes, options, targets.get("cuda"))
    graph = GraphStepper(lowered.entries["decode"].graph, checkpoint.read)
    tokens = list(model.tokenizer.encode(prompt))
    expected, fed = [], np.array(tokens, np.int32)
    for step in range(8):
        positions = np.arange(fed.size, dtype=np.int32) + (len(tokens) + step - 1 if step else 0)
        stepped = graph.step(Batch(fed, positions, np.zeros_like(fed), np.arange(4, dtype=np.int32)[None]))
        if step == 0:
            assert relative_error(model.logits(tokens), stepped) <= CACHE_ROUNDING
        expected.append(int(stepped[-1].argmax()))
        fed = np.array(expected[-1:], np.int32)
    assert list(model.generate(prompt, temperature=0, max_new_tokens=8).token_ids) == expected


def test_sequences_in_one_ragged_step_are_those_alone(loaded):
    generator = np.random.default_rng(5)
    sequences = [generator.integers(0, 2048, length).astype(np.int32) for length in (9, 20)]
    model = ArtifactStepper(loaded("float32"))
    alone = runs.run(model, sequences, [[(0, 9)], [(1, 20)]])
    together = runs.run(model, sequences, [[(0, 6), (1, 14)], [(1, 1), (0, 1)], [(0, 2), (1, 5)]])
    assert runs.worst(together, alone) <= 1e-5


def test_both_forms_of_attention_give_the_same_logits(loaded):
    """A prompt long enough for the entry `prefill`, and again in steps that `decode` serves."""
    model = loaded("float32")
    size = model.artifact.plan.entries["prefill"].min_tokens
    tokens = np.random.default_rng(6).integers(0, 2048, size + 3).astype(np.int32)
    sequence = model.new_sequence()
    parts = [model.session.run([Request(sequence, part, "all")])[0] for part in np.array_split(tokens, 3)]
    sequence.close()
    assert relative_error(model.logits(tokens), np.concatenate(parts)) <= 1e-5


def test_a_fork_writes_into_pages_of_its_own(loaded):
    model, tokens = loaded("float32"), TOKENS  # others round in long steps, on tensor cores
    first = model.new_sequence()
    model.session.run([Request(first, tokens[:18], "none")])
    second = first.fork()
    model.session.run([Request(second, tokens[18:][::-1].copy(), "last")])
    (kept,) = model.session.run([Request(first, tokens[18:], "last")])
    for sequence in (first, second):
        sequence.close()
    assert relative_error(kept, model.logits(tokens)[-1:]) <= 1e-5


def test_multi_token_prediction_takes_hidden_states(loaded):
    model = loaded("float32")
    found = model.mtp_logits(model.hidden(TOKENS[:-1]), TOKENS[1:])
    assert found.shape == (TOKENS.size - 1, 2048) and np.isfinite(found).all()


def test_a_step_returns_when_its_results_are_there_and_not_before(opened, artifact):
    """The driver does nothing until somebody waits for it."""
    device = opened()
    logits(device, artifact)
    found, size = device.output("decode", "logits"), artifact.manifest.vocab_size
    found[:] = np.nan
    device.run("decode")  # the last step again
    at_return = found[:size].copy()
    device._gpu.wait("what may be left to do")
    assert np.isfinite(at_return).all()
    np.testing.assert_array_equal(found[:size], at_return)


def test_steps_of_one_token_replay_a_graph_that_nothing_is_changed_in(opened, artifact, fake):
    device = opened()
    logits(device, artifact)
    graphs, changed, kernels = fake.graph_launches, fake.changed_nodes, fake.kernel_runs
    session = Session(artifact.plan, device, artifact.manifest.vocab_size)
    sequence = session.new_sequence()
    for token in TOKENS[:4]:
        session.run([Request(sequence, np.array([token], np.int32), "last")])
    assert fake.graph_launches - graphs == 4
    assert fake.changed_nodes == changed
    assert fake.kernel_runs - kernels == 4 * len(artifact.plan.entries["decode"].calls)


def test_another_number_of_tokens_changes_just_the_nodes_whose_grid_it_touches(opened, artifact, fake):
    device = opened()
    session = Session(artifact.plan, device, artifact.manifest.vocab_size)
    sequence = session.new_sequence()
    session.run([Request(sequence, TOKENS[:17], "last")])
    before = fake.changed_nodes
    session.run([Request(sequence, TOKENS[:18], "last")])
    assert 0 < fake.changed_nodes - before < len(artifact.plan.entries["decode"].calls)
    again = fake.changed_nodes
    session.run([Request(sequence, TOKENS[:18], "last")])
    assert fake.changed_nodes == again


def test_graphs_and_single_launches_compute_the_same_and_every_call_has_a_time(opened, artifact):
    device = opened()
    logits(device, artifact)
    expected = device.output("decode", "logits").copy()
    seconds = device.run_timed("decode")
    assert seconds.size == len(artifact.plan.entries["decode"].calls)
    assert (seconds > 0).all() and seconds.sum() < 60
    np.testing.assert_array_equal(device.output("decode", "logits"), expected)


def test_long_steps_are_rounded_to_bfloat16_on_devices_with_tensor_cores_alone(opened, artifact, monkeypatch):
    rounded = logits(opened(), artifact)
    monkeypatch.setattr(cuda_device, "CAPABILITIES", {"mma-m16n8k16": (9, 0)})  # the device has 8.6
    exact = logits(opened(), artifact)
    assert 1e-5 < relative_error(rounded, exact) <= BF16_PRODUCTS


def test_weights_go_through_staging_buffers_much_smaller_than_they_are(opened, artifact, monkeypatch):
    expected = logits(opened(), artifact)
    monkeypatch.setattr(memory, "STAGING", 10_000)
    np.testing.assert_array_equal(logits(opened(), artifact), expected)


def test_a_device_opened_by_one_thread_runs_and_closes_in_another(compiled, fake):
    found = compiled("int4-g32")
    fake.register(found)
    artifact = Artifact.open(found.folder)
    device = CudaDevice(artifact, SLOTS, None)
    expected, got = logits(device, artifact), []

    def elsewhere():
        got.append(logits(device, artifact))
        device.close()

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    np.testing.assert_array_equal(got[0], expected)


@pytest.mark.parametrize(("source", "target", "count"), [(0, 16, 16), (3, 9, 20), (9, 3, 20), (5, 5, 8), (30, 0, 1)])
def test_slots_are_copied_as_they_were_also_when_runs_overlap(source, target, count, opened, artifact):
    device = opened()
    caches, width = artifact.plan.caches, artifact.plan.caches[-1].slot_bytes
    places, gpu = device._places, device._gpu
    host = gpu.pinned(SLOTS * width, "a cache")
    generator = np.random.default_rng(1)
    for cache in caches:
        host[:] = generator.integers(0, 256, host.size)
        gpu.driver.call("cuMemcpyHtoDAsync", places.cache_address(cache.name), host.ctypes.data, host.size, gpu.stream)
        gpu.wait("a copy")
    expected = host.reshape(SLOTS, width).copy()  # of the last cache
    expected[target : target + count] = expected[source : source + count].copy()
    device.copy_slots(source, target, count)
    host[:] = 0
    gpu.driver.call("cuMemcpyDtoHAsync", host.ctypes.data, places.cache_address(caches[-1].name), host.size, gpu.stream)
    gpu.wait("a copy")
    np.testing.assert_array_equal(host.reshape(SLOTS, width), expected)


@pytest.mark.parametrize(("start", "count"), SPANS)
def test_rows_of_slots_are_read_and_written(start, count, opened, artifact):
    check_rows(opened(), artifact.plan, start, count)


def test_the_experts_of_a_step_are_read_when_asked_for_and_not_before(compiled, fake):
    fake.register(compiled("float32"))
    artifact = Artifact.open(compiled("float32").folder)
    truth = visited(Checkpoint.open(BUNDLED_MODEL), TOKENS)
    with closing(CudaDevice(artifact, SLOTS, None)) as device:
        logits(device, artifact)
        found = device.experts("decode")  # of one token, the last that was read again
        assert found.keys() == truth.keys() and {ids.size for ids in found.values()} == {4}
        session = Session(artifact.plan, device, artifact.manifest.vocab_size)
        session.run([Request(session.new_sequence(), TOKENS, "none")])
        for layer, ids in device.experts("decode").items():
            np.testing.assert_array_equal(np.sort(ids.reshape(-1, 4)), truth[layer])


def test_the_report_says_what_was_obtained(opened):
    report = opened().report()
    assert (report["device"], report["name"], report["level"]) == ("cuda", "Fake GPU A", "sm_86")
    assert report["compute_capability"] == "8.6" and report["driver"] == "13.0"
    assert report["memory_bytes"] >= report["weight_bytes"] + report["arena_bytes"] + report["cache_bytes"]
