"""Programs that were not written for gemmule, unchanged, against `gemmule serve`.

    pytest -m clients tests/clients

Each client runs in an environment of its own, made when first needed (`environments.py`). What was
seen, with the versions, is written to build/clients/results.json.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import environments
import pytest

from gemmule.checkpoints.hf.writer import save_model
from gemmule.model.tokenizer import Tokenizer
from models import TINY, random_model, tiny_config

pytestmark = pytest.mark.clients
pytest.importorskip("uvicorn", reason="needs the extra serve")
SOURCE = Path(__file__).parents[2] / "src"
MODEL = "tiny"
PYTHON = {
    "openai": "openai_client",
    "openai-2": "openai_client",
    "anthropic": "anthropic_client",
    "langchain": "langchain_client",
    "litellm": "litellm_client",
    "lm-eval": "lm_eval_client",
    "guidellm": "guidellm_client",
    "schemathesis": "schemathesis_client",
}


@dataclass(frozen=True)
class Server:
    """A server in a process of its own, as users start it."""

    url: str
    folder: Path
    results: list[dict[str, Any]] = field(default_factory=list)

    def run(self, *command: str | Path, cwd: Path) -> None:
        """Runs a client's script, notes its results and checks them."""
        done = subprocess.run(
            [os.fspath(part) for part in command],
            cwd=cwd, capture_output=True, text=True, timeout=600, check=False,
            env={
                **os.environ, "GEMMULE_URL": self.url, "GEMMULE_MODEL": MODEL,
                "GEMMULE_FOLDER": os.fspath(self.folder), "HF_HUB_OFFLINE": "1",
                "OMP_NUM_THREADS": "1",
            },
        )  # fmt: skip
        lines = done.stdout.strip().splitlines()
        assert lines, done.stderr
        result = json.loads(lines[-1])
        self.results.append(result)
        failed = {name: text for name, text in result["checks"].items() if text != "passed"}
        assert not failed, "\n".join(f"{name}: {text}" for name, text in failed.items())
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, pieces: Tokenizer) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("served") / "model"
    shape = tiny_config(TINY, vocab_size=pieces.vocab_size, max_position_embeddings=1024)
    save_model(random_model(shape), pieces, folder)
    log = tmp_path_factory.mktemp("log") / "stderr"
    with log.open("w", encoding="utf-8") as stderr:
        process = subprocess.Popen(
            [
                sys.executable, "-m", "gemmule", "serve", f"{MODEL}={folder}", "--port", "0",
                # Generated requests set no limit, and this model has no end.
                "--max-tokens", "16",
            ],
            stdout=subprocess.PIPE, stderr=stderr, text=True,
            env={**os.environ, "PYTHONPATH": os.fspath(SOURCE), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    watchdog = threading.Timer(60, process.kill)
    watchdog.start()
    assert process.stdout is not None
    address = next(
        (m[0] for line in process.stdout if (m := re.search(r"http://[\d.:]+", line))), ""
    )
    watchdog.cancel()
    if not address:
        process.stdout.close()
        process.wait(60)
        pytest.fail(f"the server did not start: {log.read_text(encoding='utf-8')}")
    drain = threading.Thread(target=process.stdout.read, daemon=True)
    drain.start()
    server = Server(address, folder)
    try:
        yield server
    finally:
        process.terminate()
        process.wait(60)
        drain.join(60)
        process.stdout.close()
        environments.BUILD.mkdir(parents=True, exist_ok=True)
        text = json.dumps(server.results, indent=2) + "\n"
        (environments.BUILD / "results.json").write_text(text, encoding="utf-8")


@pytest.mark.parametrize("name", PYTHON)
def test_python(name: str, server: Server) -> None:
    folder = Path(__file__).parent / "python"
    server.run(environments.python_of(name), f"{PYTHON[name]}.py", cwd=folder)


@pytest.mark.skipif(shutil.which("npm") is None, reason="needs npm")
@pytest.mark.parametrize("name", ["openai_client", "ai_sdk_client"])
def test_node(name: str, server: Server) -> None:
    server.run("node", f"{name}.mjs", cwd=environments.npm_folder())
