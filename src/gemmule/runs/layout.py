"""Where everything is in the folder of a run: the only place that knows the names of its files.

A training run (`gemmule train`, `gemmule distill`):

    data/           of a post-training run that was given files: what they hold, as tokens
    config.toml     resolved settings                  written first
    manifest.json   data, model, parents, versions     written before the first step
    metrics.jsonl   losses and other metrics by step   grows line by line
    tensorboard/    the same as TensorBoard events
    checkpoints/    training states, step-N each
    carbon.json     energy and carbon so far
    ledger.jsonl    what each activity on the way here cost, a line each (runs/ledger)
    model/          the weights in Hugging Face layout; of a run with [adapter], peft's files
    result.json     final metrics                      written last: the run has finished
    evals/          benchmarks.json, safety.json, memorization.json, gates.json, size_factor.json,
                    and samples
    card/           the model card
    .lock           held by the process that writes the folder (lock.py)

A quickstart holds four such runs, its data and tokenizer, a comparison, and in scarce_text/ runs on
a small part of the data. `gemmule quickstart --chat` adds the folder chat/ with three more, and
`gemmule ablate size` may add ablate-size/.
"""

from dataclasses import dataclass
from pathlib import Path

CONFIG = "config.toml"
MANIFEST = "manifest.json"
METRICS = "metrics.jsonl"
CARBON = "carbon.json"
LEDGER = "ledger.jsonl"
RESULT = "result.json"
COMPARISON = "comparison.json"
SAMPLES = "samples.json"
EVALS = "evals"
BENCHMARKS = "benchmarks.json"
SAFETY = "safety.json"
MEMORIZATION = "memorization.json"
GATES = "gates.json"
SIZE_FACTOR = "size_factor.json"
QUICKSTART_RUNS = ("teacher", "scratch", "student", "scratch_equal_compute")


@dataclass(frozen=True)
class RunLayout:
    """Paths in the folder of one training run.

    Attributes:
        path: the folder.
    """

    path: Path

    @property
    def data(self) -> Path:
        """Data made for this run; most runs read a folder elsewhere."""
        return self.path / "data"

    @property
    def config(self) -> Path:
        """config.toml, the resolved settings."""
        return self.path / CONFIG

    @property
    def manifest(self) -> Path:
        """manifest.json, what a reader needs to trace and repeat the run."""
        return self.path / MANIFEST

    @property
    def metrics(self) -> Path:
        """metrics.jsonl, one line per logged step or measurement."""
        return self.path / METRICS

    @property
    def tensorboard(self) -> Path:
        """Folder of TensorBoard event files."""
        return self.path / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        """Folder of training states."""
        return self.path / "checkpoints"

    @property
    def carbon(self) -> Path:
        """carbon.json, energy and carbon of all sessions together."""
        return self.path / CARBON

    @property
    def model(self) -> Path:
        """Folder of the trained model, in Hugging Face layout, or of the adapter."""
        return self.path / "model"

    @property
    def result(self) -> Path:
        """result.json, final metrics; a run that has it is finished."""
        return self.path / RESULT

    @property
    def evals(self) -> Path:
        """Folder of evaluation results."""
        return self.path / EVALS

    @property
    def benchmarks(self) -> Path:
        """Result of `gemmule eval`."""
        return self.evals / BENCHMARKS

    @property
    def safety(self) -> Path:
        """Result of `gemmule safety`."""
        return self.evals / SAFETY

    @property
    def memorization(self) -> Path:
        """Result of `gemmule memorization`."""
        return self.evals / MEMORIZATION

    @property
    def gates(self) -> Path:
        """Verdict of `gemmule gate`."""
        return self.evals / GATES

    @property
    def size_factor(self) -> Path:
        """Size factors of a student of `gemmule ablate size`."""
        return self.evals / SIZE_FACTOR

    @property
    def card(self) -> Path:
        """Folder of the model card."""
        return self.path / "card"

    @property
    def started(self) -> bool:
        """Whether a run was begun here, as far as its manifest."""
        return self.manifest.is_file()

    @property
    def finished(self) -> bool:
        """Whether a run was finished here."""
        return self.result.is_file()


@dataclass(frozen=True)
class _StagesLayout:
    """Paths in a folder that stages fill one after the other.

    Attributes:
        path: the folder.
    """

    path: Path

    @property
    def config(self) -> Path:
        """config.toml, the settings given."""
        return self.path / CONFIG

    @property
    def plan(self) -> Path:
        """plan.json, sizes and steps."""
        return self.path / "plan.json"

    @property
    def data(self) -> Path:
        """Folder of the tokenized training data."""
        return self.path / "data"


class QuickstartLayout(_StagesLayout):
    """Paths in the folder of a quickstart."""

    @property
    def tokenizer(self) -> Path:
        """Folder of the tokenizer."""
        return self.path / "tokenizer"

    @property
    def comparison(self) -> Path:
        """comparison.json; a quickstart that has it has trained all its models."""
        return self.path / COMPARISON

    @property
    def samples(self) -> Path:
        """samples.json, generated text."""
        return self.path / SAMPLES

    @property
    def scarce_text(self) -> Path:
        """Folder of the recording and the runs of the comparison on little text."""
        return self.path / "scarce_text"

    @property
    def size_sweep(self) -> Path:
        """results.json of `gemmule ablate size`, if its folder is the quickstart's ablate-size."""
        return self.path / "ablate-size" / "results.json"

    @property
    def card(self) -> Path:
        """Folder of the model card."""
        return self.path / "card"

    def run(self, name: str) -> RunLayout:
        """One of its runs, named as in QUICKSTART_RUNS."""
        return RunLayout(self.path / name)


class ChatLayout(_StagesLayout):
    """Paths in the folder chat/ of a quickstart."""

    @classmethod
    def of(cls, quickstart: Path) -> "ChatLayout":
        """The one in the folder of a quickstart."""
        return cls(quickstart / "chat")

    @classmethod
    def around(cls, run: Path) -> "ChatLayout | None":
        """The one that a run is a stage of; None for another run."""
        folder = run.resolve().parent
        layout = cls.of(folder.parent)
        is_stage = folder == layout.path and QuickstartLayout(folder.parent).comparison.is_file()
        return layout if is_stage else None

    @property
    def questions(self) -> Path:
        """Folder of the questions, train.jsonl and heldout.jsonl."""
        return self.path / "questions"

    @property
    def prompts(self) -> Path:
        """Folder of the tokenized held-out questions, without answers."""
        return self.path / "prompts"

    @property
    def teacher(self) -> RunLayout:
        """The teacher, fine-tuned."""
        return RunLayout(self.path / "teacher")

    @property
    def student_sft(self) -> RunLayout:
        """The student, fine-tuned."""
        return RunLayout(self.path / "student_sft")

    @property
    def student(self) -> RunLayout:
        """The fine-tuned student after on-policy distillation from the fine-tuned teacher."""
        return RunLayout(self.path / "student")

    @property
    def answers(self) -> Path:
        """answers.json, scores, examples and conversations."""
        return self.path / "answers.json"

    @property
    def finished(self) -> bool:
        """Whether all stages are finished; the card is the last one."""
        return self.student.card.is_dir()


def runs_in(folder: Path) -> list[RunLayout]:
    """The runs a folder holds: itself, or those of a quickstart that are there."""
    if not (folder / COMPARISON).is_file():
        return [RunLayout(folder)]
    runs = [QuickstartLayout(folder).run(name) for name in QUICKSTART_RUNS]
    return [run for run in runs if run.path.is_dir()]
