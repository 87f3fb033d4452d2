"""`gemmule quickstart --chat`: from a finished quickstart to a student that answers in turns.

Stages, each left as it is once finished, so that --resume continues with the first unfinished one:
questions/, data/ and prompts/, teacher/ and student_sft/ (supervised fine-tuning), student/
(on-policy distillation from the fine-tuned teacher), the gate between these two students,
answers.json with scores, examples and conversations, and the card. All in the folder chat/ of the
quickstart.

The questions can be answered by reading the line of code in them. Whole modules are held out, and
all scores are on those.
"""

import dataclasses
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import Field

from gemmule import files, shell
from gemmule.config import Config
from gemmule.console import console, duration, next_commands, table
from gemmule.data.dataset import Dataset
from gemmule.data.stdlib import LICENCE, NAME
from gemmule.errors import ConfigError, OutputError
from gemmule.infer.language_model import load
from gemmule.model.config import GemmaConfig, preset
from gemmule.model.tokenizer import Tokenizer
from gemmule.posttrain.answer_report import answer_report
from gemmule.posttrain.chat_data import (
    ChatData,
    ChatOptions,
    prepare_conversations,
    prepare_prompts,
)
from gemmule.posttrain.gates.gate import GateConfig, gate
from gemmule.posttrain.rewards.by_name import open_reward
from gemmule.posttrain.tasks.by_name import write_problems
from gemmule.posttrain.tasks.library_questions import library_questions
from gemmule.report.card import write_card
from gemmule.runs.carbon import check_country
from gemmule.runs.layout import ChatLayout, QuickstartLayout, RunLayout
from gemmule.runs.ledger import activity as ledger
from gemmule.runs.lock import locked
from gemmule.runs.run_dir import RunDir
from gemmule.runs.schema import Manifest
from gemmule.runs.schema_evals import Answers, Gates
from gemmule.runtime import torch_compile
from gemmule.train.config import RunConfig
from gemmule.train.run import run_training

SEQ_LEN = 256
BATCH_SIZE = 8
ANSWERS_PER_STEP = 32
MAX_NEW_TOKENS = 64
GATE_PROMPTS = 1000  # at most; more than are held out
GATE_WINDOW = 64  # tokens: a small corpus has enough of them
# Per ten minutes on the reference machine, with a 3m teacher and a 1m student.
TEACHER_STEPS, STUDENT_STEPS, DISTILLATION_STEPS = 520, 600, 160
LEARNING_RATE = 0.006  # half of pretraining's, which this goes on from
DISTILLATION_LEARNING_RATE = 0.001


class ChatConfig(Config):
    """Settings of the chat stages.

    Attributes:
        minutes: approximate duration, on a machine with two current cores.
        seed: seed of questions, batches and answers.
        country: ISO 3166 three-letter code for the carbon intensity of electricity.
    """

    minutes: float = Field(default=10.0, gt=0, le=100_000, allow_inf_nan=False)
    seed: int = Field(default=0, ge=0, lt=2**62)
    country: str | None = None


class ChatPlan(Config):
    """Steps that fit into `minutes` on this machine; saved for a resumed run."""

    teacher_steps: int
    student_steps: int
    distillation_steps: int


def run_chat(config: ChatConfig, quickstart: Path, *, resume: bool = False) -> dict[str, Any]:
    """Runs every stage that is not finished yet.

    Args:
        config: settings; a resumed run uses its saved ones instead.
        quickstart: folder of a finished quickstart, of which only chat/ is written to.
        resume: continue where it was stopped.

    Returns:
        The content of answers.json.

    Raises:
        UserError: when the folder or a setting cannot be used.
        Interrupted: when stopped; run again with `resume`.
    """
    began = time.monotonic()
    layout = ChatLayout.of(quickstart)
    if not QuickstartLayout(quickstart).comparison.is_file():
        raise ConfigError(
            f"{quickstart} has no finished quickstart to go on from: run "
            f"{shell.command('quickstart', '--out', quickstart)} first"
        )
    if resume:
        config = ChatConfig.load(RunDir.open(layout.path).layout.config)
    else:
        _check(config, layout, quickstart)
    with locked(layout.path):
        if resume:
            files.remove_leftovers(layout.path)
        else:
            RunDir.create(layout.path, config)
        answers = _run_stages(config, layout, QuickstartLayout(quickstart))
    _conclude(layout, answers, time.monotonic() - began)
    return answers


def _check(config: ChatConfig, layout: ChatLayout, quickstart: Path) -> None:
    if layout.finished:
        raise OutputError(
            f"{layout.path} is finished, see {layout.student.card / 'index.html'}: delete that "
            "folder to make it again"
        )
    if layout.config.is_file():
        continued = shell.command("quickstart", "--chat", "--resume", "--out", quickstart)
        raise OutputError(f"{layout.path} is unfinished: continue with {continued}")
    check_country(config.country)


def _run_stages(
    config: ChatConfig, layout: ChatLayout, quickstart: QuickstartLayout
) -> dict[str, Any]:
    console.rule(f"gemmule quickstart --chat, about {config.minutes:g} minutes", align="left")
    plan = _plan(config, layout, quickstart)
    with _stage("1/7 questions"):
        _questions(config, layout, Tokenizer.load(quickstart.tokenizer))
    fine_tuned = {
        "teacher": ("2/7", layout.teacher, plan.teacher_steps),
        "student": ("3/7", layout.student_sft, plan.student_steps),
    }
    for name, (number, run, steps) in fine_tuned.items():
        settings = _fine_tuning(config, layout, quickstart.run(name).path, steps)
        _train(settings, run, f"{number} {name}, fine-tuned")
    settings = _distillation(config, layout, plan.distillation_steps)
    _train(settings, layout.student, "4/7 student, distilled")
    with _stage("5/7 gate"):
        gates = _gate(config, layout, quickstart)
    with _stage("6/7 answers"):
        answers = _answers(config, layout, "student" if gates.passed else "student_sft")
    with _stage("7/7 card"):
        write_card(layout.student.path)
    return answers


@contextmanager
def _stage(name: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    console.print(f"{name:<28} {duration(time.monotonic() - began)}", markup=False)


def _plan(config: ChatConfig, layout: ChatLayout, quickstart: QuickstartLayout) -> ChatPlan:
    """Turns minutes into steps, by the quickstart's own measurement of this machine."""
    if layout.plan.is_file():
        return ChatPlan.parse(files.read_json(layout.plan), str(layout.plan))
    speed = float(files.read_json(quickstart.plan)["speed"])
    shapes = {name: _shape(quickstart.run(name)) for name in ("teacher", "student")}

    def steps(reference_steps: int, name: str, reference: str) -> int:
        size = preset(reference, vocab_size=shapes[name].vocab_size)
        need = shapes[name].forward_flops_per_token(SEQ_LEN) / size.forward_flops_per_token(SEQ_LEN)
        return max(10, round(reference_steps * config.minutes / 10 * speed / need))

    plan = ChatPlan(
        teacher_steps=steps(TEACHER_STEPS, "teacher", "3m"),
        student_steps=steps(STUDENT_STEPS, "student", "1m"),
        distillation_steps=steps(DISTILLATION_STEPS, "teacher", "3m"),
    )
    files.write_json(layout.plan, plan.model_dump())
    return plan


def _shape(run: RunLayout) -> GemmaConfig:
    manifest = Manifest.read(run.manifest)
    return GemmaConfig.parse(manifest.model, source=str(run.manifest))


def _questions(config: ChatConfig, layout: ChatLayout, tokenizer: Tokenizer) -> None:
    train = layout.questions / "train.jsonl"
    if not train.is_file():
        questions = library_questions(config.seed)
        write_problems(layout.questions / "heldout.jsonl", questions.heldout)
        write_problems(train, questions.train)
        console.print(
            f"{len(questions.train):,} conversations about {questions.modules['train']} modules; "
            f"held out {len(questions.heldout):,} about {questions.modules['heldout']} others "
            f"(left out {questions.left_out} whose line is in both)",
            markup=False,
        )
    # A module's questions stay together here too: loss is measured on modules not trained on.
    options = ChatOptions(
        name=f"questions on {NAME}", licence=LICENCE, split_by="module", max_tokens=SEQ_LEN
    )
    with ledger.activity("data", layout.data):
        prepare_conversations([train], tokenizer, layout.data, options)
    heldout = dataclasses.replace(options, validation=0.02, heldout=0.96)
    prepare_prompts([layout.questions / "heldout.jsonl"], tokenizer, layout.prompts, heldout)


def _settings(config: ChatConfig, layout: ChatLayout, steps: int) -> dict[str, Any]:
    return {
        "steps": steps,
        "seed": config.seed,
        "evaluation": {"every": max(1, steps // 5), "tokens": 8192},
        "checkpoint": {"every": max(100, steps // 4), "minutes": 1.0, "keep": 1},
        "runtime": {"country": config.country},
    }


def _fine_tuning(config: ChatConfig, layout: ChatLayout, base: Path, steps: int) -> RunConfig:
    return RunConfig.parse(
        {
            **_settings(config, layout, steps),
            "data": {"path": layout.data, "seq_len": SEQ_LEN, "batch_size": BATCH_SIZE},
            "model": {"init": str(base)},
            "objective": {"kind": "sft"},
            "optimizer": {
                "learning_rate": LEARNING_RATE,
                "embedding_learning_rate": 2 * LEARNING_RATE,
                "weight_decay": 0.0,
            },
            "runtime": {
                "country": config.country,
                "compile": "auto" if config.minutes < 3 else torch_compile.can_compile(),
            },
        }
    )


def _distillation(config: ChatConfig, layout: ChatLayout, steps: int) -> RunConfig:
    return RunConfig.parse(
        {
            **_settings(config, layout, steps),
            "data": {"path": layout.data, "seq_len": SEQ_LEN, "batch_size": ANSWERS_PER_STEP},
            "model": {"init": str(layout.student_sft.path)},
            "objective": {
                "kind": "opd",
                "teacher": str(layout.teacher.path),
                "max_new_tokens": MAX_NEW_TOKENS,
            },
            "optimizer": {
                "learning_rate": DISTILLATION_LEARNING_RATE,
                "embedding_learning_rate": 2 * DISTILLATION_LEARNING_RATE,
                "weight_decay": 0.0,
            },
            # Rows of answers have a new length at every step, so compiling would not pay.
            "runtime": {"country": config.country, "compile": False, "dtype": "float32"},
        }
    )


def _train(settings: RunConfig, run: RunLayout, label: str) -> None:
    began = time.monotonic()
    if run.path.exists() and not run.started:
        shutil.rmtree(run.path)  # killed before it had begun
    result = run_training(settings, run.path, resume=run.started, label=label)
    console.print(
        f"{label:<28} {duration(time.monotonic() - began)}   {settings.steps} steps, "
        f"{result['train_tokens']:,} tokens",
        markup=False,
    )


def _gate(config: ChatConfig, layout: ChatLayout, quickstart: QuickstartLayout) -> Gates:
    """Whether distillation on its own answers has made the student better, and harmed nothing."""
    if layout.student.gates.is_file():
        return Gates.read(layout.student.gates)
    gates = gate(
        layout.student.path,
        layout.student_sft.path,
        ChatData.open(layout.prompts),
        config=GateConfig(
            prompts=GATE_PROMPTS,
            samples=1,
            max_new_tokens=MAX_NEW_TOKENS,
            seq_len=GATE_WINDOW,
            seed=config.seed,
        ),
        reward=open_reward("verifier"),
        base=Dataset.open(quickstart.data),
    )
    layout.student.evals.mkdir(exist_ok=True)
    gates.write(layout.student.gates)
    return gates


def _answers(config: ChatConfig, layout: ChatLayout, chosen: str) -> dict[str, Any]:
    """What answers.json holds, which is written if it is not there yet."""
    if layout.answers.is_file():
        return Answers.read(layout.answers).to_json()
    heldout = library_questions(config.seed).heldout
    runs = {
        "teacher": layout.teacher,
        "student_sft": layout.student_sft,
        "student": layout.student,
    }
    models = {name: load(run.path) for name, run in runs.items()}
    answers = answer_report(models, heldout, chosen, max_new_tokens=MAX_NEW_TOKENS)
    files.write_json(layout.answers, answers)
    return answers


def _conclude(layout: ChatLayout, answers: dict[str, Any], seconds: float) -> None:
    names = {
        "teacher": "teacher, fine-tuned",
        "student_sft": "student, fine-tuned",
        "student": "student, then distilled on its own answers",
    }
    rows = []
    for name, label in names.items():
        scores = answers["models"][name]
        exact, ended = scores["exact"], scores["ended"]["value"]
        interval = f"{exact['low']:.1%} to {exact['high']:.1%}"
        rows.append([label, f"{exact['value']:.1%}", interval, f"{ended:.1%}"])
    headers = [f"{answers['questions']} questions, modules not seen", "right", "95%", "ended"]
    table(headers, rows)
    gain = answers["gain"]
    console.print(
        f"right answers gained by distillation: {gain['value']:+.1%} "
        f"({gain['low']:+.1%} to {gain['high']:+.1%})",
        markup=False,
    )
    gates = Gates.read(layout.student.gates)
    for check in gates.checks:
        outcome = "passed" if check.passed else "failed"
        console.print(f"gate: {check.name} {check.outcome}: {outcome}", markup=False)
    verdict = "replaces" if gates.passed else "does not replace"
    console.print(f"the distilled student {verdict} the fine-tuned one", markup=False)
    chosen = layout.path / answers["chosen"]
    console.print(
        f"done in {duration(seconds)}; the page: {layout.student.card / 'index.html'}",
        markup=False,
        soft_wrap=True,
    )
    console.print(
        "it reads one line of Python and answers short questions about it; it knows little else"
    )
    next_commands(
        shell.command("chat", chosen, "--temperature", "0"),
        shell.command("serve", chosen),
    )
