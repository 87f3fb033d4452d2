"""`<end_of_turn><eos>` at the end of an answer (Gemma 2 report, table 5): what learns which of it.

The model's own answers end at the first stop token, where generation stops; `<eos>` after
`<end_of_turn>` is never sampled, so it has no log-probability and is no action of the policy.
"""

from stopping_models import stopping_model

from gemmule.data.batch import Batch
from gemmule.infer.core.sampling import SamplingParams
from gemmule.losses.labels import IGNORED
from gemmule.model.tokenizer import Tokenizer
from gemmule.posttrain.answer_rows import rows_of, rows_of_rollouts
from gemmule.posttrain.answer_source import packed
from gemmule.posttrain.conversations import Message
from gemmule.posttrain.rendering import render_conversation
from gemmule.posttrain.rollouts import RolloutPrompt, RolloutSampler

END, EOS = 107, 1
MESSAGES = [Message("user", "the sea"), Message("assistant", "a ship")]


def labels(batch: Batch) -> list[list[int]]:
    return [row[row != IGNORED].tolist() for row in batch.labels_BT]


def test_answers_of_data_are_learned_to_the_end(pieces: Tokenizer) -> None:
    """SFT and steps of on-policy distillation on data; both answers of a preference pair."""
    conversation = render_conversation(MESSAGES, pieces)
    assert conversation.ids[-2:] == (END, EOS)
    for batch in (rows_of([conversation]), packed([conversation])):
        assert labels(batch)[0][-2:] == [END, EOS]


def test_answers_of_the_model_are_learned_to_their_stop_token(pieces: Tokenizer) -> None:
    model = stopping_model(pieces.vocab_size, 3)
    sampler = RolloutSampler(model, pieces, SamplingParams.on_policy(24, n=8), seed=1)
    prompt = render_conversation(MESSAGES, pieces).ids[:8]
    (group,) = sampler.sample([RolloutPrompt(tuple(prompt), {})], [0])
    ended = [r for r in group.rollouts if r.finished]
    assert any(r.answer[-1] == END for r in ended)
    for answer, row in zip(ended, labels(rows_of_rollouts(ended)), strict=True):
        assert row == list(answer.answer)
        assert not {END, EOS} & {*row[:-1]}
        assert len(answer.logprobs) == len(row)
