"""Controls: what captions can be asked for is learned, kept in the weights, refused where it was not learned."""

import pickle
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from tiny import tiny_captioner_model, tiny_config, tiny_tokenizer

import load_data
import predict
import prompt_finetuning
from clipcap.captioning.captioner import Captioner
from clipcap.captioning.rules import Rules
from clipcap.data.store import EmbeddingStore
from clipcap.errors import UserError
from clipcap.model.batches import collate
from clipcap.model.controls import MEASURES, Request, ask, controls_of, find_bounds, some_controls
from clipcap.training.loader import CaptionDataset
from clipcap.weights.checkpoint import load_checkpoint
from clipcap.world.captions import EMOJI, EVERYWHERE, KINDS, MOODS, OPENINGS, TAGS, with_article
from clipcap.world.scenes import Scene, scenes


def varied_post(scene: Scene, version: int = 0) -> str:
    """A post of the demo world whose length varies as people's do, with 0 to 3 emoji and 0 to 3 hashtags.

    The world's own posts have 9 to 18 words and never go without emoji.
    """
    chance = scene.chance(f"varied post {version}")
    thing = f"{scene.colour} {scene.subject}"
    kind = next(kind for kind, members in KINDS.items() if scene.subject in members)
    opening = chance.choice(OPENINGS[kind]).replace("{a thing}", with_article(thing)).replace("{thing}", thing)
    moods = chance.sample(MOODS[scene.setting], 2)
    words = chance.choice([f"my {thing}", opening, f"{opening}. {moods[0]}", f"{moods[0]}! {opening}. {moods[1]}"])
    emoji = chance.sample([EMOJI[name] for name in (scene.subject, scene.colour, scene.setting)], chance.randrange(4))
    tags = [f"#{scene.subject}love", f"#{chance.choice(TAGS[scene.setting])}", f"#{chance.choice(EVERYWHERE)}"]
    return " ".join([words, *(["".join(emoji)] if emoji else []), *tags[: chance.randrange(4)]])
