"""Models compared by their answers to the same questions, and conversations with one of them."""

from collections.abc import Mapping, Sequence
from typing import Any

from gemmule.infer.language_model import LanguageModel
from gemmule.posttrain.rewards.by_name import open_reward
from gemmule.posttrain.solving import Solved, solve
from gemmule.posttrain.tasks.problem import Problem
from gemmule.stats import paired_proportions, proportion

# Conversations on the card; the first question of each is about a line that no library has.
SCRIPTS = (
    (
        "Hello",
        "How many parameters does this function have?\ndef mix_colors(red, green, blue):",
        "What is its last parameter?",
        "What is it called?",
    ),
    (
        "What does this class inherit from?\nclass Kettle(Appliance):",
        "What is it called?",
    ),
    (
        "What does this method do?\ndef open_window(self, width=80):",
        "What is the default of width?",
    ),
)
_EXAMPLES = 12


def answer_report(
    models: Mapping[str, LanguageModel],
    heldout: Sequence[Problem],
    chosen: str,
    *,
    max_new_tokens: int,
) -> dict[str, Any]:
    """Scores models on held-out questions, and talks with one of them.

    Args:
        models: models by name; the last one came from the one before it.
        heldout: questions with verifiers.
        chosen: name of the model to talk with.
        max_new_tokens: longest answer; a longer one is cut and counts as wrong.

    Returns:
        The content of answers.json: "questions" (their number), "models" (for each: "exact", the
        fraction of right answers, "ended", the fraction that ended by themselves, and "families"),
        "gain" of the last model over the one before it, paired by question, "chosen", "examples",
        and "conversations" with the chosen one.
    """
    reward = open_reward("verifier")
    solved = {
        name: solve(lm, heldout, reward, max_new_tokens=max_new_tokens)
        for name, lm in models.items()
    }
    *_, before, last = solved.values()
    gain = paired_proportions([bool(s.correct) for s in last], [bool(s.correct) for s in before])
    return {
        "questions": len(heldout),
        "models": {name: _scores(rows) for name, rows in solved.items()},
        "gain": gain.json(),
        "chosen": chosen,
        "examples": _examples(solved),
        "conversations": [_conversation(models[chosen], script) for script in SCRIPTS],
    }


def _scores(rows: Sequence[Solved]) -> dict[str, Any]:
    families: dict[str, list[Solved]] = {}
    for row in rows:
        families.setdefault(str(row.problem.record["family"]), []).append(row)

    def right(some: Sequence[Solved]) -> dict[str, float | int]:
        return proportion(sum(row.correct for row in some), len(some)).json()

    return {
        "exact": right(rows),
        "ended": proportion(sum(row.finished[0] for row in rows), len(rows)).json(),
        "families": {name: right(some) for name, some in sorted(families.items())},
    }


def _examples(solved: Mapping[str, Sequence[Solved]]) -> list[dict[str, Any]]:
    """Evenly spread questions with the answers of all models."""
    first = next(iter(solved.values()))
    chosen = range(0, len(first), max(1, len(first) // _EXAMPLES))
    return [
        {
            "question": "\n".join(
                [*(user for user, _ in first[n].problem.before), first[n].problem.prompt]
            ),
            "right": first[n].problem.answer,
            "answers": {
                name: {"text": rows[n].answers[0], "correct": bool(rows[n].correct)}
                for name, rows in solved.items()
            },
        }
        for n in chosen
    ]


def _conversation(lm: LanguageModel, script: Sequence[str]) -> list[dict[str, str]]:
    messages: list[dict[str, str]] = []
    for turn in script:
        messages.append({"role": "user", "content": turn})
        answer = lm.chat(messages, temperature=0.0, max_new_tokens=64)
        messages.append({"role": "assistant", "content": answer})
    return messages
