"""Problems put to a model: its answers, and which of them are right."""

from collections.abc import Sequence
from dataclasses import dataclass

from gemmule.infer.core.request import Completion
from gemmule.infer.core.sampling import SamplingParams
from gemmule.infer.language_model import LanguageModel
from gemmule.posttrain.rewards.protocol import Answer, Reward, scores
from gemmule.posttrain.tasks.problem import Problem


@dataclass(frozen=True)
class Solved:
    """A model's answers to a problem.

    Attributes:
        problem: the problem.
        answers: text of each answer.
        rewards: reward of each answer; 0 if a limit cut it.
        lengths: tokens of each answer, its stop token included.
        finished: whether the model ended each answer itself.
    """

    problem: Problem
    answers: tuple[str, ...]
    rewards: tuple[float, ...]
    lengths: tuple[int, ...]
    finished: tuple[bool, ...]

    @property
    def correct(self) -> int:
        """Number of answers with the full reward, 1."""
        return sum(reward == 1 for reward in self.rewards)


def solve(
    lm: LanguageModel,
    problems: Sequence[Problem],
    reward: Reward,
    *,
    samples: int = 1,
    temperature: float = 0.0,
    max_new_tokens: int = 64,
    seed: int = 0,
) -> list[Solved]:
    """Has a model answer problems, and scores the answers.

    Args:
        lm: the model, tuned for conversation.
        problems: the problems.
        reward: scores an answer.
        samples: answers per problem.
        temperature: sampling temperature; 0 always takes the most likely token.
        max_new_tokens: longest answer; one that is cut there gets no reward.
        seed: seed of the answers.

    Returns:
        The answers to each problem, in order.

    Raises:
        ConfigError: for a problem that the model's context does not hold.
        UserError: as the reward's.
    """
    prompts = [lm.tokenizer.render_chat(p.conversation()["messages"][:-1]) for p in problems]
    params = SamplingParams(
        max_new_tokens=max_new_tokens, temperature=temperature, top_p=1.0, seed=seed, n=samples
    )
    completions = lm.complete(prompts, params)
    answers = [
        Answer(done.text, problem.record, tuple(prompt), done.ids, _finished(done))
        for n, (problem, prompt) in enumerate(zip(problems, prompts, strict=True))
        for done in completions[n * samples : (n + 1) * samples]
    ]
    rows = list(zip(answers, scores(reward, answers, 0.0), completions, strict=True))
    return [
        Solved(
            problem,
            tuple(answer.text for answer, _, _ in group),
            tuple(value for _, value, _ in group),
            tuple(done.counts.generated for _, _, done in group),
            tuple(answer.finished for answer, _, _ in group),
        )
        for n, problem in enumerate(problems)
        for group in [rows[n * samples : (n + 1) * samples]]
    ]


def _finished(completion: Completion) -> bool:
    return completion.finish_reason == "stop"
