"""Rules that decide a preference pair without reading it: what a reward model has to beat."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gemmule import stats
from gemmule.model.tokenizer import Tokenizer
from gemmule.posttrain.rendering import Rendered

_REFUSAL = re.compile(
    r"\b(?:i['’]?m (?:sorry|afraid)|i am (?:sorry|afraid)|sorry|i apologi[sz]e"
    r"|i (?:can['’]?t|cannot|can not|won['’]?t|will not|do not|don['’]?t think)"
    r"|i['’]?m not (?:able|comfortable|going|sure)|illegal|unethical|against the law)\b",
    re.IGNORECASE,
)

Rule = Callable[[str, str], float]


def shorter(first: str, second: str) -> float:
    """1 if the first answer has fewer characters, 0.5 if they are equally long, else 0."""
    return 0.5 + 0.5 * ((len(first) < len(second)) - (len(first) > len(second)))


def refusal(first: str, second: str) -> float:
    """1 if only the first answer has words of a refusal, 0 if only the second has, else 0.5."""
    return 0.5 + 0.5 * (bool(_REFUSAL.search(first)) - bool(_REFUSAL.search(second)))


RULES: Mapping[str, Rule] = {"shorter": shorter, "refusal": refusal}


def compared_with_rules(
    right: Sequence[bool], answers: Sequence[Rendered], tokenizer: Tokenizer
) -> dict[str, Any]:
    """The rules' accuracy on the same pairs, and how far a model is above it.

    Args:
        right: for each pair, whether the model is right.
        answers: the conversations; 2i and 2i + 1 are the chosen and the rejected one of pair i.
        tokenizer: decodes them.

    Returns:
        For each rule "accuracy" (a pair that it does not decide counts half), "decided" (part of
        the pairs) and "difference" (the model's accuracy minus the rule's, paired); each with its
        95% interval.
    """
    texts = [answer_text(answer, tokenizer) for answer in answers]
    result = {}
    for name, rule in RULES.items():
        values = list(map(rule, texts[::2], texts[1::2]))
        decided = sum(value != 0.5 for value in values)
        result[name] = {
            "accuracy": stats.normal_mean(values).json(),
            "decided": stats.proportion(decided, len(values)).json(),
            "difference": stats.paired([float(r) for r in right], values).json(),
        }
    return result


def answer_text(answer: Rendered, tokenizer: Tokenizer) -> str:
    """The text of what is trained, without control tokens."""
    return tokenizer.decode(
        [i for i, trained in zip(answer.ids, answer.trained, strict=True) if trained]
    )
