"""Gemma's own tokenizer: time to load, MB/s of encoding, and equality with the tokenizers library.

Contestants, each in a process of its own and on one thread, taking turns. Seconds are of processor
time, which other work on the machine changes least:

- gemmule: Tokenizer.load of a tokenizer.json;
- gemmule-model: Tokenizer.load of the tokenizer.model that gemmule writes from it;
- gemmule-folder: Tokenizer.load of a folder with both, as gemmule writes them;
- gemmule-stamped: of such a folder with a stamp, as in quantized models;
- protobuf: that tokenizer.model through protobuf's Python classes, as gemmule read it before;
- tokenizers, sentencepiece: the libraries, with the same two files.

Texts are messages of the translation catalogs (.mo files) below --catalogs, Python source, and
random Unicode. Every text is encoded by gemmule and by the tokenizers library, and decoded again.
The tokenizer is not part of gemmule: --tokenizer or GEMMULE_GEMMA_TOKENIZER names a folder with
Gemma's tokenizer.json.
"""

import argparse
import gettext
import json
import math
import os
import random
import shutil
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from typing import Any

import harness
from gemmule.console import table
from gemmule.errors import ConfigError
from gemmule.model.spm_model import CONTROL, UNKNOWN
from gemmule.model.spm_train import FIRST_TEXT_ID, SPACE

MODES = (
    "gemmule", "gemmule-model", "gemmule-folder", "gemmule-stamped", "protobuf", "tokenizers",
    "sentencepiece",
)  # fmt: skip
LOADS = 3  # of which the quickest counts, in one turn
_SEED = 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Load, encode and compare Gemma's tokenizer.",
        epilog="Example: python bench/tokenizer.py --tokenizer gemma-2-2b --json tokenizer.json",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    parser.add_argument("--tokenizer", type=Path, help="folder with Gemma's tokenizer.json")
    parser.add_argument("--texts", type=int, default=24_000, help="number of texts to compare")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contestant")
    parser.add_argument(
        "--catalogs",
        type=Path,
        nargs="*",
        default=[Path(sysconfig.get_path("purelib")), Path("/usr/share/locale")],
        help="folders with translation catalogs",
    )
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    return parser.parse_args()


def gather(folders: list[Path], count: int) -> dict[str, list[str]]:
    """Texts by kind: half are translated messages, a quarter code, a quarter random."""
    draw = random.Random(_SEED)
    languages: dict[str, set[str]] = {}
    for file in sorted(path for folder in folders for path in folder.rglob("LC_MESSAGES/*.mo")):
        try:
            with file.open("rb") as f:
                messages = gettext.GNUTranslations(f)._catalog.values()  # type: ignore[attr-defined]
        except (OSError, ValueError, LookupError):  # in another encoding than it declares, or cut
            continue
        languages.setdefault(file.parts[-3], set()).update(filter(None, messages))
    pools = {name: sorted(texts) for name, texts in sorted(languages.items())}
    for pool in pools.values():
        draw.shuffle(pool)
    translated: dict[str, None] = {}
    while len(translated) < count // 2 and any(pools.values()):
        for pool in pools.values():
            if pool and len(translated) < count // 2:
                translated[pool.pop()] = None
    code = _code(count - len(translated) - count // 4)
    unicode = [_random_text(draw) for _ in range(count // 4)]
    say = f"{len(translated)} messages in {len(pools)} languages and variants"
    harness.say(f"{say}, {len(code)} pieces of code, {len(unicode)} random texts")
    return {"messages": [*translated], "code": code, "random": unicode}


def _code(count: int) -> list[str]:
    texts: list[str] = []
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        lines = file.read_text(errors="replace").splitlines(keepends=True)
        texts += ["".join(lines[i : i + 12]) for i in range(0, len(lines), 12)]
    return random.Random(_SEED).sample(texts, min(count, len(texts)))


def _random_text(draw: random.Random) -> str:
    """Characters of a few blocks, of any block, and what tokenizers trip over."""
    start = draw.randrange(0x20, 0x1_F000)
    parts = []
    for _ in range(draw.randrange(1, 60)):
        kind = draw.random()
        if kind < 0.6:
            point = start + draw.randrange(96)
        elif kind < 0.8:
            point = draw.randrange(0x11_0000)
        else:
            parts.append(
                draw.choice((" ", "  ", " " * 40, "\n", "\n\n", "\t\t", "\r", "\0", "</td>"))
            )
            continue
        parts.append("\ufffd" if 0xD800 <= point < 0xE000 else chr(point))
    return "".join(parts)


def compare(file: Path, texts: Mapping[str, list[str]]) -> dict[str, Any]:
    """Counts texts with equal ids, and texts that come back."""
    import tokenizers

    from gemmule.model.tokenizer import Tokenizer

    ours, theirs = Tokenizer.load(file), tokenizers.Tokenizer.from_file(str(file))
    kinds = {}
    for kind, some in texts.items():
        plain = [text for text in some if SPACE not in text]
        equal = back = 0
        for text in some:
            back += ours.decode(ours.encode(text)) == text
        for text in plain:
            ids = theirs.encode(text, add_special_tokens=False).ids
            equal += ours.encode(text, control=True) == ids
        kinds[kind] = {
            "texts": len(some),
            "bytes": sum(len(text.encode()) for text in some),
            "without_u2581": len(plain),
            "equal_ids": equal,
            "round_trips": back,
        }
    return kinds


def build(settings: Mapping[str, Any]) -> harness.Handler:
    """A contestant: answers {"op": "load"} and {"op": "encode"} with seconds of processor time."""
    texts = json.loads(Path(settings["texts"]).read_text())
    load = LOADERS[settings["mode"]]
    files = Path(settings["json_file"]), Path(settings["model_file"])
    encode = load(*files)

    def handle(request: Mapping[str, Any]) -> harness.Reply:
        if request["op"] == "load":
            return {"seconds": min(_timed(lambda: load(*files)("a")) for _ in range(LOADS))}
        return {"seconds": _timed(lambda: [encode(text) for text in texts])}

    for text in texts[:200]:
        encode(text)
    return handle


def _timed(work: Callable[[], object]) -> float:
    began = time.process_time()
    result = work()
    seconds = time.process_time() - began
    del result
    return seconds


Encode = Callable[[str], list[int]]


def _gemmule(json_file: Path, model_file: Path) -> Encode:
    from gemmule.model.tokenizer import Tokenizer

    return Tokenizer.load(json_file).encode


def _gemmule_model(json_file: Path, model_file: Path) -> Encode:
    return _gemmule(model_file, model_file)


def _gemmule_folder(json_file: Path, model_file: Path) -> Encode:
    return _gemmule(model_file.parent, model_file)


def _gemmule_stamped(json_file: Path, model_file: Path) -> Encode:
    return _gemmule(model_file.parent / "stamped", model_file)


def _tokenizers(json_file: Path, model_file: Path) -> Encode:
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(json_file))
    return lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids)


def _sentencepiece(json_file: Path, model_file: Path) -> Encode:
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
    return lambda text: list(processor.encode(text))


def _protobuf(json_file: Path, model_file: Path) -> Encode:
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    proto.ParseFromString(model_file.read_bytes())
    checked = [(p.piece, p.type) for p in proto.pieces]
    finite = all(math.isfinite(p.score) for p in proto.pieces)
    pieces = [p.piece for p in proto.pieces]
    types = [p.type for p in proto.pieces]
    scores = [p.score for p in proto.pieces]
    control = [i < FIRST_TEXT_ID or t in (CONTROL, UNKNOWN) for i, t in enumerate(types)]
    shown = [piece.replace(SPACE, " ").encode() for piece in pieces]
    text = [b"" if hidden else data for hidden, data in zip(control, shown, strict=True)]
    processor = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
    assert finite and len(checked) == len(scores) == len(text)
    return lambda text: list(processor.encode(text))


LOADERS: Mapping[str, Callable[[Path, Path], Encode]] = {
    "gemmule": _gemmule,
    "gemmule-model": _gemmule_model,
    "gemmule-folder": _gemmule_folder,
    "gemmule-stamped": _gemmule_stamped,
    "protobuf": _protobuf,
    "tokenizers": _tokenizers,
    "sentencepiece": _sentencepiece,
}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    from gemmule.model.tokenizer import Tokenizer

    source = args.tokenizer or os.environ.get("GEMMULE_GEMMA_TOKENIZER")
    if not source:
        raise ConfigError("--tokenizer: name a folder with Gemma's tokenizer.json")
    source = Path(source)
    source = source / "tokenizer.json" if source.is_dir() else source
    texts = gather(args.catalogs, args.texts)
    every = [text for some in texts.values() for text in some]
    with tempfile.TemporaryDirectory() as work, ExitStack() as stack:
        file = Path(work) / "json/tokenizer.json"
        file.parent.mkdir()
        shutil.copyfile(source, file)
        tokenizer = Tokenizer.load(file)
        for folder in (Path(work), Path(work) / "stamped"):
            folder.mkdir(exist_ok=True)
            tokenizer.save(folder)
        Tokenizer.write_stamp(folder)
        compared = compare(file, texts)
        listed = Path(work) / "texts.json"
        listed.write_text(json.dumps(every))
        settings = {
            "texts": str(listed),
            "json_file": str(file),
            "model_file": str(Path(work) / "tokenizer.model"),
        }
        workers = [stack.enter_context(harness.Worker(__file__, mode, settings)) for mode in MODES]
        loads, _ = harness.take_turns(workers, args.rounds, op="load")
        encodes, _ = harness.take_turns(workers, args.rounds, op="encode")
    size = sum(kind["bytes"] for kind in compared.values())
    results = {
        mode: {
            "load_seconds": harness.median([reply["seconds"] for reply in loads[mode]]),
            "encode_mb_per_second": harness.rounded(
                size / 1e6 / harness.median([reply["seconds"] for reply in encodes[mode]])
            ),
        }
        for mode in MODES
    }
    ours = results["gemmule"]
    return {
        "settings": {"rounds": args.rounds, "texts": len(every), "bytes": size},
        "libraries": {name: metadata.version(name) for name in ("tokenizers", "sentencepiece")},
        "compared": compared,
        "contestants": results,
        "gemmule_against": {
            mode: {
                "load": harness.rounded(ours["load_seconds"] / of["load_seconds"]),
                "encode": harness.rounded(
                    ours["encode_mb_per_second"] / of["encode_mb_per_second"]
                ),
            }
            for mode, of in results.items()
            if mode != "gemmule"
        },
    }


def show(report: Mapping[str, Any]) -> None:
    """Two tables: equality by kind of text, and times with gemmule's ratios."""
    for kind, of in report["compared"].items():
        harness.say(
            f"{kind}: {of['equal_ids']} of {of['without_u2581']} texts have equal ids, "
            f"{of['round_trips']} of {of['texts']} come back"
        )
    rows = []
    for mode, of in report["contestants"].items():
        against = report["gemmule_against"].get(mode, {"load": 1.0, "encode": 1.0})
        rows.append([
            mode, f"{of['load_seconds'] * 1000:.0f}", f"{of['encode_mb_per_second']:.2f}",
            f"{against['load']:.2f}", f"{against['encode']:.2f}",
        ])  # fmt: skip
    table(["contestant", "load ms", "encode MB/s", "gemmule's load", "its speed"], rows)


def main() -> int:
    args = arguments()
    return harness.run(args, measure, show, build)


if __name__ == "__main__":
    sys.exit(main())
