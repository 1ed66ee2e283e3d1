"""The scripts with other language models and tokenizers than GPT-2's: they train, save, resume, caption, evaluate."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_language_models import settings
from tiny import save_tiny_clip, tiny_captioner_model, tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, GPT2Config, GPT2LMHeadModel

import basic_finetuning
import evaluate
import frozen_finetuning
import load_data
import lora_finetuning
import predict
import prompt_finetuning
from clipcap.captioning.candidates import Candidates
from clipcap.captioning.captioner import Captioner
from clipcap.captioning.vocabulary import tokens_with, unfinished, word_parts
from clipcap.errors import UserError
from clipcap.evaluation import metrics
from clipcap.model import language_model
from clipcap.model.config import ClipCapConfig
from clipcap.model.language_model import load_tokenizer, tokenizer_of
from clipcap.model.prompts import literal_captions
from clipcap.model.tokenizers import tokenizer_from_json
from clipcap.training.trainer import Trainer
from clipcap.weights.checkpoint import load_checkpoint

FAST = ["--batch-size", "8", "--evals-per-epoch", "1", "--device", "cpu", "--learning-rate", "1e-2", "--min-steps", "0"]
CHINESE = ["今天天气很好 #阳光", "我家的猫 so cute", "海边的日落真美", "周末去爬山，风景很好"]
JAPANESE = ["今日はいい天気です #青空", "うちの猫 とてもかわいい", "海辺の夕日がきれい", "週末に山へ行きました"]


def wordpiece() -> Tokenizer:
    """A BERT vocabulary, as Chinese language models have."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer.train_from_iterator(CHINESE, trainers.WordPieceTrainer(special_tokens=special, show_progress=False))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def unigram() -> Tokenizer:
    """SentencePiece's Unigram."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC()])
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.UnigramTrainer(special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(JAPANESE, trainer)
    return tokenizer


def sentencepiece_bpe() -> Tokenizer:
    """SentencePiece's BPE as Llama 2 has it: a token for each byte of a character that is not known."""
    lone = {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    letters = {letter: 259 + place for place, letter in enumerate("\u2581abcdefghijklmnopqrstuvwxyz#.!")}
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | lone | letters
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    replace, parts = decoders.Replace("\u2581", " "), (decoders.ByteFallback(), decoders.Fuse())
    tokenizer.decoder = decoders.Sequence([replace, *parts, decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def save_model(folder: Path, kind: str, tokenizer: Tokenizer) -> Path:
    """A tiny language model with random weights and a tokenizer, as `save_pretrained` writes them."""
    torch.manual_seed(0)
    size = tokenizer.get_vocab_size()
    if kind == "gpt2":
        GPT2LMHeadModel(GPT2Config(vocab_size=size, n_embd=32, n_layer=2, n_head=4)).save_pretrained(folder)
    else:
        config = settings(kind, size)
        config.max_position_embeddings = 512
        MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def save_data(folder: Path, captions: list[str], clip: str = "tiny") -> Path:
    """A dataset of 40 rows with random embeddings."""
    rows = [
        {"image_id": number, "caption": captions[number % len(captions)], "clip_embedding": number}
        for number in range(40)
    ]
    embeddings = torch.from_numpy(np.random.default_rng(0).normal(size=(40, 16)).astype(np.float16))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.pkl").write_bytes(pickle.dumps({"clip_embedding": embeddings, "captions": rows}))
    options = ["--clip", clip, "--val-fraction", "0.2", "--test-fraction", "0.2", "--output", str(folder / "data")]
    load_data.main(["--source", "clipcap", str(folder / "rows.pkl"), *options])
    return folder / "data"


def train(script, data: Path, output: Path, *options: object, epochs: int = 1) -> Path:
    script.main(["--data", str(data), "--output-dir", str(output), *FAST, "--epochs", str(epochs), *map(str, options)])
    return max(output.glob("*_weights.pt"), key=lambda file: "merged" not in file.name)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Data with embeddings of a tiny CLIP, a Llama-shaped and an OPT-shaped model, and weights trained from each."""
    folder = tmp_path_factory.mktemp("world")
    clip = save_tiny_clip(folder / "clip")
    save_data(
        folder, ["a dog on the beach 🐶 #dog", "two cats in the sun ☀️", "golden hour at the lake ✨ #sunset"], str(clip)
    )
    for kind in ("llama", "opt"):
        save_model(folder / kind, kind, tiny_tokenizer())
        train(basic_finetuning, folder / "data", folder / f"{kind}_run", "--language-model", folder / kind)
    Image.new("RGB", (40, 40), "red").save(folder / "photo.png")
    return folder


@pytest.mark.parametrize("kind", ["llama", "opt"])
def test_a_model_trains_from_its_own_weights_and_captions_pictures(world, tmp_path, kind):
    model = load_checkpoint(world / f"{kind}_run" / "base_weights.pt")
    rows = [json.loads(line) for line in (world / f"{kind}_run" / "metrics.jsonl").read_text().splitlines()]
    assert model.config.network["model_type"] == kind and model.config.end_of_text == "<|endoftext|>"
    losses = [row["val_loss"] for row in rows if "val_loss" in row]
    assert losses[-1] < 5.8  # ln(340), of a model that knows nothing
    output = tmp_path / "captions.jsonl"
    weights, clip = str(world / f"{kind}_run" / "base_weights.pt"), ["--clip", str(world / "clip")]
    predict.main(["--weights", weights, str(world / "photo.png"), *clip, "--output", str(output), "--device", "cpu"])
    assert json.loads(output.read_text())["caption"]


def test_every_strategy_trains_a_llama_and_evaluate_compares_them(world, tmp_path, capsys):
    start = world / "llama_run" / "base_weights.pt"
    files = [
        train(script, world / "data", tmp_path / script.__name__, "--init", start, *options)
        for script, options in (
            (basic_finetuning, ["--freeze-language-model"]),
            (prompt_finetuning, []),
            (lora_finetuning, ["--merged"]),
            (frozen_finetuning, ["--train", "head"]),
        )
    ]
    before = load_checkpoint(start)
    tensors = before.state_dict()
    for file in files:
        model = load_checkpoint(file, **({"base": str(start)} if "lora" in file.name else {}))
        changed = {name for name, tensor in tensors.items() if not torch.equal(tensor, model.state_dict()[name])}
        if "lora" in file.name and "merged" not in file.name:
            adapted = {name for name in tensors if name.endswith("_proj.weight") and ".layers." in name}
            assert changed == adapted | {name for name in tensors if name.startswith("clip_project.")}
        if "frozen" in file.name:
            assert changed == {"gpt.lm_head.weight", "gpt.model.norm.weight"}
    merged = tmp_path / "lora_finetuning" / "lora_4_merged_weights.pt"
    captions = [
        Captioner.load(file, clip=world / "clip", base=base)([str(world / "photo.png")], max_tokens=8)
        for file, base in ((merged, None), (tmp_path / "lora_finetuning" / "lora_4_weights.pt", str(start)))
    ]
    assert captions[0] == captions[1]
    evaluate.main(["--data", str(world / "data"), *map(str, files[:2]), "--output", str(tmp_path / "report")])
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert not report["failed"] and len(report["models"]) == 2


def test_a_resumed_run_ends_with_the_same_weights_bit_for_bit(world, tmp_path, monkeypatch):
    """Guards against a state without what a language model of another architecture needs."""
    options = ["--init", world / "llama_run" / "base_weights.pt"]
    whole = load_checkpoint(train(basic_finetuning, world / "data", tmp_path / "whole", *options, epochs=2))
    evaluate_once = Trainer.evaluate

    def killed(trainer: Trainer) -> None:
        evaluate_once(trainer)
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "evaluate", killed)
    with pytest.raises(KeyboardInterrupt):
        train(basic_finetuning, world / "data", tmp_path / "again", *options, epochs=2)
    monkeypatch.setattr(Trainer, "evaluate", evaluate_once)
    again = load_checkpoint(train(basic_finetuning, world / "data", tmp_path / "again", *options, "--resume", epochs=2))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


@pytest.mark.parametrize(
    ("kind", "tokenizer", "captions"),
    [("gpt2", wordpiece, CHINESE), ("llama", unigram, JAPANESE)],
    ids=["Chinese with a BERT vocabulary", "Japanese with SentencePiece"],
)
def test_languages_without_blanks_train_come_back_and_caption(tmp_path, kind, tokenizer, captions):
    """Guards against special tokens within captions, blanks between characters, and one word for a whole caption."""
    folder, data = save_model(tmp_path / "model", kind, tokenizer()), save_data(tmp_path, captions)
    weights = train(basic_finetuning, data, tmp_path / "run", "--language-model", folder, "--min-steps", 36)
    model = load_checkpoint(weights)
    own = tokenizer_of(model.config)
    assert model.config.end_of_text == ("[SEP]" if kind == "gpt2" else "</s>")
    for caption in captions:
        text = own.decode(own.encode(caption).ids)
        assert metrics.tokenize(text) == metrics.tokenize(caption) and text.count(" ") == caption.count(" ")
    rows = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    written = [row["caption"] for row in rows[-1]["captions"]]
    assert any(set(text) & set("".join(captions)) for text in written)
    scores = metrics.overlap([metrics.tokenize(captions[0])] * 2, [[metrics.tokenize(text)] for text in captions[:2]])
    assert 0 < scores["cider_d"] < 10 and len(metrics.tokenize(captions[0])) > 5


def test_prompted_weights_read_the_tokenizer_of_their_literal_captioner_once(monkeypatch):
    """Guards against a tokenizer that is built anew for every batch."""
    model = tiny_captioner_model(prompt="{literal} and")
    model.literal_captioner = tiny_captioner_model(tokenizer=tiny_tokenizer().to_str(pretty=True))
    read, asked = language_model.tokenizer_from_json, []
    monkeypatch.setattr(language_model, "tokenizer_from_json", lambda text: asked.append(text) or read(text))
    embeddings = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    assert literal_captions(model, embeddings) == literal_captions(model, embeddings) and len(asked) == 1


def test_a_tokenizer_in_a_folder_is_read_as_it_is_now(tmp_path):
    """Guards against the tokenizer of a folder that has another one by now."""
    for tokenizer in (tiny_tokenizer(), wordpiece()):
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        tokens = tokenizer.get_vocab_size()
        config = ClipCapConfig(language_model=str(tmp_path), gpt2={"vocab_size": tokens})
        config.end_of_text = "[SEP]" if tokenizer.token_to_id("[SEP]") else "<|endoftext|>"
        assert tokenizer_of(config).get_vocab_size() == tokens


@pytest.mark.parametrize("tokenizer", [tiny_tokenizer, wordpiece, unigram, sentencepiece_bpe])
def test_a_tokenizer_is_read_as_its_file_has_it_and_adds_nothing(tmp_path, tokenizer):
    """transformers' classes put an architecture's parts in place of the file's, and special tokens around texts."""
    original = tokenizer()
    original.save(str(tmp_path / "tokenizer.json"))
    found = load_tokenizer(str(tmp_path))
    for text in ("a dog 2024 #sun", "今天 山", "きれい", ""):
        assert found.encode(text).ids == original.encode(text, add_special_tokens=False).ids
    assert tokenizer_from_json(found.to_str()).to_str() == found.to_str()
    assert found.decode(found.encode("today").ids) == (
        "today" if tokenizer in (tiny_tokenizer, sentencepiece_bpe) else ""
    )


@pytest.mark.parametrize("tokenizer", [tiny_tokenizer, sentencepiece_bpe])
def test_a_caption_goes_on_from_its_prompt_in_the_tokens_of_one_text(tmp_path, tokenizer):
    """Guards against two blanks behind a prompt, where a tokenizer puts one in front of every text by itself."""
    tokenizer().save(str(tmp_path / "tokenizer.json"))
    found = load_tokenizer(str(tmp_path))
    parts = [found.encode(text).ids for text in ("caption it", " good day")]
    assert sum(parts, []) == found.encode("caption it good day").ids
    assert found.decode(parts[1]).strip() == found.decode(found.encode("good day").ids)


def test_a_caption_that_ends_within_an_emoji_keeps_those_before_it():
    """Guards against a replacement sign for each byte of all of them, which such a tokenizer gives."""
    bpe = sentencepiece_bpe()
    ids = bpe.encode("sun\N{SUN WITH FACE}\N{SUN WITH FACE}", add_special_tokens=False).ids
    assert "\ufffd" in bpe.decode(ids[:-2]) and [unfinished(bpe, ids[:-n]) for n in (1, 2, 3)] == [3, 2, 1]
    assert bpe.decode(ids[:-4]) == "sun\N{SUN WITH FACE}" and unfinished(bpe, ids) == 0
    assert unfinished(tiny_tokenizer(), ids) == 0


def test_the_signs_of_emoji_and_hashtags_are_found_in_any_vocabulary():
    """Guards against rules that hold for byte-level vocabularies alone, in silence."""
    bpe, words, pieces = sentencepiece_bpe(), wordpiece(), unigram()
    assert set(tokens_with(bpe, ("#",))) == {bpe.token_to_id("#"), bpe.token_to_id("<0x23>")}
    assert bpe.token_to_id("<0xF0>") in tokens_with(bpe, ("😀",))
    assert set(tokens_with(words, ("#",))) >= {words.token_to_id("#")}
    assert all("#" in pieces.id_to_token(token) for token in tokens_with(pieces, ("#",)))
    assert bpe.token_to_id("a") in word_parts(bpe) and bpe.token_to_id("\u2581") not in word_parts(bpe)
    assert words.token_to_id("so") not in word_parts(words)
    assert any(words.id_to_token(token).startswith("##") for token in word_parts(words))


@pytest.mark.parametrize("kind", [sentencepiece_bpe, wordpiece])
def test_a_caption_goes_on_from_its_start_with_a_blank_between_words(tmp_path, kind):
    """Guards against tokenizers that leave out the blank in front of what is decoded: "good" + "day" was "goodday"."""
    tokenizer = load_tokenizer(str(save_model(tmp_path, "llama", kind())))
    candidates = object.__new__(Candidates)
    start, rest = ("good", "day") if kind is sentencepiece_bpe else ("so", "cute")
    begun = tokenizer.encode(start).ids
    candidates.tokenizer, candidates.starts, candidates.begun, candidates.end = tokenizer, [start], [len(begun)], -1
    candidates.prompts = [[7, *begun]]
    assert candidates.text(0, tokenizer.encode(f"{start} {rest}").ids[len(begun) :]) == f"{start} {rest}"


@pytest.mark.parametrize(("kind", "known"), [(unigram, "きれい"), (wordpiece, "so cute")])
def test_what_a_vocabulary_does_not_know_is_not_written_into_captions(tmp_path, kind, known):
    """Guards against "[UNK]" in a post, where a model has learned from captions with emoji that it has no token for."""
    kind().save(str(tmp_path / "tokenizer.json"))
    candidates = object.__new__(Candidates)
    candidates.tokenizer, candidates.end = load_tokenizer(str(tmp_path)), -1
    candidates.prompts, candidates.starts, candidates.begun = [[]], [""], [0]
    encoded = candidates.tokenizer.encode(f"{known} 🐶")
    assert encoded.tokens[-1] in ("🐶", "[UNK]") and candidates.text(0, encoded.ids) == known


SPOILED = {
    "normalizer": [
        {"type": "Replace", "pattern": {"Regex": "(a|a|aa|.)*$Z"}, "content": ""},
        {"type": "Replace", "pattern": {"String": " "}, "content": "a" * 9},
        {"type": "Replace", "pattern": {"String": ""}, "content": ""},
        {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
        {"type": "Prepend", "prepend": "a" * 1000},
        {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 17},
        {"type": "Sequence", "normalizers": [{"type": "Sequence", "normalizers": []}]},
    ],
    "pre_tokenizer": [
        {"type": "Split", "pattern": {"Regex": "(a|a)*"}, "behavior": "Isolated", "invert": False},
        {"type": "Unknown"},
    ],
    "decoder": [
        {"type": "Strip", "content": "a", "start": 10**6, "stop": 10**6},
        {"type": "Sequence", "decoders": []},
        {"type": "CTC", "pad_token": "", "word_delimiter_token": "", "cleanup": True},
    ],
    "post_processor": [{"type": "TemplateProcessing", "single": [], "pair": [], "special_tokens": {}}],
}


@pytest.mark.parametrize("place", SPOILED)
@pytest.mark.parametrize("tokenizer", [wordpiece, unigram])
def test_parts_of_a_tokenizer_that_could_panic_or_never_end_are_refused(place, tokenizer):
    """A panic in Rust is no exception, and a pattern of a stranger can take hours."""
    parts = json.loads(tokenizer().to_str()) | {"post_processor": None}
    for spoiled in SPOILED[place]:
        with pytest.raises(UserError, match="not known here|cannot be read|may have|special tokens") as caught:
            tokenizer_from_json(json.dumps(parts | {place: spoiled}))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("tokenizer", "changes"),
    [
        (wordpiece, {"unk_token": "[NOPE]"}),
        (wordpiece, {"max_input_chars_per_word": 10**9}),
        (unigram, {"unk_id": None}),
        (unigram, {"unk_id": 10**6}),
        (unigram, {"vocab": [["a", float("nan")]]}),
        (sentencepiece_bpe, {"unk_token": "<nope>"}),
        (wordpiece, {"type": "WordLevel"}),
    ],
)
def test_models_of_a_tokenizer_that_could_panic_are_refused(tokenizer, changes):
    parts = json.loads(tokenizer().to_str()) | {"post_processor": None}
    with pytest.raises(UserError, match="not known here, its model"):
        tokenizer_from_json(json.dumps(parts | {"model": parts["model"] | changes}))


def save_config(folder: Path, kind: str, **changes) -> Path:
    CONFIG_MAPPING[kind]().save_pretrained(folder)
    content = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def bad_models(folder: Path, world: Path) -> dict[str, tuple[Path | str, str]]:
    """What somebody may give as a language model by mistake, and what the refusal must say."""
    misfit, lost = folder / "misfit", folder / "lost"
    for copy in (misfit, lost):
        shutil.copytree(world / "llama", copy)
    wordpiece().save(str(misfit / "tokenizer.json"))
    (lost / "tokenizer.json").unlink()
    (folder / "gguf").mkdir()
    (folder / "gguf" / "model-q8.gguf").write_bytes(b"GGUF")
    (folder / "empty").mkdir()
    (folder / "file.txt").write_text("no model")
    shutil.copytree(world / "llama", folder / "adapters")
    (folder / "adapters" / "adapter_config.json").write_text('{"base_model_name_or_path": "a/stranger"}')
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}
    return {
        "empty folder": (folder / "empty", "there is no language model in"),
        "no folder": (folder / "nowhere", "no folder with a language model"),
        "file": (folder / "file.txt", "no folder with a language model"),
        "gguf folder": (folder / "gguf", "convert model-q8.gguf into a folder"),
        "gguf file": (folder / "gguf" / "model-q8.gguf", "convert model-q8.gguf into a folder"),
        "adapters": (folder / "adapters", "holds adapters for peft"),
        "T5": (save_config(folder / "t5", "t5"), "t5 model, an encoder-decoder"),
        "BART": (save_config(folder / "bart", "bart"), "bart model, an encoder-decoder"),
        "ViT": (save_config(folder / "vit", "vit"), "no causal language model"),
        "no inputs_embeds": (save_config(folder / "cpmant", "cpmant"), "reads no embeddings"),
        "multimodal": (save_config(folder / "llava", "llava"), "reads more than text"),
        "unknown kind": (
            save_config(folder / "bloom", "bloom"),
            "of type 'bloom' is not known here: use gpt2, gpt_neox",
        ),
        "quantised": (
            save_config(folder / "int4", "llama", quantization_config={"quant_method": "gptq", "bits": 4}),
            "quantised",
        ),
        "unknown positions": (
            save_config(folder / "yarn", "llama", rope_parameters=yarn),
            "rope_type must be one of default",
        ),
        "no weights": (save_config(folder / "bare", "llama"), "could not be loaded"),
        "misfit tokenizer": (misfit, "has 44 tokens, and the model has 312"),
        "no tokenizer": (lost, "no tokenizer in"),
    }


def test_what_is_no_language_model_for_captions_is_refused_in_a_sentence(world, tmp_path):
    """Guards against tracebacks, against the hub's own words for a folder, and against half-written runs."""
    for name, (place, told) in bad_models(tmp_path, world).items():
        with pytest.raises(UserError, match=told) as caught:
            train(basic_finetuning, world / "data", tmp_path / "run", "--language-model", place)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 700, name
        assert not list((tmp_path / "run").iterdir()), name


def test_a_config_from_a_stranger_says_nothing_but_sizes(world, tmp_path):
    """Guards against settings that make transformers fetch or run something, and sizes that the tensors deny."""
    content = torch.load(world / "llama_run" / "base_weights.pt", weights_only=True)
    network = content["config"]["network"]
    rope = network["rope_parameters"]
    for changes, told in (
        ({"model_type": "bloom"}, "'bloom' is not known here"),
        ({"model_type": ["llama"]}, "a list is not known here"),
        ({"auto_map": {"AutoModelForCausalLM": "evil--evil"}}, "'auto_map' is no setting"),
        ({"_attn_implementation": "x"}, "'_attn_implementation' is no setting"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers 1000000000, and its tensors say 2"),
        ({"hidden_size": 10**9}, "prefix_length|has shape|make no llama"),
        ({"num_attention_heads": 10**9}, "has shape|make no llama"),
        ({"num_attention_heads": 0}, "at least 1"),
        ({"head_dim": 3}, "has shape|make no llama"),
        ({"vocab_size": 10**9}, "has shape"),
        ({"max_position_embeddings": 2}, "leaves no room"),
        ({"hidden_act": "__class__"}, "hidden_act must be one of"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps must be"),
        ({"attention_bias": 1}, "attention_bias must be of type bool"),
        ({"rope_parameters": rope | {"rope_type": "dynamic"}}, "rope_type must be one of"),
        ({"rope_parameters": rope | {"rope_theta": -1}}, "rope_theta must be"),
        ({"rope_parameters": rope | {"partial_rotary_factor": 1e9}}, "partial_rotary_factor must be"),
        ({"rope_parameters": rope | {"short_factor": [1] * 9}}, "'short_factor' is no setting"),
    ):
        torch.save(content | {"config": content["config"] | {"network": network | changes}}, tmp_path / "weights.pt")
        with pytest.raises(UserError, match=told):
            load_checkpoint(tmp_path / "weights.pt")
    del network["vocab_size"]
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(UserError, match="no vocab_size"):
        load_checkpoint(tmp_path / "weights.pt")
