"""gemmule eval, safety, memorization and canaries."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gemmule import shell
from gemmule.cli.app import EVALUATE, RERUN, command, stoppable
from gemmule.cli.options import (
    AsJson,
    BenchmarkFiles,
    Device,
    Evaluated,
    MaxNewTokens,
    Model,
    Options,
    Out,
    Results,
    Temperature,
)
from gemmule.config import ModelName
from gemmule.errors import ConfigError

if TYPE_CHECKING:
    from gemmule.evals.eval_target import LoadOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmarks(Options):
    """What is measured, and how (EvalSettings)."""

    suite: Annotated[str, typer.Option(help="Benchmarks to run: quick or report.")] = "quick"
    tasks: Annotated[
        str | None,
        typer.Option(help="Tasks in place of a suite, as in arc-e,gsm8k; list prints them."),
    ] = None
    data_dir: BenchmarkFiles = None
    limit: Annotated[
        int | None, typer.Option(help="Maximum number of questions per task, the first ones.")
    ] = None
    formats: Annotated[
        bool, typer.Option("--formats", help="Also measure how twelve prompt formats differ.")
    ] = False
    chat: Annotated[
        bool, typer.Option("--chat", help="Use the chat template, for instruction-tuned models.")
    ] = False
    data: Annotated[
        Path | None,
        typer.Option(help="The run's data folder if it was moved, to check for contamination."),
    ] = None
    accept_weaker_sandbox: Annotated[
        bool,
        typer.Option("--accept-weaker-sandbox", help="Run code without namespaces: see the docs."),
    ] = False


@command(EVALUATE, "eval")
def evaluate(
    benchmarks: Benchmarks,
    evaluated: Evaluated,
    models: Annotated[
        list[ModelName] | None,
        typer.Argument(help="Runs, HF folders, hub ids or files; several are compared."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate models on benchmarks, with 95% intervals and the published scores of Gemma 2.

    If it is stopped, the same command continues from there. A benchmark whose files are missing is
    named and skipped. Several models are compared question by question.

    Example: gemmule eval runs/quickstart/student --data-dir benchmarks
    """
    from gemmule.evals.benchmarks.settings import EvalSettings

    if benchmarks.tasks == "list":
        from gemmule.evals.benchmarks.results_table import listing

        listing(as_json)
        return
    if not models:
        example = shell.command("eval", "runs/quickstart/student")
        raise ConfigError(f"gemmule eval needs a model, as in {example}")
    settings = EvalSettings.parse(_split_tasks(benchmarks), source="eval")
    from gemmule.evals.benchmarks.results_table import show
    from gemmule.evals.benchmarks.run_benchmarks import run_eval

    with stoppable(RERUN):
        results = run_eval(models, settings, out=evaluated.out, options=_load_options(evaluated))
    if as_json:
        print(json.dumps(results[0] if len(results) == 1 else results))
    else:
        show(results)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Safety(Options):
    """What is measured, and how (SafetySettings)."""

    data_dir: BenchmarkFiles = None
    tasks: Annotated[
        str | None, typer.Option(help="Benchmarks, as in bbq,winogender; default: all.")
    ] = None
    limit: Annotated[
        int | None, typer.Option(help="Maximum number of questions per task, the first ones.")
    ] = None
    max_new_tokens: MaxNewTokens = 20
    temperature: Temperature = 0.0
    seed: Annotated[int, typer.Option(help="Seed of sampled continuations.")] = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judging(Options):
    """How toxicity is judged, and what the result is held against."""

    toxicity_classifier: Annotated[
        ModelName | None,
        typer.Option(help="Toxicity classifier for transformers, folder or hub id."),
    ] = None
    toxicity_label: Annotated[
        str | None, typer.Option(help="The classifier's label for toxic; default: by its name.")
    ] = None
    judge: Annotated[
        ModelName | None, typer.Option(help="ShieldGemma model to judge in place of a classifier.")
    ] = None
    gate: Annotated[
        Path | None, typer.Option(help="TOML file of limits; exit with 3 if one is exceeded.")
    ] = None
    baseline: Annotated[
        ModelName | None, typer.Option(help="Baseline of the gate: a model, or a result file.")
    ] = None


@command(EVALUATE)
def safety(
    model: Model,
    benchmarks: Safety,
    judging: Judging,
    evaluated: Evaluated,
    as_json: AsJson = False,
) -> None:
    """Evaluate stereotypes, truthfulness and toxicity, next to the report's values for Gemma 2.

    If it is stopped, the same command continues from there. Toxicity needs a classifier or a
    judge, and is reported as missing without one.

    Example: gemmule safety runs/quickstart/student --data-dir benchmarks --tasks bbq,crows-pairs
    """
    from gemmule.evals.safety.evaluate import SafetySettings

    settings = SafetySettings.parse(_split_tasks(benchmarks), source="safety")
    from gemmule.evals.safety.gate import EXIT_CODE, GateOptions
    from gemmule.evals.safety.results_table import bars, show
    from gemmule.evals.safety.run_safety import run_safety
    from gemmule.evals.safety.toxicity_scorer import ScorerOptions

    with stoppable(RERUN), bars() as progress:
        result = run_safety(
            model,
            settings,
            scorer_options=ScorerOptions(
                judging.toxicity_classifier, judging.toxicity_label, judging.judge
            ),
            gate_options=GateOptions(judging.gate, judging.baseline),
            load_options=_load_options(evaluated),
            out=evaluated.out,
            progress=progress,
        )
    if as_json:
        print(json.dumps(result))
    else:
        show(result)
    if "gate" in result and not result["gate"]["passed"]:
        raise typer.Exit(EXIT_CODE)


def _load_options(evaluated: Evaluated) -> "LoadOptions":
    from gemmule.evals.eval_target import LoadOptions

    return LoadOptions(evaluated.dtype, evaluated.device, evaluated.quantize)


def _split_tasks(options: Benchmarks | Safety) -> dict[str, object]:
    values = options.given()
    return values if options.tasks is None else {**values, "tasks": options.tasks.split(",")}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Passages(Options):
    """Which passages are tried (memorization's Settings)."""

    probes: Annotated[
        int, typer.Option(help="Training passages to try, and as many held-out ones.")
    ] = 10_000
    prompt_tokens: Annotated[int, typer.Option(help="Tokens of each passage in the prompt.")] = 50
    continuation_tokens: Annotated[
        int, typer.Option(help="Tokens after the prompt that the model is to reproduce.")
    ] = 50
    seed: Annotated[int, typer.Option(help="Seed that chooses the passages.")] = 0


@command(EVALUATE)
def memorization(
    run: Annotated[ModelName, typer.Argument(help="Run, or quickstart for both of its students.")],
    passages: Passages,
    data: Annotated[
        Path | None, typer.Option(help="The run's data folder, if it was moved.")
    ] = None,
    against: Annotated[
        ModelName | None, typer.Option(help="Run on the same data to compare on the same passages.")
    ] = None,
    device: Device = "cpu",
    out: Results = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Discard earlier results and start again.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Measure how much of its training text a model reproduces, and personal data in it.

    Passages are continued greedily and compared, exactly and with up to a tenth of the tokens
    edited. Held-out passages are the control. If it is stopped, the same command continues.

    Example: gemmule memorization runs/quickstart/student --against runs/quickstart/scratch
    """
    from gemmule.evals.memorization.results_table import show
    from gemmule.evals.memorization.run_memorization import run_memorization
    from gemmule.evals.memorization.settings import Settings

    settings = Settings(**passages.given())
    with stoppable(RERUN):
        result = run_memorization(
            run, settings, against=against, data=data, out=out, device=device, fresh=fresh
        )
    if as_json:
        print(json.dumps(result))
    else:
        show(result)


@command(EVALUATE)
def canaries(
    data: Annotated[Path, typer.Argument(help="Folder made by gemmule data.")],
    out: Out,
    repeats: Annotated[
        str, typer.Option(help="Numbers of repetitions, one group of canaries each.")
    ] = "1,2,4,8,16,32,64",
    each: Annotated[int, typer.Option(help="Canaries per group.")] = 4,
    tokens: Annotated[int, typer.Option(help="Tokens per canary.")] = 100,
    seed: Annotated[int, typer.Option(help="Seed of the canaries' text.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Copy a data folder and plant canaries in its training text: random passages, repeated.

    gemmule memorization looks for them in a run on the copy: how often must a passage be seen to
    be memorized?

    Example: gemmule canaries runs/data --out runs/data-canaries --repeats 1,8,64
    """
    from gemmule.console import console
    from gemmule.data.canaries import add_canaries
    from gemmule.data.dataset import Dataset

    try:
        counts = [int(number) for number in repeats.split(",")]
    except ValueError:
        raise ConfigError(
            f"--repeats {repeats!r} is not a list of numbers: write it as in 1,8,64"
        ) from None
    with stoppable("nothing was written"):
        copy = add_canaries(
            Dataset.open(data), out, repeats=counts, each=each, tokens=tokens, seed=seed
        )
    planted = copy.manifest["canaries"]
    if as_json:
        print(json.dumps({"fingerprint": copy.fingerprint, "canaries": planted}))
    else:
        console.print(
            f"{len(planted['repeats'])} canaries of {tokens} tokens as {len(planted['order'])} "
            f"documents in {out}, fingerprint {copy.fingerprint[:12]}",
            markup=False,
        )
