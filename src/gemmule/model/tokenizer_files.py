"""What the files around a tokenizer say: added tokens, the chat template and the stop ids."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemmule import files
from gemmule.errors import TokenizerError
from gemmule.model import hf_tokenizer
from gemmule.model.spm_train import END_OF_TURN_ID

TOKENIZER_CONFIG = "tokenizer_config.json"
CHAT_TEMPLATE_FILE = "chat_template.jinja"
GENERATION_CONFIG = "generation_config.json"
EOS_ID = 1
DEFAULT_STOP_IDS = (EOS_ID, END_OF_TURN_ID)


@dataclass(frozen=True)
class AddedToken:
    """A token that was added to a vocabulary; the flags are those of the tokenizers library.

    Attributes:
        content: text of the token.
        id: its id.
        special: a control token: text only produces it if the caller allows it.
        lstrip: whitespace before it belongs to it.
        rstrip: whitespace after it belongs to it.
        single_word: not matched inside a word.
        normalized: matched in normalized text, where a space is U+2581.
    """

    content: str
    id: int
    special: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False


def read_object(file: Path) -> dict[str, Any]:
    """Reads a JSON file that holds an object; a missing one is empty.

    Raises:
        TokenizerError: when it cannot be read or holds something else.
    """
    try:
        value = files.read_json(file)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as e:
        raise TokenizerError(f"{file} is not readable JSON: {e}") from None
    if not isinstance(value, dict):
        raise TokenizerError(f"{file} holds a {type(value).__name__}; expected a JSON object")
    return value


def read_chat_template(folder: Path) -> str | None:
    """The chat template of a folder; None: there is none, or it is Gemma's own.

    chat_template.jinja comes before tokenizer_config.json, as in transformers. Of several templates
    with names the one called "default" is taken.

    Raises:
        TokenizerError: when a file is damaged or holds a template of another type.
    """
    file = folder / CHAT_TEMPLATE_FILE
    template: Any
    try:
        template = files.read_text(file)
    except FileNotFoundError:
        file = folder / TOKENIZER_CONFIG
        template = read_object(file).get("chat_template")
    except (OSError, ValueError) as e:
        raise TokenizerError(f"cannot read {file}: {e}") from None
    if isinstance(template, list):
        try:
            template = {entry["name"]: entry["template"] for entry in template}
        except (TypeError, KeyError):
            raise TokenizerError(
                f"{file}: an entry of chat_template lacks its name or template"
            ) from None
    if isinstance(template, dict):
        if "default" not in template:
            raise TokenizerError(
                f"{file} has chat templates named {', '.join(map(repr, template))}, and none is "
                "named 'default'"
            )
        template = template["default"]
    if template is not None and not isinstance(template, str):
        raise TokenizerError(f"{file}: chat_template is a {type(template).__name__}; expected text")
    return None if template == hf_tokenizer.CHAT_TEMPLATE else template


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
