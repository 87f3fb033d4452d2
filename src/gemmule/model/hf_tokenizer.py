"""The tokenizer in Hugging Face's format: tokenizer.json and the chat template.

Known difference: a tokenizer.json decodes a literal U+2581 in a text as a space, as Gemma's
published one does; `Tokenizer.encode` spells it in bytes instead.
"""

from collections.abc import Sequence
from typing import Any

from gemmule.model.spm_train import FIRST_BYTE_ID, FIRST_LEARNED_ID, FIRST_TEXT_ID, SPACE

# The same turns as Tokenizer.render_chat. A system message opens the first user turn, because Gemma
# 2 was trained without a system role.
CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- set turns = messages -%}
{%- set opening = '' -%}
{%- if messages and messages[0]['role'] == 'system' -%}
    {%- set turns = messages[1:] -%}
    {%- set opening = messages[0]['content'] | trim -%}
{%- endif -%}
{%- if not turns -%}
    {{- raise_exception('a conversation needs a user message') -}}
{%- endif -%}
{%- for turn in turns -%}
    {%- set role = 'model' if turn['role'] == 'assistant' else turn['role'] -%}
    {%- if role != ('model' if loop.index0 % 2 else 'user') -%}
        {{- raise_exception('roles must alternate user, assistant, user, ...') -}}
    {%- endif -%}
    {{- '<start_of_turn>' + role + '\\n' -}}
    {%- if loop.first and opening -%}
        {{- (opening + '\\n\\n' + turn['content'] | trim) | trim -}}
    {%- else -%}
        {{- turn['content'] | trim -}}
    {%- endif -%}
    {{- '<end_of_turn>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<start_of_turn>model\\n' -}}
{%- endif -%}
"""


def tokenizer_config(chat_template: str | None = None) -> dict[str, Any]:
    """The content of tokenizer_config.json; without a template of its own, Gemma's turns."""
    return {
        "tokenizer_class": "GemmaTokenizer",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "additional_special_tokens": ["<start_of_turn>", "<end_of_turn>"],
        "add_bos_token": True,
        "add_eos_token": False,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE if chat_template is None else chat_template,
    }


def tokenizer_json(pieces: Sequence[str], scores: Sequence[float], normal: Sequence[bool]) -> str:
    """The content of tokenizer.json: a BPE whose merges give SentencePiece's segmentation.

    Args:
        pieces: all pieces by id, with U+2581 for a space.
        scores: score of each piece; higher scores merge first.
        normal: whether each piece is an ordinary one, which merges can build.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

    vocab = {piece: i for i, piece in enumerate(pieces)}
    model = models.BPE(
        vocab=vocab,
        merges=_merges(pieces, scores, normal),
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", 2)]
    )
    tokenizer.add_special_tokens(
        [AddedToken(piece, normalized=False, special=True) for piece in pieces[:FIRST_TEXT_ID]]
    )
    # SentencePiece matches these as a whole before any merge, and after spaces became U+2581.
    whole = [
        piece
        for i, piece in enumerate(pieces)
        if FIRST_TEXT_ID <= i < FIRST_BYTE_ID or (i >= FIRST_LEARNED_ID and not normal[i])
    ]
    tokenizer.add_tokens([AddedToken(piece, normalized=True) for piece in whole])
    return str(tokenizer.to_str(pretty=True))


def _merges(
    pieces: Sequence[str], scores: Sequence[float], normal: Sequence[bool]
) -> list[tuple[str, str]]:
    """All ways to build a piece from two others, in SentencePiece's order of merging."""
    known = {piece for i, piece in enumerate(pieces) if normal[i]}
    order = sorted((i for i in range(len(pieces)) if normal[i]), key=lambda i: (-scores[i], i))
    merges = []
    for i in order:
        piece = pieces[i]
        # Equal scores go left to right: a longer left part was itself merged further left.
        for cut in range(len(piece) - 1, 0, -1):
            if piece[:cut] in known and piece[cut:] in known:
                merges.append((piece[:cut], piece[cut:]))
    return merges
