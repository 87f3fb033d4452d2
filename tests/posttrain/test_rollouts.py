"""Rollouts: drawn by position, sampled from the weights as they are, stop token included."""

import itertools
from collections.abc import Sequence

import pytest
import torch

from gemmule.data.batch import Batch
from gemmule.errors import ConfigError, DataError
from gemmule.infer.core.sampling import SamplingParams
from gemmule.losses.labels import IGNORED
from gemmule.model.gemma import Gemma
from gemmule.model.tokenizer import Tokenizer
from gemmule.posttrain.answer_rows import SAMPLED_LOGPROBS, rows_of_rollouts
from gemmule.posttrain.rewards.protocol import Answer
from gemmule.posttrain.rollouts import Group, RolloutPrompt, Rollouts, RolloutSampler, drawn
from gemmule.posttrain.sampler_check import SamplerCheck
from models import TINY, random_model, tiny_config

PARAMS = SamplingParams.on_policy(12, n=4)
PROMPTS = [RolloutPrompt((2, 300 + i, 301), {"answer": str(i)}) for i in range(5)]


@pytest.fixture
def model(pieces: Tokenizer) -> Gemma:
    model = random_model(tiny_config(TINY, vocab_size=pieces.vocab_size), 3, std={"": 0.3})
    with torch.no_grad():  # so that answers end often
        model.embed_tokens.weight[1] += 0.3 * model.norm.weight.sign()
    return model


@pytest.fixture
def sampler(model: Gemma, pieces: Tokenizer) -> RolloutSampler:
    return RolloutSampler(model, pieces, PARAMS, seed=7)


def test_a_rollout_has_its_stop_token_and_the_log_probability_of_it(
    sampler: RolloutSampler, model: Gemma, pieces: Tokenizer
) -> None:
    rollouts = [r for g in sampler.sample(PROMPTS, range(5)) for r in g.rollouts]
    assert {r.finished for r in rollouts} == {True, False}
    for rollout in rollouts:
        assert rollout.finished == (rollout.answer[-1] in pieces.stop_ids)
        assert not {*rollout.answer[:-1]} & {*pieces.stop_ids}
        assert rollout.finished or len(rollout.answer) == 12
        ids = torch.tensor([rollout.prompt + rollout.answer])
        log_p = model(ids).log_softmax(-1)[0, len(rollout.prompt) - 1 : -1]
        expected = log_p.gather(1, ids[0, len(rollout.prompt) :, None])[:, 0]
        assert rollout.logprobs == pytest.approx(expected.tolist(), abs=1e-4)


def test_rows_without_a_token_are_never_sampled_and_count_on_both_sides(pieces: Tokenizer) -> None:
    """A head with more rows than tokens: sampler and trainer give a token the same probability."""
    wide = random_model(tiny_config(TINY, vocab_size=pieces.vocab_size + 24), 3, std={"": 0.3})
    with torch.no_grad():
        wide.embed_tokens.weight[pieces.vocab_size :] *= 3
    sampler = RolloutSampler(wide, pieces, PARAMS, seed=7)
    rollouts = [r for group in sampler.sample(PROMPTS, range(5)) for r in group.rollouts]
    batch = rows_of_rollouts(rollouts)
    assert all(max(r.answer) < pieces.vocab_size for r in rollouts)
    index = (batch.labels_BT != IGNORED).flatten().nonzero()[:, 0]
    with torch.no_grad():
        x_BTD = wide.hidden_states(batch.tokens_BT, doc_ids_BT=batch.doc_ids_BT)
        x_AD = x_BTD.flatten(0, 1)[index]
        log_p_A = wide.head.log_likelihoods(x_AD, batch.labels_BT.flatten()[index])
        lost_A = wide.head.logits(x_AD).softmax(-1)[:, pieces.vocab_size :].sum(-1)
    assert lost_A.mean() > 0.05  # enough to be noticed
    sampled_A = batch.extras[SAMPLED_LOGPROBS].flatten()[index]
    check = SamplerCheck(1e-4)
    check.compare(log_p_A, sampled_A)


def test_a_reward_reads_text_ids_and_record(sampler: RolloutSampler) -> None:
    (group,) = sampler.sample(PROMPTS[1:2], [0])
    rollout = group.rollouts[2]
    assert group.answers()[2] == Answer(
        rollout.text, {"answer": "1"}, PROMPTS[1].ids, rollout.answer, rollout.finished
    )


def test_an_answer_depends_on_its_position_and_sample_alone(
    sampler: RolloutSampler, model: Gemma, pieces: Tokenizer
) -> None:
    whole = sampler.sample(PROMPTS, range(5))
    again = RolloutSampler(model, pieces, PARAMS, seed=7)
    assert again.sample(PROMPTS[2:3], [2]) == whole[2:3]
    assert len({r.answer for r in whole[0].rollouts}) > 1
    for other in (
        RolloutSampler(model, pieces, PARAMS, seed=8),
        RolloutSampler(model, pieces, PARAMS, seed=7, stream=1),
    ):
        assert other.sample(PROMPTS[2:3], [2]) != whole[2:3]
    assert sampler.sample(PROMPTS[2:3], [3]) != whole[2:3]


def test_changed_weights_are_noticed(
    sampler: RolloutSampler, model: Gemma, pieces: Tokenizer
) -> None:
    """Neither the prefix cache nor copied weights outlive a step."""
    before = sampler.sample(PROMPTS, range(5))
    assert sampler.sample(PROMPTS, range(5)) == before
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    after = sampler.sample(PROMPTS, range(5))
    assert after != before
    assert after == RolloutSampler(model, pieces, PARAMS, seed=7).sample(PROMPTS, range(5))


@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": 0.9},
        {"top_p": 0.95},
        {"top_k": 5},
        {"min_p": 0.1},
        {"repetition_penalty": 1.1},
        {"logit_bias": {5: -100}},
        {"stop": "x"},
        {"min_tokens": 2},
        {"logprobs": None},
    ],
    ids=str,
)
def test_off_policy_sampling_is_refused(
    model: Gemma, pieces: Tokenizer, changes: dict[str, object]
) -> None:
    values = {"temperature": 1.0, "top_p": 1.0, "logprobs": 0, **changes}
    with pytest.raises(ConfigError, match=r"SamplingParams\.on_policy"):
        RolloutSampler(model, pieces, SamplingParams(**values), seed=7)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="own distribution"):
        RolloutSampler(model, pieces, SamplingParams(), seed=7)


def test_on_policy_settings() -> None:
    assert SamplingParams.on_policy(8).is_on_policy
    assert not SamplingParams().is_on_policy


def source(sampler: RolloutSampler, seen: list[Sequence[Group]], seed: int = 1) -> Rollouts:
    def build(groups: Sequence[Group]) -> list[Batch]:
        seen.append(groups)
        ids = [torch.tensor([g.rollouts[0].answer[:1]]) for g in groups]
        return [Batch(i, i, torch.ones_like(i)) for i in (torch.cat(ids[:1]), torch.cat(ids[1:]))]

    return Rollouts(PROMPTS, sampler, build, prompts_per_step=3, micro_batches=2, seed=seed)


def test_a_source_samples_a_step_at_once_and_continues_from_two_integers(
    sampler: RolloutSampler,
) -> None:
    seen: list[Sequence[Group]] = []
    rollouts = source(sampler, seen)
    for _ in range(4):
        rollouts.next()
    assert len(seen) == 2  # two steps of two micro-batches
    assert rollouts.state() == {"seed": 1, "position": 6}
    rollouts.next()
    with pytest.raises(AssertionError, match="only some of its rollouts"):
        rollouts.state()
    again: list[Sequence[Group]] = []
    resumed = source(sampler, again)
    resumed.load_state({"seed": 1, "position": 6})
    resumed.next()
    assert again[0] == seen[2]


@pytest.mark.parametrize(
    "state",
    [{}, {"seed": 2, "position": 6}, {"seed": 1, "position": 4}, {"seed": 1, "position": -3}],
    ids=str,
)
def test_a_foreign_position_is_refused(sampler: RolloutSampler, state: dict[str, object]) -> None:
    with pytest.raises(DataError, match="is not a position in rollouts of seed 1 with 3 prompts"):
        source(sampler, []).load_state(state)


def test_every_prompt_is_drawn_once_an_epoch() -> None:
    order = drawn(5, 1, range(20))
    epochs = [order[i : i + 5] for i in range(0, 20, 5)]
    assert all(sorted(epoch) == [0, 1, 2, 3, 4] for epoch in epochs)
    assert any(a != b for a, b in itertools.pairwise(epochs))
    assert drawn(5, 1, [7, 8]) == order[7:9]
    assert drawn(5, 2, range(20)) != order
