"""What the files around a tokenizer say: added tokens, the chat template and the stop ids."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gemmule import files
from gemmule.errors import TokenizerError
from gemmule.model.added_tokens import AddedToken
from gemmule.model.spm_train import BASIC_PIECES, END_OF_TURN_ID, SPACE

TOKENIZER_CONFIG = "tokenizer_config.json"
CHAT_TEMPLATE_FILE = "chat_template.jinja"
GENERATION_CONFIG = "generation_config.json"
EOS_ID = 1
_FLAGS = ("special", "lstrip", "rstrip", "single_word", "normalized")
_SPECIAL_TOKENS = (
    *(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")),
    "additional_special_tokens",
    "extra_special_tokens",
    "model_specific_special_tokens",
)
_TOKENS_BY_NAME = ("extra_special_tokens", "model_specific_special_tokens")  # or a list
DEFAULT_STOP_IDS = (EOS_ID, END_OF_TURN_ID)


def read_object(file: Path) -> dict[str, Any]:
    """Reads a JSON file that holds an object; a missing one is empty.

    Raises:
        TokenizerError: when it cannot be read or holds something else.
    """
    try:
        value = files.read_object(file, TokenizerError)
    except FileNotFoundError:
        return {}
    if not _is_utf8(value):
        raise TokenizerError(f"{file} holds a lone surrogate, which UTF-8 cannot represent")
    return value


def _is_utf8(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def read_chat_templates(folder: Path) -> dict[str, str]:
    """The chat templates of a folder by name; the one that is used is called "default".

    chat_template.jinja comes before tokenizer_config.json, as in transformers.

    Raises:
        TokenizerError: when a file is damaged or holds a template of another type.
    """
    file = folder / CHAT_TEMPLATE_FILE
    templates: Any
    try:
        templates = files.read_text(file)
    except FileNotFoundError:
        file = folder / TOKENIZER_CONFIG
        templates = read_object(file).get("chat_template")
    except (OSError, ValueError) as e:
        raise TokenizerError(f"cannot read {file}: {e}") from None
    if templates is None:
        return {}
    if isinstance(templates, list):
        try:
            templates = {entry["name"]: entry["template"] for entry in templates}
        except (TypeError, KeyError):
            raise TokenizerError(
                f"{file}: an entry of chat_template lacks its name or template"
            ) from None
    if not isinstance(templates, dict):
        templates = {"default": templates}
    elif "default" not in templates:
        raise TokenizerError(
            f"{file} has chat templates named {', '.join(map(repr, templates))!s:.200}, and none "
            "is named 'default'"
        )
    for name, template in templates.items():
        if not isinstance(template, str) or not isinstance(name, str):
            raise TokenizerError(
                f"{file}: chat_template is a {type(template).__name__}; expected text"
            )
    return templates


def read_token_names(folder: Path) -> dict[str, str]:
    """Tokens that tokenizer_config.json calls bos_token, eos_token, pad_token or unk_token.

    Raises:
        TokenizerError: when the file is damaged.
    """
    file = folder / TOKENIZER_CONFIG
    config = read_object(file)
    names = {}
    for i, name in enumerate(("pad_token", "eos_token", "bos_token", "unk_token")):
        text = next(_special({name: config.get(name)}, file), None)
        if text is not None and text != BASIC_PIECES[i]:
            names[name] = text
    return names


def read_stop_ids(folder: Path, vocab_size: int) -> tuple[int, ...]:
    """The ids that end an answer: eos_token_id of generation_config.json, else of config.json.

    Raises:
        TokenizerError: when a file is damaged, or an id is not one of the vocabulary.
    """
    for name in (GENERATION_CONFIG, "config.json"):
        declared = read_object(folder / name).get("eos_token_id")
        if declared is not None:
            ids = declared if isinstance(declared, list) else [declared]
            return checked_stop_ids(ids, vocab_size, f"{folder / name}: eos_token_id")
    return DEFAULT_STOP_IDS


def checked_stop_ids(ids: Sequence[Any], vocab_size: int, source: str) -> tuple[int, ...]:
    """The ids without repetitions.

    Raises:
        TokenizerError: when there is none, or one is not an id of the vocabulary.
    """
    if not ids:
        raise TokenizerError(f"{source} is empty: name at least one id that ends an answer")
    for i in ids:
        if not isinstance(i, int) or isinstance(i, bool) or not 0 <= i < vocab_size:
            raise TokenizerError(
                f"{source} holds {i!r:.60}: expected ids of the vocabulary, 0 to {vocab_size - 1}"
            )
    return tuple(dict.fromkeys(ids))


@dataclass(frozen=True)
class DeclaredTokens:
    """What a folder's files say about tokens, besides its vocabulary.

    Attributes:
        added: added tokens with their ids.
        special: texts of special tokens.
    """

    added: tuple[AddedToken, ...] = ()
    special: tuple[str, ...] = ()

    def on(self, vocabulary: Mapping[str, int], added: Sequence[AddedToken]) -> list[AddedToken]:
        """All added tokens of a folder, as transformers joins them.

        Args:
            vocabulary: id of each piece.
            added: the added tokens of tokenizer.json.
        """
        tokens = {token.content: token for token in added}
        for token in self.added:
            tokens.setdefault(token.content, token)
        end = max([len(vocabulary) - 1, *(token.id for token in tokens.values())]) + 1
        for text in self.special:
            if text not in tokens:
                i = vocabulary.get(text.replace(" ", SPACE), end)
                end += i == end
                tokens[text] = AddedToken(text, i, special=True)
            elif not tokens[text].special:
                tokens[text] = replace(tokens[text], special=True)
        return list(tokens.values())


def read_declared_tokens(folder: Path) -> DeclaredTokens:
    """Reads tokenizer_config.json, or the files that came before it.

    Those are added_tokens.json and special_tokens_map.json, which count where tokenizer_config.json
    has no added_tokens_decoder.

    Raises:
        TokenizerError: when a file is damaged.
    """
    file = folder / TOKENIZER_CONFIG
    config = read_object(file)
    decoder = config.get("added_tokens_decoder")
    if decoder is not None:
        if not isinstance(decoder, dict):
            raise TokenizerError(f"{file}: added_tokens_decoder is not an object")
        entries = [{"id": i, **_object(entry, file)} for i, entry in decoder.items()]
        for entry in entries:
            if entry["id"].isdecimal() and entry["id"].isascii() and len(entry["id"]) < 16:
                entry["id"] = int(entry["id"])
        added = [added_token(entry, str(file)) for entry in entries]
        return DeclaredTokens(tuple(added), tuple(_special(config, file)))
    legacy = folder / "special_tokens_map.json"
    special = [*_special(config, file), *_special(read_object(legacy), legacy)]
    older = folder / "added_tokens.json"
    added = [
        added_token(
            {
                "id": i,
                "content": text,
                "special": text in special,
                "normalized": text not in special,
            },
            str(older),
        )
        for text, i in read_object(older).items()
    ]
    return DeclaredTokens(tuple(added), tuple(dict.fromkeys(special)))


def added_token(entry: Any, source: str) -> AddedToken:
    """An added token as tokenizer.json stores it.

    Raises:
        TokenizerError: when the entry lacks a text or an id, or has a flag that is none.
    """
    content, i = entry.get("content"), entry.get("id")
    if not isinstance(content, str) or not content:
        raise TokenizerError(f"{source}: an added token has no text: {entry!r:.80}")
    if not isinstance(i, int) or isinstance(i, bool) or i < 0:
        raise TokenizerError(f"{source}: the added token {content!r:.80} has the id {i!r:.40}")
    flags = {name: entry.get(name, False) for name in _FLAGS}
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise TokenizerError(
                f"{source}: the added token {content!r:.80} has {name} {value!r:.40}; expected "
                "true or false"
            )
    return AddedToken(content, i, **flags)


def _object(value: Any, source: Path) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TokenizerError(f"{source}: an added token is {value!r:.80}; expected an object")
    return value


def _special(config: Mapping[str, Any], source: Path) -> Iterator[str]:
    """Texts of the special tokens that a file names."""
    for name in _SPECIAL_TOKENS:
        value = config.get(name)
        if name in _TOKENS_BY_NAME and isinstance(value, dict):
            value = list(value.values())  # transformers 4 always wrote an object, mostly empty
        for entry in value if isinstance(value, list) else [value]:
            text = entry.get("content") if isinstance(entry, dict) else entry
            if isinstance(text, str) and text:
                yield text
            elif entry is not None:
                raise TokenizerError(f"{source}: {name} holds {entry!r:.80}; expected text")
