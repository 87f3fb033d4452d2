"""The servers that bench/serve.py compares: ours and llama.cpp's, and our engine without HTTP.

Ours runs as `gemmule serve` does, but without draft tokens. A random model repeats itself, so
that they would be right more often than in any real text.
"""

import contextlib
import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import harness

STARTED_AFTER = 300.0  # seconds, at most


class Server:
    """A server in a process of its own, ready when entered."""

    def __init__(self, name: str, command: Sequence[str], port: int) -> None:
        self.name, self.port = name, port
        self.began = time.perf_counter()
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the server)
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=self._errors, stderr=self._errors
        )

    def __enter__(self) -> Self:
        while time.perf_counter() - self.began < STARTED_AFTER:
            if self._process.poll() is not None:
                break
            with contextlib.suppress(OSError, urllib.error.URLError):
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5).close()
                return self
            time.sleep(0.02)
        self._process.kill()
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()[-12:]
        raise harness.WorkerError("\n".join([f"{self.name} does not start:", *lines]))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def anonymous_mb(self, *, without_cache: bool = False) -> float:
        """Memory that is the process's own, with what is swapped, MB of 1e6 bytes.

        Args:
            without_cache: leave out the pages of keys and values that are in use or kept (ours).
        """
        lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
        sizes = [int(x.split()[1]) for x in lines if x.startswith(("RssAnon:", "VmSwap:"))]
        used = sum(sizes) * 1024.0
        if without_cache:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics") as answer:
                lines = answer.read().decode().splitlines()
            pages = [x for x in lines if x.startswith("gemmule:kv_cache_bytes") and "free" not in x]
            used -= sum(float(x.rsplit(" ", 1)[1]) for x in pages)
        return used / 1e6


def free_port() -> int:
    """A port that is not in use."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def ours(model: Mapping[str, Any], threads: int, **settings: Any) -> Server:
    """`gemmule serve`."""
    port = free_port()
    about = {**model, "threads": threads, "settings": {**settings, "port": port}}
    return Server("gemmule", [sys.executable, __file__, json.dumps(about)], port)


def llama(
    binary: str, path: str, threads: int, slots: int, context: int = 1024, *, unified: bool = False
) -> Server:
    """llama.cpp's server, with a number of slots of a context each."""
    port = free_port()
    command = [
        binary, "-m", path, "--host", "127.0.0.1", "--port", str(port), "-t", str(threads),
        "-tb", str(threads), "-np", str(slots), "-c", str(slots * context), "--cache-ram", "0",
    ]  # fmt: skip
    return Server("llama-server", [*command, *(["--kv-unified"] if unified else [])], port)


def load(model: Mapping[str, Any], threads: int) -> Any:
    """Our model, whose engine proposes no draft tokens."""
    import torch

    from gemmule.infer.language_model import LanguageModel
    from gemmule.infer.language_model import load as load_model

    torch.set_num_threads(threads)

    class WithoutDrafts(LanguageModel):
        def _speculation(self, runner: Any) -> None:
            return None

    lm = load_model(model["path"], quantize=model["quantize"])
    return WithoutDrafts(lm.model, lm.tokenizer)


class InProcess:
    """Our engine alone: the same load without HTTP."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.engine = load(settings["model"], settings["threads"]).async_engine()

    def __call__(self, request: Mapping[str, Any]) -> harness.Reply:
        """Runs requests at once; returns when each of their tokens came."""
        from gemmule import Request, SamplingParams

        done, times = threading.Event(), [list[float]() for _ in request["requests"]]
        left = len(times)

        def receiver(i: int) -> Any:
            def on_output(output: Any) -> None:
                nonlocal left
                times[i] += [time.perf_counter() - began] * len(output.ids)
                left -= output.finished
                if not left:
                    done.set()

            return on_output

        began = time.perf_counter()
        for i, one in enumerate(request["requests"]):
            body = one["body"]
            params = SamplingParams(
                max_new_tokens=body["max_tokens"], temperature=0.0, ignore_eos=True
            )
            self.engine.submit(Request(body["prompt"], params), receiver(i))
        done.wait()
        return {"times": times, "seconds": time.perf_counter() - began}


def _serve(about: Mapping[str, Any]) -> None:
    from gemmule.errors import GemmuleError
    from gemmule.serve.served_models import ServedModels
    from gemmule.serve.server import serve
    from gemmule.serve.settings import ServeSettings

    settings = ServeSettings(**about["settings"])
    models = ServedModels.of({"m": load(about, about["threads"])}, settings)
    with contextlib.suppress(GemmuleError):  # a signal
        serve(models, settings, print)


if __name__ == "__main__":
    if sys.argv[1] == "--worker":
        harness.serve(lambda: InProcess(json.loads(sys.argv[2])))
    else:
        _serve(json.loads(sys.argv[1]))
