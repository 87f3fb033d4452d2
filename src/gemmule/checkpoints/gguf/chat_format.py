"""The chat template and the stop ids in the metadata of a GGUF file.

GGUF names at most three ids that end an answer: eos, eot (end of turn) and eom (end of message).
llama.cpp stops at all of them. If a file names no eot, llama.cpp looks for a control token with a
well-known text instead (facts read from its llama-vocab.cpp), and so does this reader.
"""

from collections.abc import Mapping
from typing import Any

from gemmule.checkpoints.gguf.header import Value
from gemmule.errors import TokenizerError
from gemmule.model.hf_tokenizer import CHAT_TEMPLATE
from gemmule.model.spm_model import CONTROL
from gemmule.model.tokenizer import Tokenizer
from gemmule.model.tokenizer_files import DEFAULT_STOP_IDS

_TEMPLATE, _NAMES = "tokenizer.chat_template", "tokenizer.chat_templates"
_EOS = "tokenizer.ggml.eos_token_id"
_STOPS = (_EOS, "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
_NAMED_IDS = {"eos_token": _EOS, "pad_token": "tokenizer.ggml.padding_token_id"}
_ENDS_OF_TURN = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "< EOT >", "_<EOT>",
)  # fmt: skip


def to_metadata(tokenizer: Tokenizer) -> dict[str, Any]:
    """The metadata of ids and templates.

    Raises:
        TokenizerError: for more stop ids than GGUF can hold.
    """
    stops = list(tokenizer.stop_ids)
    if len(stops) > len(_STOPS):
        shown = ", ".join(tokenizer.decode([i], control=True) for i in stops)
        raise TokenizerError(
            f"the model ends its answers with {len(stops)} tokens ({shown}), and a GGUF file holds "
            f"{len(_STOPS)}: leave some out of eos_token_id in its generation_config.json"
        )
    eos = tokenizer.named_id("eos_token")
    stops.sort(key=lambda i: i != eos)
    eot = stops[1] if len(stops) > 1 else stops[0]  # named, so that llama.cpp does not look for one
    named = tokenizer.named_templates
    template = tokenizer.chat_template
    if template is None and tokenizer.has_gemma_turns:
        template = CHAT_TEMPLATE
    return {
        "tokenizer.ggml.bos_token_id": tokenizer.bos_id,
        _EOS: stops[0],
        "tokenizer.ggml.unknown_token_id": tokenizer.unk_id,
        "tokenizer.ggml.padding_token_id": tokenizer.named_id("pad_token"),
        _STOPS[1]: eot,
        **({_STOPS[2]: stops[2]} if len(stops) > 2 else {}),
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": False,
        **({_NAMES: sorted(named)} if named else {}),
        **{f"{_TEMPLATE}.{name}": named[name] for name in sorted(named)},
        **({} if template is None else {_TEMPLATE: template}),
    }


def from_metadata(tokenizer: Tokenizer, metadata: Mapping[str, Value], source: str) -> Tokenizer:
    """The tokenizer of a file with the file's chat template and stop ids.

    Raises:
        TokenizerError: for a template that is not text, or an id outside the vocabulary.
    """
    template = _text(metadata, _TEMPLATE, source)
    listed = metadata.get(_NAMES)
    names = [n.decode(errors="replace") for n in listed] if isinstance(listed, list) else []
    named = {n: _text(metadata, f"{_TEMPLATE}.{n}", source) for n in names if n != "default"}
    token_names = {}
    ids = {key: _id(metadata, key, tokenizer, source) for key in (*_STOPS, *_NAMED_IDS.values())}
    for name, key in _NAMED_IDS.items():
        i = ids[key]
        if i is not None and i != tokenizer.named_id(name):
            token_names[name] = tokenizer.decode([i], control=True)
    stops = [i for key in _STOPS if (i := ids[key]) is not None]
    if ids[_STOPS[1]] is None:
        stops += _ends_of_turn(tokenizer)
    return tokenizer.with_chat_format(
        template,
        stops or DEFAULT_STOP_IDS,
        {name: text for name, text in named.items() if text is not None},
        token_names,
    )


def _ends_of_turn(tokenizer: Tokenizer) -> list[int]:
    return [
        i
        for i, piece in enumerate(tokenizer.pieces)
        if piece.text in _ENDS_OF_TURN and (piece.kind == CONTROL or i == tokenizer.end_of_turn_id)
    ]


def _text(metadata: Mapping[str, Value], key: str, source: str) -> str | None:
    value = metadata.get(key)
    if value is not None and not isinstance(value, str):
        raise TokenizerError(f"{source}: {key} is not text")
    return value


def _id(metadata: Mapping[str, Value], key: str, tokenizer: Tokenizer, source: str) -> int | None:
    value = metadata.get(key)
    if value is None:
        return None
    size = tokenizer.vocab_size
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < size:
        raise TokenizerError(
            f"{source}: {key} is {value!r:.60}; expected an id of the vocabulary, 0 to {size - 1}"
        )
    return value
