"""llama.cpp under the clock, through llama-cpp-python's low-level calls; bench/inference.py asks.

It needs llama_cpp and numpy, nothing of ours: any interpreter that has them can run it, so that
several builds of llama.cpp can be compared. Steps compute logits and look at none of them but a
prompt's last: drawing a token costs nothing here.
"""

import json
import random
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import llama_cpp as L

from worker_side import Handler, Reply, peak_mb, serve

MICRO_BATCH = 512


class Contestant:
    """One GGUF file in memory, and contexts over it as they are needed."""

    def __init__(self, settings: Mapping[str, Any], imports_mb: float) -> None:
        self.settings, self.imports_mb = settings, imports_mb
        self.random = random.Random(0)
        self.words = settings["vocab_size"]
        self.contexts: dict[str, Any] = {}
        self.positions = 0  # of the long context

    def __call__(self, request: Mapping[str, Any]) -> Reply:
        """Answers one request."""
        return dict(getattr(self, request["what"])(request))

    def load(self, request: Mapping[str, Any]) -> Reply:
        """From opening the file to the first token after a short prompt."""
        began, spent = time.perf_counter(), time.process_time()
        L.llama_backend_init()
        self.model = L.llama_model_load_from_file(
            self.settings["file"].encode(), L.llama_model_default_params()
        )
        assert self.model, "the file cannot be loaded"
        self.run("one", [self.prompt(request["tokens"])])
        seconds, spent = time.perf_counter() - began, time.process_time() - spent
        system = L.llama_print_system_info().decode()
        return {
            "seconds": seconds, "cpu_seconds": spent, "peak_mb": peak_mb(),
            "imports_mb": self.imports_mb, "resident_mb": resident_mb(),
            "version": L.__version__, "system": system,
        }  # fmt: skip

    def prefill(self, request: Mapping[str, Any]) -> Reply:
        """A prompt to the first token of its answer."""
        self.forget("one")
        prompt = self.prompt(request["tokens"])
        began = time.perf_counter()
        self.run("one", [prompt])
        return {"seconds": time.perf_counter() - began}

    def decode(self, request: Mapping[str, Any]) -> Reply:
        """Steps of some sequences together, each after a prompt of its own."""
        sequences, context = request["sequences"], request["context"]
        name = "one" if sequences == 1 else "several"
        self.forget(name)
        for i in range(sequences):
            self.run(name, [self.prompt(context)], first_sequence=i)
        return {"seconds": self.timed(name, sequences, context, request["steps"])}

    def fill(self, request: Mapping[str, Any]) -> Reply:
        """Fills the long context."""
        began = time.perf_counter()
        self.contexts.pop("one", None)
        left = request["tokens"]
        while left:
            part = min(left, MICRO_BATCH)
            self.run("long", [self.prompt(part)], start=self.positions)
            self.positions += part
            left -= part
        return {"seconds": time.perf_counter() - began}

    def long(self, request: Mapping[str, Any]) -> Reply:
        """Steps at the end of the long context."""
        seconds = self.timed("long", 1, self.positions, request["steps"])
        self.positions += request["steps"]
        return {"seconds": seconds}

    def timed(self, name: str, sequences: int, start: int, steps: int) -> list[float]:
        """Seconds of each step."""
        seconds = []
        for i in range(steps):
            tokens = [[token] for token in self.prompt(sequences)]
            began = time.perf_counter()
            self.run(name, tokens, start=start + i)
            seconds.append(time.perf_counter() - began)
        return seconds

    def run(
        self, name: str, rows: Sequence[Sequence[int]], start: int = 0, first_sequence: int = 0
    ) -> None:
        """Tokens of some sequences in one call; logits of each one's last."""
        context = self.context(name)
        count = sum(map(len, rows))
        batch = L.llama_batch_init(count, 0, 1)
        batch.n_tokens = count
        at = 0
        for sequence, row in enumerate(rows, first_sequence):
            for i, token in enumerate(row):
                batch.token[at], batch.pos[at] = token, start + i
                batch.n_seq_id[at], batch.seq_id[at][0] = 1, sequence
                batch.logits[at] = i == len(row) - 1
                at += 1
        failed = L.llama_decode(context, batch)
        assert failed == 0, f"llama_decode returned {failed}"
        L.llama_batch_free(batch)
        assert L.llama_get_logits_ith(context, count - 1)  # waits for the result

    def context(self, name: str) -> Any:
        """Room for one sequence, for several, or for a long one."""
        if name not in self.contexts:
            several = self.settings["sequences"] if name == "several" else 1
            room = self.settings["long" if name == "long" else "short"]
            params = L.llama_context_default_params()
            params.n_ctx, params.n_seq_max = room * several, several
            params.n_batch = params.n_ubatch = MICRO_BATCH
            params.n_threads = params.n_threads_batch = self.settings["threads"]
            params.swa_full = False  # local layers keep their window only: faster, and smaller
            made = L.llama_init_from_model(self.model, params)
            assert made, "no context"
            self.contexts[name] = made
        return self.contexts[name]

    def forget(self, name: str) -> None:
        """Empties a context."""
        L.llama_memory_clear(L.llama_get_memory(self.context(name)), False)

    def prompt(self, tokens: int) -> list[int]:
        """Ids drawn at random."""
        return self.random.choices(range(self.words), k=tokens)


def resident_mb() -> float:
    """What is in memory of this process now, MB; files that are mapped count."""
    with open("/proc/self/status") as f:  # noqa: PTH123 (no pathlib at a worker's start)
        sizes = [line.split()[1] for line in f if line.startswith("VmRSS:")]
    return int(sizes[0]) * 1024 / 1e6


@L.llama_log_callback
def silent(*_: object) -> None:
    """llama.cpp's own messages go nowhere."""


def build(settings: Mapping[str, Any]) -> Handler:
    """A worker: its imports are done."""
    L.llama_log_set(silent, None)
    return Contestant(settings, peak_mb())


if __name__ == "__main__":
    serve(lambda: build(json.loads(sys.argv[2])))
