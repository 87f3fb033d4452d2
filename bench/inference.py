"""How fast a 2B model runs here: gemmule against llama.cpp, and both against the machine's limits.

A Gemma 2 2B of random weights is made once, in --folder, in our int4 and int8 and as llama.cpp's
Q4_0 (token embedding in Q6_K, as its own quantizer has it) and Q8_0. Each contestant lives in a
process of its own, and those that are compared take turns; figures are medians:

- decode: tokens a second after a prompt of 128 tokens; ours draws them, llama.cpp's logits are
  computed and left. batched8: eight sequences at once, all their tokens.
- prefill: a prompt of 512 tokens, to the first token of its answer.
- load: from opening the file, which is in the system's cache, to the first token after a prompt of
  16; in a fresh process each time, its imports not counted (--load-only measures this alone: two
  minutes). memory: that process's largest resident
  size, imports and pages of mapped files included; what imports alone take is listed as well.
- context: a step near 8192 positions over one at 128, by default and with keys and values in int8.

Both use the same number of threads and a float16 cache. llama.cpp runs under the interpreter of
--llama-python, which may be given several times with labels, as in avx512=venv/bin/python, to
compare builds: `ratios` are against the best build for each figure. Builds with GCC 12 crash in
their AMX code (ldtilecfg reads a struct that was half filled in): take Clang, or CMAKE_ARGS with
-DCMAKE_C_FLAGS and -DCMAKE_CXX_FLAGS of "-mno-amx-int8 -mno-amx-tile -mno-amx-bf16".
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import harness
from gemmule import files
from gemmule.errors import ConfigError
from gemmule.runtime import host

LLAMA = str(Path(__file__).with_name("llama_worker.py"))
PAIRS = {"int4": "Q4_0", "int8": "Q8_0"}
TRANSFORMERS = "transformers bf16"
FIRST = 16  # tokens of the prompt after loading
SEQUENCES, SHORT = 8, 1024
QUIET = 0.03  # of the processor, that others may have had


def main() -> int:
    """Command line; a worker when asked to be one."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="Example: python bench/inference.py --json bench/results/inference.json",
    )
    add = parser.add_argument
    add("--json", type=Path, metavar="FILE", help="write every figure there")
    add("--folder", type=Path, default=Path(tempfile.gettempdir()) / "gemmule-bench-inference",
        help="where models are made, and found again: 9 GB for the 2B")  # fmt: skip
    add("--llama-python", action="append", metavar="[LABEL=]PATH", help="who runs llama.cpp")
    add("--preset", default="2b", help="shape of the model")
    add("--threads", type=int, default=host.usable_cores())
    add("--rounds", type=int, default=5, help="turns of each contestant")
    add("--steps", type=int, default=16, help="decoded tokens of one turn")
    add("--context", type=int, default=8192, help="the long context; 0 leaves it out")
    add("--transformers", action="store_true", help="also transformers in bf16: 5 GB more memory")
    add("--load-only", action="store_true", help="leave out all but loading and its memory")
    add("--toy", action="store_true", help="tiny shapes: does it work at all?")
    add("--markdown", type=Path, metavar="FILE", help="only print the tables of such a JSON file")
    add("--worker", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.markdown:
        print(markdown(files.read_json(args.markdown)))
        return 0
    if args.toy:
        args.preset, args.context = "1m", min(args.context, 512)
    return harness.run(args, measure, lambda report: print(markdown(report)), build)


# Workers


def build(settings: Mapping[str, Any]) -> harness.Handler:
    """A worker: imports what it needs, and answers by method."""
    import torch

    torch.set_num_threads(settings["threads"])
    kind: dict[str, Callable[..., Any]] = {"limits": Limits, TRANSFORMERS: Transformers}
    contestant = kind.get(settings["mode"], Gemmule)(settings)
    contestant.imports_mb = harness.peak_mb()
    return lambda request: dict(getattr(contestant, request["what"])(request))


class Limits:
    """The machine itself."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        import gemmule.speed.machine_peak

        self.limits, self.settings = gemmule.speed.machine_peak, settings

    def read(self, _: Mapping[str, Any]) -> harness.Reply:
        """Memory and arithmetic."""
        threads = self.settings["threads"]
        size = 2**24 if self.settings["toy"] else self.limits.buffer_size()
        speeds = self.limits.read_speeds(sorted({1, threads}), size)
        return {
            "read_bytes_per_second": {str(count): speed for count, speed in speeds.items()},
            "int8_operations_per_second": self.limits.int8_operations(threads),
            "float32_operations_per_second": self.limits.float32_operations(),
            "buffer_bytes": size,
        }


class Gemmule:
    """Ours, through the engine."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        import gemmule.speed.benchmark
        import gemmule.speed.drive

        self.settings = settings
        self.drive, self.measure = gemmule.speed.drive, gemmule.speed.benchmark
        self.imports_mb = 0.0
        self.longs: dict[str, Any] = {}

    def load(self, request: Mapping[str, Any]) -> harness.Reply:
        """See llama_worker.py, here and below."""
        from gemmule.checkpoints.load import load_to_run

        began, spent = time.perf_counter(), time.process_time()
        self.model, _ = load_to_run(self.settings["file"])
        runner = self.runner(None)
        self.driver = self.drive.Driver(runner, cache_tokens=SHORT * SEQUENCES)
        self.driver.prefill(request["tokens"])
        seconds, spent = time.perf_counter() - began, time.process_time() - spent
        return {
            "seconds": seconds, "cpu_seconds": spent, "peak_mb": harness.peak_mb(),
            "imports_mb": self.imports_mb, "runner": type(runner).__name__,
        }  # fmt: skip

    def runner(self, cache: str | None) -> Any:
        """Who computes, with keys and values kept so."""
        return self.measure.runner_of(self.model, self.settings["threads"], cache)

    def prefill(self, request: Mapping[str, Any]) -> harness.Reply:
        """A prompt to the first token of its answer."""
        return {"seconds": self.driver.prefill(request["tokens"])}

    def decode(self, request: Mapping[str, Any]) -> harness.Reply:
        """Steps of some sequences together."""
        sequences, context = request["sequences"], request["context"]
        return {"seconds": self.driver.decode(sequences, context, request["steps"])}

    def fill(self, request: Mapping[str, Any]) -> harness.Reply:
        """Fills a long context, and keeps it."""
        began = time.perf_counter()
        room = request["tokens"] + request["most"] + 64
        for cache in (None, "int8"):
            driver = self.drive.Driver(self.runner(cache), cache_tokens=room)
            driver.begin(1, request["tokens"], request["most"])
            self.longs[cache or "default"] = driver
        return {"seconds": time.perf_counter() - began}

    def long(self, request: Mapping[str, Any]) -> harness.Reply:
        """Steps at its end, with either cache."""
        default = self.longs["default"].steps(request["steps"])
        return {"seconds": default, "int8_seconds": self.longs["int8"].steps(request["steps"])}


class Transformers:
    """transformers in bf16, random weights made in memory; it decodes and takes in prompts."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        import transformers

        self.transformers, self.settings = transformers, settings
        self.imports_mb = 0.0

    def load(self, request: Mapping[str, Any]) -> harness.Reply:
        """Random weights; not timed."""
        import torch

        from gemmule.checkpoints.hf.config import to_hf
        from gemmule.model.config import GemmaConfig

        values = to_hf(GemmaConfig.parse(self.settings["config"]), "bfloat16")
        shape = self.transformers.Gemma2Config(**values)
        torch.set_default_dtype(torch.bfloat16)
        with torch.device("meta"):
            self.model = self.transformers.Gemma2ForCausalLM(shape)
        self.model.to_empty(device="cpu")
        with torch.no_grad():
            for weight in self.model.parameters():
                weight.normal_(0, 0.02)
            rotary = self.model.model.rotary_emb
            self.model.model.rotary_emb = type(rotary)(shape)
        self.model.tie_weights()
        self.model.eval()
        return {"peak_mb": harness.peak_mb(), "imports_mb": self.imports_mb}

    def step(self, tokens: int, rows: int, cache: Any) -> tuple[Any, float]:
        """Some tokens of each row; the cache and the seconds."""
        import torch

        ids = torch.randint(4, 1000, (rows, tokens))
        began = time.perf_counter()
        with torch.inference_mode():
            out = self.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return out.past_key_values, time.perf_counter() - began

    def prefill(self, request: Mapping[str, Any]) -> harness.Reply:
        """A prompt to its last token's logits."""
        return {"seconds": self.step(request["tokens"], 1, None)[1]}

    def decode(self, request: Mapping[str, Any]) -> harness.Reply:
        """Steps of some rows together."""
        rows, seconds = request["sequences"], []
        cache, _ = self.step(request["context"], rows, None)
        for _ in range(request["steps"]):
            cache, taken = self.step(1, rows, cache)
            seconds.append(taken)
        return {"seconds": seconds}


# The parent's side


def llama_pythons(given: Sequence[str] | None) -> dict[str, str]:
    """Interpreters that have llama_cpp, by label."""
    interpreters = {}
    for i, text in enumerate(given or [sys.executable]):
        label, equals, path = text.partition("=")
        if not equals:
            label, path = "" if i == 0 else str(i + 1), text
        try:
            code = "import llama_cpp"
            done = subprocess.run([path, "-c", code], capture_output=True, check=False)
        except OSError as e:
            raise ConfigError(f"--llama-python {text}: {e.strerror}; give an interpreter") from None
        if not done.returncode:
            interpreters[label] = path
        elif given:
            raise ConfigError(
                f"--llama-python {text}: it cannot import llama_cpp; install it there"
            )
    if not interpreters:
        harness.say("llama-cpp-python is not installed: ours alone is measured")
    return interpreters


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The whole report."""
    import inference_files
    from gemmule.checkpoints.packed.quantize import choose_head
    from gemmule.model.config import PRESETS, preset
    from gemmule.quant import native

    small = {} if "vocab_size" in PRESETS.get(args.preset, {}) else {"vocab_size": 1024}
    config = preset(args.preset, **small)
    folder = args.folder / args.preset
    with files.writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
    pythons = llama_pythons(args.llama_python)
    settings: dict[str, Any] = {
        "preset": args.preset, "parameters": config.parameters, "threads": args.threads,
        "rounds": args.rounds, "steps": args.steps, "toy": args.toy, "load_only": args.load_only,
        "short_context": 32 if args.toy else 128, "prompt": 64 if args.toy else 512,
        "batched_context": 32, "sequences": SEQUENCES, "short": SHORT,
        "context": min(args.context, config.max_position_embeddings),
        "vocab_size": config.vocab_size, "long": args.context + 512,
        "config": config.model_dump(mode="json"),
        "instruction_set": native.instruction_set() if native.available() else None,
    }  # fmt: skip
    others = Others()
    with harness.Worker(__file__, "limits", settings) as worker:
        harness.say("the machine's limits")
        replies, _ = harness.take_turns([worker], args.rounds, what="read")
        limits = _best(replies["limits"])
    modes: dict[str, Any] = {}
    failed: dict[str, str] = {}
    for form, kind in PAIRS.items():
        harness.say(f"models in {form} and {kind}")
        head = choose_head(config, form)
        made = {f"gemmule {form}": inference_files.ours(folder, config, form, head)}
        interpreters = {f"gemmule {form}": (__file__, sys.executable)}
        for label, python in pythons.items():
            name = f"llama.cpp {kind}" + (f" {label}" if label else "")
            made[name] = inference_files.theirs(folder, config, kind)
            interpreters[name] = (LLAMA, python)
        modes |= _pair(settings, made, interpreters, args.transformers and form == "int4", failed)
    shown = {key: value for key, value in settings.items() if key != "config"}
    return {
        "settings": shown, "limits": limits, "modes": modes, "ratios": ratios(modes),
        "failed": failed, "others_cpu_share": others.share(),
    }  # fmt: skip


class Others:
    """How much of the processor goes to anybody else. Taking turns does not make up for it.

    Threads that wait for one another in a busy loop lose all their speed when one of them is not
    running, and contestants differ in how they wait: with one other busy process, steps took 50
    times as long in one of them and 2,000 times in the other.
    """

    def __init__(self) -> None:
        self.before = self._busy(), self._own()
        self.began = time.monotonic()

    def share(self) -> float | None:
        """Of all cores, since this was made; workers must have ended. None: not known here."""
        busy, own = self._busy(), self._own()
        if busy is None or self.before[0] is None:
            return None
        theirs = busy - self.before[0] - (own - self.before[1])
        cores = os.cpu_count() or 1
        return harness.rounded(max(0.0, theirs) / cores / (time.monotonic() - self.began))

    @staticmethod
    def _busy() -> float | None:
        """Seconds of all processes together, and of what the host took away."""
        try:
            fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
        except OSError:
            return None
        user, nice, system, _, _, irq, soft, steal = map(int, fields[:8])
        return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")

    @staticmethod
    def _own() -> float:
        t = os.times()
        return t.user + t.system + t.children_user + t.children_system


def _best(replies: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The largest of each: whatever else runs can only lower them."""
    speeds = [reply["read_bytes_per_second"] for reply in replies]
    limits = {"read_bytes_per_second": {n: max(s[n] for s in speeds) for n in speeds[0]}}
    for name in ("int8_operations_per_second", "float32_operations_per_second", "buffer_bytes"):
        values = [reply[name] for reply in replies if reply[name] is not None]
        limits[name] = max(values, default=None)
    return limits


def _pair(
    settings: Mapping[str, Any],
    made: Mapping[str, Mapping[str, Any]],
    interpreters: Mapping[str, tuple[str, str]],
    with_transformers: bool,
    failed: dict[str, str],
) -> dict[str, Any]:
    """All figures of contestants that are compared with each other."""
    import inference_files

    rounds, steps = settings["rounds"], settings["steps"]

    def worker(name: str) -> harness.Worker:
        script, python = interpreters.get(name, (__file__, sys.executable))
        more = {"file": made[name]["path"]} if name in made else {}
        return harness.Worker(script, name, {**settings, **more}, python)

    for path in {about["path"] for about in made.values()}:
        inference_files.read_once(path)
    made = dict(made)
    for name in [name for name in made if name.startswith("llama.cpp")]:
        try:
            with worker(name) as fresh:
                fresh.ask(what="load", tokens=FIRST)
        except harness.WorkerError as e:  # some builds crash; the others are still compared with
            harness.say(f"{e}\nleft out")
            failed[name] = str(e)
            del made[name]
    harness.say("loading")
    loads: dict[str, list[harness.Reply]] = {name: [] for name in made}
    for i in range(rounds):
        for name in _rotated(list(made), i):
            with worker(name) as fresh:
                loads[name].append(fresh.ask(what="load", tokens=FIRST))
    about = {
        name: {key: of[key] for key in ("format", "head", "bits_per_weight", "bytes")}
        for name, of in made.items()
    }
    if settings["load_only"]:
        return {name: {**about[name], **_load_figures(loads[name])} for name in made}
    with ExitStack() as stack:
        names = [*made, *([TRANSFORMERS] if with_transformers else [])]
        workers = [stack.enter_context(worker(name)) for name in names]
        for each in workers:
            each.ask(what="load", tokens=FIRST)
        asked = {
            "decode": {"what": "decode", "sequences": 1, "context": settings["short_context"],
                       "steps": steps},
            "batched8": {"what": "decode", "sequences": SEQUENCES,
                         "context": settings["batched_context"], "steps": max(2, steps // 2)},
            "prefill": {"what": "prefill", "tokens": settings["prompt"]},
        }  # fmt: skip
        replies = {}
        for what, request in asked.items():
            harness.say(what)
            for each in workers:
                each.ask(**{**request, "steps": 2})  # warm
            replies[what], _ = harness.take_turns(workers, rounds, **request)
        if settings["context"] and "gemmule int4" in made:
            comparing = [each for each in workers if each.mode != TRANSFORMERS]
            replies["long"] = _long(comparing, settings)
        idle = {each.mode: each.idle_cpu_seconds for each in workers}
    return {
        name: {
            **about.get(name, {}), **_figures(name, loads.get(name, []), replies, settings),
            "idle_cpu_seconds": idle[name],
        }
        for name in names
    }  # fmt: skip


def _rotated(names: Sequence[str], by: int) -> list[str]:
    first = by % len(names)
    return [*names[first:], *names[:first]]


def _long(workers: Sequence[harness.Worker], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Steps near the end of the long context."""
    turns, steps = max(2, settings["rounds"] // 2), max(2, settings["steps"] // 2)
    most = (turns + 1) * steps
    tokens = settings["context"] - most - 8
    for each in workers:
        harness.say(f"filling {tokens} positions: {each.mode}")
        each.ask(what="fill", tokens=tokens, most=most)
        each.ask(what="long", steps=steps)  # warm
    return harness.take_turns(workers, turns, what="long", steps=steps)[0]


def _load_figures(loads: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Medians of fresh processes; `load_cpu_seconds` is what other work changes least."""
    medians = {
        "load_seconds": "seconds", "load_cpu_seconds": "cpu_seconds", "peak_rss_mb": "peak_mb",
        "imports_rss_mb": "imports_mb",
    }  # fmt: skip
    kept = ("resident_mb", "version", "system", "runner")
    return {
        **{name: harness.median([reply[key] for reply in loads]) for name, key in medians.items()},
        "load_repetitions": [reply["seconds"] for reply in loads],
        **{key: loads[-1][key] for key in kept if key in loads[-1]},
    }


def _figures(
    name: str,
    loads: Sequence[Mapping[str, Any]],
    replies: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Medians of one contestant, with the repetitions."""
    figures = _load_figures(loads) if loads else {}
    seconds = [reply["seconds"] for reply in replies["prefill"][name]]
    figures["prefill_tokens_per_second"] = settings["prompt"] / harness.median(seconds)
    figures["prefill_repetitions"] = seconds
    for what, many in (("decode", 1), ("batched8", SEQUENCES)):
        turns = [reply["seconds"] for reply in replies[what][name]]
        step = harness.median([second for turn in turns for second in turn])
        figures[f"{what}_tokens_per_second"] = many / step
        figures[f"{what}_repetitions"] = [harness.median(turn) for turn in turns]
    if name in replies.get("long", {}):
        short = 1 / figures["decode_tokens_per_second"]
        for key, label in (("seconds", "context"), ("int8_seconds", "context_int8_cache")):
            turns = [reply[key] for reply in replies["long"][name] if key in reply]
            if turns:
                step = harness.median([second for turn in turns for second in turn])
                figures[f"{label}_step_seconds"] = step
                figures[f"{label}_slowdown"] = harness.rounded(step / short)
    return figures


def ratios(modes: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Ours over the best build of llama.cpp; `context` is our own step there over one at 128."""
    wanted = (
        ("decode_int4", "int4", "decode_tokens_per_second", max),
        ("decode_int8", "int8", "decode_tokens_per_second", max),
        ("prefill_int4", "int4", "prefill_tokens_per_second", max),
        ("prefill_int8", "int8", "prefill_tokens_per_second", max),
        ("batched8_int4", "int4", "batched8_tokens_per_second", max),
        ("load_int4", "int4", "load_seconds", min),
        ("load_int8", "int8", "load_seconds", min),
        ("memory_int4", "int4", "peak_rss_mb", min),
    )
    ratios = {}
    for name, form, key, best in wanted:
        mode = f"llama.cpp {PAIRS[form]}"
        builds = [m[key] for name, m in modes.items() if mode in name and key in m]
        if builds:
            ratios[name] = harness.rounded(modes[f"gemmule {form}"][key] / best(builds))
    for name, key in (
        ("context_8192", "context"),
        ("context_8192_int8_cache", "context_int8_cache"),
    ):
        if f"{key}_slowdown" in modes["gemmule int4"]:
            ratios[name] = modes["gemmule int4"][f"{key}_slowdown"]
    return ratios


def markdown(report: Mapping[str, Any]) -> str:
    """The report as tables for docs/performance.md."""
    settings, limits, machine = report["settings"], report["limits"], report["machine"]
    speeds = ", ".join(
        f"{speed / 1e9:.1f} GB/s on {count} thread{'s' * (count != '1')}"
        for count, speed in limits["read_bytes_per_second"].items()
    )
    integers = limits["int8_operations_per_second"]
    lines = [
        f"{machine['processor']}, {settings['threads']} threads, "
        f"{settings['instruction_set'] or 'no native library'}; memory is read at {speeds}"
        + (f"; int8 products run at {integers / 1e9:,.0f} GOP/s." if integers else "."),
        "",
        f"| Gemma 2 {settings['preset'].upper()}, random weights | bits a weight "
        "| decode, tokens/s "
        f"| {SEQUENCES} at once, tokens/s | prompt of {settings['prompt']}, tokens/s "
        f"| load to first token, s | peak memory, MB (imports) "
        f"| step at {settings['context']} over {settings['short_context']} |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, m in report["modes"].items():
        long = [_cell(m, "context_slowdown", ".2f")]
        if "context_int8_cache_slowdown" in m:
            long.append(f"{m['context_int8_cache_slowdown']:.2f} (int8 cache)")
        memory = "-"
        if "peak_rss_mb" in m:
            memory = f"{m['peak_rss_mb']:,.0f} ({m['imports_rss_mb']:,.0f})"
        head = f", head {m['head']}" if "head" in m else ""
        lines.append(
            f"| {name}{head} | {_cell(m, 'bits_per_weight', '.3f')} "
            f"| {_cell(m, 'decode_tokens_per_second', '.2f')} "
            f"| {_cell(m, 'batched8_tokens_per_second', '.1f')} "
            f"| {_cell(m, 'prefill_tokens_per_second', '.1f')} "
            f"| {_cell(m, 'load_seconds', '.2f')} "
            f"| {memory} | {', '.join(long)} |"
        )
    lines += ["", "| ours over the best build of llama.cpp | |", "|---|---|"]
    lines += [f"| {name} | {value:.2f} |" for name, value in report["ratios"].items()]
    systems = {m["system"]: m["version"] for m in report["modes"].values() if "system" in m}
    lines += [f"\nllama-cpp-python {version}: `{text}`" for text, version in systems.items()]
    lines += [f"\n{message.splitlines()[0]}: left out" for message in report["failed"].values()]
    share = report["others_cpu_share"]
    if share is None or share > QUIET:
        said_share = "an unknown part" if share is None else f"{share:.0%}"
        lines.append(
            f"\n**Not to be relied on: other processes had {said_share} of the processor.**"
        )
    return "\n".join(lines)


def _cell(figures: Mapping[str, Any], key: str, form: str) -> str:
    return format(figures[key], form) if key in figures else "-"


if __name__ == "__main__":
    sys.exit(main())
