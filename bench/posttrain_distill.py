"""Learning from a teacher's answers, its distribution, or both on the student's own answers.

Student and teacher are a quickstart's, tuned on questions about definitions in Python's library,
whose answers can be checked. The student then goes on in six ways: supervised fine-tuning on right
answers (sft) or on the teacher's (seqkd), the teacher's distribution on the teacher's answers
(logits), and on-policy distillation by reverse KL (opd), by JSD (jsd) and by reverse KL mixed with
steps on the teacher's answers (mixed). All read equally many tokens, padding included; the first
three also run for as long as opd takes. The test asks about held-out modules.
"""

import argparse
import itertools
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
from gemmule import stats
from gemmule.checkpoints.load import open_checkpoint
from gemmule.console import table
from gemmule.infer.core.sampling import SamplingParams
from gemmule.infer.language_model import load
from gemmule.losses.divergences import Divergence
from gemmule.model.tokenizer import Tokenizer, train_tokenizer
from gemmule.posttrain.chat_data import ChatData, ChatOptions, write_conversations
from gemmule.posttrain.conversations import Conversation, Prompt, messages_of
from gemmule.posttrain.filters import Filters
from gemmule.posttrain.objectives.on_policy_distillation import OnPolicyDistillation
from gemmule.posttrain.recipes.opd import Evaluation
from gemmule.posttrain.rendering import render_prompt
from gemmule.posttrain.rewards.strings import exact
from gemmule.posttrain.rollouts import RolloutPrompt, RolloutSampler
from gemmule.posttrain.synthesis import SynthesisConfig, synthesize
from gemmule.posttrain.tasks.definitions import library_definitions
from gemmule.posttrain.tasks.library_questions import library_questions
from gemmule.runtime import host
from gemmule.teachers.gemma import GemmaTeacher
from gemmule.train.config import RunConfig
from gemmule.train.run import run_training

ON_DATA = ("sft", "seqkd", "logits")
OBJECTIVES: Mapping[str, Mapping[str, Any]] = {
    "sft": {"kind": "sft"},
    "seqkd": {"kind": "sft"},
    "logits": {"kind": "opd", "loss": "forward_kl", "lmbda": 0.0},
    "opd": {"kind": "opd", "loss": "reverse_kl"},
    "jsd": {"kind": "opd", "loss": "jsd"},
    "mixed": {"kind": "opd", "loss": "reverse_kl", "lmbda": 0.5},
}
TOY_SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 16,
             "num_attention_heads": 2, "num_key_value_heads": 1}  # fmt: skip
ANSWER_TOKENS = 48


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """What all runs share."""
    full = {
        "definitions": None, "teacher_steps": 300, "student_steps": 150, "test": 500,
        "prompts": 1920, "opd_steps": 60, "answers": 32, "rows": 8,
    }  # fmt: skip
    toy = {
        "definitions": 600, "teacher_steps": 4, "student_steps": 2, "test": 8,
        "prompts": 300, "opd_steps": 2, "answers": 4, "rows": 2,
    }  # fmt: skip
    return {
        **(toy if args.toy else full), "toy": args.toy, "seeds": args.rounds,
        "seq_len": 256, "learning_rate": 0.003, "threads": args.threads,
        "arms": list(args.modes),
    }  # fmt: skip


@dataclass(frozen=True)
class Materials:
    """What all seeds share: data, tuned teacher, questions of the test."""

    gold: ChatData
    taught: ChatData
    teacher: Path
    test: Sequence[Conversation]
    synthesis: Mapping[str, Any]


class Experiment:
    """Trains and measures in a scratch folder.

    Args:
        settings: as `settings_of` returns them.
        quickstart: folder of a finished quickstart; None: random models.
        scratch: folder for data and runs.
    """

    def __init__(self, settings: Mapping[str, Any], quickstart: Path | None, scratch: Path) -> None:
        self.settings, self.quickstart, self.scratch = settings, quickstart, scratch

    def materials(self) -> Materials:
        """Makes the data, tunes the teacher, and has it answer the training prompts."""
        count = self.settings["definitions"]
        definitions = None if count is None else itertools.islice(library_definitions(), count)
        questions = library_questions(0, definitions)
        train, heldout = (
            [_conversation(problem.conversation()) for problem in part]
            for part in (questions.train, questions.heldout)
        )
        tokenizer = self._tokenizer(train)
        gold = self._folder("gold", train, tokenizer)
        teacher = self._tuned("teacher", "teacher_steps", gold, seed=0)
        step = max(1, len(train) // self.settings["prompts"])
        prompts = [Prompt(c.messages[:-1], c.key, c.record) for c in train[::step]]
        answers = self.scratch / "answers.jsonl"
        harness.say(f"the teacher answers {len(prompts):,} prompts")
        asked = {"teacher": str(teacher), "max_new_tokens": ANSWER_TOKENS}
        summary = synthesize(SynthesisConfig.parse(asked), prompts, answers)
        lines = [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]
        taught = self._folder("taught", [_conversation(line) for line in lines], tokenizer)
        test = heldout[:: max(1, len(heldout) // self.settings["test"])][: self.settings["test"]]
        return Materials(gold, taught, teacher, test, summary)

    def seed(self, materials: Materials, seed: int) -> dict[str, Any]:
        """All arms of a seed, each from the same tuned student."""
        start = self._tuned("student", "student_steps", materials.gold, seed)
        results = {"start": self.measure(materials, start, {})}
        for arm in self.settings["arms"]:
            steps = self._steps(arm, results.get("opd"))
            results[arm] = self._arm(materials, arm, start, seed, steps)
        if "opd" not in results:
            return results
        for arm in [arm for arm in ON_DATA if arm in results]:  # once more, for as long as opd took
            ratio = results["opd"]["seconds"] / results[arm]["seconds"]
            steps = max(1, round(results[arm]["steps"] * ratio))
            results[f"{arm}, equal seconds"] = self._arm(materials, arm, start, seed, steps)
        return results

    def _steps(self, arm: str, opd: Mapping[str, Any] | None) -> int:
        """Steps in which the student reads as many tokens as in those of on-policy distillation."""
        if OBJECTIVES[arm]["kind"] == "opd" or opd is None:
            return int(self.settings["opd_steps"])
        return max(1, round(opd["tokens"] / (self.settings["rows"] * self.settings["seq_len"])))

    def _arm(
        self, materials: Materials, arm: str, start: Path, seed: int, steps: int
    ) -> dict[str, Any]:
        objective = dict(OBJECTIVES[arm])
        rows = self.settings["rows"]
        if objective["kind"] == "opd":
            objective |= {"teacher": str(materials.teacher), "max_new_tokens": ANSWER_TOKENS}
            rows = self.settings["answers"]
        on_taught = arm in ("seqkd", "logits", "mixed")
        data = materials.taught if on_taught else materials.gold
        out = self.scratch / f"{arm}-{seed}-{steps}"
        harness.say(f"{arm}, seed {seed}: {steps} steps")
        result = self._train(out, data, {"init": str(start)}, objective, steps, rows, seed)
        return self.measure(materials, out, result) | {"steps": steps}

    def measure(self, materials: Materials, run: Path, result: Mapping[str, Any]) -> dict[str, Any]:
        """Exact match on the test, and how far the student's own answers are from the teacher."""
        lm = load(run)
        prompts = [render_prompt(c.messages[:-1], lm.tokenizer) for c in materials.test]
        figures: dict[str, Any] = {
            "tokens": result.get("train_tokens", 0), "seconds": result.get("seconds", 0.0)
        }  # fmt: skip
        ways = {
            "greedy": SamplingParams(max_new_tokens=ANSWER_TOKENS, temperature=0),
            "sampled": SamplingParams.on_policy(ANSWER_TOKENS, seed=0),
        }
        for name, params in ways.items():
            answers = lm.complete(prompts, params)
            figures[name] = [
                exact(a.text, c.record) for a, c in zip(answers, materials.test, strict=True)
            ]
            figures[f"{name}_stopped"] = _mean([a.finish_reason == "stop" for a in answers])
        teacher = GemmaTeacher("", load(materials.teacher).model, fingerprint="")
        objective = OnPolicyDistillation(teacher, Divergence("reverse_kl"))
        sampler = RolloutSampler(
            lm.model, lm.tokenizer, SamplingParams.on_policy(ANSWER_TOKENS), seed=0
        )
        evaluation = Evaluation(lm.model, objective, sampler, self.settings["answers"])
        asked = [RolloutPrompt(ids, {}) for ids in prompts]
        return figures | {"own_answers": evaluation.measure(asked, None)}

    def _tokenizer(self, conversations: Sequence[Conversation]) -> Tokenizer:
        if self.quickstart is None:
            texts = ["\n".join(m.content for m in c.messages) for c in conversations]
            return train_tokenizer(texts, 600)
        with open_checkpoint(self.quickstart / "teacher") as checkpoint:
            return checkpoint.tokenizer

    def _folder(
        self, name: str, conversations: Sequence[Conversation], tokenizer: Tokenizer
    ) -> ChatData:
        options = ChatOptions(name=name, max_tokens=self.settings["seq_len"], filters=Filters())
        return write_conversations(conversations, tokenizer, self.scratch / name, options)

    def _tuned(self, who: str, steps: str, gold: ChatData, seed: int) -> Path:
        """A model of the quickstart, tuned on right answers."""
        out = self.scratch / f"{who}-{seed}"
        harness.say(f"{who}, seed {seed}: {self.settings[steps]} steps on right answers")
        model: dict[str, Any] = {"preset": "1m", **TOY_SHAPE}
        if self.quickstart is not None:
            model = {"init": str(self.quickstart / who)}
        rows = self.settings["rows"]
        self._train(out, gold, model, {"kind": "sft"}, self.settings[steps], rows, seed)
        return out

    def _train(
        self,
        out: Path,
        data: ChatData,
        model: Mapping[str, Any],
        objective: Mapping[str, Any],
        steps: int,
        rows: int,
        seed: int,
    ) -> dict[str, Any]:
        rate = self.settings["learning_rate"]
        values = {
            "steps": steps,
            "seed": seed,
            "data": {
                "path": str(data.dataset.path), "seq_len": self.settings["seq_len"],
                "batch_size": rows,
            },
            "model": dict(model),
            "objective": dict(objective),
            "optimizer": {"learning_rate": rate, "embedding_learning_rate": rate},
            "evaluation": {"every": steps, "tokens": 2048, "heldout_tokens": 2048},
            "runtime": {
                "compile": False, "dtype": "float32", "threads": self.settings["threads"],
            },
        }  # fmt: skip
        return run_training(RunConfig.parse(values), out)


def _conversation(line: Mapping[str, Any]) -> Conversation:
    """A conversation from a line of JSON; what is checked of it is its record."""
    record = {k: v for k, v in line.items() if k not in ("messages", "provenance")}
    return Conversation(messages_of(line["messages"]), str(line.get("module", "")), record)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def compared(seeds: Sequence[Mapping[str, Any]], arm: str, other: str, way: str) -> dict[str, Any]:
    """The difference between two arms: over questions (means over seeds), and over seeds."""
    by_question = [
        [_mean(values) for values in zip(*(s[name][way] for s in seeds), strict=True)]
        for name in (arm, other)
    ]
    by_seed = [_mean(s[arm][way]) - _mean(s[other][way]) for s in seeds]
    return {
        "questions": stats.paired(*by_question).json(),
        "seeds": stats.student_mean(by_seed),
    }


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The whole report."""
    settings = settings_of(args)
    with tempfile.TemporaryDirectory() as scratch:
        experiment = Experiment(settings, None if args.toy else args.quickstart, Path(scratch))
        materials = experiment.materials()
        teacher = experiment.measure(materials, materials.teacher, {})
        seeds = [experiment.seed(materials, seed) for seed in range(settings["seeds"])]
    names = list(seeds[0])
    return {
        "settings": settings,
        "synthesis": {k: materials.synthesis[k] for k in ("answers", "left_out", "retokenized")},
        "teacher": teacher,
        "seeds": seeds,
        "arms": {
            name: {
                "greedy": _mean([_mean(s[name]["greedy"]) for s in seeds]),
                "sampled": _mean([_mean(s[name]["sampled"]) for s in seeds]),
                **{k: _mean([s[name]["own_answers"][k] for s in seeds])
                   for k in seeds[0][name]["own_answers"]},
                **{k: _mean([s[name][k] for s in seeds]) for k in ("tokens", "seconds")},
            }
            for name in names
        },
        "against_seqkd": {
            name: {way: compared(seeds, name, "seqkd", way) for way in ("greedy", "sampled")}
            for name in names
            if "seqkd" in names and name != "seqkd"
        },
    }  # fmt: skip


def show(report: Mapping[str, Any]) -> None:
    """Prints the report as a table."""
    rows = []
    for name, arm in report["arms"].items():
        against = report["against_seqkd"].get(name)
        difference = against["greedy"]["questions"] if against else None
        rows.append(
            [
                name,
                f"{arm['greedy']:.1%}",
                f"{arm['sampled']:.1%}",
                ""
                if difference is None
                else f"{difference['value']:+.1%} "
                f"[{difference['low']:+.1%}, {difference['high']:+.1%}]",
                f"{arm['loss']:.3f}",
                f"{arm['entropy']:.3f}",
                f"{arm['completions/mean_length']:.1f}",
                f"{arm['completions/clipped_ratio']:.1%}",
                f"{arm['tokens'] / 1e3:,.0f}",
                f"{arm['seconds']:.0f}",
            ]
        )
    table(
        ["", "greedy", "T = 1", "greedy - seqkd", "reverse KL", "entropy", "length", "cut",
         "1000 tokens", "seconds"],
        rows,
        title=f"exact match on {report['settings']['test']} questions, "
        f"{report['settings']['seeds']} seeds",
    )  # fmt: skip


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="Example: python bench/posttrain_distill.py --quickstart runs/quickstart",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="number of seeds")
    parser.add_argument("--threads", type=int, default=host.usable_cores())
    parser.add_argument("--toy", action="store_true", help="tiny shapes: does it work at all?")
    parser.add_argument(
        "--quickstart", type=Path, default=Path("runs/quickstart"), help="finished quickstart"
    )
    args = parser.parse_args()
    args.modes = ["opd", *(arm for arm in OBJECTIVES if arm != "opd")]
    return harness.run(args, measure, show)


if __name__ == "__main__":
    sys.exit(main())
