"""Rewards by name: verifiers, code in the sandbox, users' functions, reward models."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gemmule.config import nearest
from gemmule.errors import ConfigError, DataError
from gemmule.model.tokenizer import Tokenizer
from gemmule.posttrain.reward_model.reward import LearnedReward
from gemmule.posttrain.rewards import code, expressions, formats, numbers, strings
from gemmule.posttrain.rewards.protocol import Answer, Reward
from gemmule.posttrain.rewards.record import expected
from gemmule.posttrain.rewards.user_function import UserFunction
from gemmule.sandbox import Sandbox

RewardFunction = Callable[[str, Mapping[str, Any]], float]

VERIFIERS: Mapping[str, RewardFunction] = {
    "number": numbers.number,
    "exact": strings.exact,
    "countdown": expressions.countdown,
    "mentions": strings.mentions,
    "json_object": formats.json_object,
    "pattern": formats.pattern,
    "tagged": formats.tagged,
}
PER_PROMPT = "verifier"  # the reward, and the field of a record that names the prompt's verifier
CODE = "code"


class FunctionReward:
    """A function of one answer's text and record.

    Attributes:
        name: name of the function.
    """

    def __init__(self, name: str, function: RewardFunction) -> None:
        """Takes the function."""
        self.name = name
        self._function = function

    def score(self, answers: Sequence[Answer]) -> list[float]:
        """The function's value for each answer."""
        return [self._function(answer.text, answer.record) for answer in answers]

    def describe(self) -> dict[str, Any]:
        """The name, and a fingerprint of a user's module."""
        if isinstance(self._function, UserFunction):
            return {"name": self.name, "source_sha256": self._function.fingerprint}
        return {"name": self.name}


class CodeReward:
    """Whether a program passes its tests, run in a sandbox.

    Attributes:
        name: "code".
    """

    name = CODE

    def __init__(self, sandbox: Sandbox) -> None:
        """Takes the sandbox."""
        self._sandbox = sandbox

    def score(self, answers: Sequence[Answer]) -> list[float]:
        """1 for each answer that passes the tests of its record, otherwise 0."""
        texts, records = [a.text for a in answers], [a.record for a in answers]
        return code.passes_tests(self._sandbox, texts, records)

    def describe(self) -> dict[str, Any]:
        """The name and the sandbox."""
        return {"name": self.name, "sandbox": self._sandbox.json()}


class WeightedSum:
    """Several rewards, added up with weights.

    Attributes:
        name: names of the rewards, joined by +.
        parts: the rewards.
        weights: a weight for each.
    """

    def __init__(self, parts: Sequence[Reward], weights: Sequence[float]) -> None:
        """Takes the rewards and a weight for each."""
        self.name = "+".join(part.name for part in parts)
        self.parts, self.weights = tuple(parts), tuple(weights)

    def score(self, answers: Sequence[Answer]) -> list[float]:
        """The weighted sum for each answer."""
        columns = [part.score(answers) for part in self.parts]
        return [
            sum(weight * value for weight, value in zip(self.weights, row, strict=True))
            for row in zip(*columns, strict=True)
        ]

    def describe(self) -> dict[str, Any]:
        """The parts with their weights."""
        pairs = zip(self.parts, self.weights, strict=True)
        return {"name": self.name, "parts": [{**p.describe(), "weight": w} for p, w in pairs]}


def open_reward(name: str, *, accept_weaker_sandbox: bool = False) -> Reward:
    """The reward of a name.

    Args:
        name: one of `VERIFIERS`; "verifier" for the one that each prompt's record names; "code"; or
            a user's function as module:function or path/to/file.py:function; or a reward model, as
            the path of a run of `gemmule reward` or a hub id.
        accept_weaker_sandbox: for "code", accept a sandbox that protects less than namespaces do.

    Raises:
        ConfigError: if there is no such reward or function.
        UserError: for "code", if programs cannot be isolated on this machine; for a path, if there
            is no readable reward model.
    """
    if name in VERIFIERS:
        return FunctionReward(name, VERIFIERS[name])
    if name == PER_PROMPT:
        return FunctionReward(name, by_record)
    if name == CODE:
        return CodeReward(Sandbox.open(accept_weaker=accept_weaker_sandbox))
    if ":" in name:
        return FunctionReward(name, UserFunction(name))
    if "/" in name or Path(name).exists():
        return LearnedReward.open(name)
    known = [*VERIFIERS, PER_PROMPT, CODE]
    raise ConfigError(
        f"there is no reward {name!r}; {nearest(name, known)}. A function of your own is named as "
        "module:function or path/to/file.py:function, a reward model by its path"
    )


def open_rewards(weights: Mapping[str, float], *, accept_weaker_sandbox: bool = False) -> Reward:
    """The weighted sum of rewards by name; a single one with weight 1 is that reward itself.

    Args:
        weights: weight of each reward, by name as for `open_reward`.
        accept_weaker_sandbox: as for `open_reward`.

    Raises:
        ConfigError: without rewards, or as for `open_reward`.
    """
    if not weights:
        raise ConfigError(f"no reward is given; there are {', '.join(VERIFIERS)} and others")
    parts = [open_reward(n, accept_weaker_sandbox=accept_weaker_sandbox) for n in weights]
    if list(weights.values()) == [1]:
        return parts[0]
    return WeightedSum(parts, list(weights.values()))


def for_manifest(reward: Reward) -> dict[str, Any]:
    """The entry of a run's manifest; its "identity" is a hash of all that decides a score.

    The sandbox that runs programs is not part of that: it may be another one on another machine.
    """
    about = reward.describe()
    parts = [_without_sandbox(part) for part in about.get("parts", [])]
    decisive = {**_without_sandbox(about), "parts": parts}
    text = json.dumps(decisive, sort_keys=True)
    return {**about, "identity": hashlib.sha256(text.encode()).hexdigest()}


def _without_sandbox(about: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in about.items() if name != "sandbox"}


def check_tokenizer(reward: Reward, tokenizer: Tokenizer) -> None:
    """Checks that a reward can read the ids of a model's answers.

    Args:
        reward: a reward, or a sum of them.
        tokenizer: tokenizer of the model that answers.

    Raises:
        TokenizerError: for a reward model with another tokenizer.
    """
    for part in reward.parts if isinstance(reward, WeightedSum) else [reward]:
        if isinstance(part, LearnedReward):
            part.check_tokenizer(tokenizer)


def by_record(answer: str, record: Mapping[str, Any]) -> float:
    """The value of the verifier that record["verifier"] names, so that tasks can be mixed.

    Raises:
        DataError: if the record names none, or one that does not exist.
    """
    name = expected(record, PER_PROMPT)
    if name not in VERIFIERS:
        raise DataError(
            f"verifier = {name!r} in a prompt's record: {nearest(str(name), list(VERIFIERS))}"
        )
    return VERIFIERS[name](answer, record)
