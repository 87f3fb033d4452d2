"""The bar that counting sets: a distribution, with Kneser and Ney's numbers."""

import numpy as np
import pytest

from gemmule.data.trigrams import Trigrams


def test_probabilities_sum_to_one() -> None:
    generator = np.random.default_rng(0)
    model = Trigrams(generator.integers(0, 7, 60) ** 2 % 11, 11)
    everything = np.arange(11)
    for before in range(11):
        for last in range(11):
            pair = (np.full(11, before), np.full(11, last))
            assert np.exp(model.log_probabilities(*pair, everything)).sum() == pytest.approx(1)


def test_a_case_by_hand() -> None:
    # Tokens 0 1 2 0 1 2 0 1 3: the trigrams are 012 x2, 120 x2, 201 x2, 013 x1.
    model = Trigrams(np.array([0, 1, 2, 0, 1, 2, 0, 1, 3]), 5)
    # Discounts: trigrams 1/(1 + 2*3); bigrams 01, 12, 13, 20 each after one token: 1; unigrams
    # 0, 1, 2, 3 each after one: 1.
    uniform = 1 / 5
    unigram = (0 + 1 * 4 * uniform) / 4
    bigram = (0 + 1 * 2 * unigram) / 2  # after 1: two different tokens
    discount = 1 / 7
    trigram = (2 - discount + discount * 2 * bigram) / 3
    (got,) = model.log_probabilities(*(np.array([i]) for i in (0, 1, 2)))
    assert got == pytest.approx(np.log(trigram))
    (unseen,) = model.log_probabilities(*(np.array([i]) for i in (4, 1, 3)))
    assert unseen == pytest.approx(np.log(bigram))
    (never,) = model.log_probabilities(*(np.array([i]) for i in (4, 4, 4)))
    assert never == pytest.approx(np.log(unigram))


def test_more_context_tells_more() -> None:
    generator = np.random.default_rng(1)
    chain = generator.dirichlet(np.full(20, 0.05), size=(20, 20))
    tokens = [0, 1]
    for _ in range(6000):
        tokens.append(int(generator.choice(20, p=chain[tokens[-2], tokens[-1]])))
    text, test = np.array(tokens[:5000]), np.array(tokens[5000:])
    model = Trigrams(text, 21)
    unknown = np.full_like(test[2:], 20)
    three = model.log_probabilities(test[:-2], test[1:-1], test[2:]).mean()
    two = model.log_probabilities(unknown, test[1:-1], test[2:]).mean()
    one = model.log_probabilities(unknown, unknown, test[2:]).mean()
    assert three > two > one > -np.log(21)
