import random

import pytest

from gemmule.model.tokenizer import train_tokenizer

TEXT = "the a sea ship captain said never wind old and of to under red sail harbour"
WORDS = TEXT.split()


def story(seed, words=300):
    pick = random.Random(seed)
    return " ".join(pick.choice(WORDS) for _ in range(words)) + f" {seed}.\n"


@pytest.fixture(scope="session")
def tokenizer():
    return train_tokenizer([story(seed, 2000) for seed in range(20)], 512)


@pytest.fixture(scope="session")
def corpus_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    for seed in range(120):
        (folder / f"{seed}.txt").write_text(story(seed))
    return folder
