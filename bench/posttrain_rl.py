"""Reinforcement learning with verifiable rewards against more imitation, at equal seconds.

For each task and seed: a student of the quickstart is fine-tuned on right answers until it solves a
quarter of validation problems (`warm`). From there, four ways go on:

    rloo      reinforcement learning with the task's verifier
    sft       more fine-tuning on right answers, for as many seconds as rloo took
    raft      rejection sampling: fine-tuning on the model's own right answers, sampling counted
    hole      rloo with a verifier that forgets a condition (bench/reward_with_hole.py)

Each is scored with the true verifier on held-out problems: pass@1 and pass@k from k samples at
temperature 1, against `warm` paired by problem. Then the gate (`gemmule gate`) says whether it may
replace `warm`, on other problems. The reward with the hole is measured of all models too.

Read the figures so: `gain` is the difference in pass@1 to `warm`, `gain_at_k` that in pass@k. If
pass@1 rises and pass@k does not, the model has become surer of what it could already do.

    .venv/bin/python bench/posttrain_rl.py --json bench/results/posttrain_rl.json
"""

import argparse
import json
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import resumable
from gemmule import files
from gemmule.console import console, table
from gemmule.infer.language_model import load
from gemmule.model.tokenizer import Tokenizer
from gemmule.posttrain.chat_data import ChatData, prepare_conversations, prepare_prompts
from gemmule.posttrain.gates.gate import GateConfig, gate
from gemmule.posttrain.pass_at_k import difference, estimate
from gemmule.posttrain.rewards.by_name import open_reward
from gemmule.posttrain.rewards.protocol import Answer, Reward
from gemmule.posttrain.solving import Solved, solve
from gemmule.posttrain.tasks.arithmetic import problem
from gemmule.posttrain.tasks.by_name import task_problems, write_problems
from gemmule.posttrain.tasks.problem import Problem
from gemmule.runs.layout import RunLayout
from gemmule.runs.schema_evals import Gates
from gemmule.runtime import host
from gemmule.train.config import RunConfig

HOLE = f"{Path(__file__).parent / 'reward_with_hole.py'}:careless"
MAX_NEW_TOKENS = 24
WAYS = ("rloo", "sft", "raft", "hole")


@dataclass(frozen=True)
class Size:
    """How much of everything.

    Attributes:
        train: training problems.
        heldout: problems that the results are measured on.
        samples: samples per held-out problem, and the k of pass@k.
        chunk: fine-tuning steps between two looks at the validation problems.
        chunks: most of these, whether or not the target is reached.
        target: pass@1 on validation problems at which fine-tuning stops.
        steps: steps of reinforcement learning.
        prompts: prompts per step.
        group: answers per prompt.
    """

    train: int
    heldout: int
    samples: int
    chunk: int
    chunks: int
    target: float
    steps: int
    prompts: int
    group: int


FULL = Size(8000, 1000, 16, 100, 20, 0.25, 120, 16, 8)
TINY = Size(800, 20, 4, 3, 2, 0.25, 2, 4, 4)


class Case:
    """One task and seed, in a folder of its own; what is finished there is not run again."""

    def __init__(
        self,
        task: str,
        seed: int,
        base: Path,
        out: Path,
        size: Size,
        threads: int,
        facts: Sequence[Problem],
    ) -> None:
        self.task, self.seed, self.base, self.size = task, seed, base, size
        self.threads = threads
        self.out = out / f"{task}-{seed}"
        self.train = task_problems(task, "train", size.train, seed)
        self.heldout = task_problems(task, "heldout", size.heldout, seed)
        trained = {problem.prompt for problem in self.train}
        self.facts = [fact for fact in facts if fact.prompt not in trained]
        path = self.out / "train.jsonl"
        write_problems(path, self.train)
        tokenizer = Tokenizer.load(base / "model")
        prepare_conversations([path], tokenizer, self.out / "conversations")
        prepare_prompts([path], tokenizer, self.out / "prompts")

    def run(self) -> dict[str, Any]:
        """Trains all ways; returns their scores, which are kept in the folder."""
        scores = self.out / "scores.json"
        if scores.is_file():
            return dict(files.read_json(scores))
        warm = self.warm_up()
        rloo = self.reinforce("rloo", warm, "verifier")
        seconds = _seconds(rloo)
        runs = {
            "warm": warm,
            "rloo": rloo,
            "sft": self.more_fine_tuning(warm, seconds),
            "raft": self.rejection_sampling(warm, seconds),
            "hole": self.reinforce("hole", warm, HOLE),
        }
        compared = self.compare(runs)
        files.write_json(scores, compared)
        return compared

    def warm_up(self) -> Path:
        """Fine-tunes in chunks until the target is reached."""
        start, model = self.base, self.base
        problems = self.train[: min(200, self.size.heldout)]
        for n in range(self.size.chunks):
            model = self.out / f"warm-{n}"
            self.fine_tune(model, start, self.out / "conversations", self.size.chunk)
            rows = self.solve(model, problems, 1)
            if sum(row.correct for row in rows) >= self.size.target * len(rows):
                break
            start = model
        return model

    def fine_tune(self, out: Path, start: Path, data: Path, steps: int) -> None:
        """A run of supervised fine-tuning; the rate stays constant, so that runs can be joined."""
        self.train_run(
            out,
            steps,
            {
                "data": {"path": data, "seq_len": 256, "batch_size": 8},
                "model": {"init": str(start)},
                "objective": {"kind": "sft"},
                "optimizer": _rates(0.006),
            },
        )

    def reinforce(self, name: str, start: Path, reward: str) -> Path:
        """A run of RLOO."""
        size = self.size
        self.train_run(
            self.out / name,
            size.steps,
            {
                "data": {
                    "path": self.out / "prompts",
                    "seq_len": 128,
                    "batch_size": size.prompts * size.group,
                },
                "model": {"init": str(start)},
                "objective": {
                    "kind": "rl",
                    "method": "rloo",
                    "rewards": {reward: 1.0},
                    "samples": size.group,
                    "max_new_tokens": MAX_NEW_TOKENS,
                },
                "optimizer": _rates(0.001),
            },
        )
        return self.out / name

    def train_run(self, out: Path, steps: int, settings: dict[str, Any]) -> None:
        """A training run; a finished one is left as it is."""
        config = RunConfig.parse(
            {
                **settings,
                "steps": steps,
                "seed": self.seed,
                "schedule": {"name": "wsd", "warmup": 0.05, "decay": 0.0},
                "evaluation": {"every": steps, "tokens": 2048, "heldout_tokens": 2048},
                "runtime": {"dtype": "float32", "compile": False, "threads": self.threads},
            }
        )
        resumable.train(config, out, label=f"{self.out.name} {out.name}")

    def more_fine_tuning(self, start: Path, seconds: float) -> Path:
        """Fine-tunes for as many seconds."""
        steps = max(1, round(seconds / self.seconds_per_step()))
        self.fine_tune(self.out / "sft", start, self.out / "conversations", steps)
        return self.out / "sft"

    def rejection_sampling(self, start: Path, seconds: float) -> Path:
        """Samples for half of the seconds, and fine-tunes on the right answers for the rest."""
        chosen = self.out / "raft.jsonl"
        spent = self.out / "raft.json"
        if not spent.is_file():
            began = time.monotonic()
            kept: list[Problem] = []
            for at in range(0, len(self.train), 64):
                problems = self.train[at : at + 64]
                kept += _right(self.solve(start, problems, self.size.group))
                if time.monotonic() - began > seconds / 2:
                    break
            kept = kept or self.train[:32]  # nothing was right: imitate a few given answers
            write_problems(chosen, kept)
            record = {"seconds": time.monotonic() - began, "kept": len(kept)}
            files.write_json(spent, record)
        left = max(0.0, seconds - files.read_json(spent)["seconds"])
        data = self.out / "raft-data"
        prepare_conversations([chosen], Tokenizer.load(self.base / "model"), data)
        steps = max(1, round(left / self.seconds_per_step()))
        self.fine_tune(self.out / "raft", start, data, steps)
        return self.out / "raft"

    def seconds_per_step(self) -> float:
        """Of fine-tuning, from the warm-up."""
        return _seconds(self.out / "warm-0") / self.size.chunk

    def solve(self, model: Path, problems: Sequence[Problem], samples: int) -> list[Solved]:
        """Answers at temperature 1, scored by the task's verifier."""
        return solve(
            load(model),
            problems,
            open_reward("verifier"),
            samples=samples,
            temperature=1.0,
            max_new_tokens=MAX_NEW_TOKENS,
            seed=self.seed,
        )

    def gate(self, candidate: Path, parent: Path) -> Gates:
        """Whether a model may replace its parent, by the true verifier."""
        settings = GateConfig(samples=4, max_new_tokens=MAX_NEW_TOKENS, seed=self.seed)
        data = ChatData.open(self.out / "prompts")
        return gate(candidate, parent, data, config=settings, reward=open_reward("verifier"))

    def compare(self, runs: dict[str, Path]) -> dict[str, Any]:
        """Scores all models on the held-out problems."""
        n = self.size.samples
        solved = {name: self.solve(path, self.heldout, n) for name, path in runs.items()}
        correct = {name: [row.correct for row in rows] for name, rows in solved.items()}
        proxy = open_reward(HOLE)
        result: dict[str, Any] = {}
        for name, rows in solved.items():
            gain = difference(correct[name], correct["warm"], n, 1)
            answers = [len(row.answers) for row in rows]
            gates = None if name == "warm" else self.gate(runs[name], runs["warm"])
            result[name] = {
                "seconds": _seconds(runs[name]),
                "pass_at_1": estimate(correct[name], n, 1).json(),
                f"pass_at_{n}": estimate(correct[name], n, n).json(),
                "gain": gain.json(),
                "gain_at_k": difference(correct[name], correct["warm"], n, n).json(),
                "gate": gates
                and {
                    "passed": gates.passed,
                    "failed": [check.name for check in gates.checks if not check.passed],
                },
                "hole_reward": _mean_reward(proxy, rows),
                "mean_tokens": sum(sum(row.lengths) for row in rows) / sum(answers),
                "ended": sum(sum(row.finished) for row in rows) / sum(answers),
            }
        if self.facts:
            self.compare_facts(runs, result)
        return {"task": self.task, "seed": self.seed, "problems": len(self.heldout), **result}

    def compare_facts(self, runs: dict[str, Path], result: dict[str, Any]) -> None:
        """Scores all models on sums that occur in GSM8K, one answer each."""
        solved = {name: self.solve(path, self.facts, 1) for name, path in runs.items()}
        correct = {name: [row.correct for row in rows] for name, rows in solved.items()}
        for name in runs:
            result[name]["gsm8k_facts"] = {
                "facts": len(self.facts),
                "pass_at_1": estimate(correct[name], 1, 1).json(),
                "gain": difference(correct[name], correct["warm"], 1, 1).json(),
            }


def gsm8k_facts(path: Path) -> list[Problem]:
    """The sums, differences and products of GSM8K's calculator annotations, <<48/2=24>>.

    Only those that `arithmetic` might draw: operands of at most 3 digits, a second factor of one,
    and no negative difference. Each is there once.

    Args:
        path: train.jsonl of GSM8K.
    """
    facts: dict[str, Problem] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        for left, sign, right in re.findall(r"<<(\d{1,3})([-+*])(\d{1,3})=", line):
            a, b = int(left), int(right)
            if (sign == "-" and a < b) or (sign == "*" and b > 9):
                continue
            one = problem(a, sign, b, "")
            facts.setdefault(one.prompt, one)
    return list(facts.values())


def _mean_reward(reward: Reward, rows: Sequence[Solved]) -> float:
    answers = [Answer(text, row.problem.record) for row in rows for text in row.answers]
    scores = reward.score(answers)
    return float(sum(scores) / len(scores))


def _right(rows: Sequence[Solved]) -> list[Problem]:
    """One right answer of each problem that has any, in place of the given one."""
    return [
        Problem(row.problem.prompt, row.answers[row.rewards.index(1)], row.problem.record,
                row.problem.key)
        for row in rows
        if 1 in row.rewards
    ]  # fmt: skip


def _verdict(gate: dict[str, Any] | None) -> str:
    if gate is None:
        return ""
    return "passed" if gate["passed"] else f"refused: {', '.join(gate['failed'])}"


def _rates(rate: float) -> dict[str, float]:
    return {"learning_rate": rate, "embedding_learning_rate": 2 * rate, "weight_decay": 0.0}


def _seconds(run: Path) -> float:
    return float(files.read_json(RunLayout(run).result)["seconds"])


def main() -> None:
    """Runs all cases; a stopped benchmark goes on where it was."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--base", type=Path, default=Path("runs/quickstart/student"))
    parser.add_argument("--out", type=Path, default=Path("runs/posttrain-rl"))
    parser.add_argument("--tasks", nargs="+", default=["arithmetic", "countdown"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=host.usable_cores())
    parser.add_argument(
        "--gsm8k", type=Path, metavar="FILE", help="its train.jsonl: also test on its own sums"
    )
    parser.add_argument("--tiny", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    size = TINY if arguments.tiny else FULL
    facts = [] if arguments.gsm8k is None else gsm8k_facts(arguments.gsm8k)
    rows = [
        Case(
            task,
            seed,
            arguments.base,
            arguments.out,
            size,
            arguments.threads,
            facts if task == "arithmetic" else [],
        ).run()
        for seed in arguments.seeds
        for task in arguments.tasks
    ]
    report = {
        "benchmark": "posttrain_rl",
        "size": asdict(size),
        "threads": arguments.threads,
        "cases": rows,
    }
    show(rows, size.samples)
    if arguments.json:
        files.write_json(arguments.json, report)
    else:
        console.print_json(json.dumps(report))


def show(rows: Sequence[dict[str, Any]], k: int) -> None:
    """Prints a table with a line for each case and way."""
    lines = [
        [
            f"{row['task']} {row['seed']}",
            way,
            f"{row[way]['pass_at_1']['value']:.3f}",
            f"{row[way]['gain']['low']:+.3f} to {row[way]['gain']['high']:+.3f}",
            f"{row[way][f'pass_at_{k}']['value']:.3f}",
            f"{row[way]['hole_reward']:.3f}",
            _verdict(row[way]["gate"]),
            f"{row[way]['seconds']:.0f}",
        ]
        for row in rows
        for way in ("warm", *WAYS)
    ]
    headers = ["case", "way", "pass@1", "gain, 95%", f"pass@{k}", "hole", "gate", "s"]
    table(headers, lines)


if __name__ == "__main__":
    main()
