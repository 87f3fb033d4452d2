"""Gemma's tokenizer: encoding and decoding text, rendering conversations, and training.

Text never becomes control ids unless the caller asks for it. Every string that UTF-8 can represent
is decoded exactly as it was encoded.
"""

import contextlib
import copy
import dataclasses
import functools
import hashlib
import json
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, overload

import numpy as np
import numpy.typing as npt
import sentencepiece

from gemmule import files
from gemmule.errors import TokenizerError
from gemmule.model import (
    gemma_layout,
    gemma_turns,
    hf_tokenizer,
    spm_train,
    tokenizer_json,
    tokenizer_model,
    tokenizer_stamp,
)
from gemmule.model.added_tokens import AddedToken, Splitter
from gemmule.model.chat_template import ChatTemplate, RenderedChat, is_gemmas, train_mask
from gemmule.model.spm_model import (
    CONTROL,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    Piece,
    PieceModel,
    build_model,
)
from gemmule.model.spm_train import FIRST_BYTE_ID, FIRST_LEARNED_ID, FIRST_TEXT_ID, SPACE
from gemmule.model.tokenizer_files import (
    DEFAULT_STOP_IDS,
    GENERATION_CONFIG,
    TOKENIZER_CONFIG,
    DeclaredTokens,
    checked_stop_ids,
    read_chat_templates,
    read_declared_tokens,
    read_stop_ids,
    read_token_names,
)

_SPACE_UTF8 = SPACE.encode()
_NAMED = {"pad_token": 0, "eos_token": 1, "bos_token": 2, "unk_token": 3}


class Tokenizer:
    """A SentencePiece model with Gemma's fixed ids.

    Safe to use from several threads at once.

    Attributes:
        vocab_size: number of tokens; ids are 0 .. vocab_size - 1.
        added_tokens: tokens that were added to Gemma's vocabulary, or took the place of one of its
            fixed tokens.
        chat_template: template of conversations (jinja2); None: Gemma's own turns.
        stop_ids: ids that end an answer. With Gemma's own turns, 1 and 107 are among them.
        named_templates: further templates by name, such as "tool_use"; kept for exports.
        token_names: tokens that a fine-tune calls eos_token, pad_token and so on instead of
            Gemma's.
    """

    pad_id: ClassVar[int] = 0
    eos_id: ClassVar[int] = 1
    bos_id: ClassVar[int] = 2
    unk_id: ClassVar[int] = 3
    start_of_turn_id: ClassVar[int] = spm_train.START_OF_TURN_ID
    end_of_turn_id: ClassVar[int] = spm_train.END_OF_TURN_ID

    def __init__(
        self,
        model: bytes | PieceModel,
        source: str = "tokenizer model",
        *,
        added_tokens: Iterable[AddedToken] = (),
        chat_template: str | None = None,
        stop_ids: Sequence[int] = DEFAULT_STOP_IDS,
    ) -> None:
        """Reads a serialized SentencePiece ModelProto.

        Args:
            model: the content of a tokenizer.model file, parsed or not, added tokens included as
                pieces.
            source: its origin, for error messages.
            added_tokens: tokens that are not Gemma's, with their flags.
            chat_template: template of conversations (jinja2); None: Gemma's own turns.
            stop_ids: ids that end an answer.

        Raises:
            TokenizerError: when it is not such a model, or lacks Gemma's layout, or a stop id is
                not in its vocabulary.
        """
        self._parsed, self._source = tokenizer_model.checked(model, source), source
        self._pieces, self._types = self._parsed.pieces, self._parsed.kinds
        self.vocab_size = len(self._pieces)
        self.added_tokens = tuple(added_tokens)
        self._text_tokens = [token for token in self.added_tokens if not token.special]
        # SentencePiece matches user-defined symbols in text, turn markers among them. The processor
        # gets a copy in which those that it may not match are control pieces.
        hidden = {*range(FIRST_TEXT_ID), *(token.id for token in self.added_tokens)}
        changes = {i: CONTROL for i in hidden if self._types[i] == USER_DEFINED}
        if FIRST_TEXT_ID in changes:
            changes[FIRST_TEXT_ID] = NORMAL  # a line feed is also a character of the vocabulary
        try:
            self._processor = sentencepiece.SentencePieceProcessor(
                model_proto=self._parsed.with_kinds(changes)
            )
        except (RuntimeError, ValueError) as e:
            raise TokenizerError(f"{source} is not a usable SentencePiece model: {e}") from None
        self.named_templates: Mapping[str, str] = {}
        self.token_names: Mapping[str, str] = {}
        self._set_chat_format(chat_template, stop_ids, f"{source}: stop_ids")

    def _set_chat_format(
        self, chat_template: str | None, stop_ids: Sequence[int], source: str
    ) -> None:
        if chat_template is not None and is_gemmas(chat_template, hf_tokenizer.CHAT_TEMPLATE):
            chat_template = None
        ids = checked_stop_ids(stop_ids, self.vocab_size, source)
        vars(self).pop("_template", None)
        if chat_template is None and self.has_gemma_turns:
            ids = tuple(dict.fromkeys((*DEFAULT_STOP_IDS, *ids)))
        self.chat_template, self.stop_ids = chat_template, ids

    @property
    def has_gemma_turns(self) -> bool:
        """Whether <start_of_turn> and <end_of_turn> are where Gemma has them."""
        return gemma_layout.has_gemma_turns(self._pieces)

    @property
    def chat_format(self) -> tuple[str | None, tuple[int, ...]]:
        """`chat_template` and `stop_ids`, which `fingerprint` does not cover."""
        return self.chat_template, self.stop_ids

    def with_chat_format(
        self,
        chat_template: str | None,
        stop_ids: Sequence[int],
        named_templates: Mapping[str, str] | None = None,
        token_names: Mapping[str, str] | None = None,
    ) -> Self:
        """This tokenizer with another chat template and stop ids.

        Args:
            chat_template: template of conversations (jinja2); None: Gemma's own turns.
            stop_ids: ids that end an answer.
            named_templates: the new `named_templates`; None: the same.
            token_names: the new `token_names`; None: the same.

        Raises:
            TokenizerError: when a stop id is not in the vocabulary.
        """
        other = copy.copy(self)
        if named_templates is not None:
            other.named_templates = dict(named_templates)
        if token_names is not None:
            other.token_names = dict(token_names)
        other._set_chat_format(chat_template, stop_ids, "stop_ids")
        return other

    def named_token(self, name: str) -> str:
        """Text of the token that templates and other programs call bos_token, eos_token and so on.

        It is Gemma's unless `token_names` has another: an eos_token that ends turns, for example.
        """
        return self.token_names.get(name) or self._pieces[_NAMED[name]]

    def named_id(self, name: str) -> int:
        """Id of `named_token`."""
        text = self.named_token(name)
        known = text in self._pieces
        return self._pieces.index(text if known else text.replace(" ", SPACE))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads the tokenizer in the folder `path`, or a tokenizer.json or tokenizer.model file.

        A folder's tokenizer.json comes before its tokenizer.model, as in transformers. Its other
        files give added tokens (tokenizer_config.json, added_tokens.json), the chat template
        (chat_template.jinja, tokenizer_config.json) and the stop ids (generation_config.json,
        config.json). A file alone has Gemma's own turns.

        Raises:
            TokenizerError: when there is none, it is not a Gemma tokenizer, or a file is damaged.
        """
        path = files.expand(path)
        if not path.is_dir():
            return cls._read(path)
        declared = read_declared_tokens(path)
        known = tokenizer_stamp.read(path, declared)
        if known is not None:
            model, own = known
            tokenizer = cls(model, str(path / tokenizer_json.FILE), added_tokens=own)
        elif (path / tokenizer_json.FILE).is_file():
            tokenizer = cls._read_json(path / tokenizer_json.FILE, declared)
        else:
            tokenizer = cls._read_model(path / tokenizer_model.FILE, declared)
        templates = read_chat_templates(path)
        return tokenizer.with_chat_format(
            templates.pop("default", None),
            read_stop_ids(path, tokenizer.vocab_size),
            templates,
            read_token_names(path),
        )

    @classmethod
    def _read(cls, file: Path) -> Self:
        try:
            if file.is_fifo():
                raise TokenizerError(f"{file} is a pipe, which is read once: write it to a file")
            with file.open("rb") as f:
                is_json = f.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{")
        except OSError:
            is_json = False
        nothing = DeclaredTokens()
        return cls._read_json(file, nothing) if is_json else cls._read_model(file, nothing)

    @classmethod
    def _read_json(cls, file: Path, declared: DeclaredTokens) -> Self:
        model, own = tokenizer_json.read(file, declared)
        with contextlib.suppress(OSError, ValueError):
            # Written with a tokenizer.model, equal ids keep its scores, and so its fingerprint.
            original = PieceModel.parse(file.with_name(tokenizer_model.FILE).read_bytes())
            if tokenizer_json.agree(model, original):
                model = original
        return cls(model, str(file), added_tokens=own)

    @classmethod
    def _read_model(cls, file: Path, declared: DeclaredTokens) -> Self:
        model, own = tokenizer_model.read(file, declared)
        return cls(model, str(file), added_tokens=own)

    @classmethod
    def from_pieces(
        cls,
        pieces: Iterable[Piece],
        source: str,
        *,
        added_tokens: Iterable[AddedToken] = (),
        chat_template: str | None = None,
        stop_ids: Sequence[int] = DEFAULT_STOP_IDS,
    ) -> Self:
        """Builds a tokenizer from its pieces; equal pieces give an equal `fingerprint`.

        Args:
            pieces: all pieces in the order of their ids, Gemma's fixed ones included.
            source: their origin, for error messages.
            added_tokens: the pieces that are not Gemma's, with their flags.
            chat_template: template of conversations (jinja2); None: Gemma's own turns.
            stop_ids: ids that end an answer.

        Raises:
            TokenizerError: when they lack Gemma's layout, or a stop id is not one of theirs.
        """
        try:
            model = build_model(pieces)
        except (ValueError, TypeError) as e:  # protobuf refuses a value
            raise TokenizerError(f"{source} holds an impossible piece: {e}") from None
        return cls(
            model,
            source,
            added_tokens=added_tokens,
            chat_template=chat_template,
            stop_ids=stop_ids,
        )

    @property
    def pieces(self) -> list[Piece]:
        """All pieces, by id."""
        return list(map(Piece, self._pieces, self._parsed.scores.tolist(), self._types))

    def save(self, folder: Path) -> None:
        """Writes tokenizer.model, tokenizer.json and tokenizer_config.json into `folder`.

        transformers' AutoTokenizer loads the folder and produces equal ids.
        """
        text = hf_tokenizer.tokenizer_json(self.pieces, self.added_tokens)
        files.write_text(folder / tokenizer_json.FILE, text)
        config = hf_tokenizer.tokenizer_config(
            self.chat_template, self.named_templates, self.token_names, self.added_tokens
        )
        files.write_json(folder / TOKENIZER_CONFIG, config)
        if self.stop_ids != DEFAULT_STOP_IDS:
            files.write_json(folder / GENERATION_CONFIG, {"eos_token_id": list(self.stop_ids)})
        with files.atomic_path(folder / tokenizer_model.FILE) as tmp:
            tmp.write_bytes(self._parsed.data)

    @classmethod
    def write_stamp(cls, folder: Path) -> None:
        """Makes `load` of a folder that `save` wrote several times as fast (tokenizer_stamp.py)."""
        declared = read_declared_tokens(folder)
        full = cls._read_json(folder / tokenizer_json.FILE, declared)
        tokenizer_stamp.write(folder, declared, full._parsed, full.added_tokens)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hexadecimal) of the pieces, their types and scores, and of added tokens.

        Tokenizers with equal fingerprints produce equal ids for equal text. Normalization is not
        included, since only identity normalization is accepted.
        """
        digest = hashlib.sha256()
        scores = self._parsed.scores.tolist()
        for piece, kind, score in zip(self._pieces, self._types, scores, strict=True):
            data = piece.encode()
            digest.update(struct.pack("<IBf", len(data), kind, score + 0.0) + data)
        for token in self.added_tokens:
            digest.update(json.dumps(dataclasses.asdict(token)).encode())
        return digest.hexdigest()

    def encode(self, text: str, bos: bool = False, control: bool = False) -> list[int]:
        """Encodes text as token ids.

        Args:
            text: any string that UTF-8 can represent.
            bos: put the <bos> id first.
            control: encode `<bos>`, `<start_of_turn>` and the like in `text` as control ids.
                Never use it on text from a user.

        Raises:
            TokenizerError: when `text` holds a lone surrogate.
        """
        try:
            data = text.encode()
        except UnicodeEncodeError as e:
            raise TokenizerError(
                f"the text holds a lone surrogate, {text[e.start]!r} at character {e.start}, "
                "which UTF-8 cannot represent: decode its source with errors='replace'"
            ) from None
        if not control and not self._text_tokens:
            ids = self._encode_bytes(data)
            return [self.bos_id, *ids] if bos else ids
        ids = [self.bos_id] if bos else []
        splitter = self._control_splitter if control else self._text_splitter
        for part in splitter.split(text):
            if isinstance(part, int):
                ids.append(part)
            else:
                ids += self._encode_bytes(part.encode())
        return ids

    def _encode_bytes(self, data: bytes) -> list[int]:
        if _SPACE_UTF8 not in data:
            return self._processor.encode(data)
        # SentencePiece would decode a literal U+2581 as a space; spelled in bytes it survives.
        ids: list[int] = []
        for i, part in enumerate(data.split(_SPACE_UTF8)):
            if i:
                ids += [FIRST_BYTE_ID + byte for byte in _SPACE_UTF8]
            if part:
                ids += self._processor.encode(part)
        return ids

    @functools.cached_property
    def _text_splitter(self) -> Splitter:
        return Splitter(self._text_tokens)

    @functools.cached_property
    def _control_splitter(self) -> Splitter:
        return Splitter(self._control_tokens + self._text_tokens)

    @functools.cached_property
    def _control_tokens(self) -> list[AddedToken]:
        own = {token.id: token for token in self.added_tokens}
        return [
            own.get(i) or AddedToken(self._pieces[i], i, special=True)
            for i, control in enumerate(self.is_control)
            if control
        ]

    @functools.cached_property
    def is_control(self) -> list[bool]:
        """Whether each id never stands for text."""
        kinds = np.frombuffer(self._types, np.uint8)
        control: list[bool] = ((kinds == CONTROL) | (kinds == UNKNOWN)).tolist()
        control[:FIRST_TEXT_ID] = [True] * FIRST_TEXT_ID
        for token in self.added_tokens:
            control[token.id] = token.special
        return control

    @functools.cached_property
    def _shown(self) -> Mapping[int, bytes]:
        """The bytes of each id, control ids spelled out."""
        return _LazyBytes(self._bytes_of)

    @functools.cached_property
    def _text(self) -> Mapping[int, bytes]:
        """The bytes of each id; none for a control id."""
        return _LazyBytes(self._text_of)

    def _bytes_of(self, i: int) -> bytes:
        if FIRST_BYTE_ID <= i < FIRST_LEARNED_ID:
            return bytes((i - FIRST_BYTE_ID,))
        return self._pieces[i].replace(SPACE, " ").encode()

    def _text_of(self, i: int) -> bytes:
        return b"" if self.is_control[i] else self._shown[i]

    def decode_bytes(self, ids: Iterable[int], control: bool = False) -> bytes:
        """The UTF-8 bytes of `ids`; a token may end in the middle of a character.

        Args:
            ids: token ids (a list, an array or a tensor).
            control: spell out control ids instead of dropping them.

        Raises:
            TokenizerError: for an id outside the vocabulary.
        """
        table = self._shown if control else self._text
        parts = []
        for i in ids:
            i = int(i)  # noqa: PLW2901 (a tensor's elements are tensors)
            if not 0 <= i < self.vocab_size:
                raise TokenizerError(f"no token has id {i}: ids are 0 to {self.vocab_size - 1}")
            parts.append(table[i])
        return b"".join(parts)

    def decode(self, ids: Iterable[int], control: bool = False) -> str:
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD.

        Raises:
            TokenizerError: for an id outside the vocabulary.
        """
        return self.decode_bytes(ids, control).decode(errors="replace")

    def token_bytes(self) -> npt.NDArray[np.int64]:
        """The number of UTF-8 bytes of each token, shape [vocab_size]; 0 for control ids."""
        return np.array([len(self._text[i]) for i in range(self.vocab_size)], dtype=np.int64)

    @overload
    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        generation_prompt: bool = True,
        *,
        strict: bool = False,
        return_mask: Literal[False] = False,
    ) -> list[int]: ...

    @overload
    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        generation_prompt: bool = True,
        *,
        strict: bool = False,
        return_mask: Literal[True],
    ) -> tuple[list[int], list[int]]: ...

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        generation_prompt: bool = True,
        *,
        strict: bool = False,
        return_mask: bool = False,
    ) -> list[int] | tuple[list[int], list[int]]:
        r"""Renders a conversation as token ids.

        Gemma's own turns are `<start_of_turn>{user|model}\n{content, trimmed}<end_of_turn>\n` after
        <bos>. A leading system message is put before the first user message. A tokenizer with a
        chat template of its own gives what the template says. In both, no content can end its own
        turn, even if it spells out the markers.

        Args:
            messages: {"role": "system" | "user" | "assistant", "content": text}, with roles
                alternating and starting with user ("model" means assistant). A template of its
                own decides itself which roles and fields it accepts.
            generation_prompt: open the model's turn at the end. Pass False for a conversation
                that ends with the model's answer, as in training.
            strict: refuse a system message, as Gemma's own template does.
            return_mask: return a mask as well, which marks the tokens to train on.

        Returns:
            The ids. With `return_mask`, the ids and a list of the same length that holds 1 for
            each token that the model has to produce (the content of its turns and the stop token
            after it, or the template's generation blocks) and 0 for all others, role headers
            among them.

        Raises:
            TokenizerError: for any other shape of conversation, or what the template refuses.
        """
        if self.chat_template is not None:
            roles = [str(message.get("role")) for message in messages]
            gemma_turns.check_end(roles, generation_prompt)
            chat = self._template.render(messages, generation_prompt, return_mask)
            ids = self._encode_rendered(chat)
            if not return_mask:
                return ids
            pieces = [self._shown[i] for i in ids]
            return ids, train_mask(chat, ids, pieces, self.stop_ids)
        if not self.has_gemma_turns:
            raise TokenizerError(
                f"{self._source} has other tokens where Gemma has <start_of_turn> and "
                "<end_of_turn>, and no chat template: put the model's chat_template.jinja next to "
                "it, or use generate"
            )
        ids, mask = gemma_turns.render(
            gemma_turns.checked(messages, strict),
            generation_prompt,
            self.encode,
            lambda i: len(self._text[i]),
        )
        return (ids, mask) if return_mask else ids

    @functools.cached_property
    def _template(self) -> ChatTemplate:
        assert self.chat_template is not None
        variables = {name: self.named_token(name) for name in _NAMED}
        control = [token.content for token in self._control_tokens]
        source = Path(self._source)
        if source.name in (tokenizer_json.FILE, tokenizer_model.FILE):
            source = source.parent  # a template comes with a folder
        return ChatTemplate(self.chat_template, str(source), control, variables)

    def _encode_rendered(self, chat: RenderedChat) -> list[int]:
        ids = []
        for part in Splitter(self._control_tokens).split(chat.text):
            if isinstance(part, int):
                ids.append(part)
            else:
                ids += self.encode(part.translate(chat.guards))
        return ids


class _LazyBytes(dict[int, bytes]):
    """Bytes by id, made when they are first asked for: an answer has few of 256,000 tokens."""

    def __init__(self, make: Callable[[int], bytes]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, i: int) -> bytes:
        self[i] = made = self._make(i)
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._make,)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Trains a tokenizer like Gemma's, with its fixed ids, on an even sample of `texts`.

    The same texts in the same order give the same tokenizer, byte for byte.

    Args:
        texts: documents; read once, never held together in memory.
        vocab_size: number of tokens, the 473 fixed ones included; at least 512.

    Raises:
        TokenizerError: when the size is out of range or the text cannot fill it.
    """
    return Tokenizer(spm_train.train_model(texts, vocab_size), "the trained tokenizer")
