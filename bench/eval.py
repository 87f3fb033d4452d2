"""Multiple choice, documents per second: gemmule as lm-eval's model against lm-eval's `hf` backend.

Both are given the same requests through lm-eval's own interface, and are timed from text to
log-likelihoods. Prompts are made once, before. lm-eval's backend runs with each of several batch
sizes, and is compared at the best of them for each benchmark: `ratios` are gemmule's documents a
second over its. In `all`, each benchmark counts as many documents as it has. What the contestants
find is compared request by request (`agreement`). `peak_rss_mb` is a process's largest resident
size, weights and imports included; what imports alone take is listed as well.

The model is random, of --preset, with a tokenizer trained on Python's own library, unless --model
names one: a run or a folder in Hugging Face's layout. Documents are those of --data-dir (laid out
as docs/benchmark-data.md says); without it, made-up ones of about the same lengths. Documents that
do not fit into the model's context are left out.
"""

import argparse
import json
import random
import sys
import sysconfig
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import harness
import inference
from gemmule import files
from gemmule.console import table
from gemmule.errors import ConfigError
from gemmule.runtime import host

OURS = "gemmule"
MODES = (OURS, "hf-1", "hf-8", "hf-32")
SUBJECTS = 5  # of MMLU's
TOLERANCE = 1e-3  # nats, of a request
VOCABULARY, TEXT = 4096, 4_000_000  # tokens; characters that they are learned from

Pairs = list[tuple[str, str]]  # a document's requests


@dataclass(frozen=True)
class Kind:
    """A made-up benchmark: words of its parts, about as many as the real one has.

    Attributes:
        shots: examples before each question.
        context: characters of a question and of each example.
        choices: number of choices.
        answer: characters of each choice.
        contexts_differ: whether the choice is in the context, as in Winogrande.
        same_examples: for every question, as in a subject of MMLU; else drawn for each.
    """

    shots: int
    context: int
    choices: int
    answer: int
    contexts_differ: bool = False
    same_examples: bool = False


KINDS = {
    "arc-e": Kind(0, 21, 4, 4),
    "piqa": Kind(0, 9, 2, 20),
    "boolq": Kind(0, 115, 2, 1),
    "hellaswag-0": Kind(0, 40, 4, 25),
    "winogrande": Kind(5, 13, 2, 6, contexts_differ=True),
    "mmlu": Kind(5, 55, 4, 1, same_examples=True),
}


def main() -> int:
    """Command line; a worker when asked to be one."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        epilog="Example: python bench/eval.py --data-dir benchmarks --json bench/results/eval.json",
    )
    add = parser.add_argument
    add("--json", type=Path, metavar="FILE", help="write every figure there")
    add("--data-dir", type=Path, metavar="DIR", help="benchmark files; without it: made-up ones")
    add("--model", type=Path, metavar="PATH", help="a run or a folder; without it: a random one")
    add("--preset", default="3m", help="shape of the random model")
    add("--benchmarks", default=",".join(KINDS), metavar="A,B", help=f"of: {', '.join(KINDS)}")
    add("--documents", type=int, default=60, help="of each benchmark")
    add("--rounds", type=int, default=3, help="turns of each contestant")
    add(
        "--modes", default=",".join(MODES), metavar="A,B", help="contestants; hf-N has batches of N"
    )
    add("--threads", type=int, default=host.usable_cores())
    add("--toy", action="store_true", help="tiny shapes: does it work at all?")
    add("--worker", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.modes, args.benchmarks = args.modes.split(","), args.benchmarks.split(",")
    for mode in args.modes:
        if mode != OURS and not mode.removeprefix("hf-").isdecimal():
            parser.error(f"no contestant {mode!r}; there are: {OURS}, and hf-N for batches of N")
    for name in args.benchmarks:
        if name not in KINDS:
            parser.error(f"no benchmark {name!r}; there are: {', '.join(KINDS)}")
    if min(args.documents, args.rounds, args.threads) < 1:
        parser.error("--documents, --rounds and --threads must be at least 1")
    return harness.run(args, measure, show, build)


# Workers


def build(settings: Mapping[str, Any]) -> harness.Handler:
    """A contestant, its model loaded, ready to be asked for a benchmark."""
    import torch

    torch.set_num_threads(settings["threads"])
    # Imported by all, so that it counts as imports in all.
    from lm_eval.models.huggingface import HFLM

    from gemmule.evals.lm_eval_model import GemmuleLM

    imports_mb = harness.peak_mb()
    path, mode = settings["model"], settings["mode"]
    lm: Any
    if mode == OURS:
        lm = GemmuleLM(path, dtype="float32")
    else:
        batch_size = int(mode.removeprefix("hf-"))
        lm = HFLM(str(path), dtype="float32", device="cpu", batch_size=batch_size)
    documents = files.read_json(Path(settings["requests"]))

    def handle(request: Mapping[str, Any]) -> harness.Reply:
        asked = instances(request["benchmark"], documents[request["benchmark"]])
        began = time.perf_counter()
        scores = lm.loglikelihood(asked, disable_tqdm=True)
        seconds = time.perf_counter() - began
        return {
            "seconds": seconds, "scores": scores if request["tell"] else None,
            "peak_rss_mb": harness.peak_mb(), "imports_rss_mb": imports_mb,
        }  # fmt: skip

    return handle


def instances(name: str, documents: Sequence[Pairs]) -> list[Any]:
    """lm-eval's requests."""
    from lm_eval.api.instance import Instance

    return [
        Instance("loglikelihood", {}, tuple(pair), idx, metadata=(name, number, 1))
        for number, pairs in enumerate(documents)
        for idx, pair in enumerate(pairs)
    ]


# The parent's side


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The whole report."""
    if args.toy:
        args.preset, args.documents = "1m", min(args.documents, 4)
    others = inference.Others()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        model = hf_folder(args.model) if args.model else random_model(Path(folder), args)
        documents, left_out = fitting(chosen(args), model)
        requests = Path(folder) / "requests.json"
        files.write_json(requests, documents)
        settings = {"model": str(model), "requests": str(requests), "threads": args.threads}
        harness.say(f"{', '.join(args.modes)}: loading")
        workers = [
            stack.enter_context(harness.Worker(__file__, mode, settings)) for mode in args.modes
        ]
        taken: dict[str, dict[str, list[harness.Reply]]] = {}
        first: dict[str, dict[str, list[Any]]] = {}
        for name in documents:
            harness.say(f"{name}: {len(documents[name])} documents")
            first[name] = {w.mode: w.ask(benchmark=name, tell=True)["scores"] for w in workers}
            taken[name], _ = harness.take_turns(workers, args.rounds, benchmark=name, tell=False)
        idle = {w.mode: harness.rounded(w.idle_cpu_seconds) for w in workers}
    benchmarks = {
        name: {
            "documents": len(documents[name]),
            "requests": sum(map(len, documents[name])),
            "left_out": left_out[name],
            **speeds(len(documents[name]), replies),
        }
        for name, replies in taken.items()
    }
    return {
        "lm_eval": metadata.version("lm_eval"),
        "settings": {
            "model": "random" if args.model is None else args.model.name,
            "preset": args.preset if args.model is None else None,
            "documents": "made up" if args.data_dir is None else "published",
            "threads": args.threads, "rounds": args.rounds, "toy": args.toy, "dtype": "float32",
        },
        "benchmarks": benchmarks,
        "modes": {mode: of_mode(mode, benchmarks, taken, idle) for mode in args.modes},
        "ratios": ratios(benchmarks),
        "agreement": agreement(first),
        "others_cpu_share": others.share(),
    }  # fmt: skip


def hf_folder(path: Path) -> Path:
    """Where a model's files in Hugging Face's layout are."""
    for folder in (path / "model", path):
        if (folder / "config.json").is_file():
            return folder
    raise ConfigError(
        f"{path} has no model in Hugging Face's layout: give a run, or gemmule convert"
    )


def random_model(folder: Path, args: argparse.Namespace) -> Path:
    """A random model, saved with its tokenizer."""
    import torch

    from gemmule.checkpoints.hf.writer import save_model
    from gemmule.model.config import preset
    from gemmule.model.gemma import Gemma
    from gemmule.model.tokenizer import train_tokenizer

    harness.say("a random model, and a tokenizer for it")
    texts, size = [], 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        texts.append(path.read_text(encoding="utf-8", errors="replace"))
        size += len(texts[-1])
        if size > (TEXT // 20 if args.toy else TEXT):
            break
    tokenizer = train_tokenizer(texts, 600 if args.toy else VOCABULARY)
    torch.manual_seed(0)
    shape = {"vocab_size": tokenizer.vocab_size, "max_position_embeddings": 8192}
    model = Gemma(preset(args.preset, **shape))
    save_model(model, tokenizer, folder / "model")
    return folder / "model"


def chosen(args: argparse.Namespace) -> dict[str, list[Pairs]]:
    """Each benchmark's documents."""
    if args.data_dir is None:
        kinds = {name: KINDS[name] for name in args.benchmarks}
        if args.toy:
            kinds = {n: replace(k, shots=min(k.shots, 1), context=9) for n, k in kinds.items()}
        return {name: made_up(kind, args.documents) for name, kind in kinds.items()}
    return {name: published(name, args.data_dir, args.documents) for name in args.benchmarks}


def published(name: str, data_dir: Path, count: int) -> list[Pairs]:
    """The first documents of a benchmark, as lm-eval asks them."""
    from gemmule.evals.benchmarks import suites
    from gemmule.evals.benchmarks.lm_eval_tasks import Unavailable, load_tasks
    from gemmule.evals.benchmarks.silence_lm_eval import silenced

    harness.say(f"{name}: prompts")
    try:
        with silenced():
            tasks = list(load_tasks(suites.find(name), data_dir).tasks.values())[:SUBJECTS]
    except Unavailable as e:
        raise ConfigError(f"{name}: {e}; leave it out with --benchmarks") from None
    rows = []
    for task in tasks:
        with silenced():
            task.build_all_requests(limit=-(-count // len(tasks)))
        documents: dict[int, Pairs] = {}
        for instance in task.instances:
            documents.setdefault(instance.doc_id, []).append(instance.args)
        rows += documents.values()
    return rows[:count]


def made_up(kind: Kind, count: int) -> list[Pairs]:
    """Documents of words from Python's own documentation."""
    pick = random.Random(0)
    words = sorted({word for word in (argparse.__doc__ or "").split() if word.isalpha()})

    def text(length: int) -> str:
        return " ".join(pick.choices(words, k=max(1, round(length * pick.uniform(0.5, 1.5)))))

    def examples() -> str:
        shown = [
            f"{text(kind.context)}\nAnswer: {text(kind.answer)}\n\n" for _ in range(kind.shots)
        ]
        return "".join(shown)

    same = examples()
    documents = []
    for _ in range(count):
        question = (same if kind.same_examples else examples()) + text(kind.context)
        if kind.contexts_differ:
            answer = f" {text(kind.answer)}"
            pairs = [(f"{question} {text(1)}", answer) for _ in range(kind.choices)]
        else:
            question += "\nAnswer:"
            pairs = [(question, f" {text(kind.answer)}") for _ in range(kind.choices)]
        documents.append(pairs)
    return documents


def fitting(
    documents: Mapping[str, list[Pairs]], model: Path
) -> tuple[dict[str, list[Pairs]], dict[str, int]]:
    """Documents that fit into the model's context, and how many do not."""
    from gemmule.checkpoints.load import open_checkpoint

    with open_checkpoint(model) as checkpoint:
        tokenizer, most = checkpoint.tokenizer, checkpoint.config.max_position_embeddings
    kept = {
        name: [
            pairs for pairs in some
            if all(len(tokenizer.encode(context + answer)) < most for context, answer in pairs)
        ]
        for name, some in documents.items()
    }  # fmt: skip
    for name, some in kept.items():
        if not some:
            raise ConfigError(
                f"no document of {name} fits into the model's context of {most} tokens"
            )
    return kept, {name: len(documents[name]) - len(some) for name, some in kept.items()}


def speeds(count: int, replies: Mapping[str, Sequence[harness.Reply]]) -> dict[str, Any]:
    """A benchmark's documents a second, by contestant, and how ours compare."""
    modes: dict[str, Any] = {}
    for mode, of_mode in replies.items():
        rates = [harness.rounded(count / r["seconds"]) for r in of_mode]
        modes[mode] = {"documents_per_second": harness.median(rates), "repetitions": rates}
    rate = {mode: figures["documents_per_second"] for mode, figures in modes.items()}
    theirs = {mode: value for mode, value in rate.items() if mode != OURS}
    best = max(theirs, key=lambda mode: theirs[mode], default=None)
    ratio = harness.rounded(rate[OURS] / theirs[best]) if best and OURS in rate else None
    return {"modes": modes, "hf_best": best, "vs_hf_best": ratio}


def of_mode(
    mode: str,
    benchmarks: Mapping[str, Mapping[str, Any]],
    taken: Mapping[str, Mapping[str, Sequence[harness.Reply]]],
    idle: Mapping[str, float],
) -> dict[str, Any]:
    """A contestant over all benchmarks, and its memory."""
    last = list(taken.values())[-1][mode][-1]
    return {
        "documents_per_second": harness.rounded(
            overall(benchmarks, dict.fromkeys(benchmarks, mode))
        ),
        "peak_rss_mb": harness.rounded(last["peak_rss_mb"]),
        "imports_rss_mb": harness.rounded(last["imports_rss_mb"]),
        "idle_cpu_seconds": idle[mode],
    }


def overall(benchmarks: Mapping[str, Mapping[str, Any]], modes: Mapping[str, str]) -> float:
    """Documents a second over all of them, each by its own contestant."""
    documents = sum(b["documents"] for b in benchmarks.values())
    seconds = sum(
        b["documents"] / b["modes"][modes[name]]["documents_per_second"]
        for name, b in benchmarks.items()
    )
    return documents / seconds


def ratios(benchmarks: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Ours over the other's best, by benchmark and for all of them."""
    if any(b["vs_hf_best"] is None for b in benchmarks.values()):
        return {}
    best = {name: b["hf_best"] for name, b in benchmarks.items()}
    ours = overall(benchmarks, dict.fromkeys(benchmarks, OURS))
    return {
        **{name: b["vs_hf_best"] for name, b in benchmarks.items()},
        "all": harness.rounded(ours / overall(benchmarks, best)),
    }


def agreement(first: Mapping[str, Mapping[str, Sequence[Any]]]) -> dict[str, Any]:
    """How far contestants are apart, request by request."""
    worst, unlike = 0.0, 0
    for scores in first.values():
        reference, *rest = scores.values()
        for other in rest:
            pairs = list(zip(reference, other, strict=True))
            worst = max(worst, *(abs(a[0] - b[0]) for a, b in pairs))
            unlike += sum(a[1] != b[1] for a, b in pairs)
    return {
        "largest_difference_nats": harness.rounded(worst),
        "greedy_unlike": unlike,
        "agrees": worst <= TOLERANCE,
    }


def show(report: Mapping[str, Any]) -> None:
    """Prints the report as tables."""
    modes = list(report["modes"])
    rows = [
        (
            name,
            str(b["documents"]),
            *(f"{b['modes'][mode]['documents_per_second']:.1f}" for mode in modes),
            "" if b["vs_hf_best"] is None else f"{b['vs_hf_best']:.2f}",
        )
        for name, b in report["benchmarks"].items()
    ]
    every = [f"{report['modes'][mode]['documents_per_second']:.1f}" for mode in modes]
    count = sum(b["documents"] for b in report["benchmarks"].values())
    ratio = report["ratios"].get("all")
    rows.append(("all", str(count), *every, "" if ratio is None else f"{ratio:.2f}"))
    memory = [f"{report['modes'][mode]['peak_rss_mb']:,.0f}" for mode in modes]
    rows.append(("peak MB", "", *memory, ""))
    table(
        ["documents/s", "n", *modes, "x best hf"], rows,
        title=f"multiple choice, {report['settings']['threads']} threads",
    )  # fmt: skip
    agreement = report["agreement"]
    harness.say(
        f"largest difference of a log-likelihood: {agreement['largest_difference_nats']:.1e} nats"
    )


if __name__ == "__main__":
    sys.exit(main())
