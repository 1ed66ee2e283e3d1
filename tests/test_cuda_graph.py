"""The captured decoding step, on a stand-in for CUDA graphs that works on any device, and on a GPU where there is one.

The stand-in does to a step what a capture does: it keeps the operations and the tensors that they worked on, and
repeats them without running the Python code again. What Python computes, like a position, stays what it was then.
"""

import copy

import pytest
import torch
from test_decoding import PROMPTS, by_method, embeddings
from tiny import STOP, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode

from clipcap.decoding.options import Decoding
from clipcap.fast import cuda_graph


class Recording(TorchDispatchMode):
    """Every operation, with the tensors that it read and wrote."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        assert "local_scalar" not in str(function), "the step asks the device for a value"
        self.operations.append((function, args, kwargs or {}, result))
        return result

    def repeat(self):
        for function, args, kwargs, result in self.operations:
            again = function(*args, **kwargs)
            for old, new in zip(*(x if isinstance(x, tuple | list) else [x] for x in (result, again)), strict=True):
                if old.data_ptr() != new.data_ptr():  # neither in place nor a view
                    old.copy_(new)


@pytest.fixture
def captured(monkeypatch):
    """Captures on the CPU; lists the recordings."""
    recordings = []

    def capture(run, device):
        with Recording() as recording:
            result = run()
        recordings.append(recording)

        def replay():
            recording.repeat()
            return result

        return replay

    monkeypatch.setattr(cuda_graph, "captures", lambda device: True)
    monkeypatch.setattr(cuda_graph, "capture", capture)
    return recordings


@by_method
@pytest.mark.parametrize("prompts", [None, PROMPTS], ids=["no prompt", "prompts of many lengths"])
def test_a_captured_step_decodes_what_the_plain_one_does(decoding, prompts, captured, monkeypatch):
    """Guards against positions or tokens that a capture freezes, and against what an earlier batch leaves behind."""
    model = tiny_model()
    with monkeypatch.context() as plain:
        plain.setattr(cuda_graph, "captures", lambda device: False)
        expected = [model.generate(embeddings() * sign, decoding, prompts) for sign in (1, -1)]
    assert not captured
    assert [model.generate(embeddings() * sign, decoding, prompts) for sign in (1, -1)] == expected
    assert captured


def test_a_shape_is_captured_once(captured):
    model, decoding = tiny_model(), Decoding(max_tokens=12, stop_token=-1)
    for batch in (embeddings(), embeddings() + 1, embeddings(3)):
        model.generate(batch, decoding)
    assert len(captured) == 2
    model.generate(embeddings(), decoding, [[1, 2]] * 6)  # the room for a prompt is rounded up to a shape that exists
    assert len(captured) == 2


def test_a_batch_that_empties_is_halved(captured):
    """Guards against a new capture for every number of images that are still being decoded."""
    model = tiny_model()
    decoding = Decoding(max_tokens=60)
    many = torch.randn(40, 16, generator=torch.Generator().manual_seed(1))
    captions = model.generate(many, decoding)
    assert min(map(len, captions)) < 16 < max(map(len, captions)) and any(c[-1] == STOP for c in captions)
    batches = [batch(recording) for recording in captured]
    assert batches[0] == 40 and all(later in (20, 10, 5, 3, 2, 1) for later in batches[1:]) and len(batches) > 1
    assert [model.generate(row[None], decoding)[0] for row in many] == captions


def batch(recording):
    """The images of a recorded step: the rows of its logits."""
    return next(len(result) for _, _, _, result in reversed(recording.operations) if result.ndim == 3)


def test_one_token_of_many_samples_has_room_to_be_captured(captured):
    """Guards against the one step of a capture that writes beyond the cache: an error that ends a CUDA process."""
    decoding = Decoding(method="nucleus", num_captions=40, max_tokens=1, stop_token=-1, return_all=True)
    assert [len(samples) for samples in tiny_model().generate(embeddings(), decoding)] == [40] * 6


def test_few_shapes_are_kept(captured):
    from clipcap.decoding.cached_gpt2 import SHAPES

    model, decoding = tiny_model(), Decoding(max_tokens=4, stop_token=-1)
    for rows in range(1, SHAPES + 4):
        model.generate(embeddings(rows), decoding)
    assert len(model.decoder().captured) == SHAPES


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@needs_cuda
@by_method
def test_on_cuda_captured_and_plain_steps_agree(decoding, monkeypatch):
    model = tiny_model().cuda()
    found = [model.generate(embeddings() * sign, decoding, PROMPTS) for sign in (1, -1)]
    plain = copy.deepcopy(model)
    monkeypatch.setattr(cuda_graph, "captures", lambda device: False)
    assert [plain.generate(embeddings() * sign, decoding, PROMPTS) for sign in (1, -1)] == found


@needs_cuda
def test_a_step_that_cannot_be_captured_runs_all_the_same():
    x = torch.ones(1, device="cuda")
    with pytest.warns(UserWarning, match="cannot be captured"):
        run = cuda_graph.capture(lambda: x + x.item(), x.device)
    assert run() == 2
