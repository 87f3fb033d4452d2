"""Reads files of conversations, preference pairs and prompts: JSON, CSV, Parquet and Arrow."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from gemmule.data import file_kinds
from gemmule.data.file_kinds import TEXT
from gemmule.data.read_log import ReadLog, printable
from gemmule.data.records import read_rows
from gemmule.data.sources import find_source
from gemmule.errors import DataError
from gemmule.posttrain import forms
from gemmule.posttrain.conversations import Conversation, PreferencePair, Prompt

_Item = TypeVar("_Item")
_FIELDS_SHOWN = 20


def read_conversations(paths: Sequence[Path], log: ReadLog) -> Iterator[Conversation]:
    """Streams the conversations of files, folders and patterns; see `gemmule.posttrain.forms`.

    Args:
        paths: what to read.
        log: receives what is left out, by reason.

    Raises:
        DataError: when a file cannot be read, or none holds a conversation.
    """
    expected = (
        '"messages", prompt and completion, or instruction and output: {"messages": [{"role": '
        '"user", "content": …}, {"role": "assistant", "content": …}]}'
    )
    return _read(paths, forms.conversations, "conversation", expected, log)


def read_pairs(paths: Sequence[Path], log: ReadLog) -> Iterator[PreferencePair]:
    """Streams the preference pairs of files, folders and patterns; as `read_conversations`."""
    expected = (
        'prompt, chosen and rejected, or chosen and rejected conversations: {"prompt": …, '
        '"chosen": …, "rejected": …}'
    )
    return _read(paths, lambda *row: [forms.pair(*row)], "preference pair", expected, log)


def read_prompts(paths: Sequence[Path], log: ReadLog) -> Iterator[Prompt]:
    """Streams the prompts of files, folders and patterns; as `read_conversations`.

    Of a conversation, what comes before its last answer is the prompt.
    """
    expected = '"prompt" or "messages": {"prompt": "What is 2 + 3?", "answer": "5"}'
    return _read(paths, lambda *row: [forms.prompt(*row)], "prompt", expected, log)


def _read(
    paths: Sequence[Path],
    parse: Callable[[dict[str, Any], str], Iterable[_Item]],
    what: str,
    expected: str,
    log: ReadLog,
) -> Iterator[_Item]:
    used, fields = 0, dict[str, None]()
    for key, row in _rows(paths, log):
        try:
            for item in parse(row, key):
                used += 1
                yield item
        except forms.NotThisFormError as e:
            log.leave_out(str(e), key)
            fields |= dict.fromkeys(list(map(str, row))[: _FIELDS_SHOWN - len(fields)])
    if not used:
        where = ", ".join(map(str, paths))
        names = f" (its records have {', '.join(map(printable, fields))})" if fields else ""
        raise DataError(
            f"no {what} in {where}{names}: {log.summary() or 'it is empty'}; a record has "
            f"{expected}"
        )


def _rows(paths: Sequence[Path], log: ReadLog) -> Iterator[tuple[str, dict[str, Any]]]:
    """The records of all files, with their keys."""
    for path in paths:
        source = find_source(path)
        log.update(source.log)
        for file in source.files:
            try:
                actual = file_kinds.as_it_is(file)
                if isinstance(actual, str):
                    log.leave_out(actual, file.key)
                    continue
                if actual.kind == TEXT:
                    if actual.named:
                        raise DataError(
                            f"{path} is text without fields: give records (.jsonl, .json, .csv, "
                            ".tsv, .parquet, .arrow)"
                        )
                    log.leave_out("text without fields", file.key)
                    continue
                for n, row in enumerate(read_rows(actual, log)):
                    yield f"{file.key}#{n}", row
            except OSError as e:
                raise DataError(f"cannot read {file.path}: {e.strerror or e}") from e
