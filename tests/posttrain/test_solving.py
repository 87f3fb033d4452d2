"""Problems put to a model, and models compared by their answers."""

from collections.abc import Sequence
from typing import Any

from gemmule.infer.core.request import Completion, TokenCounts
from gemmule.infer.core.sampling import SamplingParams
from gemmule.posttrain.answer_report import answer_report
from gemmule.posttrain.rewards.by_name import open_reward
from gemmule.posttrain.solving import solve
from gemmule.posttrain.tasks.problem import Problem
from gemmule.runs.schema_evals import Answers


class Parrot:
    """Answers every prompt with the same texts, in turn; "…" is cut by the limit."""

    def __init__(self, *texts: str) -> None:
        self.texts, self.tokenizer = texts, self
        self.seen: list[Any] = []

    def render_chat(self, messages: Sequence[Any]) -> list[int]:
        self.seen.append(messages)
        return [2, len(messages)]

    def complete(self, prompts: Sequence[Any], params: SamplingParams) -> list[Completion]:
        self.params = params
        return [
            Completion(text, (5,), "length" if text.endswith("…") else "stop",
                       counts=TokenCounts(generated=len(text)))
            for _ in prompts
            for text in (self.texts * params.n)[: params.n]
        ]  # fmt: skip

    def chat(self, messages: Sequence[Any], **settings: Any) -> str:
        return self.texts[0]


def problem(answer: str, family: str = "name") -> Problem:
    record = {"verifier": "exact", "answer": answer, "family": family}
    return Problem("What?", answer, record, answer, (("Hello", "Hello!"),))


def test_answers_are_scored_and_cut_ones_are_not_rewarded() -> None:
    lm: Any = Parrot("a", "b", "a…")
    rows = solve(lm, [problem("a"), problem("b"), problem("a…")], open_reward("verifier"),
                 samples=3, temperature=1.0, seed=7)  # fmt: skip
    assert [row.correct for row in rows] == [1, 1, 0]
    assert rows[0].finished == (True, True, False)
    assert rows[0].lengths == (1, 1, 2)
    assert [m["role"] for m in lm.seen[0]] == ["user", "assistant", "user"]  # without the answer
    assert (lm.params.top_p, lm.params.temperature, lm.params.seed) == (1.0, 1.0, 7)


def test_models_are_compared_question_by_question() -> None:
    models: Any = {"teacher": Parrot("a"), "old": Parrot("b"), "new": Parrot("a")}
    heldout = [problem("a", family) for family in ("name", "count") for _ in range(20)]
    report = answer_report(models, heldout, "new", max_new_tokens=8)
    assert report["gain"]["value"] == 1
    assert report["gain"]["low"] > 0.8
    assert report["models"]["old"]["exact"]["value"] == 0
    assert report["models"]["teacher"]["families"]["count"]["n"] == 20
    assert report["models"]["new"]["ended"]["value"] == 1
    first = report["examples"][0]
    assert first["answers"] == {
        "teacher": {"text": "a", "correct": True},
        "old": {"text": "b", "correct": False},
        "new": {"text": "a", "correct": True},
    }
    assert Answers.parse(report, "answers.json").to_json() == report
    assert report["conversations"][0][1] == {"role": "assistant", "content": "a"}
