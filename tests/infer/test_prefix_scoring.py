"""Scores of continuations against the forward pass, and the promise that no bit depends on company.

Sums are added up in another order than in the forward pass, which is therefore only close; a score
and itself in other company are compared bit by bit. All by the kernels, and by torch as on a
graphics card.
"""

import random
from collections.abc import Iterator, Sequence

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gemmule.checkpoints.checkpoint import of_model
from gemmule.checkpoints.packed.model import QuantizedGemma
from gemmule.checkpoints.packed.quantize import quantize_checkpoint
from gemmule.errors import ConfigError
from gemmule.infer import prefix_scoring
from gemmule.infer.core.request import Score
from gemmule.infer.language_model import LanguageModel
from gemmule.infer.prefix_scoring import ContinuationGroup, PrefixScorer
from gemmule.infer.runners import batch_runner
from gemmule.infer.runners.batch_runner import BatchRunner
from gemmule.infer.runners.native_runner import NativeRunner
from gemmule.model.gemma import Gemma
from gemmule.model.tokenizer import Tokenizer
from gemmule.quant import native
from models import GROUPED, random_model, tiny_config

pytestmark = pytest.mark.usefixtures("computed")
V, CONTEXT = 544, 600
BASE = {
    **GROUPED, "vocab_size": V,
    "query_pre_attn_scalar": 7,  # no head's size, so that one cannot pass for the other
    "sliding_window": 30, "max_position_embeddings": CONTEXT,
    "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0,  # low enough to bite
}  # fmt: skip
SHAPES = [
    {},
    {"attn_logit_softcapping": None, "final_logit_softcapping": None, "sliding_window": 1},
    {"num_key_value_heads": 1, "num_hidden_layers": 2, "sliding_window": 70},
    {"hidden_size": 88, "intermediate_size": 136, "head_dim": 24, "num_attention_heads": 2},
]


def gentle_model(changes: dict[str, float | None] | None = None) -> Gemma:
    """Weights that make no more of rounding than there is."""
    config = tiny_config(BASE, **(changes or {}))
    return random_model(config, 3, std={"": 0.2}, mean={"post_": 1.0})


def strong_model() -> Gemma:
    """Weights that make much of a last bit, so that none can differ unseen."""
    model = gentle_model({"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0})
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2.5)
    return model


def drawn(pick: random.Random, count: int) -> list[int]:
    return [pick.randrange(V) for _ in range(count)]


def questions(seed: int, count: int = 40) -> list[ContinuationGroup]:
    """Contexts with and without a common beginning, of one block of keys and of several."""
    pick = random.Random(seed)
    beginnings = [drawn(pick, n) for n in (70, 200, 64)]
    beginnings.append(beginnings[1][:128] + drawn(pick, 40))  # a beginning of a beginning
    texts: list[ContinuationGroup] = []
    for _ in range(count):
        begin = pick.choice(beginnings) if pick.random() < 0.6 else []
        context = begin + drawn(pick, pick.choice([1, 3, 17, 63, 64, 65, 90]))
        lengths = pick.choices([1, 1, 2, 5, 20], k=pick.choice([1, 2, 4]))
        answers = [drawn(pick, length) for length in lengths]
        texts.append(ContinuationGroup(context, answers))
    texts.append(ContinuationGroup(texts[0].context, [drawn(pick, 2)]))  # a context twice
    texts.append(ContinuationGroup(beginnings[1], [drawn(pick, 1), drawn(pick, 70)]))
    texts.append(ContinuationGroup([2], [drawn(pick, 1), drawn(pick, 130)]))
    texts.append(ContinuationGroup([2], [drawn(pick, 1)] * 3))  # one answer thrice
    return texts


@torch.inference_mode()
def plain(model: Gemma, context: Sequence[int], continuation: Sequence[int]) -> Score:
    """What the forward pass gives for one context and continuation."""
    logits = model(torch.tensor([[*context, *continuation]]))[0, len(context) - 1 : -1].float()
    targets = torch.tensor(list(continuation))
    logs = logits.double().log_softmax(-1).gather(1, targets[:, None])[:, 0]
    return Score(tuple(logs.tolist()), tuple((logits.argmax(-1) == targets).tolist()))


def check(
    model: Gemma,
    texts: Sequence[ContinuationGroup],
    results: Sequence[list[Score]],
    tolerance: float,
) -> None:
    """Each score is the forward pass's."""
    for text, scores in zip(texts, results, strict=True):
        assert len(scores) == len(text.continuations)
        for ids, score in zip(text.continuations, scores, strict=True):
            expected = plain(model, text.context, ids)
            assert score.log_probs == pytest.approx(expected.log_probs, abs=tolerance)
            if tolerance < 1e-3:
                assert score.greedy == expected.greedy


@pytest.fixture(
    params=[
        pytest.param(
            True, id="kernels",
            marks=pytest.mark.skipif(not native.available(), reason="built without the library"),
        ),
        pytest.param(False, id="torch"),
    ]
)  # fmt: skip
def computed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """By whom; whether it is the kernels."""
    if not request.param:
        monkeypatch.setattr(NativeRunner, "supports", lambda model: False)
    return bool(request.param)


@pytest.fixture(autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """One, unless a test is of several: models are so small that more would only wait."""
    before = torch.get_num_threads()
    torch.set_num_threads(getattr(request, "param", 1))
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("changes", SHAPES)
def test_scores_are_the_forward_pass_s(changes: dict[str, float | None]) -> None:
    model = gentle_model(changes)
    texts = questions(0)
    check(model, texts, PrefixScorer(model).score(texts), 1e-4)


def test_the_caps_and_the_window_are_seen() -> None:
    """The test above would notice if they were left out."""
    texts = questions(0, 6)
    results = PrefixScorer(gentle_model()).score(texts)
    for changes in ({"attn_logit_softcapping": 90.0}, {"final_logit_softcapping": 90.0},
                    {"sliding_window": 200}, {"query_pre_attn_scalar": 16}):  # fmt: skip
        other = PrefixScorer(gentle_model(changes)).score(texts)
        most = max(
            abs(a - b)
            for ours, theirs in zip(results, other, strict=True)
            for x, y in zip(ours, theirs, strict=True)
            for a, b in zip(x.log_probs, y.log_probs, strict=True)
        )
        assert most > 1e-3, changes


@pytest.mark.parametrize("changes", [{}, {"sliding_window": 100}])
def test_likeliest_answers_are_called_greedy(changes: dict[str, float | None]) -> None:
    """The forward pass's own choice, token after token, after one beginning and alone."""
    model = gentle_model(changes)
    pick = random.Random(5)
    begin = drawn(pick, 130)
    texts = []
    for more in (0, 3, 40):
        context = begin + drawn(pick, more)
        ids: list[int] = []
        with torch.inference_mode():
            for _ in range(5):
                ids.append(int(model(torch.tensor([context + ids]))[0, -1].argmax()))
        texts.append(ContinuationGroup(context, [ids, [*ids[:4], (ids[4] + 1) % V], ids[:1]]))
    for scores in PrefixScorer(model).score(texts):
        assert [score.greedy for score in scores] == [
            (True,) * 5, (True, True, True, True, False), (True,),
        ]  # fmt: skip


@pytest.mark.parametrize("count", [1, 2, 3, 7, 40])
def test_batches_of_every_size(count: int) -> None:
    model = gentle_model()
    texts = questions(1)[-count:]
    check(model, texts, PrefixScorer(model, max_tokens=150).score(texts), 1e-4)


def test_a_full_context() -> None:
    """As many tokens as the model has positions; the last is only predicted, never read."""
    model = gentle_model({"max_position_embeddings": 160})
    ids = drawn(random.Random(2), 161)
    texts = [ContinuationGroup(ids[:n], [ids[n:]]) for n in (1, 64, 100, 160)]
    results = PrefixScorer(model).score(texts)
    check(model, texts, results, 1e-4)


@pytest.mark.parametrize("most", [1, 3, 50, 64, 100])
def test_a_runner_that_takes_few_tokens(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts are cut wherever its step is full, and little is held at once."""
    model, texts = strong_model(), questions(2, 12)
    results = PrefixScorer(model).score(texts)
    for runner in (NativeRunner, BatchRunner):
        monkeypatch.setattr(runner, "max_step_tokens", most, raising=False)
    monkeypatch.setattr(batch_runner, "MAX_LOGITS", 1)
    monkeypatch.setattr(batch_runner, "_MAX_SCORES", 1)
    few = texts if most > 3 else texts[-4:]
    assert PrefixScorer(model).score(few) == results[-len(few) :]


def check_company(model: Gemma, texts: Sequence[ContinuationGroup]) -> None:
    """Shuffled, in batches of all sizes, and each continuation alone: not a bit changes."""
    scorer = PrefixScorer(model)
    results = scorer.score(texts)
    assert scorer.score(texts) == results
    order = list(range(len(texts)))
    for most in (100, 700, 5000):
        random.Random(most).shuffle(order)
        again = PrefixScorer(model, most).score([texts[i] for i in order])
        assert again == [results[i] for i in order]
    for text, scores in zip(texts, results, strict=True):
        assert scorer.score([text]) == [scores]
        alone = [scorer.score([ContinuationGroup(text.context, [i])]) for i in text.continuations]
        assert [score for [[score]] in alone] == scores


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_bit_depends_on_company(dtype: torch.dtype) -> None:
    check_company(strong_model().to(dtype), questions(3, 25))


@pytest.mark.parametrize("changes", SHAPES[1:])
def test_no_bit_depends_on_company_in_other_shapes(changes: dict[str, float | None]) -> None:
    check_company(gentle_model(changes), questions(4, 6))


@pytest.mark.parametrize("threads", [2], indirect=True)
def test_no_bit_depends_on_company_on_two_threads() -> None:
    """Few texts: where others use the machine too, threads spend their time waiting."""
    texts = questions(3, 8)
    results = PrefixScorer(STRONG).score(texts)
    for i in (0, 8, 9):
        assert PrefixScorer(STRONG).score([texts[i]]) == [results[i]]


STRONG = strong_model()
POOL = drawn(random.Random(9), 400)


@st.composite
def texts_of_any_kind(draw: st.DrawFn) -> list[ContinuationGroup]:
    """Contexts cut from one pool, so that many share a prefix."""
    texts = []
    for _ in range(draw(st.integers(1, 6))):
        start = draw(st.sampled_from([0, 0, 0, 1, 64]))
        own = draw(st.lists(st.integers(0, V - 1), max_size=3))
        context = POOL[start : start + draw(st.integers(1, 200))] + own
        answer = st.lists(st.integers(0, V - 1), min_size=1, max_size=9)
        texts.append(ContinuationGroup(context, draw(st.lists(answer, min_size=1, max_size=3))))
    return texts


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(texts=texts_of_any_kind(), most=st.sampled_from([1, 90, 300, 8192]))
def test_no_bit_depends_on_company_whatever_is_drawn(
    texts: list[ContinuationGroup], most: int
) -> None:
    alone = PrefixScorer(STRONG)
    assert PrefixScorer(STRONG, most).score(texts) == [alone.score([text])[0] for text in texts]


@pytest.mark.parametrize("sharing", [True, False])
def test_a_shared_beginning_changes_no_bit(sharing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it was computed once for all, or with each."""
    texts = questions(6, 20)
    results = PrefixScorer(STRONG).score(texts)
    shared = sum(bool(b.prefixes) for b in prefix_scoring._batches(texts, 4096))
    assert shared  # there was something to share
    if not sharing:
        monkeypatch.setattr(prefix_scoring, "_common", lambda a, b: 0)
        assert not any(b.prefixes for b in prefix_scoring._batches(texts, 4096))
    assert PrefixScorer(STRONG).score(texts) == results


def test_every_text_is_in_one_batch_and_its_beginning_is_its_own() -> None:
    texts = questions(7)
    for most in (1, 200, 2000, 10**6):
        batches = list(prefix_scoring._batches(texts, most))
        assert sorted(i for batch in batches for i in batch.members) == list(range(len(texts)))
        for batch in batches:
            if not batch.prefixes:
                assert not batch.parents
                continue
            for i, parent in zip(batch.members, batch.parents, strict=True):
                begin = batch.prefixes[parent]
                assert len(begin) % 64 == 0
                assert texts[i].context[: len(begin)] == begin
                assert len(texts[i].context) > len(begin)  # one token of its own at least


def test_what_is_shared_is_computed_once() -> None:
    begin = drawn(random.Random(1), 512)
    texts = [ContinuationGroup([*begin, i], [[1], [2]]) for i in range(30)]
    (batch,) = prefix_scoring._batches(texts, 4096)
    assert [len(prefix) for prefix in batch.prefixes] == [512]


def test_bf16_is_close() -> None:
    model = gentle_model()
    texts = questions(8, 12)
    exact = PrefixScorer(model).score(texts)
    results = PrefixScorer(gentle_model().to(torch.bfloat16)).score(texts)
    for ours, theirs in zip(results, exact, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert a.log_probs == pytest.approx(b.log_probs, abs=0.1)


def test_batches_come_as_they_are_done() -> None:
    """The first is there before the last is computed."""
    texts = questions(10)
    batches = PrefixScorer(gentle_model(), max_tokens=300).stream(texts)
    members, scores = next(batches)
    assert len(members) == len(scores) < len(texts)
    places = members + [i for more, _ in batches for i in more]
    assert sorted(places) == list(range(len(texts)))


def test_nothing_to_score() -> None:
    assert PrefixScorer(gentle_model()).score([]) == []
    for context, continuations, why in (
        ([], [[1]], "the context is empty"),
        ([1], [[2], []], "the continuation is empty"),
        ([1], [], "a context has no continuation"),
        ("ab", [[1]], "the context must be a sequence of token ids, got str"),
    ):
        with pytest.raises(ConfigError, match=why):
            ContinuationGroup(context, continuations)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("context", "continuation", "why"),
    [
        ([V], [1], "the context has the id 544; this model's ids are 0 to 543"),
        ([1], [2, -1], "the continuation has the id -1"),
        ([1], ["a"], "the continuation holds something that is not a token id"),
        ([1] * CONTEXT, [1, 2], "the text has 601 tokens; this model's context is 600: score"),
    ],
)
def test_refusals(context: list[int], continuation: list[int], why: str) -> None:
    """Before anything is computed, whatever else is fine."""
    texts = [ContinuationGroup([1], [[2]]), ContinuationGroup(context, [[1], continuation])]
    batches = PrefixScorer(gentle_model()).stream(texts)
    with pytest.raises(ConfigError, match=why):
        next(batches)


def in_order(lm: LanguageModel, texts: Sequence[ContinuationGroup]) -> list[list[Score]]:
    scores: list[list[Score]] = [[] for _ in texts]
    for places, results in lm.score_continuations(texts):
        for i, own in zip(places, results, strict=True):
            scores[i] = own
    return scores


def test_score_continuations_are_the_tree_s(tokenizer: Tokenizer) -> None:
    model, texts = gentle_model(), questions(11)
    results = in_order(LanguageModel(model, tokenizer), texts)
    assert results == PrefixScorer(model).score(texts)


def test_a_quantized_model(tokenizer: Tokenizer, computed: bool) -> None:
    """Not a bit depends on company, and they are the values that the engine gives."""
    model = QuantizedGemma(quantize_checkpoint(of_model(gentle_model(), tokenizer), "int8"))
    lm = LanguageModel(model, tokenizer)
    texts = questions(12, 10)
    results = in_order(lm, texts)
    check_company(model, texts)
    pairs = [(text.context, ids) for text in texts for ids in text.continuations]
    engine = lm.engine().score(pairs)
    tree = [score for scores in results for score in scores]
    for ours, theirs in zip(tree, engine, strict=True):
        assert ours.log_probs == pytest.approx(theirs.log_probs, abs=1e-4)
        assert ours == theirs or not computed  # to the last bit
