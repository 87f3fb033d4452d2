"""What rounding to 4 and 8 bits costs: ours against llama.cpp's Q4_0 and Q8_0 of the same weights.

Every contestant is compared with the same model in fp32 on the same held-out text: KL(fp32 ||
contestant) in nats per token, top-1 agreement, perplexity, and bits per weight in the file. Ours
run with their own arithmetic, including the rounding of activations; llama.cpp's files are
dequantized and run in fp32, which flatters them. Calibration reads the training split, and the
figures are for the held-out split.

It needs a quickstart's folder (--quickstart, made by `make quickstart`), whose teacher and data are
used, and llama-cpp-python for the peers; without that only ours are measured.
"""

import argparse
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import harness
from gemmule.checkpoints.checkpoint import Checkpoint
from gemmule.checkpoints.convert import convert
from gemmule.checkpoints.load import open_checkpoint
from gemmule.checkpoints.packed.quantize import choose_head, quantize_checkpoint
from gemmule.checkpoints.quality import Predictor, compare, read_quantized, read_streamed
from gemmule.data.dataset import Dataset
from gemmule.errors import ConfigError
from gemmule.quant import native

TOKENS = 256  # of a row
OURS = (  # format, head, calibrated
    ("int8", "int8", False),
    ("int4", "int8", False),
    ("int4", "int6", False),
    ("int4", "int4", False),
    ("int4", "bf16", False),
    ("int4", "int8", True),
    ("int4", "int6", True),
    ("int4", "int4", True),
    ("int4", "bf16", True),
)
PEERS = {"Q4_0": 2, "Q8_0": 7}  # llama.cpp's numbers of these file types
SMALL_HEAD = "int4, head int6, calibrated"
INT8_BAR = 0.01  # nats a token


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="Example: python bench/quantization.py --json bench/results/quantization.json",
    )
    parser.add_argument("--quickstart", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    parser.add_argument("--calibration-rows", type=int, default=128, help="of 256 tokens")
    parser.add_argument("--held-out-rows", type=int, default=64)
    parser.add_argument("--toy", action="store_true", help="a few short rows: does it work at all?")
    return harness.run(parser.parse_args(), measure, show)


@torch.inference_mode()
def measure(args: argparse.Namespace) -> dict[str, Any]:
    if not (args.quickstart / "teacher").is_dir():
        raise ConfigError(f"no teacher in {args.quickstart}: run make quickstart, or --quickstart")
    data = Dataset.open(args.quickstart / "data")
    width = 24 if args.toy else TOKENS
    calibration = _rows(data, "train", args.calibration_rows, width)
    held_out = _rows(data, "heldout", args.held_out_rows, width)
    with open_checkpoint(args.quickstart / "teacher") as source:
        parent = read_streamed(source, held_out)
        modes = {
            name: {**compare(parent, predictor, held_out), **about}
            for name, predictor, about in _contestants(source, args, calibration, held_out)
        }
        best = f"int4, head {choose_head(source.config, 'int4')}, calibrated"
        return {
            "settings": {
                "toy": args.toy,
                "parameters": source.config.parameters,
                "embedding": source.config.vocab_size * source.config.hidden_size,
                "corpus": data.name,
                "calibration_tokens": calibration.numel(),
                "held_out_tokens": held_out.numel(),
                "threads": torch.get_num_threads(),
                "kernels": native.instruction_set() if native.available() else "torch",
            },
            "modes": modes,
            "bars": _bars(modes, best),
        }


def _rows(data: Dataset, split: str, rows: int, width: int) -> Tensor:
    tokens = data.split(split)
    windows = len(tokens) // width
    rows = min(rows, windows)
    chosen = [i * windows // rows * width for i in range(rows)]
    return torch.stack([torch.from_numpy(tokens.read(at, at + width)) for at in chosen])


Contestant = tuple[str, Predictor, dict[str, Any]]


def _contestants(
    source: Checkpoint, args: argparse.Namespace, calibration: Tensor, held_out: Tensor
) -> Iterator[Contestant]:
    for kind, head, calibrated in OURS:
        name = f"{kind}, head {head}" + (", calibrated" if calibrated else "")
        harness.say(name)
        packed = quantize_checkpoint(source, kind, head, calibration if calibrated else None)
        about = {"bits_per_weight": harness.rounded(packed.bits_per_weight), "bytes": packed.nbytes}
        yield name, read_quantized(packed, held_out), about
    if find_spec("llama_cpp") is None:
        harness.say("llama-cpp-python is not installed: no peers")
        return
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        exported = Path(folder) / "f32"
        convert(args.quickstart / "teacher", exported, "gguf", "F32", verify=False)
        whole = next(exported.glob("*.gguf"))
        for kind, number in PEERS.items():
            harness.say(f"llama.cpp {kind}")
            small = Path(folder) / f"{kind}.gguf"
            _llama_quantize(whole, small, number)
            theirs = stack.enter_context(open_checkpoint(small))
            about = {"bits_per_weight": harness.rounded(_bits(theirs)), "forms": theirs.stored_as}
            yield f"llama.cpp {kind}", read_streamed(theirs, held_out), about


def _llama_quantize(source: Path, out: Path, number: int) -> None:
    import llama_cpp

    llama_cpp.llama_log_set(_silent(), None)
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = number, torch.get_num_threads()
    failed = llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), params)
    assert failed == 0


_KEPT: list[Any] = []  # a callback must outlive its use


def _silent() -> Any:
    import llama_cpp

    @llama_cpp.llama_log_callback
    def nothing(*_: object) -> None:
        pass

    _KEPT.append(nothing)
    return nothing


def _bits(checkpoint: Checkpoint) -> float:
    """Bits for each weight of the tensors alone."""
    import gguf

    total = 0.0
    for tensor in checkpoint.tensors.values():
        block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[tensor.stored_as]]
        total += tensor.numel / block * size * 8
    return total / sum(tensor.numel for tensor in checkpoint.tensors.values())


def _bars(modes: Mapping[str, Any], best: str) -> dict[str, Any]:
    """What was promised, and whether it holds."""
    bars: dict[str, Any] = {
        "int8": {
            "kl_nats": modes["int8, head int8"]["kl_nats"],
            "at_most": INT8_BAR,
            "holds": modes["int8, head int8"]["kl_nats"] <= INT8_BAR,
        }
    }
    theirs = modes.get("llama.cpp Q4_0")
    # What this model gets by default, and what a 2B gets.
    for name, mode in (("int4", best), ("int4 with an int6 head", SMALL_HEAD)) if theirs else ():
        ours = modes[mode]
        bars[name] = {
            "mode": mode,
            "kl_nats": ours["kl_nats"],
            "at_most": theirs["kl_nats"],
            "bits_per_weight": ours["bits_per_weight"],
            "at_most_bits": theirs["bits_per_weight"],
            "holds": ours["kl_nats"] <= theirs["kl_nats"]
            and ours["bits_per_weight"] <= theirs["bits_per_weight"],
        }
    return bars


def show(report: Mapping[str, Any]) -> None:
    from gemmule.console import table

    rows = [
        [
            name,
            f"{m['bits_per_weight']:.3f}",
            f"{m['kl_nats']:.5f} ± {m['kl_stderr']:.5f}",
            f"{m['top1_agreement']:.2%}",
            f"{m['perplexity']:.3f}",
        ]
        for name, m in report["modes"].items()
    ]
    first = next(iter(report["modes"].values()))
    rows.append(["fp32", "32", "0", "100%", f"{first['parent_perplexity']:.3f}"])
    table(["", "bits/weight", "KL, nats/token", "top-1", "perplexity"], rows)
    for name, bar in report["bars"].items():
        harness.say(f"{name}: {'holds' if bar['holds'] else 'MISSED'} ({bar['kl_nats']:.5f})")


if __name__ == "__main__":
    raise SystemExit(main())
