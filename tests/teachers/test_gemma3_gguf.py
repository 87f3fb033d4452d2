"""Gemma 3 in GGUF: the model that transformers makes of its folder, with the tokens of its file."""

import random
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers

from gemmule.checkpoints.load import open_checkpoint
from gemmule.data.dataset import Dataset
from gemmule.data.packed_text import batch_of
from gemmule.errors import CheckpointError, TokenizerError
from gemmule.model.spm_model import CONTROL, USER_DEFINED, Piece
from gemmule.model.spm_train import FIRST_TEXT_ID, SPACE
from gemmule.model.tokenizer import Tokenizer
from gemmule.teachers.mapped import MappedTeacher
from gemmule.teachers.open import open_foreign_teacher, open_teacher

Foreign = Callable[..., Path]
ROWS = 528


def in_another_order(pieces: Tokenizer) -> list[Piece]:
    """As llama.cpp's converter writes a vocabulary with Gemma 3's tokens, control ones marked."""
    kinds = [CONTROL if i < FIRST_TEXT_ID else p.kind for i, p in enumerate(pieces.pieces)]
    kinds[3] = pieces.pieces[3].kind
    listed = [p._replace(kind=kind) for p, kind in zip(pieces.pieces, kinds, strict=True)]
    listed = [
        p._replace(text=p.text.replace(SPACE, " ")) if p.kind == USER_DEFINED else p for p in listed
    ]
    lacking = {"<2mass>", "[@BOS@]"}
    rest = [p for p in listed[4:] if p.text not in lacking]
    random.Random(0).shuffle(rest)
    own = [Piece(f"<unused{n}>", -1000.0, CONTROL) for n in range(900, 902)]
    return [*listed[:4], *rest, *own]


def write(folder: Path, pieces: list[Piece], file: Path, **changes: int) -> Path:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    config = model.config
    writer = gguf.GGUFWriter(file, "gemma3")
    keys = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.sliding_window": config.sliding_window,
        **changes,
    }
    for key, value in keys.items():
        writer.add_uint32(f"gemma3.{key}", value)
    writer.add_float32("gemma3.attention.layer_norm_rms_epsilon", config.rms_norm_eps)
    writer.add_float32("gemma3.rope.freq_base", 1e6)
    writer.add_string("tokenizer.ggml.model", "llama")
    writer.add_array("tokenizer.ggml.tokens", [piece.text.encode() for piece in pieces])
    writer.add_array("tokenizer.ggml.scores", [piece.score for piece in pieces])
    writer.add_array("tokenizer.ggml.token_type", [piece.kind for piece in pieces])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA3, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        theirs = names.get_name(name, try_suffixes=(".weight",))
        values = tensor.numpy().astype(np.float32)
        writer.add_tensor(theirs, values + 1 if name.endswith("norm.weight") else values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.fixture(scope="module")
def listed(pieces: Tokenizer) -> list[Piece]:
    return in_another_order(pieces)


@pytest.fixture(scope="module")
def folder(foreign: Foreign, listed: list[Piece]) -> Path:
    # One layer of six is global in every file.
    return foreign(
        "gemma3_text", len(listed), num_hidden_layers=7, query_pre_attn_scalar=16,
        layer_types=[*["sliding_attention"] * 5, "full_attention", "sliding_attention"],
    )  # fmt: skip


@pytest.fixture(scope="module")
def file(folder: Path, listed: list[Piece], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(folder, listed, tmp_path_factory.mktemp("gguf") / "m.gguf")


def test_it_computes_what_the_folder_does(
    file: Path, folder: Path, listed: list[Piece], prepared: Path
) -> None:
    dataset = Dataset.open(prepared)
    teacher = open_teacher(str(file), dataset, 32)
    assert isinstance(teacher, MappedTeacher)
    ids = {piece.text.replace(" ", SPACE): i for i, piece in enumerate(listed)}
    expected = [ids.get(p.text, ids["<pad>"]) for p in dataset.tokenizer.pieces]
    assert teacher.vocabulary.ids_V.tolist() == expected
    assert teacher.vocabulary.stand_ins == 2
    batch = batch_of(dataset.split("train"), np.arange(3), 32)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        x_BTD = teacher.hidden_states(batch)
        for row, doc_ids_T in enumerate(batch.doc_ids_BT):
            first = doc_ids_T == doc_ids_T[0]
            tokens_M = batch.tokens_BT[row, first]
            within = int(tokens_M[0]) != Tokenizer.bos_id  # such a sequence is opened
            opening = [torch.tensor([Tokenizer.bos_id])] if within else []
            theirs = teacher.vocabulary.ids_V[torch.cat([*opening, tokens_M])]
            logits = model(theirs[None]).logits[0, int(within) :]
            ours = teacher.whole_head.logits(x_BTD[row, first])
            torch.testing.assert_close(ours, logits, rtol=1e-4, atol=1e-4)
    assert teacher.describe()["architecture"] == "Gemma3ForCausalLM"


def test_across_tokenizers_it_has_its_own(
    file: Path, listed: list[Piece], pieces: Tokenizer
) -> None:
    teacher = open_foreign_teacher(str(file), 32)
    assert teacher.tokenizer is not None
    text = "the sea\n\nsaid   captain é"
    ids = teacher.tokenizer.encode(text)
    assert b"".join(teacher.tokenizer.token_bytes(ids)) == text.encode()
    assert isinstance(teacher, MappedTeacher)
    expected = [pieces.pieces[i].text for i in pieces.encode(text)]
    assert [listed[i].text.replace(" ", SPACE) for i in teacher.vocabulary.ids_V[ids]] == expected


def test_it_is_named_as_a_teacher(file: Path) -> None:
    with pytest.raises(CheckpointError, match=r"Gemma 3.*gemmule distill. can use it as a teacher"):
        open_checkpoint(file)


def test_what_cannot_be_loaded_is_named(
    file: Path, folder: Path, listed: list[Piece], prepared: Path, tmp_path: Path
) -> None:
    dataset = Dataset.open(prepared)
    for changes, match in (
        ({"feed_forward_length": 32}, "does not hold the tensors of a Gemma 3"),
        ({"block_count": 6}, "does not hold the tensors of a Gemma 3"),
        ({"attention.sliding_window_pattern": 4}, "sliding_window_pattern is 4"),
    ):
        damaged = write(folder, listed, tmp_path / "m.gguf", **changes)
        with pytest.raises(CheckpointError, match=match):
            open_teacher(str(damaged), dataset, 32)
    fewer = [piece for piece in listed if piece.text != "<0x41>"]
    fewer.append(Piece("<extra>", 0.0, CONTROL))
    with pytest.raises(TokenizerError, match="has no piece '<0x41>'"):
        open_teacher(str(write(folder, fewer, tmp_path / "n.gguf")), dataset, 32)
