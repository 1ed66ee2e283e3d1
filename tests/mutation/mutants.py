"""Bugs to plant, room by room: each is one replacement in one file, and the tests that should notice it.

A bug belongs here if it changes what a user gets. One that cannot be noticed, because it changes nothing but time or
memory, does not.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Mutant:
    """One bug.

    Attributes:
        file: where it is planted, from the root of the repository.
        old: text that occurs once in this file.
        new: what replaces it.
        tests: files of tests, the ones that run first first; of the room of the file when empty.
        explained: why no test notices it, for a bug that is known to go unnoticed.
    """

    file: str
    old: str
    new: str
    tests: tuple[str, ...] = field(default=(), repr=False)
    explained: str = field(default="", repr=False)

    def plant(self, text: str) -> str:
        """The text of the file with the bug in it."""
        if text.count(self.old) != 1:
            raise ValueError(f"{self.old!r} occurs {text.count(self.old)} times in {self.file}")
        return text.replace(self.old, self.new)

    def __str__(self) -> str:
        shown = [" ".join(text.split()) for text in (self.old, self.new)]
        return f"{self.file}: {shown[0]} -> {shown[1] or 'nothing'}"


TESTS = {
    "model": "test_mapping test_model test_data test_decoding test_training",
    "decoding": "test_decoding test_properties test_captions test_captioner",
    "fast": "test_fast test_nucleus test_large_weights test_fast_vit test_half test_dropout test_cuda_graph",
    "training": "test_planted test_training test_resume test_training_faults test_finetuning",
    "weights": "test_checkpoint test_hostile_weights test_published test_finetuning",
    "clip": "test_images test_encoder",
    "captioning": "test_captions test_captioner test_writers test_predict",
    "data": "test_cleaning test_data test_sources test_embeddings test_broken_data test_data_interrupted "
    "test_load_data test_privacy",
    "evaluation": "test_metrics test_evaluate test_report test_privacy",
    "world": "test_demo",
    "clipcap": "test_files test_devices test_plots",
}


def room(name: str, *bugs: tuple[str, ...]) -> list[Mutant]:
    """The bugs of one room, each given as (module, old, new) and, if the room's own tests do not do, their names."""
    folder = "clipcap" if name == "clipcap" else f"clipcap/{name}"
    return [
        Mutant(
            f"{folder}/{module}.py",
            old,
            new,
            tuple(f"tests/{test}.py" for test in (" ".join(tests) or TESTS[name]).split()),
        )
        for module, old, new, *tests in bugs
    ]


MUTANTS = [
    *room(
        "model",
        ("mapping", "nn.Tanh()", "nn.ReLU()"),
        (
            "mapping",
            "width // 2), nn.Tanh(), nn.Linear(width // 2, width)",
            "width // 4), nn.Tanh(), nn.Linear(width // 4, width)",
        ),
        ("mapping", "x = x + self.attn(self.norm1(x))", "x = self.attn(self.norm1(x))"),
        ("mapping", "torch.cat((clip_tokens, constants), dim=1)", "torch.cat((constants, clip_tokens), dim=1)"),
        ("mapping", "mixed[:, self.clip_length :]", "mixed[:, -self.clip_length :]"),
        ("clipcap", "F.normalize(clip_embedding.float(), dim=-1)", "clip_embedding.float()"),
        ("clipcap", "self.config.prefix_length - 1 :]", "self.config.prefix_length :]"),
        ("clipcap", "tokens[:, :-1])  # the last", "tokens[:, 1:])  # the last"),
        (
            "clipcap",
            "self.config.positions - self.config.prefix_length + 1",
            "self.config.positions - self.config.prefix_length",
        ),
        ("clipcap", "                module.eval()\n", "                pass\n"),
        ("clipcap", "if not name.startswith(LITERAL_CAPTIONER))", "if True)"),
        ("clipcap", ".weight.detach().clone())", ".weight.detach())"),
        ("clipcap", "if self._prepared is None or self._prepared[0] != state:", "if self._prepared is None:"),
        ("batches", "[*encoding.ids, end] if", "[*encoding.ids] if"),
        (
            "batches",
            "labels = torch.full((len(rows), longest), IGNORED)",
            "labels = torch.full((len(rows), longest), PADDING)",
        ),
        (
            "batches",
            "labels[row, len(prompt) : end] = torch.tensor(caption)",
            "labels[row, :end] = torch.tensor([*prompt, *caption])",
        ),
        ("batches", "encoding.offsets[length][0] < encoding.offsets[length - 1][1]", "False"),
        ("batches", "caption[: room - len(prompt)]", "caption[:room]"),
        ("clipcap", "if self.training and self.config.network:", "if False:", "test_language_models"),
        ("networks", "setattr(parent, name, type(child)(gpt.config).to(device))", "pass", "test_language_models"),
        ("tokenizers", 'parts["post_processor"] = None', "pass", "test_any_language_model"),
        ("prompts", '.strip().removesuffix(".")', ".strip()", "test_data"),
        ("prompts", '.strip()).rstrip(" ")', ".strip())", "test_data"),
        ("config", '" " if self.prompt and self.running_text else ""', '""', "test_finetuning"),
        ("prompts", "[[*prompt, *asked] for prompt in prompts]", "prompts", "test_controls"),
        ("controls", "(size > low) + (size > high)", "(size >= low) + (size >= high)", "test_controls"),
        ("controls", 'HASHTAG.sub(" ", EMOJI.sub(" ", caption))', "caption", "test_controls"),
        ("controls", "np.random.default_rng(seed).random", "np.random.random", "test_controls"),
    ),
    *room(
        "decoding",
        ("options", "return max(self.beams, self.num_captions)", "return self.beams"),
        ("forbidden", "short = length < self", "short = length <= self", "test_forbidden"),
        ("forbidden", "begun = beginnings[rows]", "begun = beginnings[: len(rows)]", "test_forbidden"),
        ("forbidden", "self.is_part[:-1].float() < 0.5", "self.is_part[:-1].float() < 0.0", "test_forbidden"),
        ("forbidden", "max(Counter(befores).values(), default=0)", "min(1, len(befores))", "test_forbidden"),
        ("forbidden", "windows[..., -1:, 1:]", "windows[..., -1:, :-1]", "test_forbidden"),
        ("next_token", "zlib.crc32(signs.tobytes())", "0"),
        ("sampling", "scores[rows] += gained.masked_fill(finished, 0)", "scores[rows] += gained"),
        ("beam_search", "        session.reorder(parent)\n", ""),
        (
            "beam_search",
            "mean = (scores[rows][..., None] + gained) / grown[..., None]",
            "mean = scores[rows][..., None] + gained",
        ),
        ("beam_search", 'gained[finished] = float("-inf")', "gained[finished] = gained[finished]"),
        ("beam_search", "grown = lengths[rows] + ~finished", "grown = lengths[rows] + 1"),
        (
            "beam_search",
            "finished = finished.gather(1, parent) | (token == stop_token)",
            "finished = token == stop_token",
        ),
        ("finished", "        self.rows = self.rows[going]\n", ""),
        ("sampling", ".masked_fill(stopped, step + 1)", ".masked_fill(stopped, step)"),
        ("cached_gpt2", 'value=float("-inf"))', "value=0.0)"),
        ("cached_gpt2", "self.state.positions.copy_(lengths[:, None])", "self.state.positions.fill_(self.end)"),
        ("cached_gpt2", "self.state, lengths - 1)", "self.state, lengths.new_full((batch,), self.end - 1))"),
        (
            "cached_gpt2",
            "self.state.mask[:, :, : self.end].masked_fill_(seen[:, None], 0)",
            "self.state.mask[:, :, : self.end].fill_(0)",
        ),
        (
            "cached_gpt2",
            "self.state.positions.copy_(old.positions[rows])",
            "self.state.positions.copy_(old.positions[: len(rows)])",
        ),
        (
            "cached_gpt2",
            "torch.index_select(old.cache, 2, rows, out=self.state.cache)",
            "self.state.cache.copy_(old.cache[:, :, : len(rows)])",
        ),
        (
            "cached_transformer",
            "hidden = (places >= self.positions)",
            "hidden = (places >= self.positions.max())",
            "test_language_models",
        ),
        (
            "cached_transformer",
            "lengths.repeat_interleave(width)[:, None]",
            "lengths.max().repeat(batch * width)[:, None]",
            "test_language_models",
        ),
        (
            "cached_transformer",
            "(first + parents).flatten()",
            "first.expand_as(parents).flatten()",
            "test_language_models",
        ),
    ),
    *room(
        "fast",
        (
            "linear",
            "weight = torch.add(weight, adapted.get_delta_weight(adapter).detach(), alpha=sign)",
            "weight = weight",
            "test_fast test_checkpoint test_finetuning",
        ),
        ("linear", 'nn.GELU(approximate="tanh")', "nn.GELU()"),
        ("lora", " * layer.scaling[name]", ""),
        ("nucleus", "above = probabilities.cumsum(-1) - probabilities", "above = probabilities.cumsum(-1)"),
        (
            "nucleus",
            "accepted = more_probable.mul_(wide).sum(-1) < top_p",
            "accepted = more_probable.mul_(wide).sum(-1) < 1",
        ),
        ("nucleus", "logits = logits / temperature", "logits = logits * temperature"),
        ("nucleus", "lower, _ = _least_needed(", "lower, _ = 0 * upper, _least_needed("),
        ("large_weights", "weight.grad = kept.zero_()", "weight.grad = kept"),
    ),
    *room(
        "training",
        ("trainer", "if loss < progress.best:", "if True:"),
        (
            "trainer",
            "loss = self.objective(batch.to(self.model.device)) / len(group)",
            "loss = self.objective(batch.to(self.model.device))",
        ),
        ("trainer", "int(self.steps * args.warmup)", "0"),
        ("trainer", "progress.best = min(progress.best, loss)", "progress.best = loss"),
        ("trainer", "        self.accelerator.clip_grad_norm_(self.model.parameters(), self.args.clip_norm)\n", ""),
        ("trainer", "(progress.step % self.epoch_steps) * args.accumulate", "progress.step % self.epoch_steps"),
        ("trainer", "        self.schedule.step()\n", ""),
        ("losses", "    return sum(totals) / sum(counts)", "    return sum(totals) / len(dataset)"),
        ("progress", "losses.index(min(losses))", "losses.index(losses[-1])"),
        ("setup", "if parameter.ndim < 2]", "if parameter.ndim < 1]"),
        ("setup", "(vectors, 0.0)", "(vectors, args.weight_decay)"),
        ("setup", "learning_rate=args.mapping_learning_rate", "learning_rate=args.learning_rate"),
        ("progress", ' and row["step"]]', "]", "test_training"),
        (
            "state",
            "            new.rename(state)\n",
            "            shutil.copytree(new, state)\n            shutil.rmtree(new)\n",
        ),
        (
            "loader",
            "random = np.random.default_rng((self.seed, self.epoch))",
            "random = np.random.default_rng(self.seed)",
        ),
        ("loader", "(self.seed, self.epoch, index)", "(self.seed, 0, index)", "test_controls"),
        ("trainer", "self.train_set.epoch = self.sampler.epoch = epoch", "self.sampler.epoch = epoch", "test_controls"),
        ("loader", "(len(batches))[self.skip :]:", "(len(batches)):"),
        ("loader", "rows[rank::world]", "rows[rank:]", "test_data"),
        ("loader", "world * own_tokens / tokens", "1", "test_data"),
    ),
    *room(
        "weights",
        (
            "lora",
            "scale = (LORA_ALPHA if alpha is None else alpha) / len(down)",
            "scale = LORA_ALPHA / len(down)",
            "test_checkpoint test_planted test_finetuning",
        ),
        ("lora", "lora_dropout=dropout,", "lora_dropout=0.0,", "test_planted test_finetuning test_checkpoint"),
        ("places", "if sha256(path) == base.sha256:", "if True:"),
        ("convert", "STOP = 13", "STOP = 50256"),
        ("convert", 'config["mapping"] == "transformer" and clip_dim == 640', "False"),
        ("convert", "width // HEAD_WIDTH if heads is None else heads", "width // HEAD_WIDTH"),
        ("sizes", "        if said[name] != size:", "        if False:", "test_hostile_weights"),
        ("places", "    return is_inside(place, file)", "    return True"),
        ("published", "                _check_downloaded(partial)\n", "", "test_published"),
    ),
    *room(
        "clip",
        ("upright", "6: Image.Transpose.ROTATE_270", "6: Image.Transpose.ROTATE_90"),
        ("upright", 'Image.new("RGBA", strip.size, "white")', 'Image.new("RGBA", strip.size, "black")'),
        (
            "preprocessing",
            "return (target_width, long_side) if width <= height else (long_side, target_width)",
            "return long_side, target_width",
        ),
        ("preprocessing", "round((image.width - width) / 2), round((image.height - height) / 2)", "0, 0"),
        ("encoder", "torch.addcmul(-mean / std,", "torch.addcmul(-mean,"),
        ("images", "        if real in seen:", "        if False:"),
        ("formats", "formats=formats)", "formats=None)", "test_images test_odd_files"),
        ("formats", "not in ([1], [1, 2, 3])", "in ([],)", "test_jpegs"),
        ("jpegs", "        image = image.flip(2)", "        pass", "test_jpegs"),
        ("jpegs", "if image.shape != (3, *reversed(jpeg.size)):", "if False:", "test_jpegs"),
        ("jpegs", "-round((side - target) / 2)", "0", "test_jpegs"),
        ("archive", "        if (module, name) not in allowed:", "        if False:", "test_archive"),
        ("tensors", "        if numbers and not", "        if False and not", "test_hostile_weights"),
    ),
    *room(
        "captioning",
        ("candidates", "[[*self.prompts[row], *more]", "[[*more]"),
        ("candidates", "self.begun[row] + len(more)", "len(more)", "test_posts"),
        ("candidates", "ranks = [(-next(scores)", "ranks = [(next(scores)"),
        ("choice", "text and text.casefold() not in known", "text and text not in known"),
        (
            "choice",
            "if self.rules.clean(raw) == raw and not _repeats(ids, self.decoding.no_repeat_ngram):",
            "if self.rules.clean(raw) == raw:",
        ),
        ("choice", "return len(set(grams)) < len(grams)", "return False"),
        ("words", "regex.IGNORECASE | regex.FULLCASE", "0"),
        ("rules", "return self.clean(text.strip())  # again", "return text.strip()  # again"),
        ("writers", "image, caption, _, error, *_ = cells", "image, caption, error, _, *_ = cells"),
        ("writers", "return cell[1:] if cell.startswith", "return cell if cell.startswith"),
        ("posts", "if tag in seen or", "if", "test_posts"),
        ("posts", "max_chars - self.size", "max_chars", "test_posts"),
        ("xmp", "if self.item[0] >= 0 else (self.first, self.first)", "if True else (self.first, self.first)"),
        ("sidecars", 'f"{before}\\n".startswith(f"{new}\\n")', "before.startswith(new)"),
        ("console", "return 0 if not failures else 1 if done or skipped else 2", "return 0"),
        ("visitors", 'if re.match(r"\\w+:/", str(file)):', "if False:", "test_app"),
        ("visitors", 'if not PUBLIC.fullmatch(scope["path"]):', "if False:", "test_app"),
        ("visitors", "preprocess=preprocess, ", "", "test_app"),
        ("desk", "before and before not in", "before and [] is not", "test_app"),
        ("desk", "session.download.unlink(missing_ok=True)", "pass", "test_app"),
        ("accepted", "{one.file_name: one.picture for one in accepted}.items()", "[]", "test_app"),
    ),
    *room(
        "data",
        (
            "cleaning",
            'image_id if self.options.drop_duplicates == "image" else ""',
            '""',
        ),
        ("cleaning", "spans[self.options.max_hashtags :]", "spans[: self.options.max_hashtags]"),
        (
            "examples",
            'if example.split != "train":\n            return example\n        place',
            "place",
        ),
        ("examples", "return self.group or self.image_id", "return self.image_id", "test_archives"),
        ("examples", 'f"{seed} {example.kept_together}"', "example.kept_together"),
        ("embed", "images += [len(vectors) - 1] * len(example.captions)", "images += [0] * len(example.captions)"),
        ("embed", "names[processes.rank :: processes.world]", "names", "test_processes"),
        ("embeddings", "astype(np.int64) + images", "astype(np.int64)", "test_embeddings"),
        ("embed", "None if number else thumbnail", "thumbnail"),
        ("embed", "min(batch_size, len(shard.examples) - len(results))", "batch_size"),
        ("writer", "if not (self.parts / name).is_file()]", "]"),
        ("store", 'captions if len(captions) <= self.info["splits"][split] else []', "captions"),
    ),
    *room(
        "evaluation",
        ("metrics", "limits |= _ngrams(caption)", "limits += _ngrams(caption)"),
        (
            "metrics",
            "min((abs(len(caption) - len(candidate)), len(caption)) for caption in captions)[1]",
            "min(len(caption) for caption in captions)",
        ),
        ("metrics", "penalty = math.exp(-((length - other_length) ** 2) / (2 * sigma**2))", "penalty = 1.0"),
        ("metrics", "image_text = 2.5 * np.maximum", "image_text = 1.0 * np.maximum"),
        ("treebank", 'rf"(?i:s|m|d|re|ve|ll){_END}"', 'r"(?i:s|m|d|re|ve|ll)"', "test_treebank"),
        ("treebank", '_NEGATION.sub(" ", text)', "text", "test_treebank"),
        ("treebank", r"|\s+(?:{", r"|\s+(?!{", "test_treebank"),
        ("treebank", 'replace("’", "\'")', 'replace("’", "’")', "test_treebank"),
        ("treebank", '"no|nos|', '"nos|', "test_treebank"),
        ("scores", "ids[:-1] if ids[-1] == end and len(ids) > 1 else ids", "ids"),
        ("scores", "if model.config.stop_token != end:", "if True:"),
        ("held_out", "rows.setdefault(image, []).append(row)", "rows[image] = [row]"),
    ),
    *room(
        "clipcap",
        ("files", "            raise disk.error or error from None", "            raise"),
        (
            "files",
            "        unfinished.replace(path)\n",
            "        path.write_bytes(unfinished.read_bytes())\n",
            "test_files",
        ),
        ("devices", "torch.cuda.get_device_capability(device) >= BF16", "True"),
    ),
    *room(
        "cli",
        ("status", "signal.signal(signal.SIGTERM, _interrupt)", "pass", "test_files"),
    ),
    *room(
        "world",
        ("judge", '"subject") == {scene.subject}', '"subject") >= {scene.subject}'),
        ("judge", 'or f"#{name}" in words or name in tagged', 'or f"#{name}" in words'),
        (
            "judge",
            "return bool(EMOJI.search(caption) or HASHTAG.search(caption))",
            "return bool(EMOJI.search(caption))",
        ),
    ),
]
