"""The CUDA path without a GPU: its tensors have a device, a dtype and a shape, but no numbers.

PyTorch refuses to compute with tensors of two devices, and to tell a number: there a GPU would be waited for. Where the
program waits, once for a batch or every 16 tokens, these tests go around it.
"""

from contextlib import contextmanager

import pytest
import torch
from test_forbidden import ALL as RULED
from test_forbidden import Operators
from test_language_models import ARCHITECTURES, tiny_network
from test_model import batch_of
from tiny import STOP, TINY_CLIP, VOCABULARY, needs_pretended_gpu, tiny_model
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from clipcap.clip.encoder import ClipEncoder
from clipcap.clip.preprocessing import Preprocessing
from clipcap.decoding import sampling, search
from clipcap.decoding.cached_gpt2 import CachedGPT2
from clipcap.decoding.finished import ASKED
from clipcap.decoding.forbidden import Forbidden
from clipcap.decoding.next_token import UNIFORMS
from clipcap.decoding.options import Decoding
from clipcap.fast import cuda_graph
from clipcap.fast.exchange import speed_up
from clipcap.fast.vit import FastViT, is_plain_vit
from clipcap.model.batches import Batch
from clipcap.training.losses import Objective

pytestmark = needs_pretended_gpu
CUDA = torch.device("cuda", 0)
BATCH = 8
ROWS = batch_of([[5, 9, 3], [4, 8]])
SAMPLES = {"method": "nucleus", "num_captions": 2}
SEARCHES = {
    "greedy": Decoding(),
    "nucleus": Decoding(**SAMPLES),
    "everything likely": Decoding(**SAMPLES, top_p=1.0, temperature=0.7),
    "top-k": Decoding(**SAMPLES, top_k=5),
    "beam": Decoding(method="beam", beams=3),
}


@pytest.fixture
def fake(monkeypatch):
    """Tensors without numbers, on a GPU that is not there; a captured step is run again as it is."""

    def capture(run, device):
        run()
        return run

    def random_numbers(streams, seed, width, steps):
        return torch.rand(len(streams), width, steps, UNIFORMS)

    monkeypatch.setattr(cuda_graph, "capture", capture)
    monkeypatch.setattr(sampling, "random_numbers", random_numbers)  # NumPy draws them, from the signs of embeddings
    with FakeTensorMode() as mode:
        yield mode


@contextmanager
def on_cuda(dtype):
    """What is built in this context is on the GPU, and its weights have this dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with CUDA:
            yield
    finally:
        torch.set_default_dtype(before)


def test_what_these_tests_count_on(fake):
    """Guards against a mode that lets pass what a GPU would not."""
    x = torch.ones(3, device=CUDA)
    with pytest.raises(RuntimeError, match="found at least two devices"):
        x + torch.ones(3)
    with pytest.raises(DataDependentOutputException):
        bool(x.all())


@pytest.mark.parametrize("captured", [True, False], ids=["captured", "plain"])
@pytest.mark.parametrize("name", SEARCHES)
@torch.no_grad()
def test_a_search_stays_on_the_device_and_asks_nothing(fake, name, captured):
    decoding, steps, dtype = SEARCHES[name], 3, torch.float16
    assert steps < ASKED
    with on_cuda(dtype):
        model = tiny_model()
    prompts = None if name == "greedy" else [[1, 2, 3], [4]] * (BATCH // 2)
    prefix = model.prefix(torch.randn(BATCH, 16))
    session = CachedGPT2(model.gpt, capture=captured).begin(prefix, prompts, decoding.width, steps)
    assert session.gpt.captures == bool(session.state.replay) == captured and session.state.cache.dtype == dtype
    rules = Forbidden(RULED, STOP, VOCABULARY, CUDA).behind(prompts or [[]] * BATCH)
    with Operators() as operators:
        rules(
            session.logits[:, None],
            torch.zeros(BATCH, 1, 5, dtype=torch.long, device=CUDA),
            torch.arange(BATCH, device=CUDA),
        )
    assert operators.devices == {CUDA}
    captions = search.SEARCHES[decoding.method](session, decoding, steps, STOP, rules, torch.randn(BATCH, 16))
    assert captions.tokens.shape == (BATCH, decoding.width, steps)
    session.keep(torch.arange(BATCH // 2, device=CUDA))
    logits = session.step(captions.tokens[: BATCH // 2, :, 0])
    assert logits.shape[:2] == (BATCH // 2, decoding.width)
    assert {x.device for x in (*vars(captions).values(), logits)} == {CUDA}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@torch.no_grad()
def test_pictures_and_texts_are_embedded_on_the_device(fake, dtype):
    import open_clip

    with on_cuda(dtype):
        model = open_clip.CLIP(**TINY_CLIP).eval()
        assert is_plain_vit(model.visual)
        vit = FastViT(model.visual, lambda tensor: tensor)
    for fast in (vit, None):
        encoder = ClipEncoder("tiny", None, 16, Preprocessing((32, 32)), model, lambda: tokens_of, CUDA, dtype, fast)
        found = encoder.encode_pixels(torch.zeros(BATCH, 32, 32, 3, dtype=torch.uint8))
        assert (found.shape, found.dtype, found.device.type) == ((BATCH, 16), torch.float32, "cpu")
    assert encoder.encode_texts(["a dog"] * BATCH).shape == (BATCH, 16)


def tokens_of(texts):
    """Texts -> token ids, as CLIP's tokenizer gives them."""
    return torch.zeros(len(texts), 77, dtype=torch.long)


@pytest.mark.parametrize("kind", ["gpt2", *ARCHITECTURES])
def test_the_loss_stays_on_the_device_and_asks_nothing(fake, kind):
    """Without a GPU, PyTorch has neither mixed precision for it nor a backward pass to check."""
    with on_cuda(torch.float32):
        model = (tiny_model() if kind == "gpt2" else tiny_network(kind)).train()
        speed_up(model, large=1000)
    batch = Batch(*(fake.from_tensor(tensor) for tensor in vars(ROWS).values())).to(CUDA)
    for fast in (True, False):
        loss = Objective(model, fast)(batch)
        assert loss.device == CUDA and loss.dtype == torch.float32
