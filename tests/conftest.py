"""A small text, its tokenizer and prepared data, and settings of runs that take under a second."""

import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported: each worker has one core
    os.environ["OMP_NUM_THREADS"] = "1"

from gemmule.model.tokenizer import Tokenizer, train_tokenizer
from gemmule.quant import native
from gemmule.runtime import host, torch_compile
from models import TINY
from parity_figures import Figures
from words import WORDS

FIGURES = pytest.StashKey[Figures]()


def pytest_configure() -> None:
    # A shell that starts the tests in the background has them ignore Ctrl-C, which some tests send.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One worker for each core, at most eight: each loads torch and takes about 1.5 GiB."""
    return min(host.usable_cores(), 8)


@pytest.fixture(scope="session")
def figures(request: pytest.FixtureRequest) -> Figures:
    """What the parity tests measure; printed when all are done."""
    return request.config.stash.setdefault(FIGURES, Figures())


def pytest_sessionfinish(session: pytest.Session) -> None:
    output = getattr(session.config, "workeroutput", None)
    if output is not None and FIGURES in session.config.stash:
        output["parity"] = session.config.stash[FIGURES].plain()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """A worker of pytest-xdist has ended: what it measured joins the others'."""
    rows = getattr(node, "workeroutput", {}).get("parity", {})
    node.config.stash.setdefault(FIGURES, Figures()).merge(rows)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    figures = config.stash.get(FIGURES, Figures())
    if figures.rows:
        terminalreporter.section("parity")
        for line in figures.table():
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    for seed in range(120):
        pick = random.Random(seed)
        # Documents of all lengths, so that rows hold one and rows hold many.
        words = [pick.choice(WORDS) for _ in range(pick.choice([3, 12, 40, 300]))]
        (folder / f"{seed}.txt").write_text(" ".join(words) + f" {seed}.\n")
    return folder


@pytest.fixture(scope="session")
def pieces(text_folder: Path) -> Tokenizer:
    return train_tokenizer([p.read_text() for p in sorted(text_folder.iterdir())], 512)


@pytest.fixture(scope="session")
def other_pieces() -> Tokenizer:
    """As many pieces, of other text."""
    text = ["pack my box with five dozen liquor jugs, quick brown fox over lazy dogs " * 9] * 20
    tokenizer = train_tokenizer(text, 512)
    assert tokenizer.vocab_size == 512
    return tokenizer


@pytest.fixture(scope="session")
def prepared(
    text_folder: Path, pieces: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    from gemmule.data.prepare import prepare

    return prepare(text_folder, pieces, tmp_path_factory.mktemp("prepared") / "data").path


@pytest.fixture(scope="session")
def tiny(prepared: Path) -> Callable[..., dict[str, Any]]:
    """tiny(**changes): settings of a run; a change to a group, except model, is merged into it.

    With a teacher or targets in the group objective, the run is a distillation.
    """

    def settings(**changes: Any) -> dict[str, Any]:
        values: dict[str, Any] = {
            "steps": 12,
            "log_every": 1,
            "data": {
                "path": str(prepared), "seq_len": 24, "batch_size": 4, "micro_batch_size": 2,
            },
            "model": dict(TINY),
            "evaluation": {"every": 5, "tokens": 96, "heldout_tokens": 480},
            "checkpoint": {"every": 4},
            "runtime": {"compile": False, "dtype": "float32", "threads": 1},
        }  # fmt: skip
        for name, value in changes.items():
            merged = isinstance(value, dict) and name != "model"
            values[name] = {**values.get(name, {}), **value} if merged else value
        if {"teacher", "targets"} & set(values.get("objective", {})):
            values["objective"] = {"kind": "distill", **values["objective"]}
        return values

    return settings


@pytest.fixture
def no_meter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs without a meter."""

    def start(*_: object) -> None:
        raise RuntimeError("left out by the test")

    monkeypatch.setattr("gemmule.runs.carbon.start_tracker", start)


@pytest.fixture
def compiler() -> None:
    """Where torch.compile works; without a C++ compiler the test is skipped."""
    if not torch_compile.can_compile():
        pytest.skip("needs a C++ compiler")


@pytest.fixture(params=native.INSTRUCTION_SETS)
def instructions(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set of the kernels that this processor has."""
    if not native.available() or request.param not in native.instruction_sets():
        pytest.skip(f"there are no kernels for {request.param} here")
    before = native.instruction_set()
    native.use_instruction_set(request.param)
    yield request.param
    native.use_instruction_set(before)
