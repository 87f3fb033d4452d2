"""Answers of a teacher to prompts, as conversations to train on (sequence-level distillation).

Sequence-level distillation (arXiv 1606.07947) is supervised fine-tuning on a teacher's answers, as
in the Gemma 2 report, section 4. The output is JSON lines in the form {"messages": [...]}, each
with its provenance. While it is made, a file next to it holds what is done (partial_answers.py):
what a killed process leaves is continued, and ends in the same bytes.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import pydantic
from pydantic import Field

from gemmule import files
from gemmule.checkpoints.checkpoint import weights_fingerprint
from gemmule.config import Config, ModelName
from gemmule.console import ProgressBar
from gemmule.errors import ConfigError, Interrupted, OutputError
from gemmule.infer.core.request import Completion, Request
from gemmule.infer.core.sampling import SamplingParams
from gemmule.infer.language_model import LanguageModel, load
from gemmule.posttrain.conversations import Message, Prompt
from gemmule.posttrain.partial_answers import PartialAnswers, json_line
from gemmule.posttrain.rendering import render_prompt
from gemmule.posttrain.rewards.by_name import check_tokenizer
from gemmule.posttrain.rewards.protocol import Answer, Reward
from gemmule.runs.lock import locked_output
from gemmule.runtime.signals import stop_signals

CHUNK = 128  # prompts that run together and reach the disk together
FORMAT = 1  # of the partial file and the manifest


class SynthesisConfig(Config):
    """How answers are made.

    Attributes:
        teacher: run, HF-layout folder, file or hub id of the model that answers.
        samples: answers per prompt.
        best: keep the answer with the highest reward only, instead of all; needs a reward.
        max_new_tokens: longest answer, tokens; longer ones are cut and left out.
        temperature: sampling temperature; 0 always takes the most likely token.
        top_p: sample from the most likely tokens that sum to this probability.
        seed: seed of the sampler.
    """

    teacher: ModelName
    samples: int = Field(default=1, gt=0)
    best: bool = False
    max_new_tokens: int = Field(default=256, gt=0)
    temperature: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: int = Field(default=0, ge=0, lt=2**63)

    @pydantic.model_validator(mode="after")
    def _samples_differ(self) -> Self:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(
                f"samples = {self.samples} at temperature 0 would be the same answer each time: "
                "raise temperature, or leave samples out"
            )
        return self

    @property
    def sampling(self) -> dict[str, Any]:
        """What decides the answers, besides the teacher and the prompts."""
        return self.model_dump(mode="json", exclude={"teacher"})


def synthesize(
    config: SynthesisConfig, prompts: Sequence[Prompt], out: Path, reward: Reward | None = None
) -> dict[str, Any]:
    """Writes a teacher's answers to `out`, JSON lines; the summary goes to `out`.manifest.json.

    Left out, and counted, are answers that were cut by a limit ("cut"), that are empty ("empty") or
    equal to another one of the same prompt ("duplicate"), and prompts that leave no room for an
    answer ("prompt_too_long").

    Args:
        config: teacher and sampling.
        prompts: what to answer; the answer to each depends on its place, not on the others.
        out: file to write. What a stopped process left is continued; if the file is there and came
            from the same teacher, prompts and settings, it is left as it is.
        reward: score of an answer, recorded with it; with config.best it chooses among them.

    Returns:
        The content of the manifest.

    Raises:
        ConfigError: for `best` without a reward, or without prompts.
        OutputError: when `out` or its partial file holds other answers.
        CheckpointError: when the teacher cannot be read.
        TokenizerError: for a reward model with another tokenizer than the teacher's.
        Interrupted: when stopped; the same call continues.
    """
    if config.best and reward is None:
        raise ConfigError("best keeps the answer with the highest reward: name a reward as well")
    if not prompts:
        raise ConfigError("there are no prompts to answer")
    with locked_output(out):
        model = load(config.teacher)
        if reward is not None:
            check_tokenizer(reward, model.tokenizer)
        teacher = {"path": config.teacher, "fingerprint": weights_fingerprint(model.model)}
        about = {
            "format": FORMAT,
            "teacher": teacher["fingerprint"],
            "tokenizer": model.tokenizer.fingerprint,
            "prompts": _fingerprint(prompts),
            "sampling": config.sampling,
            "reward": None if reward is None else reward.describe(),
        }
        manifest = out.with_name(out.name + ".manifest.json")
        unfinished = out.with_name(out.name + ".partial")
        if out.exists():
            finished = _finished(out, manifest, about)
            unfinished.unlink(missing_ok=True)  # a kill may have come before it was removed
            return finished
        partial = PartialAnswers(unfinished, about)
        _answer(_Answers(config, model, teacher, reward), prompts, partial)
        counts = {"num_prompts": len(prompts), **partial.summary()}
        summary = {**about, "teacher": teacher, **counts}
        files.write_json(manifest, summary)
        with files.atomic_path(out) as tmp, tmp.open("w", encoding="utf-8") as file:
            file.writelines(json_line(answer) for answer in partial.answers())
        partial.remove()
        return summary


def _fingerprint(prompts: Iterable[Prompt]) -> str:
    digest = hashlib.sha256()
    for prompt in prompts:
        messages = [message.to_dict() for message in prompt.messages]
        digest.update(json_line([messages, prompt.key, dict(prompt.record)]).encode())
    return digest.hexdigest()


def _finished(out: Path, path: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of a finished file, if it holds what is asked for."""
    try:
        manifest = files.read_object(path, OutputError)
    except FileNotFoundError:
        manifest = {}
    teacher = manifest.get("teacher") or {}
    if {**manifest, "teacher": teacher.get("fingerprint")}.items() >= about.items():
        return manifest
    raise OutputError(
        f"{out} is there already, and not from this teacher, these prompts and settings: choose "
        "another --out, or delete it"
    )


def _answer(answers: "_Answers", prompts: Sequence[Prompt], partial: PartialAnswers) -> None:
    bar = ProgressBar("synthesize", len(prompts), "prompts", partial.done)
    with stop_signals() as stop, bar:
        while partial.done < len(prompts):
            chunk = slice(partial.done, partial.done + CHUNK)
            partial.add(answers.lines(chunk.start, prompts[chunk]))
            bar.update(partial.done)
            if stop.requested:
                break
    if stop.requested:  # after the last prompt too: the next stage must not begin
        raise Interrupted(
            f"stopped after {partial.done} of {len(prompts)} prompts; the same command continues "
            "from there"
        )


@dataclass(frozen=True)
class _Sample:
    """An answer that is not left out: its text, as a conversation renders it, and its origin."""

    text: str
    number: int
    completion: Completion
    reward: float | None = None


@dataclass(frozen=True)
class _Answers:
    """Makes the lines of the partial file."""

    config: SynthesisConfig
    model: LanguageModel
    teacher: Mapping[str, Any]
    reward: Reward | None

    def lines(self, first: int, prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
        """Answers prompts that run together, the first of which has the number `first`."""
        rendered = [render_prompt(prompt.messages, self.model.tokenizer) for prompt in prompts]
        context = self.model.config.max_position_embeddings
        fit = [len(ids) < context for ids in rendered]
        requests = [
            Request(ids, self._params(number))
            for number, (ids, fits) in enumerate(zip(rendered, fit, strict=True), first)
            if fits
        ]
        completions = iter(self.model.engine().complete(requests))
        lines = []
        for number, (prompt, ids, fits) in enumerate(zip(prompts, rendered, fit, strict=True)):
            if fits:
                samples = [next(completions) for _ in range(self.config.samples)]
                lines.append(self._line(first + number, prompt, ids, samples))
            else:
                too_long = {"prompt_too_long": 1}
                lines.append({"answers": [], "left_out": too_long, "retokenized": 0})
        return lines

    def _params(self, number: int) -> SamplingParams:
        """Sampling of a prompt; sample j of it has the seed after that of sample j - 1."""
        key = hashlib.blake2b(f"{self.config.seed} {number}".encode(), digest_size=8).digest()
        return SamplingParams(
            max_new_tokens=self.config.max_new_tokens,
            temperature=self.config.temperature,
            top_p=self.config.top_p,
            seed=int.from_bytes(key, "little") >> 1,
            n=self.config.samples,
        )

    def _line(
        self, number: int, prompt: Prompt, ids: Sequence[int], completions: Sequence[Completion]
    ) -> dict[str, Any]:
        left_out: Counter[str] = Counter()
        samples: dict[str, _Sample] = {}
        for place, completion in enumerate(completions):
            text = completion.text.strip()
            if completion.error is not None:
                raise completion.error
            if completion.finish_reason != "stop":
                left_out["cut"] += 1
            elif not text:
                left_out["empty"] += 1
            elif text in samples:
                left_out["duplicate"] += 1
            else:
                samples[text] = _Sample(text, place, completion)
        kept = self._rewarded(prompt, ids, list(samples.values()))
        if self.config.best and kept:
            left_out["not_best"] += len(kept) - 1
            kept = [max(kept, key=lambda sample: sample.reward or 0.0)]  # of equal ones the first
        return {
            "answers": [self._entry(number, prompt, sample) for sample in kept],
            "left_out": dict(+left_out),
            "retokenized": sum(self._changes(prompt, len(ids), sample) for sample in kept),
        }

    def _rewarded(
        self, prompt: Prompt, ids: Sequence[int], samples: Sequence[_Sample]
    ) -> list[_Sample]:
        if self.reward is None or not samples:
            return list(samples)
        answers = [
            Answer(sample.text, prompt.record, tuple(ids), sample.completion.ids)
            for sample in samples
        ]
        scores = self.reward.score(answers)
        return [replace(s, reward=score) for s, score in zip(samples, scores, strict=True)]

    def _entry(self, number: int, prompt: Prompt, sample: _Sample) -> dict[str, Any]:
        provenance = {
            "teacher": dict(self.teacher),
            "sampling": self.config.sampling,
            "prompt": number,
            "key": prompt.key,
            "sample": sample.number,
            "tokens": len(sample.completion.ids),
            **({} if sample.reward is None else {"reward": sample.reward}),
        }
        messages = [message.to_dict() for message in _answered(prompt, sample)]
        return {"messages": messages, **prompt.record, "provenance": provenance}

    def _changes(self, prompt: Prompt, start: int, sample: _Sample) -> bool:
        """Whether the text, encoded again, has other ids than the teacher sampled."""
        sampled = list(sample.completion.ids)
        messages = [message.to_dict() for message in _answered(prompt, sample)]
        ids = self.model.tokenizer.render_chat(messages, generation_prompt=False)
        return ids[start : start + len(sampled)] != sampled


def _answered(prompt: Prompt, sample: _Sample) -> list[Message]:
    return [*prompt.messages, Message("assistant", sample.text)]


def describe(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The summary as names and values, for the terminal."""
    left_out = ", ".join(
        f"{count:,} {reason.replace('_', ' ')}" for reason, count in summary["left_out"].items()
    )
    return [
        ("prompts", f"{summary['num_prompts']:,}"),
        ("answers", f"{summary['answers']:,} of {summary['tokens']:,} tokens"),
        ("left out", left_out or "none"),
        ("encoded differently", f"{summary['retokenized']:,}"),
    ]
