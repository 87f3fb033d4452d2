"""Passages through the engine: its tokens, whatever runs together, and giving up early."""

import dataclasses

import numpy as np
import numpy.typing as npt
import pytest
import torch

from gemmule.evals.memorization import extraction
from gemmule.evals.memorization.edit_distance import EditDistances
from gemmule.evals.memorization.extraction import Extractor, Outcome
from gemmule.evals.memorization.settings import Settings
from gemmule.infer.core.sampling import SamplingParams
from gemmule.infer.language_model import LanguageModel
from gemmule.infer.runners.batch_runner import BatchRunner
from gemmule.infer.runners.choose import make_batch_runner
from gemmule.model.tokenizer import Tokenizer
from models import GROUPED, random_model, tiny_config

PROMPT, COUNT = 12, 24
ALL = Settings(prompt_tokens=PROMPT, continuation_tokens=COUNT, edit_fraction=0.999)


@pytest.fixture(scope="module")
def lm(pieces: Tokenizer) -> LanguageModel:
    """Random weights; the window bites, and some logits belong to no token."""
    config = tiny_config(GROUPED, vocab_size=520)
    model = random_model(config, seed=3, std={"post_": 0.5, "": 0.4}, mean={"post_": 3.0})
    with torch.no_grad():
        model.embed_tokens.weight[512:] *= 10  # they would win if they were allowed to
        model.embed_tokens.weight[pieces.eos_id] *= 2.0  # so that some rows end early
    return LanguageModel(model, pieces)


@pytest.fixture(scope="module")
def passages(lm: LanguageModel) -> npt.NDArray[np.int64]:
    """Some continue nearly as the model does, most do not."""
    random = np.random.default_rng(0)
    tokens = random.integers(4, lm.tokenizer.vocab_size, (60, PROMPT + COUNT))
    for row, output in enumerate(whole(lm, tokens)):
        if row % 3:
            tokens[row, PROMPT : PROMPT + len(output)] = output
            for place in random.choice(COUNT, row % 8, replace=False):
                tokens[row, PROMPT + place] = 5
    return tokens


def whole(lm: LanguageModel, tokens: npt.NDArray[np.int64]) -> list[list[int]]:
    """What the engine generates for each prompt at temperature 0."""
    prompts = [[lm.tokenizer.bos_id, *prompt] for prompt in tokens[:, :PROMPT].tolist()]
    params = SamplingParams(max_new_tokens=COUNT, temperature=0)
    return [list(completion.ids) for completion in lm.complete(prompts, params)]


def outcomes(
    lm: LanguageModel,
    tokens: npt.NDArray[np.int64],
    settings: Settings,
    rows: int | None = None,
) -> list[Outcome]:
    by_row = dict(Extractor(lm, settings, rows).outcomes(tokens))
    assert sorted(by_row) == [*range(len(tokens))]
    return [by_row[row] for row in range(len(tokens))]


@pytest.fixture(params=["chosen", "torch"])
def runner(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "torch":
        monkeypatch.setattr(extraction, "make_batch_runner", BatchRunner)


@pytest.mark.usefixtures("runner")
def test_outputs_do_not_depend_on_the_batch(
    lm: LanguageModel, passages: npt.NDArray[np.int64]
) -> None:
    some = passages[:24]
    expected = outcomes(lm, some, ALL, rows=24)
    for rows in (1, 5, None):
        assert outcomes(lm, some, ALL, rows) == expected
    order = np.random.default_rng(2).permutation(len(some))
    assert outcomes(lm, some[order], ALL) == [expected[i] for i in order]


def test_tokens_are_the_engines(lm: LanguageModel, passages: npt.NDArray[np.int64]) -> None:
    if isinstance(make_batch_runner(lm.model), BatchRunner):
        pytest.skip("the plain runner sums in another order")
    expected = whole(lm, passages)
    results = outcomes(lm, passages, ALL)
    assert [result.output for result in results] == expected
    ended = [len(output) < COUNT for output in expected]
    assert any(ended), "no row stopped by itself: the test shows less than it should"
    assert not all(ended)


@pytest.mark.usefixtures("runner")
def test_giving_up_early_changes_no_result(
    lm: LanguageModel, passages: npt.NDArray[np.int64]
) -> None:
    settings = dataclasses.replace(ALL, edit_fraction=0.25)
    distances = EditDistances(passages[:, PROMPT:])
    complete = [result.output for result in outcomes(lm, passages, ALL)]
    for row, output in enumerate(complete):
        for token in output:
            distances.push(np.array([row]), np.array([token]))
    results = outcomes(lm, passages, settings)
    for result, output, edits in zip(results, complete, distances.distances, strict=True):
        assert result.output == output[: len(result.output)]
        if edits <= settings.max_edits:
            assert result == Outcome(output, int(edits))
        else:
            assert result.edits is None
    assert 10 < sum(result.edits is not None for result in results) < 50
    given_up = [
        len(result.output) < len(output) for result, output in zip(results, complete, strict=True)
    ]
    assert sum(given_up) > 10


def test_rows_fit_into_memory(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {}
    for pages in (0, 100, 10**9):
        monkeypatch.setattr(extraction, "affordable_pages", lambda _, pages=pages: pages)
        rows[pages] = Extractor(lm, ALL).rows
    assert rows[0] == 1
    assert 5 < rows[100] < 50
    assert rows[10**9] == 256
