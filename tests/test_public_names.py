"""The names users may rely on, and that importing them costs nothing."""

import inspect
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import gemmule

HEAVY = ("torch", "transformers", "numpy", "pydantic", "huggingface_hub", "sentencepiece")


def test_names_are_pinned() -> None:
    assert gemmule.__all__ == [
        "AsyncEngine", "Engine", "LanguageModel", "Request", "SamplingParams", "__version__",
        "load",
    ]  # fmt: skip
    assert dir(gemmule) == sorted(gemmule.__all__)
    for name in gemmule.__all__:
        assert getattr(gemmule, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        _ = gemmule.laod


def test_load_has_the_promised_arguments() -> None:
    parameters = inspect.signature(gemmule.load).parameters
    assert {name: p.default for name, p in parameters.items()} == {
        "path": inspect.Parameter.empty,
        "dtype": None,
        "device": "cpu",
        "quantize": None,
    }


def test_a_language_model_has_the_promised_members() -> None:
    members = {name for name in vars(gemmule.LanguageModel) if not name.startswith("_")}
    assert members == {
        "async_engine", "chat", "complete", "config", "engine", "generate", "has_tokenizer",
        "score", "score_continuations", "stream", "stream_chat", "tokenizer",
    }  # fmt: skip


def test_importing_is_light() -> None:
    code = f"import gemmule, sys; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_version_is_the_package_version() -> None:
    pyproject = Path(__file__).parents[1] / "pyproject.toml"
    assert tomllib.loads(pyproject.read_text())["project"]["version"] == gemmule.__version__
