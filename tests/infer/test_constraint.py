"""Masks, and requests whose tokens a constraint decides."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from constraints import PlainConstraint
from fake_runner import ROWS, TEXT, WORDS, FakeRunner, FakeTokenizer, expected
from test_engine import assert_nothing_is_left, engine

from gemmule.errors import ConfigError
from gemmule.infer.core.constraint import (
    ConstraintError,
    Mask,
    TokenFilter,
    VocabularyMasks,
    allowed_ids,
    allows,
    mask_of,
    resized,
)
from gemmule.infer.core.request import Completion, Request
from gemmule.infer.core.sampling import SamplingParams
from gemmule.infer.core.speculative import NgramDrafter, Speculation
from gemmule.infer.driver import Engine
from gemmule.infer.runners.protocol import LogitsRequest
from gemmule.infer.runners.torch_runner import step_output

TOKENIZER: Any = FakeTokenizer()
GREEDY = SamplingParams(temperature=0.0, max_new_tokens=12)


def test_masks_are_bits_in_words() -> None:
    rng = random.Random(0)
    for size in (1, 31, 32, 33, 100, 1100):
        ids = sorted(rng.sample(range(size), rng.randint(0, size)))
        mask_W = mask_of(ids, size)
        assert mask_W.dtype == np.uint32
        assert mask_W.flags.c_contiguous
        words = [sum(1 << i % 32 for i in ids if i // 32 == word) for word in range(len(mask_W))]
        assert mask_W.tolist() == words
        assert len(words) == -(-size // 32)
        assert allowed_ids(mask_W, size).tolist() == ids
        assert [i for i in range(size) if allows(mask_W, i)] == ids
        assert allowed_ids(mask_W, size // 2).tolist() == [i for i in ids if i < size // 2]
        assert allowed_ids(resized(mask_W, size + 70), size + 70).tolist() == ids
        assert resized(mask_W, 20).tolist() == words[:1]


def test_the_plain_top_k_under_a_mask() -> None:
    logits = torch.tensor([3.0, 7.0, 7.0, -1.0, 7.0, 2.0])
    mask = mask_of([0, 2, 3, 4], 6)
    output = step_output(LogitsRequest(0, top_k=3, log_z=True, mask=mask), logits)
    assert output.top_ids is not None and output.top_logits is not None
    assert output.top_ids.tolist() == [2, 4, 0]
    assert output.top_logits.tolist() == [7.0, 7.0, 3.0]
    assert output.log_z == float(logits.logsumexp(-1))
    output = step_output(LogitsRequest(0, top_k=9, mask=mask), logits)
    assert output.top_ids is not None
    assert output.top_ids.tolist() == [2, 4, 0, 3]


@dataclass
class Scripted:
    """Allows what a script says for each number of tokens, and fails where it says so."""

    script: Sequence[Any]
    vocab_size: int = WORDS
    count: int = 0
    finished_after: int | None = None

    @property
    def finished(self) -> bool:
        return self.count == self.finished_after

    def fork(self) -> "Scripted":
        return replace(self)

    def fill_mask(self, draft_tokens: Sequence[int], mask_W: Mask) -> None:
        allowed = self.script[self.count + len(draft_tokens)]
        if isinstance(allowed, Exception):
            raise allowed
        assert len(mask_W) == 1
        mask_W[:] = mask_of([*allowed], WORDS)

    def accept(self, token: int) -> None:
        assert token in self.script[self.count]
        self.count += 1


def run(constraint: Any, params: SamplingParams = GREEDY, draft: bool = False) -> Completion:
    speculation = Speculation(NgramDrafter(), always=True) if draft else None
    e = Engine(FakeRunner(), TOKENIZER, cache_tokens=320, speculation=speculation)
    (completion,) = e.complete([Request([5, 6, 5, 6, 5, 6], params, constraint=constraint)])
    assert_nothing_is_left(e)
    return completion


@pytest.mark.parametrize("draft", [False, True])
@pytest.mark.parametrize(
    "more", [{}, {"temperature": 1.0, "seed": 3}, {"top_k": 5}, {"logprobs": 2}]
)
def test_a_script_is_followed(draft: bool, more: dict[str, Any]) -> None:
    params = replace(GREEDY, **more)
    completion = run(Scripted([{7}, {8}, {7}, {8}, {9}], finished_after=5), params, draft)
    assert (completion.text, completion.finish_reason) == ("hihij", "stop")
    assert completion.error is None


def test_a_text_that_is_complete_at_the_limit_has_stopped() -> None:
    script = Scripted([{7}, {8}], finished_after=2)
    assert run(script, replace(GREEDY, max_new_tokens=2)).finish_reason == "stop"
    assert run(script, replace(GREEDY, max_new_tokens=1)).finish_reason == "length"


def test_control_ids_stay_forbidden_but_for_those_that_end_the_text() -> None:
    everything = [{*range(WORDS)}] * 40
    for seed in range(40):
        params = SamplingParams(max_new_tokens=40, temperature=3.0, top_p=1.0, seed=seed)
        completion = run(Scripted(everything), params)
        assert {*completion.ids} <= TEXT
    assert run(Scripted([{7}, {0, 1, 2}])).finish_reason == "stop"


@pytest.mark.parametrize("draft", [False, True])
@pytest.mark.parametrize(
    ("script", "error"),
    [
        ([{7}, {8}, set()], "allows no token after 2 tokens"),
        ([{7}, {8}, {0, 2}], "allows no token after 2 tokens"),  # control ids alone
        ([{7}, {8}, ValueError("lexer")], "failed after 2 tokens: ValueError: lexer"),
    ],
)
def test_a_constraint_that_goes_wrong_ends_its_request_only(
    script: Sequence[Any], error: str, draft: bool
) -> None:
    speculation = Speculation(NgramDrafter(), always=True) if draft else None
    e = Engine(FakeRunner(), TOKENIZER, cache_tokens=320, speculation=speculation)
    other = Request([9, 8], SamplingParams(max_new_tokens=30, seed=2))
    # The prompt makes draft tokens that the script allows.
    bad = Request([7, 8, 3, 7, 8, 3], GREEDY, constraint=Scripted(script))
    got = e.complete([bad, other])
    assert (got[0].text, got[0].ids, got[0].finish_reason) == ("hi", (7, 8), "error")
    assert isinstance(got[0].error, ConstraintError)
    assert error in str(got[0].error)
    assert got[1] == expected(other)
    assert_nothing_is_left(e)


class Refuses(Scripted):
    def accept(self, token: int) -> None:
        raise RuntimeError("not mine")


def test_a_constraint_that_refuses_a_token_it_allowed() -> None:
    completion = run(Refuses([{7}, {8}]))
    assert completion.finish_reason == "error"
    assert "the constraint failed after 1 tokens: RuntimeError: not mine" in str(completion.error)


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        (Scripted([{7}], vocab_size=ROWS), "masks are for 29 ids; this model has 27: make it with"),
        (Scripted([set()]), "allows no token after 0 tokens: give one that allows some text"),
        (Scripted([{0}]), "allows no token after 0 tokens"),
        (Scripted([{7}], finished_after=0), "finished before the first token"),
        (Scripted([TypeError("no grammar")]), "TypeError: no grammar"),
    ],
)
def test_constraints_that_can_never_work_are_refused(constraint: Any, message: str) -> None:
    e = engine()
    request = Request([5], GREEDY, constraint=constraint)
    for ask in (e.submit, e.iterate, lambda request: e.complete([request])):
        with pytest.raises(ConfigError, match=message):
            ask(request)
    assert_nothing_is_left(e)


def test_ends_are_put_off_as_far_as_the_constraint_lets_them() -> None:
    endable = [{1, 7}, {1, 8}, {1, 9}, {1}]
    stopped = run(Scripted(endable), replace(GREEDY, logit_bias={1: 100}))
    assert (stopped.text, stopped.finish_reason) == ("", "stop")
    for more in ({"min_tokens": 2}, {"min_tokens": 12}, {"ignore_eos": True}):
        params = replace(GREEDY, logit_bias={1: 100}, **more)
        completion = run(Scripted(endable), params)
        assert completion.finish_reason == "stop"
        assert completion.text == ("hi" if more == {"min_tokens": 2} else "hij")


def test_a_request_may_be_used_again() -> None:
    constraint = PlainConstraint(WORDS, 1, 6)
    request = Request([5, 6], replace(GREEDY, n=3, temperature=1.0, seed=1), constraint=constraint)
    e = engine()
    first = e.complete([request])
    assert e.complete([request]) == first
    assert len({completion.ids for completion in first}) > 1
    assert constraint.tokens == []


def test_draft_tokens_are_verified_under_the_mask() -> None:
    masks = VocabularyMasks(TOKENIZER, WORDS, ROWS)
    token_filter = TokenFilter(GREEDY, masks, Scripted([{7}, {8}, {9}, set()]))
    assert token_filter.allowed_draft([7, 8, 4]) == [7, 8]
    assert token_filter.allowed_draft([7, 8, 9]) == [7, 8]  # nothing may follow 9
    assert token_filter.allowed_draft([8]) == []
    ends = TokenFilter(GREEDY, masks, Scripted([{7, 1}, {8}, {9}]))
    assert ends.allowed_draft([1, 7]) == []
    waits = TokenFilter(replace(GREEDY, min_tokens=2), masks, None)
    assert waits.allowed_draft([5, 1, 6]) == [5]
    assert waits.mask() is waits.mask([5]) is not None
    assert waits.mask([5, 6]) is None
    waits.accept(5)
    assert waits.mask([6]) is None
