"""On a real NVIDIA GPU: every kernel's machine code against numpy, and the bundled model. Skipped without a card."""

import json

import numpy as np
import pytest

from dsv3c import runtime
from dsv3c.compiler.driver.pipeline import compile_checkpoint
from dsv3c.compiler.options import CompileOptions
from dsv3c.targets.cuda.binaries import cuda_source
from dsv3c.targets.cuda.capabilities import CUDA
from dsv3c.targets.cuda.toolchains import find_toolchain
from tests.conformance.runs import relative_error
from tests.conftest import BUNDLED_MODEL
from tests.selection import selected
from tests.targets.cuda import test_mma
from tests.targets.cuda.card import Card
from tests.targets.cuda.fatbin import read_fatbin
from tests.targets.gpu.op_tests import SUMS, GpuOpTests, exact_forms
from tests.targets.gpu.shim.forms import Forms
from tests.targets.op_tests import compare


@pytest.fixture(scope="module")
def card():
    opened = Card()
    yield opened
    opened.close()


pytestmark = pytest.mark.needs("cuda_compiler")


@pytest.fixture(scope="module")
def compiler(card):
    return find_toolchain()


@pytest.fixture(scope="module", params=["machine code", "PTX"])
def module(request, card, compiler, forms):
    """All kernels for this card, as the compiler makes them and as the driver translates them."""
    text = cuda_source(forms.functions | test_mma.functions())
    images = read_fatbin(compiler.fatbin(text, [card.architecture]))
    return card.load(images["compute_80" if request.param == "PTX" else card.architecture])


@pytest.fixture(scope="module")
def forms(request):
    return Forms(TestCard.capabilities, selected(request))


class TestCard(GpuOpTests):
    capabilities = exact_forms(CUDA)

    @pytest.fixture
    def runner(self, card, module, forms):
        def run(name, kernel, arrays, grid):
            card.run(module, forms.name(kernel), arrays, grid)

        return run


@pytest.mark.parametrize("name", test_mma.CASES)
def test_products_on_tensor_cores_match_numpy_with_rounded_factors(name, card, module):
    spec, inputs, expected, _ = test_mma.CASES[name]
    arrays, in_order, grid = test_mma.launch(spec, inputs)
    card.run(module, test_mma.NAMES[name], in_order, grid)
    compare(arrays, inputs, expected, SUMS)


@pytest.fixture(scope="module")
def loaded(card, compiler, tmp_path_factory):
    models = {}

    def model(quant):
        if quant not in models:
            folder = tmp_path_factory.mktemp("card") / quant
            compile_checkpoint(
                BUNDLED_MODEL, folder, CompileOptions(target=f"cuda:arch={card.architecture}", quant=quant)
            )
            models[quant] = runtime.load(folder, max_batch=4)
        return models[quant]

    yield model
    for found in models.values():
        found.close()


def test_float32_gives_the_reference_logits_and_tokens(loaded):
    reference = json.loads((BUNDLED_MODEL / "reference_greedy.json").read_text(encoding="utf-8"))
    stored = np.load(BUNDLED_MODEL / "reference_logits.npz")
    found = loaded("float32").logits(stored["ids"])
    assert relative_error(found[stored["rows"]], stored["logits"]) <= 1e-4
    wanted = reference["greedy_ids"]
    generated = loaded("float32").generate(reference["prompt"], temperature=0, max_new_tokens=len(wanted))
    assert list(generated.token_ids) == wanted


@pytest.mark.parametrize("quant", ["float16", "int8", "int4-g32"])
def test_rounded_models_stay_near_the_reference_perplexity(quant, loaded):
    text = (BUNDLED_MODEL / "eval.txt").read_text(encoding="utf-8")
    model, exact = loaded(quant), loaded("float32")
    tokens = model.tokenizer.encode(text)[:4096]
    shares = {"float16": 1.002, "int8": 1.01, "int4-g32": 1.1}
    assert model.perplexity(tokens).perplexity <= exact.perplexity(tokens).perplexity * shares[quant]


def test_graphs_compute_what_single_launches_do(loaded):
    model = loaded("int4-g32")
    device, tokens = model.session.device, np.arange(5, 40, dtype=np.int32)
    model.logits(tokens)
    expected = device.output("decode", "logits").copy()
    seconds = device.run_timed("decode")
    assert (seconds >= 0).all() and seconds.sum() > 0
    np.testing.assert_array_equal(device.output("decode", "logits"), expected)
