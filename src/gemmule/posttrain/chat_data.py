"""Chat data folders: conversations, preference pairs or prompts, rendered and split.

A chat data folder is a data folder (docs/data-format.md) with loss masks, so that fingerprint,
resume checks and held-out loss work as for text. Its documents are whole conversations; a row of a
batch holds several of them, and none is cut. Next to the shards, `records/SPLIT.jsonl` has what is
not text: one line for each conversation, pair or prompt, in the order of the documents.

    conversations   document i is conversation i
    pairs           documents 2i and 2i + 1 are the chosen and the rejected answer of pair i
    prompts         document i is prompt i, with the model's turn opened and nothing trained

`prepare_*` make a folder from files, `write_*` from what is in memory; `ChatData.open` opens one:

    data = prepare_pairs([Path("pairs.jsonl")], tokenizer, out)
    for pair in data.pairs("train"):
        pair.chosen.ids, pair.chosen.trained, pair.prompt_tokens, pair.margin
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from gemmule.data.dataset import Dataset
from gemmule.data.read_log import ReadLog, printable
from gemmule.errors import DataError
from gemmule.model.tokenizer import Tokenizer
from gemmule.posttrain.chat_folder import CHAT, Entry, FolderOptions, read_lines, write_folder
from gemmule.posttrain.conversations import (
    Conversation,
    Message,
    PreferencePair,
    Prompt,
    first_user_message,
    messages_before,
    messages_of,
)
from gemmule.posttrain.filters import Filters, Screen, normalized
from gemmule.posttrain.readers import read_conversations, read_pairs, read_prompts
from gemmule.posttrain.rendering import Rendered, render_conversation, render_prompt

Kind = Literal["conversations", "pairs", "prompts"]


@dataclasses.dataclass(frozen=True)
class ChatOptions:
    """How conversations, pairs and prompts become a folder.

    Attributes:
        name: name on model cards; None: that of the first file.
        licence: license, for model cards.
        max_tokens: longer conversations are left out and counted; None: all are kept.
        split_by: field of the records whose value selects the split; None: the first message of
            the user does, so that near copies are on one side.
        validation: fraction for tuning.
        heldout: fraction for the final figures.
        filters: what else is left out.
    """

    name: str | None = None
    licence: str | None = None
    max_tokens: int | None = None
    split_by: str | None = None
    validation: float = 0.05
    heldout: float = 0.05
    filters: Filters = dataclasses.field(default_factory=Filters)


_DEFAULT = ChatOptions()


@dataclasses.dataclass(frozen=True)
class ConversationTokens:
    """A conversation as tokens.

    Attributes:
        rendered: ids and mask.
        prompt_tokens: number of ids before the last answer.
        record: fields of its record that are not messages.
    """

    rendered: Rendered
    prompt_tokens: int
    record: Mapping[str, Any]

    @property
    def prompt(self) -> tuple[int, ...]:
        """What comes before the last answer, with the model's turn opened."""
        return self.rendered.ids[: self.prompt_tokens]


@dataclasses.dataclass(frozen=True)
class PairTokens:
    """A preference pair as tokens.

    Attributes:
        chosen: prompt and preferred answer; what is trained is the answer.
        rejected: prompt and the other answer.
        prompt_tokens: number of ids that both begin with, up to the opened turn of the model.
        margin: how much better the chosen answer is; None: unknown.
        record: further fields of its record.
    """

    chosen: Rendered
    rejected: Rendered
    prompt_tokens: int
    margin: float | None
    record: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class PromptTokens:
    """A prompt as tokens.

    Attributes:
        ids: token ids, up to the opened turn of the model.
        messages: the same as text.
        record: further fields of its record, such as a reference answer.
    """

    ids: tuple[int, ...]
    messages: tuple[Message, ...]
    record: Mapping[str, Any]


def prepare_conversations(
    paths: Sequence[Path], tokenizer: Tokenizer, out: Path, options: ChatOptions = _DEFAULT
) -> "ChatData":
    """Makes a folder of the conversations in files.

    The same call returns a finished folder as it is. A folder appears whole or not at all.

    Args:
        paths: files, folders or patterns; see `gemmule.posttrain.forms`.
        tokenizer: tokenizer of the model to train, with its chat format.
        out: the folder to write.
        options: names, splits and filters.

    Raises:
        DataError: when a file cannot be used, or too little is left.
        TokenizerError: when the tokenizer's chat format cannot be trained on.
        OutputError: when `out` holds something else or cannot be written.
    """
    log = ReadLog()
    items = list(read_conversations(paths, log))
    return write_conversations(items, tokenizer, out, _named(options, paths), log)


def prepare_pairs(
    paths: Sequence[Path], tokenizer: Tokenizer, out: Path, options: ChatOptions = _DEFAULT
) -> "ChatData":
    """Makes a folder of the preference pairs in files; as `prepare_conversations`."""
    log = ReadLog()
    return write_pairs(list(read_pairs(paths, log)), tokenizer, out, _named(options, paths), log)


def prepare_prompts(
    paths: Sequence[Path], tokenizer: Tokenizer, out: Path, options: ChatOptions = _DEFAULT
) -> "ChatData":
    """Makes a folder of the prompts in files; as `prepare_conversations`."""
    log = ReadLog()
    items = list(read_prompts(paths, log))
    return write_prompts(items, tokenizer, out, _named(options, paths), log)


def write_conversations(
    items: Sequence[Conversation],
    tokenizer: Tokenizer,
    out: Path,
    options: ChatOptions = _DEFAULT,
    log: ReadLog | None = None,
) -> "ChatData":
    """Makes a folder of conversations in memory.

    Args:
        items: the conversations.
        tokenizer: tokenizer of the model to train.
        out: the folder to write.
        options: names, splits and filters.
        log: what was left out before; what is left out here is added to it.

    Raises:
        UserError: as `prepare_conversations`.
    """

    def render(item: Conversation) -> tuple[list[Rendered], dict[str, Any]]:
        prompt = render_prompt(item.messages[:-1], tokenizer)
        return [render_conversation(item.messages, tokenizer)], {"prompt_tokens": len(prompt)}

    return _write("conversations", items, render, tokenizer, out, options, log)


def write_pairs(
    items: Sequence[PreferencePair],
    tokenizer: Tokenizer,
    out: Path,
    options: ChatOptions = _DEFAULT,
    log: ReadLog | None = None,
) -> "ChatData":
    """Makes a folder of preference pairs in memory; as `write_conversations`."""

    def render(item: PreferencePair) -> tuple[list[Rendered], dict[str, Any]]:
        # Of a conversation whose end is judged, only the end is trained.
        before = tuple(dataclasses.replace(m, trained=False) for m in item.prompt)
        answers = [(*before, *answer) for answer in (item.chosen, item.rejected)]
        line = {
            "margin": item.margin,
            "prompt_tokens": len(render_prompt(item.prompt, tokenizer)),
        }
        return [render_conversation(answer, tokenizer) for answer in answers], line

    return _write("pairs", items, render, tokenizer, out, options, log)


def write_prompts(
    items: Sequence[Prompt],
    tokenizer: Tokenizer,
    out: Path,
    options: ChatOptions = _DEFAULT,
    log: ReadLog | None = None,
) -> "ChatData":
    """Makes a folder of prompts in memory; as `write_conversations`."""

    def render(item: Prompt) -> tuple[list[Rendered], dict[str, Any]]:
        ids = render_prompt(item.messages, tokenizer)
        line = {"messages": [message.to_dict() for message in item.messages]}
        return [Rendered(ids, (False,) * len(ids))], line

    return _write("prompts", items, render, tokenizer, out, options, log)


class ChatData:
    """A chat data folder.

    Attributes:
        dataset: the folder as data that a run is trained and evaluated on.
        kind: what it holds.
    """

    def __init__(self, dataset: Dataset) -> None:
        if CHAT not in dataset.manifest:
            raise DataError(
                f"{dataset.path} holds text, not conversations: give a folder made from "
                "conversations, or the files themselves"
            )
        self.dataset = dataset
        self.kind: Kind = dataset.manifest[CHAT]["kind"]

    @classmethod
    def open(
        cls, path: Path, tokenizer: Tokenizer | None = None, kind: Kind | None = None
    ) -> "ChatData":
        """Opens a folder; raises DataError as `Dataset.open`, and where it holds another kind."""
        data = cls(Dataset.open(path, tokenizer))
        if kind is not None:
            data.check(kind)
        return data

    def check(self, kind: Kind) -> None:
        """Raises DataError unless the folder holds `kind`."""
        if self.kind != kind:
            raise DataError(f"{self.dataset.path} holds {self.kind}: give a folder of {kind}")

    def count(self, split: str) -> int:
        """Number of conversations, pairs or prompts of a split."""
        return int(self.dataset.manifest[CHAT]["entries"][split])

    def conversations(self, split: str) -> list[ConversationTokens]:
        """The conversations of a split, in order."""
        self.check("conversations")
        lines = read_lines(self.dataset, split, ("prompt_tokens", "record"))
        return [
            ConversationTokens(document, line["prompt_tokens"], line["record"])
            for document, line in zip(self._documents(split), lines, strict=True)
        ]

    def pairs(self, split: str) -> list[PairTokens]:
        """The preference pairs of a split, in order."""
        self.check("pairs")
        fields = ("prompt_tokens", "margin", "record")
        documents, lines = self._documents(split), read_lines(self.dataset, split, fields)
        return [
            PairTokens(chosen, rejected, line["prompt_tokens"], line["margin"], line["record"])
            for chosen, rejected, line in zip(documents[::2], documents[1::2], lines, strict=True)
        ]

    def prompts(self, split: str) -> list[PromptTokens]:
        """The prompts of a split, in order."""
        self.check("prompts")
        lines = read_lines(self.dataset, split, ("messages", "record"))
        return [
            PromptTokens(document.ids, messages_of(line["messages"]), line["record"])
            for document, line in zip(self._documents(split), lines, strict=True)
        ]

    def _documents(self, split: str) -> list[Rendered]:
        part = self.dataset.split(split)
        ids = part.read(0, part.token_count).tolist()
        mask = part.read_mask(0, part.token_count).tolist()
        bounds = [*part.document_starts().tolist(), part.token_count]
        return [
            Rendered(tuple(ids[start:end]), tuple(mask[start:end]))
            for start, end in itertools.pairwise(bounds)
        ]


_Item = TypeVar("_Item", Conversation, PreferencePair, Prompt)


def _named(options: ChatOptions, paths: Sequence[Path]) -> ChatOptions:
    name = options.name or printable(paths[0].resolve().name)
    return dataclasses.replace(options, name=name)


def _write(
    kind: Kind,
    items: Iterable[_Item],
    render: Callable[[_Item], tuple[list[Rendered], dict[str, Any]]],
    tokenizer: Tokenizer,
    out: Path,
    options: ChatOptions,
    log: ReadLog | None,
) -> ChatData:
    """Filters, renders and writes."""
    log = ReadLog() if log is None else log
    screen, entries = Screen(options.filters), []
    for n, item in enumerate(items):
        key = item.key or f"{kind}#{n}"
        reason = screen.reason(item)
        if reason is None:
            documents, line = render(item)
            longest = max(map(len, documents))
            if kind != "prompts" and not all(d.trained_tokens for d in documents):
                reason = "no answer to learn"
            elif options.max_tokens is not None and longest > options.max_tokens:
                reason = f"longer than {options.max_tokens} tokens"
        if reason is not None:
            log.leave_out(reason, key)
            continue
        line = {"key": key, "record": dict(item.record), **line}
        entries.append(Entry(documents, line, _group(item, options.split_by)))
    about = FolderOptions(
        kind,
        options.name or kind,
        options.licence or "not stated",
        options.validation,
        options.heldout,
    )
    return ChatData(write_folder(entries, tokenizer, out, about, log))


def _group(item: _Item, split_by: str | None) -> str:
    """What keeps entries on one side of a split."""
    if split_by is None:
        return normalized(first_user_message(messages_before(item)))
    if split_by not in item.record:
        raise DataError(
            f"{item.key} has no field {split_by!r} to split by; its fields are "
            f"{', '.join(item.record) or 'none'}"
        )
    return str(item.record[split_by])
