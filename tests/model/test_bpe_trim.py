"""BPE tokenizers of other families, trimmed: the same segmentation, and no text lost."""

import ast
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from gemmule.errors import ConfigError, TokenizerError
from gemmule.model.bpe_trim import BpeFile, TrimmedBpe, byte_letters

TEXT = Path(ast.__file__).read_text()
STRANGERS = [
    "Zażółć gęślą jaźń", "木曾路はすべて山の中である。", "\t\t x\r\n\n\n",
    "👩‍👩‍👧 \U0010ffff\x00", " " * 40,
    "ﷺ\u0301e\u0301", "", "<|end|> 12345 don't",
]  # fmt: skip
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def trained(kind: str) -> dict[str, Any]:
    """The content of a tokenizer.json as GPT-2, Llama 3 or Llama 2 have it."""
    if kind == "llama2":
        tokenizer = tokenizers.Tokenizer(
            models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True)
        )
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
             decoders.Strip(" ", 1, 0)]
        )  # fmt: skip
        special = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    else:
        tokenizer = tokenizers.Tokenizer(models.BPE(ignore_merges=kind == "llama3"))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        if kind == "llama3":
            tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Split(tokenizers.Regex(LLAMA3), "isolated"),
                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
                ]
            )
        tokenizer.decoder = decoders.ByteLevel()
        special = []
    trainer = trainers.BpeTrainer(
        vocab_size=1500, special_tokens=special, show_progress=False,
        initial_alphabet=[] if kind == "llama2" else pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    pieces = TEXT.split(" ") if kind == "llama2" else [TEXT]
    tokenizer.train_from_iterator([f" {piece}" for piece in pieces], trainer)
    if kind != "llama2":
        tokenizer.add_special_tokens(["<|begin|>", "<|end|>"])
        begin = tokenizer.token_to_id("<|begin|>")
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|begin|> $A", pair=None, special_tokens=[("<|begin|>", begin)]
        )
    content: dict[str, Any] = json.loads(tokenizer.to_str())
    if kind == "llama2":  # bytes are no special tokens
        content["added_tokens"] = content["added_tokens"][:3]
    if kind == "llama3":  # its converter lists every pair that concatenates to a piece
        vocab = content["model"]["vocab"]
        ranked = dict.fromkeys(left + right for left, right in content["model"]["merges"])
        content["model"]["merges"] = [
            [piece[:cut], piece[cut:]]
            for piece in ranked
            for cut in range(1, len(piece))
            if piece[:cut] in vocab and piece[cut:] in vocab
        ]
    return content


@pytest.fixture(scope="module", params=["gpt2", "llama3", "llama2"])
def content(request: pytest.FixtureRequest) -> dict[str, Any]:
    return trained(request.param)


def load(content: dict[str, Any]) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(json.dumps(content))


def trim(content: dict[str, Any], text: str, **extent: Any) -> TrimmedBpe:
    file = BpeFile(content, "x")
    ids = load(content).encode(text, add_special_tokens=False).ids
    return file.trim(np.bincount(ids, minlength=file.size), **extent)


def test_a_text_is_segmented_as_before(content: dict[str, Any]) -> None:
    text = TEXT[: len(TEXT) // 3]
    trimmed = trim(content, text)
    full, small = load(content), load(trimmed.content)
    assert small.get_vocab_size() == len(trimmed.kept_K) < full.get_vocab_size()
    assert trimmed.coverage == 1.0
    before, after = (each.encode(text, add_special_tokens=False) for each in (full, small))
    assert after.tokens == before.tokens
    assert trimmed.kept_K[after.ids].tolist() == before.ids


def test_other_text_still_round_trips(content: dict[str, Any]) -> None:
    full, small = load(content), load(trim(content, "return None").content)
    assert small.get_vocab_size() < full.get_vocab_size() / 2
    pick = random.Random(5)
    texts = [*STRANGERS, *("".join(pick.choices("aé木 \n\t0𝒳", k=30)) for _ in range(200))]
    for text in texts:
        ids = small.encode(text, add_special_tokens=False).ids
        assert small.decode(ids, skip_special_tokens=False) == text


def test_added_tokens_and_the_template_have_their_new_ids(content: dict[str, Any]) -> None:
    full, small = load(content), load(trim(content, "return None").content)
    assert small.encode("return").tokens == full.encode("return").tokens
    for entry in content["added_tokens"]:
        assert small.id_to_token(small.token_to_id(entry["content"])) == entry["content"]


def test_sizes_and_coverage(content: dict[str, Any]) -> None:
    assert len(trim(content, "return None", size=900).kept_K) == 900
    most = trim(content, TEXT, coverage=0.9)
    assert 0.9 <= most.coverage < 1.0
    with pytest.raises(ConfigError, match="more than the tokenizer has"):
        trim(content, TEXT, size=9999)
    with pytest.raises(ConfigError, match=r"takes .* tokens, more than the size of 400"):
        trim(content, TEXT, size=400, coverage=0.999)


def test_a_script_that_it_only_has_as_bytes(content: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="of the text's tokens are single bytes"):
        trim(content, "ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ")


def test_what_cannot_be_trimmed(content: dict[str, Any]) -> None:
    for model in (models.Unigram([("a", -1.0)]), models.WordPiece({"a": 0, "[UNK]": 1})):
        other = json.loads(tokenizers.Tokenizer(model).to_str())
        kind = other["model"]["type"]
        with pytest.raises(TokenizerError, match=rf"is not a BPE tokenizer .its model is '{kind}'"):
            BpeFile(other, "x")
    letter = next(p for p in (byte_letters()[200], "<0xC8>") if p in content["model"]["vocab"])
    vocab = {piece: i for piece, i in content["model"]["vocab"].items() if piece != letter}
    with pytest.raises(TokenizerError, match="cannot spell every text in bytes"):
        BpeFile({**content, "model": {**content["model"], "vocab": vocab}}, "x")
    for damage in ({"vocab": {}}, {"vocab": {"a": "b"}}, {"merges": None}, {"merges": ["a"]},
                   {"merges": [None]}, {"merges": [["a", 1]]},
                   {"end_of_word_suffix": "</w>"}):  # fmt: skip
        with pytest.raises(TokenizerError):
            BpeFile({**content, "model": {**content["model"], **damage}}, "x")
    for step in ({"special_tokens": {"<s>": {}}}, {"cls": ["<s>"]}, {"special_tokens": ["<s>"]}):
        with pytest.raises(TokenizerError, match="does not say which ids it adds"):
            BpeFile({**content, "post_processor": step}, "x")
