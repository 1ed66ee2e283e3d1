"""Guards the way from pictures to captions: wishes that hold on every caption, alone or in a batch."""

import os

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import move_logits, save_tiny_clip, save_tiny_weights, tiny_captioner_model

from clipcap import Captioner, Decoding
from clipcap.captioning.candidates import Candidates, likelihoods
from clipcap.captioning.choice import Choice
from clipcap.captioning.options import decoding_and_rules
from clipcap.captioning.posts import Frame
from clipcap.captioning.rows import Row
from clipcap.captioning.rules import Rules
from clipcap.clip.images import UnreadableImage
from clipcap.decoding.options import METHODS
from clipcap.decoding.search import NoCaption
from clipcap.errors import UserError
from clipcap.model.language_model import up_to_end
from clipcap.model.prompts import literal_captions
from clipcap.text import EMOJI
from clipcap.weights.checkpoint import load_checkpoint, save_checkpoint
from clipcap.world.scenes import draw_scene, scenes

SHORT = {"max_tokens": 14}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return save_tiny_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module", params=[True, False], ids=["fast", "plain"])
def captioner(weights, request):
    return Captioner.load(weights, precision="fp32", fast=request.param)


@pytest.fixture(scope="module")
def pictures():
    random = np.random.default_rng(0)
    return [
        Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((48, 40), Image.Resampling.NEAREST)
        for _ in range(6)
    ]


def test_pictures_and_paths_become_captions(captioner, pictures, tmp_path):
    pictures[0].save(tmp_path / "a.png")
    captions = captioner([tmp_path / "a.png", str(tmp_path / "a.png"), *pictures], **SHORT)
    assert len(captions) == 8 and all(isinstance(caption, str) for caption in captions)
    assert captions[0] == captions[1] == captions[2] and len(set(captions)) > 2
    assert captioner([]) == [] and captioner(pictures[0], **SHORT) == captions[:1]


def said(captioner, ids):
    """Token ids as a caption, without what is left of an emoji that was cut at its end."""
    return captioner.tokenizer.decode(ids).strip().removesuffix("\ufffd").strip()


def test_captions_are_the_models_own(captioner, pictures):
    """What comes out is what `generate` decodes: no stop token, nothing else cut."""
    embeddings = captioner.encoder.encode_images(pictures)
    ids = captioner.model.generate(embeddings, Decoding(**SHORT))
    assert captioner(pictures, **SHORT) == [said(captioner, row) for row in ids]
    assert captioner.caption_embeddings(embeddings, **SHORT) == [[caption] for caption in captioner(pictures, **SHORT)]


WISHES = [
    {},
    {"method": "beam"},
    {"method": "nucleus", "seed": 3},
    {"num_captions": 3, "rank": "clip"},
    {"num_captions": 3, "method": "beam", "rank": "clip"},
    {"num_captions": 2, "require": ["dog"]},
    {"ban": ["dog", "lake"], "hashtags": "none", "emoji": "none"},
    {"no_repeat_ngram": 1, "num_captions": 2},
]


@pytest.mark.parametrize("wishes", WISHES, ids=str)
def test_a_batch_gives_what_each_gives_alone(captioner, pictures, wishes):
    together = captioner(pictures, **SHORT, **wishes)
    assert together == [captioner([picture], **SHORT, **wishes)[0] for picture in pictures]


@pytest.mark.parametrize("method", ["greedy", "nucleus", "beam"])
@pytest.mark.parametrize("temperature", [1.0, 0.05])
def test_several_captions_are_distinct(captioner, pictures, method, temperature):
    """Samples at a low temperature are all alike; beams that differ in an emoji are alike without it."""
    options = {"num_captions": 4, "method": method, "temperature": temperature, "emoji": "none", "hashtags": "none"}
    for captions in captioner(pictures, **SHORT, **options):
        assert len(captions) == 4 == len({caption.casefold() for caption in captions})


@pytest.fixture
def ids_of(monkeypatch):
    """Row and caption -> the token ids that it was made of."""
    kept, add = {}, Choice._add

    def remember(self, row, found, ids):
        add(self, row, found, ids)
        kept.update({(row, caption): ids for caption, ids in (found.good | found.spoiled).items()})

    monkeypatch.setattr(Choice, "_add", remember)
    return kept


@pytest.mark.parametrize("method", ["nucleus", "beam"])
def test_the_likeliest_comes_first(captioner, pictures, method, ids_of):
    embeddings = captioner.encoder.encode_images(pictures)
    for row, captions in enumerate(captioner.caption_embeddings(embeddings, num_captions=3, method=method, **SHORT)):
        ids = [ids_of[row, caption] for caption in captions]
        scores = likelihoods(captioner.model, embeddings[[row] * 3], [()] * 3, ids)
        assert scores == sorted(scores, reverse=True) and len(set(scores)) == 3


def test_likelihoods_equal_the_models_logits(captioner, pictures):
    embeddings = captioner.encoder.encode_images(pictures[:2])
    captions, prompts = [[5, 6, 7], [8, 9]], [[1, 2], []]
    found = likelihoods(captioner.model, embeddings, prompts, captions, batch_size=1)
    for row in range(2):
        tokens = torch.tensor([[*prompts[row], *captions[row]]])
        logits = captioner.model(embeddings[row : row + 1], tokens)[0].log_softmax(-1)[len(prompts[row]) :]
        wanted = logits.gather(1, torch.tensor(captions[row])[:, None]).mean()
        assert found[row] == pytest.approx(wanted.item(), abs=1e-5)


def test_clip_ranks_by_similarity(captioner, pictures):
    embeddings = captioner.encoder.encode_images(pictures)
    for embedding, captions in zip(embeddings, captioner(pictures, num_captions=4, rank="clip", **SHORT), strict=True):
        similarity = torch.cosine_similarity(captioner.encoder.encode_texts(captions), embedding[None])
        assert similarity.tolist() == sorted(similarity.tolist(), reverse=True)


def test_likelihoods_of_logits_far_from_zero_lose_nothing_in_half_precision():
    """Captions of weights in bf16 were ranked by sums of halves: GPT-2's logits are near -70."""
    scores = []
    for shift in (0, -10):
        model = tiny_captioner_model()
        move_logits(model, 10 * shift)
        embeddings = torch.randn(3, model.config.clip_dim, generator=torch.Generator().manual_seed(0)).bfloat16()
        scores.append(likelihoods(model.bfloat16(), embeddings, [[]] * 3, [[5, 6], [7], [8, 9, 1]]))
    assert scores[0] == scores[1]


@pytest.mark.parametrize("method", ["greedy", "nucleus", "beam"])
def test_rules_hold_on_every_caption(captioner, pictures, method):
    plain = " ".join(captioner(pictures, method=method, **SHORT))
    said = filter(str.isalpha, plain.replace("\ufffd", " ").split())
    word = max(said, key=len, default="dog")
    rules = {"ban": [word.upper(), "dog"], "hashtags": "none", "mentions": "none", "emoji": "none"}
    for count in (1, 3):
        captions = captioner(pictures, method=method, num_captions=count, **rules, **SHORT)
        for caption in captions if count == 1 else sum(captions, []):
            assert Rules(**rules).allows(caption) and not set("#@") & set(caption) and not EMOJI.search(caption)


def test_lengths_hold(captioner, pictures, ids_of):
    """With a stop token that ends captions sooner than that."""
    ids = captioner.model.generate(captioner.encoder.encode_images(pictures), Decoding(max_tokens=10))
    stop = ids[0][4]
    assert stop not in ids[0][:4]
    for row, caption in enumerate(captioner(pictures, min_tokens=9, max_tokens=10, stop_token=stop, emoji="none")):
        length = len([token for token in ids_of[row, caption] if token != stop])
        assert 9 <= length <= 10


@pytest.mark.parametrize("method", ["greedy", "beam"])
def test_end_of_text_ends_no_caption_that_is_too_short(captioner, pictures, ids_of, monkeypatch, method):
    """Published weights stop at ".", and write end-of-text too, behind which a caption is cut."""
    ids = captioner.model.generate(captioner.encoder.encode_images(pictures), Decoding(method, max_tokens=10))
    end = ids[0][4]
    monkeypatch.setattr("clipcap.captioning.candidates.end_of_text", lambda *_: end)
    options = {"method": method, "min_tokens": 9, "max_tokens": 10, "stop_token": -1, "emoji": "none"}
    for row, caption in enumerate(captioner(pictures, **options)):
        assert len(up_to_end(ids_of[row, caption], end)) >= 9


@pytest.mark.parametrize("options", [{}, {"num_captions": 3}, {"num_captions": 3, "method": "beam", "rank": "clip"}])
def test_required_words_are_there(captioner, pictures, options):
    rows = list(
        captioner.rows(pictures, *decoding_and_rules(require=["dog", "golden hour"], **options, **SHORT), workers=0)
    )
    for row in rows:
        assert not row.missing and not Rules(require=("dog", "golden hour")).missing(row.captions)
        assert len(row.captions) == options.get("num_captions", 1)


def test_a_word_that_cannot_be_had_is_named(captioner, pictures):
    """Six letters do not fit into three tokens."""
    chosen = decoding_and_rules(require="xylophonist", max_tokens=3)
    for row in captioner.rows(pictures, *chosen, workers=0):
        assert row.missing == ["xylophonist"] and row.captions and "xylophonist" in row.note


def test_prompted_weights_take_embeddings_that_numpy_cannot_read(tmp_path):
    """Guards against a traceback for embeddings on a GPU; NumPy does not read those that remember gradients either."""
    captioner = Captioner.load(save_tiny_weights(tmp_path, literal=True, prompt=" it is {literal}: "))
    embeddings = torch.randn(2, captioner.encoder.dim)
    expected = captioner.caption_embeddings(embeddings, **SHORT)
    assert captioner.caption_embeddings(embeddings.requires_grad_(), **SHORT) == expected


def test_prompted_weights_start_from_their_literal_caption(tmp_path, pictures):
    captioner = Captioner.load(save_tiny_weights(tmp_path, literal=True, prompt=" it is {literal}: "))
    captioner.model.config.prompt = " it is {literal}: "
    embeddings = captioner.encoder.encode_images(pictures)
    rows = list(captioner.rows(pictures, *decoding_and_rules(**SHORT), workers=0))
    literals = literal_captions(captioner.model, embeddings)
    assert [row.literal for row in rows] == literals
    prompts = [captioner.tokenizer.encode(f" it is {text.removesuffix('.')}: ").ids for text in literals]
    ids = captioner.model.generate(embeddings, Decoding(**SHORT), prompts)
    assert [row.captions[0] for row in rows] == [said(captioner, row) for row in ids]
    several = captioner(pictures[:2], num_captions=3, require="dog", **SHORT)
    assert all(len(captions) == 3 for captions in several)


def test_a_picture_that_cannot_be_read_is_named(captioner, pictures, tmp_path):
    (tmp_path / "a.jpg").write_text("no picture")
    with pytest.raises(UnreadableImage, match="a.jpg, 2 of 2: not a picture"):
        captioner([pictures[0], tmp_path / "a.jpg"])
    rows = list(captioner.rows([tmp_path / "a.jpg", pictures[0]], *decoding_and_rules(**SHORT)))
    assert rows[0] == Row(str(tmp_path / "a.jpg"), error="not a picture, or a format that is not supported")
    assert rows[1].captions


def test_what_the_system_says_of_a_file_is_a_path(captioner, pictures, tmp_path):
    pictures[0].save(tmp_path / "a.png")
    with os.scandir(tmp_path) as found:
        named = [*found]
    assert captioner(named, **SHORT) == captioner(pictures[:1], **SHORT) == captioner(named[0], **SHORT)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (b"\xff\xd8\xff", "a bytes"),
        ([b"\xff\xd8\xff"], "a bytes"),
        (bytearray(3), "a bytearray"),
        (np.zeros((4, 4, 3), np.uint8), "a ndarray"),
        ([1, 2], "1"),
        (5, "5"),
        (None, "None"),
        (["a.jpg", None], "None"),
    ],
    ids=str,
)
def test_what_is_no_picture_is_refused(captioner, given, named):
    """The bytes of a file were so many pictures, and their numbers open files of this process."""
    with pytest.raises(UserError, match=f"paths and PIL pictures, .* not {named}: "):
        captioner(given)


def test_another_clip_is_refused_or_taken(weights, captioner, tmp_path):
    other = save_tiny_clip(tmp_path / "other", embed_dim=24)
    with pytest.raises(UserError, match="16 numbers.*makes 24"):
        Captioner.load(weights, clip=other)
    same = save_tiny_clip(tmp_path / "same", seed=5)
    assert Captioner.load(weights, clip=str(same)).encoder.model_name == str(same.resolve())
    assert Captioner.load(weights, clip=captioner.encoder).encoder is captioner.encoder


def test_options_that_do_not_exist_are_refused(captioner, pictures):
    with pytest.raises(UserError, match="'beem'"):
        captioner(pictures, beem=3)
    with pytest.raises(UserError, match="num_captions"):
        captioner(pictures, num_captions=0)


def test_return_all_gives_every_beam(captioner, pictures):
    captions = captioner(pictures[:2], Decoding(method="beam", beams=4, return_all=True, **SHORT))
    assert all(isinstance(row, list) and len(row) == 4 for row in captions)


def test_required_words_keep_to_the_rule_against_repetition(captioner, pictures, monkeypatch):
    """Guards against a word that is put in where the caption already has its tokens."""
    ids_of, text = {}, Candidates.text
    monkeypatch.setattr(
        Candidates,
        "text",
        lambda self, row, ids: (
            ids_of.setdefault(Rules().post(text(self, row, ids), Frame()), list(ids)) and text(self, row, ids)
        ),
    )
    put_in = 0
    for size in (1, 2):
        options = {"require": ["dog", "beach sun"], "no_repeat_ngram": size, "num_captions": 2, **SHORT}
        for captions in captioner(pictures, **options):
            put_in += not Rules(require=("dog", "beach sun")).missing(captions)
            for caption in captions:
                ids = [i for i in ids_of[caption] if i != captioner.model.config.stop_token]
                grams = [tuple(ids[i : i + size]) for i in range(len(ids) - size + 1)]
                assert len(set(grams)) == len(grams), caption
    assert put_in, "the test needs words that were put in"


@pytest.mark.parametrize(
    "options",
    [{"num_captions": 12}, {"num_captions": 12, "beams": 200}, {"num_captions": 8, "method": "beam", "beams": 16}],
)
def test_wider_searches_stay_within_the_bounds(captioner, pictures, options, monkeypatch):
    """Guards against a second search that is refused, hours into a run, though the first was not."""
    from clipcap.captioning import choice

    asked = []
    monkeypatch.setattr(
        choice.Candidates, "generate", lambda self, rows, decoding: asked.append(decoding) or [[]] * len(rows)
    )
    captioner(pictures[:1], max_tokens=1000, **options)
    assert len(asked) == 4 and all(options["num_captions"] <= decoding.width <= 17 for decoding in asked)


@pytest.mark.parametrize("fast", [True, False])
def test_a_long_caption_with_a_required_word_fits_into_the_positions(weights, pictures, fast):
    """Guards against openings that leave GPT-2 no position: "shorten the prompt", in the middle of a run."""
    captioner = Captioner.load(weights, precision="fp32", fast=fast)
    gpt = captioner.model.gpt
    captioner.model.config.gpt2 |= {"n_positions": 64}
    gpt.transformer.wpe.weight.data = gpt.transformer.wpe.weight.data[:64].clone()
    options = {"require": "dog", "max_tokens": 1000, "stop_token": -1}
    for caption in captioner(pictures[:2], **options) + captioner(pictures[:1], min_tokens=45, **options):
        assert "dog" in caption


@pytest.mark.parametrize("count", [1, 3])
def test_a_picture_whose_embedding_is_not_finite_fails_alone(weights, pictures, count, monkeypatch):
    """Guards against a caption of nothing, and against a batch that is lost for one picture."""
    captioner = Captioner.load(weights, precision="fp32")
    chosen = decoding_and_rules(num_captions=count, **SHORT)
    before = list(captioner.rows(pictures, *chosen, workers=0))
    encode = captioner.encoder.encode_pixels

    def spoiled(pixels):
        embeddings = encode(pixels).clone()
        embeddings[2, 5] = float("nan")
        return embeddings

    monkeypatch.setattr(captioner.encoder, "encode_pixels", spoiled)
    rows = list(captioner.rows(pictures, *chosen, workers=0))
    assert "not finite" in rows[2].error and not rows[2].captions
    assert rows[:2] + rows[3:] == before[:2] + before[3:]
    with pytest.raises(UnreadableImage, match="picture, 3 of 6: .* not finite"):
        captioner(pictures)
    with pytest.raises(UserError, match="not finite"):
        captioner.caption_embeddings(torch.full((2, 16), float("inf")))


def test_a_picture_without_a_caption_is_found_by_halving(weights, pictures, monkeypatch):
    """Guards against a batch of 256 that becomes 256 searches for the sake of one picture."""
    captioner = Captioner.load(weights, precision="fp32")
    choose, sizes = captioner._choose, []

    def chosen(embeddings, *options):
        sizes.append(len(embeddings))
        if embeddings.isnan().any():
            raise NoCaption("it has none")
        return choose(embeddings, *options)

    monkeypatch.setattr(captioner, "_choose", chosen)
    embeddings = torch.randn(16, 16)
    embeddings[5] = float("nan")
    found = captioner._each(embeddings, [Frame()] * 16, *decoding_and_rules(**SHORT))
    assert [n for n, each in enumerate(found) if isinstance(each, NoCaption)] == [5] and len(found) == 16
    assert sorted(sizes, reverse=True) == [16, 8, 8, 4, 4, 2, 2, 1, 1]


def test_a_caption_ends_at_end_of_text_wherever_it_stands(captioner):
    """Guards against <|endoftext|> in captions of weights that stop at another token, as the published ones do."""
    candidates = Candidates(captioner.model, captioner.tokenizer, None, torch.zeros(1, 16), [[]], "likelihood", [""])
    ids = captioner.tokenizer.encode("hello there").ids
    assert candidates.text(0, [*ids, candidates.end, *ids]) == candidates.text(0, ids) == "hello there"


def test_logits_that_are_not_finite_fail_every_picture(weights, pictures):
    captioner = Captioner.load(weights, precision="fp32")
    captioner.model.gpt.transformer.ln_f.bias.data[0] = float("inf")
    for method in ("greedy", "nucleus", "beam"):
        rows = list(captioner.rows(pictures[:2], *decoding_and_rules(method=method, **SHORT), workers=0))
        assert all("not finite" in row.error and not row.captions for row in rows)


def test_texts_that_clip_cannot_compare_are_told_of(weights, pictures, monkeypatch):
    captioner = Captioner.load(weights, precision="fp32")
    monkeypatch.setattr(captioner.encoder, "encode_texts", lambda texts: torch.full((len(texts), 16), float("nan")))
    with pytest.raises(UserError, match="rank captions by likelihood"):
        captioner(pictures, num_captions=2, rank="clip", **SHORT)


@pytest.mark.parametrize(
    "sizes, told",
    [
        ({"batch_size": 10**9}, "--batch-size must be at most 4096"),
        ({"batch_size": 0}, "--batch-size must be at least 1"),
    ]
    + [({"workers": 10**5}, "--workers must be at most 256"), ({"workers": -1}, "--workers must be at least 0")],
)
def test_sizes_that_no_machine_holds_are_refused(captioner, pictures, sizes, told):
    with pytest.raises(UserError, match=told):
        next(captioner.rows(pictures, *decoding_and_rules(), **sizes))


def test_memory_that_does_not_suffice_is_one_sentence(weights, pictures, monkeypatch):
    """PyTorch's allocator on a CPU raises a plain RuntimeError; any other one is a bug and stays what it is."""
    captioner = Captioner.load(weights, precision="fp32")
    for text, kind in (("DefaultCPUAllocator: can't allocate memory", UserError), ("shapes differ", RuntimeError)):

        def full(*args, text=text):
            raise RuntimeError(text)

        monkeypatch.setattr(captioner.model, "generate_all", full)
        with pytest.raises(kind, match="does not fit" if kind is UserError else text):
            captioner(pictures)


@pytest.mark.parametrize("own", ["demo", "folder", "hf-hub:owner/name"])
def test_a_clip_that_is_given_is_never_ignored(weights, tmp_path, own):
    """Weights that name a whole CLIP took it even where a file was given."""
    torch.save({"weight": torch.ones(1)}, tmp_path / "clip.pt")
    model = load_checkpoint(weights)
    model.config.clip_model = str(save_tiny_clip(tmp_path / "clip")) if own == "folder" else own
    save_checkpoint(model, tmp_path / "weights.pt")
    with pytest.raises(UserError, match="does not say which CLIP model it holds"):
        Captioner.load(tmp_path / "weights.pt", clip=tmp_path / "clip.pt")
    for clip in ("demo:x", f"{tmp_path / 'clip'}:x"):
        if own != "hf-hub:owner/name" and (own == "folder" or clip == "demo:x"):
            with pytest.raises(UserError, match="has weights of its own: leave out ':x'"):
                Captioner.load(tmp_path / "weights.pt", clip=clip)


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_captions_in_half_precision(weights, pictures, precision, dtype):
    captioner = Captioner.load(weights, precision=precision)
    assert {parameter.dtype for parameter in captioner.model.parameters()} == {dtype}
    assert len(captioner(pictures, num_captions=2, rank="likelihood", require="dog", **SHORT)) == 6


def test_the_demo_captions_in_fp16_as_in_fp32():
    """Guards against scores and draws that are computed in fp16 too.

    Of 256 pictures, all had the same caption by greedy and by beam search, and 254 the same pair of samples.
    """
    pictures = [draw_scene(scene) for scene in scenes("test", 3)]
    exact, rounded = (Captioner.load("demo", precision=precision) for precision in ("fp32", "fp16"))
    for method in METHODS:
        assert exact(pictures, method=method, max_tokens=12) == rounded(pictures, method=method, max_tokens=12)


def test_weights_beyond_the_range_of_fp16_are_refused(tmp_path):
    """Guards against weights that become infinite, and captions that are missing or nonsense for no known reason."""
    model = tiny_captioner_model(clip_model=str(save_tiny_clip(tmp_path / "clip")))
    model.gpt.transformer.ln_f.weight.data[3] = 7e4
    save_checkpoint(model, tmp_path / "weights.pt")
    Captioner.load(tmp_path / "weights.pt", precision="bf16")
    with pytest.raises(UserError, match="ln_f.weight holds a number beyond 65504, where fp16 ends: use fp32"):
        Captioner.load(tmp_path / "weights.pt", precision="fp16")


def test_an_overflow_in_fp16_says_what_helps(tmp_path):
    """Guards against "its logits are not finite" about weights that work in every other precision."""
    model = tiny_captioner_model().half()
    model.gpt.transformer.ln_f.weight.data.fill_(3e4)
    with pytest.raises(NoCaption, match="range of fp16 is small: try --precision fp32"):
        model.generate(torch.ones(1, 16))
    assert model.float().generate(torch.ones(1, 16))
