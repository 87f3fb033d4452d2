"""Reading and writing a full-size checkpoint: time and memory, against transformers and the disk.

A random Gemma 2 2B in bf16 (5.2 GB) is written in Hugging Face's layout and read by

- gemmule: gemmule's reader, each weight straight into its place, checked for NaN and Inf;
- transformers: AutoModelForCausalLM.from_pretrained in bf16, which maps the files and reads (and
  checks) nothing until a weight is used: no like with like;
- read: the files' bytes into memory that was just asked for: what any reader must do at least.

"warm" is with the files in the system's cache, "cold" after they were dropped from it. Ratios are
gemmule's time over the other's. `peak_over_model` is the largest resident size of the reader's
process, the interpreter and libraries included, over the size of the weights.

Then the model generates, and is converted to GGUF Q8_0, which llama-cpp-python (where installed)
reads and runs; `export` holds what `gemmule convert` found.
"""

import argparse
import gc
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import harness
from gemmule.console import key_values, table
from gemmule.runtime import host

if TYPE_CHECKING:
    from gemmule.model.tokenizer import Tokenizer

MODES = ("gemmule", "transformers", "read")
TEXT = Path(tempfile.__file__)  # real text, on every machine


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """What every contestant is given."""
    return {
        "preset": "1m" if args.toy else "2b",
        "vocab_size": 1024 if args.toy else 256_000,
        "threads": host.usable_cores(),
        "seed": 0,
        "toy": args.toy,
        "rounds": args.rounds,
        "steps_per_repetition": 1,
    }


def write_model(
    settings: Mapping[str, Any], folder: Path, tokenizer: "Tokenizer | None" = None
) -> int:
    """A random model in HF's layout, made as it is written; returns its weights' bytes.

    Args:
        settings: preset, vocab_size and seed.
        folder: where.
        tokenizer: the model's; None: a small one.
    """
    import torch

    from gemmule.checkpoints import tensor_layout
    from gemmule.checkpoints.checkpoint import Checkpoint
    from gemmule.checkpoints.hf import writer
    from gemmule.checkpoints.stored_tensor import StoredTensor
    from gemmule.model.config import preset
    from gemmule.model.gemma import Gemma
    from gemmule.model.tokenizer import train_tokenizer

    generator = torch.Generator().manual_seed(settings["seed"])

    class Drawn(StoredTensor):
        def chunks(self) -> Iterator[torch.Tensor]:
            spread = self.shape[1] ** -0.5 if len(self.shape) > 1 else 0.1
            for at in range(0, self.shape[0], self.rows_at_once):
                rows = torch.empty(min(self.rows_at_once, self.shape[0] - at), *self.shape[1:])
                yield rows.normal_(0, spread, generator=generator).bfloat16()

    config = preset(settings["preset"], vocab_size=settings["vocab_size"])
    with torch.device("meta"):
        wanted = Gemma(config).state_dict()
    tensors = {
        name: Drawn(name, tuple(tensor.shape), torch.bfloat16, "BF16", name)
        for name, tensor in wanted.items()
    }
    if tokenizer is None:
        texts = [TEXT.read_text(), Path(argparse.__file__).read_text()]
        tokenizer = train_tokenizer(texts, 1024)
    drawn = Checkpoint(folder, "memory", config, tensors, lambda: tokenizer)
    tensor_layout.write(writer.layouts(drawn), folder)
    writer.write_companions(drawn, folder, None)
    return sum(tensor.nbytes for tensor in tensors.values())


def build(settings: Mapping[str, Any]) -> harness.Handler:
    """A worker: loads, or converts, when asked."""
    import torch

    import gemmule

    folder, mode = Path(settings["folder"]), settings["mode"]
    torch.set_num_threads(settings["threads"])
    weights = sorted(folder.glob("*.safetensors"))
    if mode == "transformers":
        import transformers
    imports_mb = harness.peak_mb()

    def load() -> Any:
        if mode == "gemmule":
            return gemmule.load(folder)
        if mode == "transformers":
            return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        held = []
        for path in weights:
            buffer = torch.empty(path.stat().st_size, dtype=torch.uint8)
            with path.open("rb", buffering=0) as f:
                view = memoryview(buffer.numpy())
                while view and (count := f.readinto(view[: 2**24])):
                    view = view[count:]
            held.append(buffer)
        return held

    def handle(request: Mapping[str, Any]) -> harness.Reply:
        if request["cold"]:
            drop_from_cache(weights)
        began = time.perf_counter()
        held = load()
        seconds = time.perf_counter() - began
        reply: harness.Reply = {
            "seconds": seconds, "peak_mb": harness.peak_mb(), "imports_mb": imports_mb,
        }  # fmt: skip
        if request.get("generate"):
            began = time.perf_counter()
            text = held.generate("def add(a, b):", max_new_tokens=8, temperature=0.0)
            reply |= {"generated": text, "generate_seconds": time.perf_counter() - began}
        del held
        gc.collect()
        return reply

    return handle


def drop_from_cache(paths: list[Path]) -> None:
    """Has the next read come from the disk, as far as the system does as it is told."""
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The whole report."""
    settings = settings_of(args)
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        folder = Path(scratch) / "model"
        folder.mkdir()
        harness.say(f"writing a random {settings['preset']}")
        began = time.perf_counter()
        model_bytes = write_model(settings, folder)
        settings |= {"model_bytes": model_bytes, "write_seconds": time.perf_counter() - began}
        workers = [
            stack.enter_context(harness.Worker(__file__, mode, {**settings, "folder": str(folder)}))
            for mode in args.modes
        ]
        warm, _ = harness.take_turns(workers, args.rounds, cold=False)
        cold, _ = harness.take_turns(workers, max(1, args.rounds // 2), cold=True)
        generated = next(
            (w.ask(cold=False, generate=True) for w in workers if w.mode == "gemmule"), {}
        )
        modes = {
            mode: {
                "seconds": harness.median([r["seconds"] for r in warm[mode]]),
                "seconds_cold": harness.median([r["seconds"] for r in cold[mode]]),
                "repetitions": [r["seconds"] for r in warm[mode]],
                "repetitions_cold": [r["seconds"] for r in cold[mode]],
                "peak_rss_mb": warm[mode][-1]["peak_mb"],
                "imports_rss_mb": warm[mode][-1]["imports_mb"],
                "peak_over_model": harness.rounded(warm[mode][-1]["peak_mb"] * 1e6 / model_bytes),
            }
            for mode in args.modes
        }
        stack.close()  # the workers' memory is free again
        return {
            "settings": settings,
            "modes": modes,
            "ratios": ratios(modes),
            "generated": {k: generated[k] for k in generated if k.startswith("generate")},
            "export": export(folder, Path(scratch) / "gguf"),
        }


def export(folder: Path, out: Path) -> dict[str, Any]:
    """Converts to GGUF Q8_0 and has it read; what came of it, how long and how much memory."""
    import json
    import subprocess

    code = (
        "import json, resource, sys, time; from pathlib import Path\n"
        "from gemmule.checkpoints.convert import convert\n"
        "began = time.perf_counter(); marks = {}\n"
        "def mark(what, *_): marks.setdefault(what, time.perf_counter() - began)\n"
        "report = convert(sys.argv[1], Path(sys.argv[2]), 'gguf', 'Q8_0',"
        " text=Path(sys.argv[3]), progress=mark)\n"
        "peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3\n"
        "print(json.dumps({'seconds': time.perf_counter() - began, 'began_at': marks,"
        " 'peak_rss_mb': peak, 'files': report['files'], 'notes': report['notes'],"
        " **report['verified']}))"
    )
    harness.say("converting to GGUF Q8_0")
    done = subprocess.run(
        [sys.executable, "-c", code, folder, out, TEXT],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise harness.WorkerError("the conversion failed")
    return dict(json.loads(done.stdout))


def ratios(modes: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Gemmule's seconds and peak over the others'."""
    ratios = {}
    for mode, figures in modes.items():
        if mode == "gemmule" or "gemmule" not in modes:
            continue
        for kind, key in (("warm", "seconds"), ("cold", "seconds_cold"), ("peak", "peak_rss_mb")):
            ratios[f"{kind}_vs_{mode}"] = harness.rounded(modes["gemmule"][key] / figures[key])
    return ratios


def show(report: Mapping[str, Any]) -> None:
    """Prints the report as tables."""
    rows = [
        (
            mode,
            f"{m['seconds']:.2f}",
            f"{min(m['repetitions']):.2f}-{max(m['repetitions']):.2f}",
            f"{m['seconds_cold']:.2f}",
            f"{m['peak_rss_mb']:,.0f}",
            f"{m['peak_over_model']:.2f}",
        )
        for mode, m in report["modes"].items()
    ]
    size = report["settings"]["model_bytes"] / 1e9
    table(
        ["loading", "s", "range", "s cold", "peak MB", "x weights"],
        rows,
        title=f"Gemma 2 {report['settings']['preset'].upper()} in bf16, {size:.2f} GB",
    )
    export = report["export"]
    key_values(
        [
            ["GGUF Q8_0", f"{export['seconds']:.1f} s, peak {export['peak_rss_mb']:,.0f} MB"],
            ["weights", f"error {export['weights']['relative_error']:.2e} (RMS)"],
            *([name, str(value)] for name, value in export["reader"].items()),
        ]
    )


def main() -> int:
    """Command line; a worker when asked to be one."""
    args = harness.parse_arguments("checkpoints.py", __doc__.splitlines()[0], MODES)
    return harness.run(args, measure, show, build)


if __name__ == "__main__":
    sys.exit(main())
