"""The filters against their plain definitions; the draws against the distribution."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from distribution import probabilities
from hypothesis import given, settings
from hypothesis import strategies as st

from gemmule.errors import ConfigError, GemmuleError
from gemmule.infer.core.constraint import mask_of
from gemmule.infer.core.sampler import Sampler, _earliest, _random_numbers, _steps, penalize
from gemmule.infer.core.sampling import SamplingParams, top_logits
from gemmule.infer.runners.protocol import LogitsRequest
from gemmule.infer.runners.torch_runner import step_output


def plain(logits: list[float], params: SamplingParams) -> list[float]:
    """The definition, over Python floats: temperature, top-k, top-p, min-p."""
    exps = [math.exp((x - max(logits)) / params.temperature) for x in logits]
    order = sorted(range(len(logits)), key=lambda i: -exps[i])
    order = order[: params.top_k]
    total = sum(exps[i] for i in order)
    kept, mass = [], 0.0
    for i in order:
        if params.top_p < 1 and mass >= params.top_p:
            break
        kept.append(i)
        mass += exps[i] / total
    kept = [i for i in kept if exps[i] >= params.min_p * exps[order[0]]]
    total = sum(exps[i] for i in kept)
    return [exps[i] / total if i in kept else 0.0 for i in range(len(logits))]


# Distinct and far enough apart that rounding decides nothing.
LOGITS = st.lists(st.integers(-40, 40), min_size=1, max_size=12, unique=True).map(
    lambda xs: [x * 0.173 for x in xs]
)


@settings(max_examples=200, deadline=None)
@given(
    logits=LOGITS,
    temperature=st.floats(0.05, 5),
    top_k=st.none() | st.integers(1, 15),
    top_p=st.floats(0.013, 1),
    min_p=st.sampled_from([0.0, 0.1037, 0.5003, 1.0]),
)
def test_filters_are_their_definitions(
    logits: list[float], temperature: float, top_k: int | None, top_p: float, min_p: float
) -> None:
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    got = probabilities(torch.tensor(logits), params)
    expected = torch.tensor(plain(logits, params))
    assert torch.isclose(got.sum(), torch.tensor(1.0))
    # At a boundary of top-p, rounding may decide either way; then the mass before is p itself.
    if not torch.equal(got > 0, expected > 0):
        unfiltered = SamplingParams(temperature=temperature, top_k=top_k, top_p=1)
        masses = torch.tensor(plain(logits, unfiltered)).sort(descending=True)[0].cumsum(0)
        assert (masses - top_p).abs().min() < 1e-5
        return
    assert torch.allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("top_p", [0.5, 0.9, 0.99999])
@pytest.mark.parametrize("spread", [0.01, 3.0])  # a nucleus beyond the quick guess, and within
def test_top_p_over_a_large_vocabulary(top_p: float, spread: float) -> None:
    logits = torch.randn(6000, generator=torch.Generator().manual_seed(0)) * spread
    got = probabilities(logits, SamplingParams(temperature=1.0, top_p=top_p))
    weights, order = logits.double().softmax(-1).sort(descending=True)
    kept = int((got > 0).sum())
    assert set(got.nonzero()[:, 0].tolist()) == set(order[:kept].tolist())
    # Their mass is top_p as far as fp32 can sum it, and without the last it is less.
    assert weights[:kept].sum() >= top_p - 1e-6
    assert weights[: kept - 1].sum() < top_p + 1e-6


@pytest.mark.parametrize("temperature", [0.0, 1e-300, 1e-9])
def test_temperature_zero_is_greedy(temperature: float) -> None:
    params = SamplingParams(temperature=temperature)
    assert probabilities(torch.tensor([0.1, 0.3, 0.2]), params).tolist() == [0.0, 1.0, 0.0]
    assert Sampler(params)(torch.tensor([0.1, 0.3, 0.2])) == 1


@pytest.mark.parametrize("temperature", [1e-4, 1e300])
def test_extreme_temperatures_stay_finite(temperature: float) -> None:
    got = probabilities(torch.tensor([30.0, -30.0]), SamplingParams(temperature=temperature))
    assert got.isfinite().all()


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([1.0, 0.0, -1.0, 0.5])
    params = SamplingParams(temperature=1.3, top_k=3, top_p=1.0, seed=7)
    sampler, n = Sampler(params), 6000
    counts = torch.bincount(torch.tensor([sampler(logits) for _ in range(n)]), minlength=4)
    expected = probabilities(logits, params)
    assert counts[2] == 0
    sigma = (expected * (1 - expected) / n).sqrt()
    assert ((counts / n - expected).abs() <= 4.5 * sigma).all()


def test_seeds() -> None:
    logits = torch.zeros(1000)

    def draws(seed: int | None, row: int = 0) -> list[int]:
        sampler = Sampler(SamplingParams(temperature=1.0, top_p=1.0, seed=seed), row)
        return [sampler(logits) for _ in range(4)]

    assert draws(5) == draws(5)
    assert draws(5, row=1) == draws(6)
    assert draws(5) != draws(6)
    assert draws(None) != draws(None)
    draws(2**63 - 1, row=3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": -1}, "max_new_tokens is -1; it must be a whole number, 0 or more"),
        ({"max_new_tokens": 2.0}, "max_new_tokens is 2.0"),
        ({"max_new_tokens": True}, "max_new_tokens is True"),
        ({"temperature": -0.1}, "temperature is -0.1; it must be a number, 0 (greedy) or more"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"top_k": 0}, "top_k is 0; it must be a whole number, 1 or more (leave it out"),
        ({"top_p": 0.0}, "top_p is 0; it must be above 0"),
        ({"top_p": 1.01}, "top_p is 1.01"),
        ({"top_p": math.nan}, "top_p is nan"),
        ({"min_p": -1}, "min_p is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**63}, "it must be below 2**63"),
        ({"stop": ""}, "stop is ''"),
        ({"stop": ["a", ""]}, "non-empty strings"),
        ({"stop": [3]}, "non-empty strings"),
        ({"stop": 3}, "stop is 3; it must be one or more non-empty strings"),
        ({"stop": b"x"}, "non-empty strings"),
        ({"stop": None}, "stop is None"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0; it must be above 0"),
        ({"repetition_penalty": -1.0}, "repetition_penalty is -1.0"),
        ({"repetition_penalty": math.nan}, "repetition_penalty is nan"),
        ({"logprobs": -1}, "logprobs is -1"),
        ({"logprobs": 21}, "logprobs is 21; it must be at most 20"),
        ({"logprobs": True}, "logprobs is True"),
        ({"presence_penalty": 2.1}, "presence_penalty is 2.1; it must be a number, from -2 to 2"),
        ({"presence_penalty": math.nan}, "presence_penalty is nan"),
        ({"frequency_penalty": -3}, "frequency_penalty is -3; it must be a number, from -2 to 2"),
        ({"frequency_penalty": "1"}, "frequency_penalty is '1'"),
        (
            {"logit_bias": {5: math.nan}},
            "logit_bias of id 5 is nan; it must be a number, from",
        ),
        ({"logit_bias": {5: 100.1}}, "logit_bias of id 5 is 100.1"),
        ({"logit_bias": {5: None}}, "logit_bias of id 5 is None"),
        ({"logit_bias": {"5": 1}}, "an id of logit_bias is '5'; it must be a whole number, 0 or"),
        ({"logit_bias": {-1: 1}}, "an id of logit_bias is -1"),
        ({"logit_bias": {True: 1}}, "an id of logit_bias is True"),
        ({"logit_bias": [(5, 1), (5, 2)]}, "logit_bias has an id twice"),
        ({"logit_bias": 5}, "logit_bias is 5; it must give a number for each of some ids"),
        ({"logit_bias": "ab"}, "logit_bias is 'ab'"),
        ({"min_tokens": -1}, "min_tokens is -1; it must be a whole number, 0 or more"),
        ({"min_tokens": 9, "max_new_tokens": 8}, "it must be at most max_new_tokens, which is 8"),
        ({"ignore_eos": 1}, "ignore_eos is 1; it must be true or false"),
        ({"n": 0}, "n is 0; it must be a whole number, 1 or more"),
        ({"n": 1.5}, "n is 1.5"),
        ({"prompt_logprobs": -1}, "prompt_logprobs is -1"),
        ({"prompt_logprobs": 21}, "prompt_logprobs is 21; it must be at most 20"),
        ({"temprature": 1}, "unknown setting 'temprature'; did you mean 'temperature'?"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as e:
        SamplingParams.of(settings)  # type: ignore[arg-type]
    assert message in str(e.value)


LEVEL = st.lists(st.integers(-3, 3), min_size=1, max_size=40).map(
    lambda xs: torch.tensor(xs, dtype=torch.float32) * 0.7
)


@settings(max_examples=200, deadline=None)
@given(logits=LEVEL, count=st.integers(1, 45))
def test_of_equal_logits_the_smaller_id_is_likelier(logits: torch.Tensor, count: int) -> None:
    order = sorted(range(len(logits)), key=lambda i: (-float(logits[i]), i))[:count]
    values, ids = top_logits(logits, count)
    assert ids.tolist() == order
    assert torch.equal(values, logits[order])


@settings(max_examples=200, deadline=None)
@given(
    logits=LEVEL,
    temperature=st.sampled_from([0.0, 0.4, 1.0, 3.0]),
    top_k=st.integers(1, 30),
    top_p=st.sampled_from([0.3, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.3]),
    seed=st.integers(0, 2**40),
)
def test_the_top_k_alone_give_the_same_draws(
    logits: torch.Tensor, temperature: float, top_k: int, top_p: float, min_p: float, seed: int
) -> None:
    params = SamplingParams(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed
    )
    if top_k >= len(logits):
        return  # then the engine takes the whole row
    whole, alone, forked = Sampler(params), Sampler(params), Sampler(params).fork()
    for _ in range(5):
        token = whole(logits)
        assert alone.among(*top_logits(logits, top_k)) == token == forked(logits)


def test_random_times_are_exponential_and_independent() -> None:
    numbers = np.stack([_random_numbers(bytes([n, 0]), _steps(2000)) for n in range(200)])
    times = -np.log(numbers)
    assert abs(times.mean() - 1) < 0.01
    assert abs(times.var() - 1) < 0.03
    for share in (0.01, 0.1, 0.5, 0.9, 0.99):
        assert abs((times < -math.log(1 - share)).mean() - share) < 0.002
    # Neither between neighbouring ids nor between successive draws is there a relation.
    for a, b in ((times[:, 1:], times[:, :-1]), (times[1:], times[:-1])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.01


@pytest.mark.parametrize("spread", [0.0, 0.1, 3.0, 30.0, 300.0])
def test_the_earliest_is_found_among_all(spread: float) -> None:
    rng = np.random.default_rng(0)
    for n in range(200):
        logits = torch.from_numpy(spread * rng.standard_normal(1 + n * 7)).float()
        weights = logits.softmax(-1).numpy()  # many are 0 at a large spread
        weights[rng.random(len(weights)) < 0.2] = 0.0
        weights[rng.integers(len(weights))] = 0.5
        numbers = rng.choice([2.0**-54, 0.25, 1 - 2.0**-53, *rng.random(40)], len(weights))
        with np.errstate(divide="ignore"):
            assert _earliest(weights, numbers) == int((-np.log(numbers) / weights).argmin())


def test_a_draw_does_not_depend_on_what_cannot_be_drawn() -> None:
    logits = torch.randn(300, generator=torch.Generator().manual_seed(0))
    narrow = SamplingParams(top_k=5, top_p=1.0, temperature=1.0, seed=2)
    kept = set(top_logits(logits, 5)[1].tolist())
    wide, few = Sampler(dataclasses.replace(narrow, top_k=None)), Sampler(narrow)
    pairs = [(wide(logits), few(logits)) for _ in range(500)]
    assert sum(a in kept for a, _ in pairs) > 20
    assert all(a == b for a, b in pairs if a in kept)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_refused(bad: float, temperature: float) -> None:
    sampler = Sampler(SamplingParams(temperature=temperature, top_p=1.0))
    with pytest.raises(GemmuleError, match="logits are not finite"):
        sampler(torch.tensor([0.0, bad, 1.0]))
    assert sampler(torch.tensor([0.0, -math.inf, 9.0e9])) == 2


def test_repetition_penalty_is_that_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    logits = torch.randn(50, generator=torch.Generator().manual_seed(0)) * 3
    ids = [3, 7, 7, 20, 49]
    for penalty in (1.5, 0.6):
        processor = transformers.RepetitionPenaltyLogitsProcessor(penalty)
        expected = processor(torch.tensor([ids]), logits[None].clone())[0]
        got = penalize(logits, torch.tensor(ids), penalty)
        assert torch.equal(got, expected)
    # Prompt and answer both count.
    params = SamplingParams(temperature=0.0, repetition_penalty=1e9)
    sampler = Sampler(params, prompt=[3, 4])
    level = torch.ones(9)
    assert [sampler(level) for _ in range(7)] == [0, 1, 2, 5, 6, 7, 8]


def test_presence_and_frequency_penalties_are_openais() -> None:
    """mu[j] - c[j] * frequency - (c[j] > 0) * presence, over the generated tokens alone."""
    params = SamplingParams(temperature=0.0, presence_penalty=0.75, frequency_penalty=0.5)
    logits = torch.tensor([0.0, 2.0, 1.0, 1.9, -3.0])
    sampler, counts, drawn = Sampler(params, prompt=[1, 1, 3]), [0] * 5, []
    for _ in range(12):
        changed = [
            float(x) - c * params.frequency_penalty - (c > 0) * params.presence_penalty
            for x, c in zip(logits, counts, strict=True)
        ]
        token = changed.index(max(changed))
        fork = sampler.fork()
        assert sampler(logits) == token == fork(logits)
        counts[token] += 1
        drawn.append(token)
    assert drawn[:3] == [1, 3, 2]
    assert 0 in drawn


def test_negative_penalties_favor_what_was_generated() -> None:
    sampler = Sampler(SamplingParams(temperature=0.0, frequency_penalty=-1.0, logit_bias={2: 1}))
    first = torch.tensor([0.0, 0.5, 0.0])
    assert [sampler(first), sampler(first), sampler(torch.tensor([3.9, 0.0, 0.0]))] == [2, 2, 0]


def test_a_bias_is_added_before_the_draw() -> None:
    logits = torch.tensor([1.0, 0.0, -1.0, 0.5])
    bias = {0: -100.0, 2: 1.25}
    biased = SamplingParams(temperature=1.3, seed=7, logit_bias=bias)
    plain = SamplingParams(temperature=1.3, seed=7)
    changed = torch.tensor([-99.0, 0.0, 0.25, 0.5])
    a, b = Sampler(biased), Sampler(plain)
    drawn = [a(logits) for _ in range(300)]
    assert drawn == [b(changed) for _ in range(300)]
    assert {*drawn} == {1, 2, 3}
    assert SamplingParams(logit_bias=[(2, 1.25), (0, -100)]) == SamplingParams(logit_bias=bias)
    assert dataclasses.replace(biased, seed=8).biases == ((0, -100.0), (2, 1.25))


def test_repetition_penalty_comes_before_the_others() -> None:
    params = SamplingParams(
        temperature=0.0, repetition_penalty=2.0, presence_penalty=1.0, logit_bias={0: 2.5, 1: 0.1}
    )
    sampler = Sampler(params, prompt=[0])
    # Id 0: -1 * 2 + 2.5; then (1 - 0) / 2 - 1 + 0.1 for id 1.
    assert sampler(torch.tensor([-1.0, 0.3, 0.45])) == 0
    assert sampler(torch.tensor([-9.0, 0.3, 0.35])) == 1
    assert sampler(torch.tensor([-9.0, 1.0, -0.39])) == 2


@settings(max_examples=200, deadline=None)
@given(
    logits=LEVEL,
    allowed=st.sets(st.integers(0, 39), min_size=1),
    temperature=st.sampled_from([0.0, 0.4, 3.0]),
    top_k=st.none() | st.integers(1, 45),
    top_p=st.sampled_from([0.3, 0.9, 1.0]),
    seed=st.integers(0, 2**40),
)
def test_draws_under_a_mask(
    logits: torch.Tensor, allowed: set[int], temperature: float, top_k: int | None, top_p: float,
    seed: int,
) -> None:  # fmt: skip
    ids = sorted(i for i in allowed if i < len(logits))
    if not ids:
        return
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    mask = mask_of(ids, len(logits))
    whole, alone = Sampler(params), Sampler(params)
    drawn = [whole(logits, mask) for _ in range(5)]
    assert {*drawn} <= {*ids}
    if params.greedy:
        assert drawn == [max(ids, key=lambda i: (float(logits[i]), -i))] * 5
    # The same as from the allowed ids alone.
    among = probabilities(logits[ids], params)
    assert all(among[ids.index(token)] > 0 for token in drawn)
    if top_k is not None:
        count = 1 if params.greedy else top_k
        output = step_output(LogitsRequest(0, top_k=count, mask=mask), logits)
        assert output.top_ids is not None and output.top_logits is not None
        assert [alone.among(output.top_logits, output.top_ids) for _ in range(5)] == drawn


def test_one_stop_string_or_several() -> None:
    assert SamplingParams(stop="ab").stop == ("ab",)
    assert SamplingParams(stop=["a", "b"]).stop == ("a", "b")
