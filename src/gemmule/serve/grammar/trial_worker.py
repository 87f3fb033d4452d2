"""Compiles grammars in a process of its own, to find those that crash or never end.

Run as a script: it imports nothing of gemmule. Lines of JSON come in and go out; the first has the
vocabulary and the limits, each further one a grammar. The first reply says that it is ready.
"""

import contextlib
import json
import os
import random
import sys
import threading
from collections.abc import Sequence
from typing import Any, TextIO

# A quarter of what a thread usually has: what passes here cannot overflow a stack elsewhere.
STACK_BYTES = 2**20
# Steps that are tried. Grammars that are too slow mostly show it at once.
TRIAL_STEPS = 4


class Vocabulary:
    """The tokenizer as llguidance takes it; it encodes text byte by byte."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, setup: dict[str, Any]) -> None:
        self.eos_token_id: int = setup["stop_ids"][0]
        self.tokens = [bytes.fromhex(token) for token in setup["tokens"]]
        self.special_token_ids: list[int] = setup["special"]
        self._by_byte = {t[0]: i for i, t in enumerate(self.tokens) if len(t) == 1}

    def __call__(self, text: str | bytes) -> list[int]:
        """Encodes text."""
        data = text.encode() if isinstance(text, str) else text
        return [self._by_byte[byte] for byte in data]


def to_grammar(kind: str, source: str) -> str:
    """The grammar in llguidance's form.

    Raises:
        ValueError: if it cannot be read.
    """
    from llguidance import LLMatcher
    from llguidance.gbnf_to_lark import any_to_lark

    if kind == "json":
        return LLMatcher.grammar_from_json_schema(source)
    if kind == "regex":
        return LLMatcher.grammar_from_regex(source)
    if kind == "grammar":
        try:
            source = any_to_lark(source)
        except RecursionError:
            raise ValueError("it nests too deep") from None
        except Exception as error:  # its converter raises what Python raises
            raise ValueError(f"it is neither Lark nor GBNF: {error}") from error
    return LLMatcher.grammar_from_lark(source)


def try_grammar(trie: Any, limits: Any, kind: str, source: str) -> dict[str, str]:
    """Compiles a grammar and takes some steps.

    Returns:
        The "grammar" in llguidance's form, or the "error".
    """
    from llguidance import LLMatcher

    try:
        grammar = to_grammar(kind, source)
    except ValueError as error:
        return {"error": str(error)}
    matcher = LLMatcher(trie, grammar, log_level=0, limits=limits)
    draw = random.Random(0)
    for _ in range(TRIAL_STEPS):
        if matcher.is_stopped():
            break
        token = any_id(matcher.compute_bitmask(), trie.eos_tokens, draw)
        if token is None:
            break
        matcher.consume_token(token)
    return {"error": matcher.get_error()} if matcher.is_error() else {"grammar": grammar}


def any_id(mask: bytes, stop_ids: Sequence[int], draw: random.Random) -> int | None:
    """One of the ids whose bits are set, but no stop id; None if there is none."""
    bits = int.from_bytes(mask, "little")
    for i in stop_ids:
        bits &= ~(1 << i)
    if not bits:
        return None
    start = draw.randrange(bits.bit_length())
    above = bits >> start << start or bits
    return (above & -above).bit_length() - 1


def limit_memory(allowed: int) -> None:
    """Lets this process use `allowed` bytes more than now, where the system can limit it."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource
        from pathlib import Path

        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + allowed,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def limit_time(seconds: float) -> None:
    """Ends this process after so much processor time; 0: never. Not on Windows."""
    with contextlib.suppress(ImportError, AttributeError):
        import signal

        signal.setitimer(signal.ITIMER_PROF, seconds)


def work(lines: TextIO, replies: TextIO) -> None:
    """Answers each line."""
    from llguidance import LLParserLimits, LLTokenizer

    setup = json.loads(lines.readline())
    trie = LLTokenizer(
        Vocabulary(setup),  # type: ignore[arg-type]  # any object with these attributes
        eos_token=setup["stop_ids"],
        slices=[],  # they make masks faster, and this process slower to start
    )
    limits = LLParserLimits(**setup["limits"])
    limit_memory(setup["compile_bytes"])
    print(json.dumps({"ready": True}), file=replies, flush=True)
    for line in lines:
        job = json.loads(line)
        limit_time(setup["compile_seconds"])
        try:
            reply = try_grammar(trie, limits, job["kind"], job["source"])
        except MemoryError:
            os.abort()  # as llguidance ends it; what it holds would be missing to the next grammar
        limit_time(0)
        print(json.dumps(reply), file=replies, flush=True)


def main() -> None:
    """Works in a thread whose stack is small."""
    sys.path.append(sys.argv[1])
    with contextlib.suppress(AttributeError, OSError):
        os.nice(5)  # the engine's threads come first
    threading.stack_size(STACK_BYTES)
    thread = threading.Thread(target=work, args=(sys.stdin, sys.stdout))
    thread.start()
    thread.join()


if __name__ == "__main__":
    main()
