"""The captured decoding step, on a stand-in for CUDA graphs that works on any device, and on a GPU where there is one.

The stand-in does to a step what a capture does: it keeps the operations and the tensors that they worked on, and
repeats them without running the Python code again. What Python computes, like a position, stays what it was then.
"""

import copy
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
from test_decoding import PROMPTS, by_method, embeddings
from tiny import STOP, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode

from clipcap.decoding import cached_gpt2, search
from clipcap.decoding.options import Decoding
from clipcap.errors import is_out_of_memory
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


def test_numbers_that_overflowed_do_not_reach_the_next_batch(captured):
    """Guards against one picture that fp16 cannot compute, after which no other gets a caption."""
    model, decoding = tiny_model(), Decoding(max_tokens=12, stop_token=-1)
    expected = model.generate(embeddings(), decoding)
    with torch.inference_mode():
        for state in model.decoder().captured.values():
            state.cache.fill_(float("nan"))
    assert model.generate(embeddings(), decoding) == expected and len(captured) == 1


def test_two_threads_do_not_write_into_each_others_cache(captured):
    """Guards against one picture that gets the words of another: both threads would use the same captured step."""
    model, decoding = tiny_model(), Decoding(max_tokens=12, stop_token=-1)
    batches = [embeddings() * sign for sign in (1, -1, 2, -2)]
    expected = [model.generate(batch, decoding) for batch in batches]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda batch: model.generate(batch, decoding), batches * 5)) == expected * 5


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
    assert batches[0] == 64 and all(later in (32, 16, 8, 4, 2, 1) for later in batches[1:]) and len(batches) > 1
    assert [model.generate(row[None], decoding)[0] for row in many] == captions


def batch(recording):
    """The images of a recorded step: the rows of its logits."""
    return next(len(result) for _, _, _, result in reversed(recording.operations) if result.ndim == 3)


def test_one_token_of_many_samples_has_room_to_be_captured(captured):
    """Guards against the one step of a capture that writes beyond the cache: an error that ends a CUDA process."""
    decoding = Decoding(method="nucleus", num_captions=40, max_tokens=1, stop_token=-1, return_all=True)
    assert [len(samples) for samples in tiny_model().generate(embeddings(), decoding)] == [40] * 6


def kept(model):
    """The bytes of cache that each captured shape of a model keeps."""
    return {shape: state.cache.nbytes for shape, state in model.decoder().captured.items()}


def test_batches_of_almost_the_same_size_share_a_captured_step(captured):
    """Guards against a cache of its own for a batch with an unreadable photo, the last batch, and a retry."""
    model, decoding = tiny_model(), Decoding(max_tokens=4, stop_token=-1)
    for rows in (255, 254, 253):
        captions = model.generate(embeddings(rows), decoding)
        assert captions == [model.generate(row[None], decoding)[0] for row in embeddings(rows)[:2]] + captions[2:]
    assert [shape[0] for shape in kept(model)] == [256, 1]
    assert sum(kept(model).values()) == 257 * model.decoder().cache_bytes(32, 1, 0)


@pytest.mark.parametrize("width", [1, 3])
def test_captured_steps_keep_a_bounded_memory_and_the_last_ones_used(captured, monkeypatch, width):
    """Guards against a gigabyte for every shape that a long run meets, and against a shape that is captured again."""
    model = tiny_model()
    decoding = Decoding(method="beam", beams=width, max_tokens=4, stop_token=-1)
    most = 7 * model.decoder().cache_bytes(32, 1, 0)
    monkeypatch.setattr(cached_gpt2, "KEPT", most)
    for rows in (4, 1, 2):  # as many as there is room for
        model.generate(embeddings(rows), decoding)
    model.generate(embeddings(4), decoding)
    assert [shape[0] for shape in kept(model)] == [1, 2, 4] and len(captured) == 3
    for rows in (2, 3, 1, 8, 16, 1):
        model.generate(embeddings(rows), decoding)
        assert sum(kept(model).values()) <= max(most, rows * most // 7)
    assert [shape[0] for shape in kept(model)] == [1]


def test_batches_stay_within_the_bound_of_the_cache(captured, monkeypatch):
    """Guards against rounding up beyond the memory that a batch may take."""
    model, decoding = tiny_model(), Decoding(max_tokens=4, stop_token=-1)
    monkeypatch.setattr(search, "CACHE", 7 * model.decoder().cache_bytes(4, 1, 4))
    assert len(model.generate(embeddings(12), decoding)) == 12
    assert [shape[0] for shape in kept(model)] == [4] and sum(kept(model).values()) <= search.CACHE


def test_training_captures_nothing(captured):
    """Guards against a capture at every evaluation, and beside the thread that pins the memory of batches."""
    model = tiny_model().train()
    model.generate(embeddings(), Decoding(max_tokens=4))
    assert not captured
    model.eval().generate(embeddings(), Decoding(max_tokens=4))
    assert captured


class FakeCuda:
    """Streams and graphs that do nothing but remember which stream is current, and whose capture may fail."""

    def __init__(self, monkeypatch, at_end=None):
        self.current, self.streams, self.modes, self.at_end = "own", [], [], at_end
        for name, value in {
            "device": lambda device: nullcontext(),
            "Stream": self.new_stream,
            "current_stream": lambda *_: SimpleNamespace(wait_stream=lambda other: None),
            "stream": self.on,
            "CUDAGraph": lambda: SimpleNamespace(replay=lambda: None),
            "graph": self.capture,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        cuda_graph._stream.cache_clear()

    def new_stream(self, device=None):
        self.streams.append(f"stream {len(self.streams)}")
        return SimpleNamespace(name=self.streams[-1], wait_stream=lambda other: None)

    @contextmanager
    def on(self, stream):
        before, self.current = self.current, stream.name
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def capture(self, graph, stream=None, capture_error_mode="global"):
        """As in torch, whose own context stays on its stream when the end of the capture fails."""
        self.modes.append(capture_error_mode)
        self.current = (stream or self.new_stream()).name
        try:
            yield
        finally:
            if self.at_end:
                raise RuntimeError(self.at_end)


def test_captures_share_a_stream_and_leave_other_threads_alone(monkeypatch):
    """Guards against a workspace of cuBLAS for every capture, and against a capture that a pinning thread ends."""
    cuda, device = FakeCuda(monkeypatch), torch.device("cuda", 0)
    for _ in range(3):
        assert cuda_graph.capture(lambda: torch.ones(1), device)() == 1
    assert cuda.streams == ["stream 0"] and cuda.modes == ["thread_local"] * 3


def test_a_failed_capture_leaves_its_stream_and_is_the_last(monkeypatch):
    """Guards against a stream that stays current, and against a failure, with its warning, for every batch."""
    cuda = FakeCuda(monkeypatch, at_end="operation failed due to a previous error during capture")
    monkeypatch.setattr(cuda_graph, "captures", lambda device: device not in cuda_graph.FAILED)
    monkeypatch.setattr(cuda_graph, "FAILED", set())
    model, decoding = tiny_model(), Decoding(max_tokens=40)
    with pytest.warns(UserWarning, match="cannot be captured as a CUDA graph .operation failed"):
        found = model.generate(embeddings(), decoding)
    assert cuda.current == "own"
    again = [model.generate(embeddings(6), decoding), tiny_model().generate(embeddings(3), decoding)]
    assert cuda.modes == ["thread_local"] and not kept(model)
    monkeypatch.setattr(cuda_graph, "captures", lambda device: False)
    assert [found, found[:3]] == again == [tiny_model().generate(embeddings(rows), decoding) for rows in (6, 3)]


@pytest.mark.parametrize(
    ("during", "at_end"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "operation failed due to a previous error during capture"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), None),
        (RuntimeError("CUDA error: out of memory"), None),
    ],
    ids=["hidden by the end of the capture", "of a library", "of the driver"],
)
def test_a_capture_that_runs_out_of_memory_is_no_fallback(monkeypatch, during, at_end):
    """Guards against going on without graphs, or with a traceback, where a smaller batch is what helps."""
    FakeCuda(monkeypatch, at_end)
    steps = iter([None, during])

    def run():
        if error := next(steps):
            raise error
        return torch.ones(1)

    with pytest.raises(RuntimeError) as caught:
        cuda_graph.capture(run, torch.device("cuda", 0))
    assert is_out_of_memory(caught.value)


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
    current = torch.cuda.current_stream()
    with pytest.warns(UserWarning, match="cannot be captured"):
        assert cuda_graph.capture(lambda: x + x.item(), x.device) is None
    assert torch.cuda.current_stream() == current and x + 1 == 2
