"""Continuations in step against the engine's, and leaving off early against going on."""

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch

from gemmule.evals.memorization import decode
from gemmule.evals.memorization.decode import continue_greedily, rows_at_once
from gemmule.evals.memorization.edit_distance import EditDistances
from gemmule.infer.core.sampling import SamplingParams
from gemmule.infer.language_model import LanguageModel
from gemmule.model.config import preset
from gemmule.model.tokenizer import Tokenizer
from models import GROUPED, random_model, tiny_config

PROMPT, COUNT = 12, 24


@pytest.fixture(scope="module")
def lm(pieces: Tokenizer) -> LanguageModel:
    """Random weights; the window bites, and some rows of the head are no token."""
    config = tiny_config(GROUPED, vocab_size=520)
    model = random_model(config, 3, std={"post_": 0.5, "": 0.4}, mean={"post_": 3.0})
    with torch.no_grad():
        model.embed_tokens.weight[512:] *= 10  # they would win if they were allowed to
        model.embed_tokens.weight[pieces.eos_id] *= 2.0  # so that some rows end early
    return LanguageModel(model, pieces)


@pytest.fixture(scope="module")
def prompts(lm: LanguageModel) -> npt.NDArray[np.int64]:
    random = np.random.default_rng(0)
    words = random.integers(4, lm.tokenizer.vocab_size, (60, PROMPT))
    return np.concatenate((np.full((60, 1), lm.tokenizer.bos_id), words), axis=1)


def in_step(
    lm: LanguageModel, prompts: npt.NDArray[np.int64], watch: decode.Watch | None = None
) -> list[list[int]]:
    return continue_greedily(
        lm.model, torch.from_numpy(prompts), COUNT, words=lm.tokenizer.vocab_size,
        stop_ids=lm.tokenizer.stop_ids, watch=watch,
    )  # fmt: skip


def test_tokens_are_the_engines(lm: LanguageModel, prompts: npt.NDArray[np.int64]) -> None:
    found = in_step(lm, prompts)
    params = SamplingParams(max_new_tokens=COUNT, temperature=0, logprobs=2)
    compared = ties = 0
    for ours, completion in zip(found, lm.complete(prompts.tolist(), params), strict=True):
        theirs = list(completion.ids)
        assert completion.logprobs is not None
        for i, token in enumerate(theirs):
            (_, best), (_, second) = completion.logprobs[i].top
            if best - second < 1e-4:
                ties += 1
                break  # from here on the two may go different ways
            assert i < len(ours)
            assert ours[i] == token
            compared += 1
        else:
            assert ours == theirs
    assert compared > 500
    assert ties < 6
    ended = [len(row) < COUNT for row in found]
    assert any(ended), "no row stopped by itself: the test shows less than it should"
    assert not all(ended)


def test_leaving_off_early_changes_no_result(
    lm: LanguageModel, prompts: npt.NDArray[np.int64], monkeypatch: pytest.MonkeyPatch
) -> None:
    most = 4
    whole = in_step(lm, prompts)
    random = np.random.default_rng(1)
    gold = random.integers(4, lm.tokenizer.vocab_size, (len(prompts), COUNT))
    for row, output in enumerate(whole):  # a part of them is nearly what the model says
        if row % 3:
            gold[row, : len(output)] = output
            for place in random.choice(COUNT, row % 8, replace=False):
                gold[row, place] = 5
    results = []
    taken_out = 0
    keep = decode._Cache.keep

    def counted(cache: decode._Cache, rows: torch.Tensor) -> None:
        nonlocal taken_out
        taken_out += 1
        keep(cache, rows)

    monkeypatch.setattr(decode._Cache, "keep", counted)
    for early in (True, False):
        distances = EditDistances(gold)

        def watch(
            rows: npt.NDArray[np.int64],
            tokens: npt.NDArray[np.int64],
            distances: EditDistances = distances,
            early: bool = early,
        ) -> npt.NDArray[np.bool_]:
            distances.push(rows, tokens)
            return distances.lower_bound(rows) <= (most if early else COUNT)

        outputs = in_step(lm, prompts, watch)
        edits = distances.distances
        results.append([(d, o) if d <= most else None for d, o in zip(edits, outputs, strict=True)])
        if not early:
            assert outputs == whole
    assert results[0] == results[1]
    assert 10 < sum(r is not None for r in results[0]) < 50
    assert taken_out > 0


def test_rows_fit_into_memory() -> None:
    small, large = preset("1m", vocab_size=4096), preset("2b", vocab_size=256000)
    gib = 2.0**30
    assert rows_at_once(small, 101, 4, gib, cpu=True) == 256
    assert rows_at_once(small, 101, 4, gib, cpu=False) > 256
    assert 4 < rows_at_once(large, 101, 4, gib, cpu=True) < 64
    assert rows_at_once(large, 101, 4, 1.0, cpu=True) == 1
    assert math.isclose(
        rows_at_once(large, 101, 2, gib, cpu=False),
        2 * rows_at_once(large, 101, 4, gib, cpu=False),
        rel_tol=0.1,
    )
