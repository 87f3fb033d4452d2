"""IFEval (Zhou et al., 2023): instructions that a program can check."""

import contextlib
import functools
import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from gemmule.errors import DataError, MissingExtraError
from gemmule.evals.benchmarks import lm_eval_settings, local_files
from gemmule.evals.benchmarks.benchmark import Benchmark, Doc, LocalData

_FIELDS = {"key": int, "prompt": str, "instruction_id_list": list, "kwargs": list}


def ifeval(folder: Path) -> LocalData:
    """Reads input_data.jsonl: a prompt, its instructions, and their arguments."""
    path = folder / "input_data.jsonl"
    rows = []
    for number, row in enumerate(local_files.jsonl(path, _FIELDS), 1):
        names = local_files.texts(path, number, "instruction_id_list", row["instruction_id_list"])
        if len(names) != len(row["kwargs"]):
            raise DataError(
                f"{path}:{number}: {len(names)} instructions, and arguments for "
                f"{len(row['kwargs'])}"
            )
        for name, arguments in zip(names, row["kwargs"], strict=True):
            if wrong := _wrong(name, arguments):
                raise DataError(f"{path}:{number}: {wrong}")
        rows.append({field: row[field] for field in _FIELDS})
    return LocalData({"ifeval": {"train": _filled(rows)}}, [path])


def _wrong(name: str, arguments: Any) -> str:
    """Why an instruction cannot be checked; "" if it can."""
    known = _checkers()
    if name not in known:
        return f"there is no instruction {name!r}; known: {', '.join(known)}"
    if not isinstance(arguments, dict):
        return f"arguments of {name} are {arguments!r}; expected an object"
    given = {key: value for key, value in arguments.items() if value is not None}
    checker = known[name](name)
    if missing := [key for key in checker.get_instruction_args_keys() if key not in given]:
        return f"{name} has no {missing[0]!r}"
    try:
        checker.build_description(**given)
    except Exception as e:  # the 25 checkers raise various errors for a wrong type or name
        return f"arguments of {name} are {json.dumps(arguments)}: {e}"
    return ""


def _filled(rows: list[Doc]) -> list[Doc]:
    """Gives every object of arguments the keys of all, as on the hub."""
    keys = {key: None for row in rows for arguments in row["kwargs"] for key in arguments}
    return [{**row, "kwargs": [{**keys, **a} for a in row["kwargs"]]} for row in rows]


def _settings(task: str) -> dict[str, Any]:
    _checkers()  # before lm-eval's settings import them and download what they need
    return lm_eval_settings.settings(task)


@functools.cache
def _checkers() -> dict[str, Any]:
    """lm-eval's classes that check an instruction, by its name, with three changes.

    - They count sentences and words with NLTK's English Punkt model, which they would download.
      Here the same parameters come from a package.
    - They guess the language of a text with random numbers. Here the seed is fixed.
    - JSON nested a thousand levels deep ended the run. Here it fails the check.
    """
    try:
        import nltk
        import punkt
        from langdetect.detector_factory import DetectorFactory
        from nltk.tokenize.destructive import NLTKWordTokenizer
    except ImportError as e:
        raise MissingExtraError(e.name or "langdetect, nltk", "eval", "IFEval") from None
    with _without_download():
        from lm_eval.tasks.ifeval import instructions, instructions_registry, instructions_util

    sentences = _sentence_tokenizer(punkt.load_model("english"))
    words = NLTKWordTokenizer()

    def word_tokenize(text: str) -> list[str]:
        return [word for sentence in sentences(text) for word in words.tokenize(sentence)]

    used: Any = instructions_util
    used.count_sentences = lambda text: len(sentences(text))
    used.nltk = SimpleNamespace(tokenize=nltk.tokenize, word_tokenize=word_tokenize)
    DetectorFactory.seed = 0
    instructions.logger.setLevel(logging.CRITICAL)  # it logs texts whose language it cannot guess

    json_format: Any = instructions.JsonFormat
    json_format.check_following = _fails_if_too_deep(json_format.check_following)
    known: dict[str, Any] = instructions_registry.INSTRUCTION_DICT
    return known


def _fails_if_too_deep(check: Callable[[Any, str], bool]) -> Callable[[Any, str], bool]:
    def checked(self: Any, value: str) -> bool:
        try:
            return check(self, value)
        except RecursionError:
            return False

    return checked


def _sentence_tokenizer(model: Any) -> Any:
    """NLTK's tokenizer with a model's parameters, as NLTK builds it from its data `punkt_tab`."""
    from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer

    parameters = PunktParameters()
    parameters.abbrev_types.update(model.abbrev_types)
    parameters.collocations.update(model.collocations)
    parameters.sent_starters.update(model.sent_starters)
    parameters.ortho_context.update(model.ortho_context)
    return PunktSentenceTokenizer(parameters).tokenize


@contextlib.contextmanager
def _without_download() -> Iterator[None]:
    """Inside, lm-eval takes this process for a second one: only the first one downloads."""
    before = os.environ.get("LOCAL_RANK")
    os.environ["LOCAL_RANK"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["LOCAL_RANK"]
        else:
            os.environ["LOCAL_RANK"] = before


BENCHMARKS = (
    Benchmark(
        name="ifeval",
        title="IFEval",
        tasks=("ifeval",),
        shots=0,
        metric="prompt_level_strict_acc",
        kind="generation",
        chance=None,
        folder="ifeval",
        local=ifeval,
        config=_settings,
    ),
)
