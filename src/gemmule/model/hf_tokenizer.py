"""The tokenizer in Hugging Face's format: tokenizer.json and the chat template.

Known difference: a tokenizer.json decodes a literal U+2581 in a text as a space, as Gemma's
published one does; `Tokenizer.encode` spells it in bytes instead.
"""

from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from gemmule.model.added_tokens import AddedToken
from gemmule.model.gemma_layout import FIXED_PIECES
from gemmule.model.spm_model import CONTROL, NORMAL, USER_DEFINED, Piece
from gemmule.model.spm_train import (
    END_OF_TURN_ID,
    FIRST_BYTE_ID,
    FIRST_TEXT_ID,
    SPACE,
    START_OF_TURN_ID,
)

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


def tokenizer_config(
    chat_template: str | None,
    named_templates: Mapping[str, str],
    token_names: Mapping[str, str],
    added: Sequence[AddedToken],
) -> dict[str, Any]:
    """The content of tokenizer_config.json.

    Args:
        chat_template: the chat template; None: Gemma's own turns.
        named_templates: further templates by name.
        token_names: other texts of eos_token, pad_token and so on.
        added: tokens that are not Gemma's own.
    """
    renamed = {token.id for token in added}
    turns = [FIXED_PIECES[i] for i in (START_OF_TURN_ID, END_OF_TURN_ID) if i not in renamed]
    template = chat_template
    if template is None and len(turns) == 2:  # without Gemma's markers there is no template
        template = CHAT_TEMPLATE
    templates = {"default": template, **named_templates}
    listed = [{"name": name, "template": text} for name, text in templates.items() if text]
    return {
        "tokenizer_class": "GemmaTokenizer",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "additional_special_tokens": turns + [token.content for token in added if token.special],
        "add_bos_token": True,
        "add_eos_token": False,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "chat_template": listed if named_templates else template,
        **token_names,
    }


def tokenizer_json(pieces: Sequence[Piece], added: Sequence[AddedToken]) -> str:
    """The content of tokenizer.json: a BPE whose merges give SentencePiece's segmentation.

    Args:
        pieces: all pieces by id.
        added: tokens that are not Gemma's own, among the pieces.
    """
    from tokenizers import AddedToken as Added
    from tokenizers import Tokenizer, decoders, models, normalizers, processors

    own = {token.id: token for token in added}
    base = len(pieces)
    while base - 1 in own:
        base -= 1
    texts = [piece.text for piece in pieces[:base]]
    known = {piece.text for piece in pieces if piece.kind == NORMAL}
    if "\t" not in known and any("\t" in text for text in known):
        # Merges only begin with pieces: as Gemma's converter does, the byte is written as a tab.
        texts[FIRST_BYTE_ID + 9] = "\t"
        known.add("\t")
    model = models.BPE(
        vocab={text: i for i, text in enumerate(texts)},
        merges=_merges(pieces, known),
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
    control = [
        i
        for i, piece in enumerate(pieces)
        if i not in own and (i < FIRST_TEXT_ID or piece.kind == CONTROL)
    ]
    tokenizer.add_special_tokens(
        [Added(pieces[i].text, normalized=False, special=True) for i in control]
    )
    # SentencePiece matches these as a whole before any merge, and after spaces became U+2581.
    whole = [
        piece.text
        for i, piece in enumerate(pieces)
        if i not in own and i >= FIRST_TEXT_ID and piece.kind == USER_DEFINED
    ]
    tokenizer.add_tokens([Added(text, normalized=True) for text in whole])
    for token in added:
        flags = asdict(token)
        del flags["id"]
        tokenizer.add_tokens([Added(**flags)])
    return str(tokenizer.to_str(pretty=True))


def _merges(pieces: Sequence[Piece], known: Container[str]) -> list[tuple[str, str]]:
    """All ways to build a piece from two others, in SentencePiece's order of merging."""
    normal = [i for i, piece in enumerate(pieces) if piece.kind == NORMAL]
    merges = []
    for i in sorted(normal, key=lambda i: (-pieces[i].score, i)):
        text = pieces[i].text
        # All that matters is that they are neighbors: at most one of them is ever used (merges.py).
        for cut in range(len(text) - 1, 0, -1):
            if text[:cut] in known and text[cut:] in known:
                merges.append((text[:cut], text[cut:]))
    return merges
