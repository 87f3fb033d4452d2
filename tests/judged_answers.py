"""Data folders of judged answers, and a model to start from, for tests."""

import random
from pathlib import Path

from gemmule.checkpoints.hf.writer import save_model
from gemmule.model.tokenizer import Tokenizer
from gemmule.posttrain.chat_data import ChatData, ChatOptions, write_conversations, write_pairs
from gemmule.posttrain.conversations import Conversation, Message, PreferencePair
from models import TINY, random_model, tiny_config

WORDS = ("the", "a", "sea", "ship", "captain", "never", "wind", "old", "and", "red", "sail", "of")
OPTIONS = ChatOptions(name="judged", validation=0.2, heldout=0.2)
CONTEXT = 96


def sentence(rng: random.Random, *extra: str) -> str:
    words = rng.choices(WORDS, k=rng.randint(1, 6)) + list(extra)
    rng.shuffle(words)
    return " ".join(words)


def pairs(count: int) -> list[PreferencePair]:
    """Pairs of which the chosen answer says "harbour" and the rejected one "under"."""
    made = []
    for n in range(count):
        rng = random.Random(n)
        prompt = (Message("user", f"{sentence(rng)} {n}"),)
        if n % 3 == 0:  # several turns
            prompt = (*prompt, Message("assistant", sentence(rng)), Message("user", "and"))
        good, bad = sentence(rng, "harbour"), sentence(rng, "under")
        made.append(
            PreferencePair(
                prompt,
                (Message("assistant", good),),
                (Message("assistant", bad),),
                margin=None if n % 2 else n % 5 / 5,
            )
        )
    return made


def pair_folder(pieces: Tokenizer, folder: Path, count: int = 40) -> ChatData:
    return write_pairs(pairs(count), pieces, folder, OPTIONS)


def labeled_folder(pieces: Tokenizer, folder: Path, count: int = 40) -> ChatData:
    """Single answers, a third of them bad."""
    items = [
        Conversation(
            (*p.prompt, *(p.rejected if n % 3 == 1 else p.chosen)), record={"label": n % 3 != 1}
        )
        for n, p in enumerate(pairs(count))
    ]
    return write_conversations(items, pieces, folder, OPTIONS)


def parent(pieces: Tokenizer, folder: Path) -> Path:
    """A random model with the tokenizer `pieces`."""
    shape = {**TINY, "max_position_embeddings": CONTEXT}
    model = random_model(tiny_config(shape, vocab_size=pieces.vocab_size), seed=4, std={"": 0.2})
    save_model(model, pieces, folder)
    return folder
