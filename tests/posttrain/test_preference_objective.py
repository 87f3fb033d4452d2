"""Preference objectives as a whole step, against a plain float64 model under autograd."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from gemmule.data.batch import Batch
from gemmule.errors import DataError
from gemmule.model.gemma import Gemma
from gemmule.posttrain.answer_source import AnswerSource
from gemmule.posttrain.mismatched import mismatched, prompt_of
from gemmule.posttrain.objectives.preference import PairPreference, UnpairedPreference
from gemmule.posttrain.preference_losses import KTOLoss, PairLoss
from gemmule.posttrain.reference import Reference
from gemmule.posttrain.rendering import Rendered, longest_conversation
from gemmule.runtime.config import RuntimeConfig
from gemmule.train.objective import Objective
from gemmule.train.step import accumulate
from models import GROUPED, random_model, tiny_config

VOCAB, PAIRS, BETA = 300, 4, 0.05
RUNTIME = RuntimeConfig(device="cpu", dtype="float32", compile=False, threads=1)
CONFIG = tiny_config(GROUPED, vocab_size=VOCAB)


def answer(prompt: int, length: int, seed: int) -> Rendered:
    """A random conversation whose prompt depends on `prompt` alone; one token is not trained."""
    g = torch.Generator().manual_seed(prompt)
    start = torch.randint(4, VOCAB, (3 + prompt,), generator=g).tolist()
    rest = torch.randint(
        4, VOCAB, (length,), generator=torch.Generator().manual_seed(seed)
    ).tolist()
    trained = [False] * len(start) + [n != 2 for n in range(length)]
    return Rendered((*start, *rest), tuple(trained))


ANSWERS = [answer(n // 2, 4 + 3 * n % 11, 50 + n) for n in range(2 * PAIRS)]
OTHERS = mismatched(ANSWERS, 100)
DESIRABLE = [n % 3 != 0 for n in range(2 * PAIRS)]


def policy() -> Gemma:
    return random_model(CONFIG, seed=1, std={"norm": 0.1, "": 0.15})


def plain_log_p(model: Gemma, conversation: Rendered) -> tuple[Tensor, int]:
    """Log-probability of the trained tokens, and their number."""
    ids = torch.tensor(conversation.ids)
    log_p_TV = model(ids[None])[0].log_softmax(-1)
    taken = log_p_TV[:-1].gather(1, ids[1:, None])[:, 0]
    trained = torch.tensor(conversation.trained[1:])
    return taken[trained].sum(), int(trained.sum())


def reference_of(model: Gemma) -> Reference:
    """As a run computes it, of another model than the policy."""
    reference = Reference({"train": ANSWERS, "mismatched": OTHERS})
    with torch.no_grad():
        reference._values = {
            name: torch.stack([plain_log_p(model, c)[0] for c in group]).double()
            for name, group in (("train", ANSWERS), ("mismatched", OTHERS))
        }
    return reference


def plain_loss(method: str, model: Gemma, reference: Reference) -> Tensor:
    """The mean loss over all examples, written from the papers."""
    values = [plain_log_p(model, c) for c in ANSWERS]
    refs = reference._values["train"]
    ratio = [v - r for (v, _), r in zip(values, refs, strict=True)]
    count = [n for _, n in values]
    losses = []
    if method == "kto":
        with torch.no_grad():
            others = [plain_log_p(model, c)[0] for c in OTHERS]
            kl = torch.stack(others).sub(reference._values["mismatched"]).mean().clamp(min=0)
        for value, good in zip(ratio, DESIRABLE, strict=True):
            gain = BETA * (value - kl)
            losses.append(1.5 * torch.sigmoid(-gain) if good else torch.sigmoid(gain))
        return torch.stack(losses).mean()
    for w, r in ((n, n + 1) for n in range(0, 2 * PAIRS, 2)):
        if method == "dpo":
            h = BETA * (ratio[w] - ratio[r])
            losses.append(-0.9 * F.logsigmoid(h) - 0.1 * F.logsigmoid(-h))
        elif method == "ipo":
            losses.append((ratio[w] / count[w] - ratio[r] / count[r] - 1 / (2 * BETA)) ** 2)
        else:
            mean = values[w][0] / count[w] - values[r][0] / count[r]
            losses.append(-F.logsigmoid(2 * mean - 0.5))
    return torch.stack(losses).mean()


def objective_of(method: str, reference: Reference) -> Objective:
    if method == "kto":
        return UnpairedPreference(KTOLoss(BETA, 1.5), reference, DESIRABLE, OTHERS)
    if method == "simpo":
        return PairPreference(PairLoss("simpo", 2.0, gamma=0.5), None)
    smoothing = 0.1 if method == "dpo" else 0.0
    return PairPreference(PairLoss(method, BETA, smoothing), reference)  # type: ignore[arg-type]


def batches(method: str, size: int) -> list[Batch]:
    """One epoch in batches of `size` examples, the same examples in the same order."""
    width = 1 if method == "kto" else 2
    examples = [tuple(ANSWERS[i : i + width]) for i in range(0, len(ANSWERS), width)]
    source = AnswerSource(examples, size, seed=3)
    return [source.next() for _ in range(len(examples) // size)]


def step(method: str, size: int) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Metrics and gradients of one step in micro-batches of `size` examples."""
    model = policy()
    objective = objective_of(method, reference_of(random_model(CONFIG, seed=2, std={"": 0.15})))
    parts = batches(method, size)
    means = accumulate(model, objective, parts, objective.denominator(parts), RUNTIME)
    return means, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("method", ["dpo", "ipo", "simpo", "kto"])
def test_loss_and_gradients_are_those_of_a_plain_float64_model(method: str) -> None:
    means, grads = step(method, 2)
    exact = policy().double()
    reference = reference_of(random_model(CONFIG, seed=2, std={"": 0.15}).double())
    loss = plain_loss(method, exact, reference)
    loss.backward()
    assert means["loss"] == pytest.approx(loss.item(), rel=1e-5)
    for name, p in exact.named_parameters():
        assert p.grad is not None
        assert (grads[name].double() - p.grad).norm() <= 2e-4 * p.grad.norm(), name


@pytest.mark.parametrize("method", ["dpo", "ipo", "simpo", "kto"])
def test_micro_batches_give_one_gradient(method: str) -> None:
    results = [step(method, size) for size in (1, 2, 4)]
    for means, grads in results[1:]:
        assert means == pytest.approx(results[0][0], rel=1e-9)
        for name, grad in grads.items():
            torch.testing.assert_close(grad, results[0][1][name], rtol=1e-4, atol=1e-6)


def test_the_metrics_of_kto_are_means_over_good_and_bad_answers() -> None:
    means, _ = step("kto", 2)
    model = policy()
    with torch.no_grad():
        values = torch.stack([plain_log_p(model, c)[0] for c in ANSWERS])
    good = torch.tensor(DESIRABLE)
    assert means["logps/chosen"] == pytest.approx(values[good].mean().item(), rel=1e-5)
    assert means["logps/rejected"] == pytest.approx(values[~good].mean().item(), rel=1e-5)
    difference = means["rewards/chosen"] - means["rewards/rejected"]
    assert means["rewards/margins"] == pytest.approx(difference)
    assert means["kl"] >= 0


def test_a_step_without_bad_answers_has_no_mean_of_them() -> None:
    reference = reference_of(policy())
    objective = UnpairedPreference(KTOLoss(BETA), reference, [True] * len(ANSWERS), OTHERS)
    parts = batches("kto", 4)
    means = accumulate(policy(), objective, parts, objective.denominator(parts), RUNTIME)
    assert math.isfinite(means["loss"])
    assert math.isnan(means["rewards/rejected"])


def test_answers_to_other_prompts() -> None:
    for own, other in zip(ANSWERS, OTHERS, strict=True):
        prompt = prompt_of(own)
        assert other.ids[: len(prompt)] == prompt == prompt_of(other)
        tails = [c.ids[len(prompt_of(c)) :] for c in ANSWERS if prompt_of(c) != prompt]
        assert other.ids[len(prompt) :] in tails
        # One token of an answer is not trained, here as there.
        assert other.trained.count(False) == len(prompt) + (len(other) - len(prompt) > 2)


def test_an_answer_may_fill_the_row_as_its_own_conversation_does() -> None:
    """Two prompts and two answers of one length, in conversations of the longest length allowed."""
    longest = longest_conversation(8)
    filled = [Rendered((2, n, *range(10, 17)), (False,) * 2 + (True,) * 7) for n in (3, 4)]
    assert {len(c) for c in filled} == {longest}
    assert [len(c) for c in mismatched(filled, longest)] == [longest, longest]
    with pytest.raises(DataError, match="no answer to another prompt fits"):
        mismatched(filled, longest - 1)


def test_one_prompt_alone_cannot_be_mismatched() -> None:
    with pytest.raises(DataError, match="at least two different prompts"):
        mismatched(ANSWERS[:2], 100)


def largest_tensor(run: Callable[[], None]) -> int:
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for t in out if isinstance(out, tuple | list) else (out,):
                if isinstance(t, Tensor):
                    largest = max(largest, t.numel())
            return out

    with Watch():
        run()
    return largest


def test_never_holds_the_logits_of_all_answers() -> None:
    """Over forward and backward pass; the largest tensor is the embedding or a chunk of logits."""
    vocab = 20_000
    model = random_model(tiny_config(GROUPED, vocab_size=vocab, hidden_size=8), seed=0)
    long = [Rendered(tuple(range(4, 404)), (False, *[True] * 399)) for _ in range(8)]
    source = AnswerSource([tuple(long[i : i + 2]) for i in range(0, 8, 2)], 4, seed=0)
    objective = PairPreference(PairLoss("simpo", 2.0), None)

    def run() -> None:
        objective.loss(model, source.next())[0].backward()

    assert largest_tensor(run) <= 256 * vocab < 8 * 399 * vocab
