"""The child process of a calibration: steps of the real loop, one line of JSON per measurement.

Run as `python -m gemmule.plan.calibration_worker SPEC`, in a process of its own so that the peak
of memory is that of a training process and nothing else. Results come in the order teacher,
scratch, distill; the parent stops the process when the time is up, and continues with what has
arrived.

Shapes: B batch, T tokens of a row.
"""

import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gemmule.data.batch import Batch
from gemmule.data.dataset import Dataset
from gemmule.data.packed_text import PackedText, eval_batches
from gemmule.data.source import Source
from gemmule.losses.labels import IGNORED
from gemmule.model.config import GemmaConfig
from gemmule.model.gemma import Gemma
from gemmule.runs import metrics
from gemmule.runs.run_dir import RunDir
from gemmule.runtime import device, memory, torch_compile
from gemmule.teachers.gemma import GemmaTeacher
from gemmule.teachers.target_spec import TargetSpec
from gemmule.train.config import RunConfig
from gemmule.train.evaluate import evaluate
from gemmule.train.loop import train
from gemmule.train.objective import Objective
from gemmule.train.objectives.distillation import Distillation
from gemmule.train.objectives.next_token import NextToken
from gemmule.train.probe import Probe
from gemmule.train.recipe import Recipe

STEPS_SECONDS = 4.0  # of steady steps, for each objective
MIN_STEPS = 6  # the heap still grows in the first few
TEACHER_TOKENS = 4096  # read by the teacher for its loss and what its targets take
EVALUATION_TOKENS = 4096


class RandomSource:
    """Batches of random ids, where there is no corpus yet; every row is one document."""

    def __init__(self, vocab_size: int, batch_size: int, seq_len: int) -> None:
        ids = torch.randint(4, vocab_size, (batch_size, seq_len + 1))
        doc_ids = torch.ones(batch_size, seq_len, dtype=torch.int64)
        self.batch = Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), doc_ids)

    def next(self) -> Batch:
        """The same batch each time: the time of a step does not depend on the ids."""
        return self.batch

    def state(self) -> dict[str, Any]:
        """An empty state: every batch is the same."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Does nothing: every batch is the same."""


@dataclass(frozen=True)
class MeasuredTraining:
    """A training run to measure.

    Attributes:
        student: shape of the student, maybe with fewer layers than planned.
        config: resolved settings of the run.
        dataset: the corpus; None if there is none yet.
    """

    student: GemmaConfig
    config: RunConfig
    dataset: Dataset | None

    def source(self) -> Source:
        """Batches of the size of a micro-batch."""
        config = self.config
        if self.dataset is None:
            return RandomSource(
                self.student.vocab_size, config.data.micro_batch, config.data.seq_len
            )
        split = self.dataset.split("train")
        return PackedText(split, config.data.micro_batch, config.data.seq_len, config.seed)

    def validate(self, model: Gemma) -> int:
        """Evaluates as a run does, on a few batches; returns the number of tokens."""
        if self.dataset is None:
            batch = self.source().next()
            with torch.no_grad(), torch.compiler.set_stance("eager_on_recompile"):
                next_token_loss(model, batch, bool(self.config.runtime.compile)).item()
            return batch.tokens_BT.numel()
        result = evaluate(
            model,
            self.dataset.split("validation"),
            self.dataset.tokenizer,
            seq_len=self.config.data.seq_len,
            batch_size=self.config.data.micro_batch,
            max_tokens=EVALUATION_TOKENS,
            compiled=bool(self.config.runtime.compile),
        )
        return int(result["tokens"])


def next_token_loss(model: Gemma, batch: Batch, compiled: bool) -> torch.Tensor:
    """Cross-entropy summed over tokens, in nats."""
    x_BTD = model.hidden_states(batch.tokens_BT, doc_ids_BT=batch.doc_ids_BT)
    return model.head.cross_entropy(
        x_BTD.flatten(0, 1), batch.labels_BT.flatten(), compiled=compiled
    )


def measure_steps(training: MeasuredTraining, model: Gemma, objective: Objective) -> dict[str, Any]:
    """Times the training loop on `model`: a step that compiles, then steady steps."""
    evaluation, evaluated = [0.0], [1]
    data = training.config.data
    objective.prepare("cpu", bool(training.config.runtime.compile))

    def validate(_: int) -> dict[str, float]:
        began = time.perf_counter()
        evaluated.append(training.validate(model))
        evaluation.append(time.perf_counter() - began)
        return {"tokens": float(evaluated[-1])}

    def loop(steps: int) -> tuple[list[float], float, dict[str, Any]]:
        """Each step's seconds, those of all else but evaluation, and what the meter said."""
        settings = {"steps": steps, "log_every": 1}
        config = training.config.model_copy(update=settings)
        with tempfile.TemporaryDirectory() as folder:
            run = RunDir.create(Path(folder) / "run", config)
            began = time.perf_counter()
            probe = Probe("validation", steps, validate, label="split")
            recipe = Recipe(
                model, training.source(), objective, [probe], dict,
                tokens_per_step=data.tokens_per_step,
            )  # fmt: skip
            state = train(run, config, recipe, "calibrating", recipe.probes)
            took = time.perf_counter() - began
            logged = metrics.read(run.layout.metrics)
        ends = [0.0] + [m["seconds"] for m in logged if "loss" in m]
        seconds = [b - a for a, b in itertools.pairwise(ends)]
        other = took - state.seconds - evaluation[-1]
        return seconds, max(0.0, other), state.carbon or {}

    first, overhead, carbon = loop(2)
    steady, save = [first[-1]], overhead
    if first[-1] < STEPS_SECONDS:
        steps = min(200, max(MIN_STEPS, round(STEPS_SECONDS / first[-1])))
        steady, save, carbon = loop(steps)
        steady = steady[1:]  # the first allocates optimizer states
    step = sum(steady) / len(steady)
    energy, seconds = carbon.get("energy_wh"), carbon.get("seconds")
    return {
        "step_seconds": step,
        "steps": len(steady),
        "compile_seconds": max(0.0, first[0] - step),
        "evaluation_seconds_per_token": evaluation[-1] / evaluated[-1],
        "overhead_seconds": overhead,
        "save_seconds": save,
        "watts": energy * 3600 / seconds if energy and seconds else None,
        "how": carbon.get("how", {}),
        "grid_gco2e_per_kwh": carbon.get("grid_gco2e_per_kwh"),
        "peak_bytes": memory.peak(),
    }


@torch.no_grad()
def measure_teacher(
    teacher: GemmaTeacher, dataset: Dataset | None, batch_size: int, seq_len: int, real: bool
) -> dict[str, Any]:
    """Times a teacher's forward pass and recording; of a real one also measures loss and sizes."""
    if dataset is None:
        batches = [RandomSource(teacher.vocab_size, batch_size, seq_len).next()]
    else:
        split = dataset.split("validation")
        batches = list(eval_batches(split, batch_size, seq_len, TEACHER_TOKENS))
    nats, count, entropy, forward, record = 0.0, 0, 0.0, 0.0, 0.0
    sizes: dict[str, int] = {}
    specs = storage_specs(teacher.vocab_size) if real else [TargetSpec()]
    teacher.hidden_states(batches[0])  # the first pass is slower
    for batch in batches:
        began = time.perf_counter()
        x_BTD = teacher.hidden_states(batch)
        forward += time.perf_counter() - began
        if real:
            x_ND, labels_N = x_BTD.flatten(0, 1), batch.labels_BT.flatten()
            nats += teacher.head.cross_entropy(x_ND, labels_N).item()
            count += int((labels_N != IGNORED).sum())
        for spec in specs:
            began = time.perf_counter()
            targets = [
                teacher.head.sparse_targets(x_TD, spec.choice(0, i)) for i, x_TD in enumerate(x_BTD)
            ]
            data = [spec.codec(teacher.vocab_size).encode(t) for t in targets]
            if spec == TargetSpec():
                record += time.perf_counter() - began
                entropy += sum(float(t.entropy_N.sum()) for t in targets)
            sizes[spec.label] = sizes.get(spec.label, 0) + sum(map(len, data))
    tokens = sum(b.tokens_BT.numel() for b in batches)
    return {
        "forward_seconds_per_token": forward / tokens,
        "record_seconds_per_token": (forward + record) / tokens,
        "nats_per_token": nats / count if real else None,
        "entropy": entropy / tokens if real else None,
        "bytes_per_token": {k: v / tokens for k, v in sizes.items()} if real else None,
        "tokens": tokens,
    }


def storage_specs(vocab_size: int) -> list[TargetSpec]:
    """The kinds of stored targets that a plan compares; the default of `gemmule record` first."""
    k = min(32, vocab_size)
    return [
        TargetSpec(),
        TargetSpec(draws=12),
        TargetSpec(draws=256),
        TargetSpec(kind="top_k", k=k),
        TargetSpec(kind="top_k_tail", k=k),
        TargetSpec(kind="top_p", most=min(512, vocab_size)),
    ]


def main(spec: Mapping[str, Any]) -> None:
    """Measures what `spec`, made by calibrate.py, asks for; writes each result as it comes."""
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not mix with these lines

    def tell(name: str, measurement: Mapping[str, Any]) -> None:
        lines.write(json.dumps({"finding": name, **measurement}) + "\n")
        lines.flush()

    memory.keep_freed_memory()
    dataset = Dataset.open(Path(spec["data"])) if spec["data"] else None
    if dataset is not None:
        _ = dataset.tokenizer
    path = {"path": spec["data"] or "none"}
    asked = RunConfig.parse({**spec["train"], "data": {**spec["train"]["data"], **path}})
    runtime = device.resolve(asked.runtime, spec["flops"]["scratch"])
    config = distill = asked.model_copy(update={"runtime": runtime})
    long = spec["flops"]["distill"] >= device.COMPILE_PAYS_FROM
    if asked.runtime.compile == "auto" and long:
        compiled = {"compile": torch_compile.can_compile()}
        distill = asked.model_copy(update={"runtime": runtime.model_copy(update=compiled)})
    tell("start", {
        "seconds": time.time() - spec["started"], "peak_bytes": memory.peak(),
        "threads": config.runtime.threads, "dtype": config.runtime.dtype,
        "compiled": [bool(config.runtime.compile), bool(distill.runtime.compile)],
    })  # fmt: skip
    model = None
    for i, values in enumerate(spec["student"]):
        model = None  # only one at a time is held
        model = random_model(GemmaConfig.parse(values))
        if config.runtime.compile:
            torch_compile.compile_blocks(model.layers)
        training = MeasuredTraining(model.config, config, dataset)
        measurement = measure_steps(training, model, NextToken())
        tell(f"scratch-{i}", measurement)
    teacher = None
    for i, values in enumerate(spec["teacher"]):
        teacher = None
        teacher, load = open_teacher(GemmaConfig.parse(values), spec["teacher_path"], dataset)
        real = bool(spec["teacher_path"] and dataset)
        measurement = measure_teacher(
            teacher, dataset, config.data.micro_batch, config.data.seq_len, real
        )
        tell(f"teacher-{i}", {"load_seconds": load, **measurement})
    if spec["distill"] and teacher is not None and model is not None:
        if distill.runtime.compile and not config.runtime.compile:
            torch_compile.compile_blocks(model.layers)
        objective = Distillation(teacher, 1.0, 0.0)
        training = MeasuredTraining(model.config, distill, dataset)
        tell("distill-0", measure_steps(training, model, objective))


def open_teacher(
    shape: GemmaConfig, path: str | None, dataset: Dataset | None
) -> tuple[GemmaTeacher, float]:
    """The teacher, or one of that shape with random weights; and the seconds that loading took."""
    began = time.perf_counter()
    if path and dataset is not None:
        return GemmaTeacher.open(path, dataset), time.perf_counter() - began
    return GemmaTeacher("random", random_model(shape), ""), time.perf_counter() - began


def random_model(config: GemmaConfig) -> Gemma:
    """A model with weights of the usual size, a million random numbers repeated: fast to make."""
    with torch.device("meta"):
        model = Gemma(config)
    model.to_empty(device="cpu")
    pool = torch.randn(2**20, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:  # norms
                weight.zero_()
                continue
            flat, scale = weight.view(-1), weight.shape[1] ** -0.5
            for part in flat.split(len(pool)):
                torch.mul(pool[: len(part)], scale, out=part)
    return model


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
