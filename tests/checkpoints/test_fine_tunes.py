"""Fine-tunes keep added tokens, chat template and stop ids, when loaded and in every export."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fine_tunes import CHAT, CHATML, TEXTS, Theirs, changed, edit_json, make_fine_tune
from gemmule.checkpoints import verify
from gemmule.checkpoints.convert import convert
from gemmule.checkpoints.describe import describe, lines
from gemmule.checkpoints.gguf import chat_format
from gemmule.checkpoints.gguf import tokenizer as gguf_tokenizer
from gemmule.checkpoints.hf.writer import save_model
from gemmule.checkpoints.load import load_model, open_checkpoint
from gemmule.checkpoints.verify import VerificationError
from gemmule.errors import TokenizerError
from gemmule.infer.core.sampling import SamplingParams
from gemmule.infer.language_model import LanguageModel, load
from gemmule.model.hf_tokenizer import CHAT_TEMPLATE
from gemmule.model.tokenizer import Tokenizer
from gemmule.quantize import quantize
from models import GROUPED, random_model, tiny_config

IM_START, IM_END, THOUGHT = 512, 513, 514
GREEDY: Any = {"temperature": 0.0, "max_new_tokens": 40}
TOOL_USE = "{{ tools | tojson }}" + CHATML


@pytest.fixture(scope="module")
def base(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny_config(GROUPED, vocab_size=512, max_position_embeddings=128)
    folder = tmp_path_factory.mktemp("base") / "model"
    save_model(random_model(config, std={"norm": 3.0, "embed": 0.1, "": 1.0}), tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def tuned(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_fine_tune(base, tmp_path_factory.mktemp("tuned") / "model")


@pytest.fixture(scope="module")
def theirs(tuned: Path) -> Theirs:
    return Theirs(tuned)


@pytest.fixture(scope="module")
def stopping(tuned: Path, theirs: Theirs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model, which stops at the fourth different token of its answer to CHAT."""
    answer = theirs.generate(theirs.chat_ids(CHAT), 40)
    stop = list(dict.fromkeys(answer))[3]
    folder = tmp_path_factory.mktemp("stopping") / "model"
    return changed(
        tuned,
        folder,
        lambda to: edit_json(to / "generation_config.json", eos_token_id=[IM_END, stop]),
    )


def same_format(ours: Tokenizer, source: Tokenizer) -> bool:
    return (
        ours.fingerprint == source.fingerprint
        and ours.added_tokens == source.added_tokens
        and ours.chat_template == source.chat_template
        and set(ours.stop_ids) == set(source.stop_ids)
        and ours.token_names == source.token_names
        and ours.render_chat(CHAT) == source.render_chat(CHAT)
    )


# --- as transformers ----------------------------------------------------------------------------


def test_ids_are_those_of_transformers(tuned: Path, theirs: Theirs) -> None:
    ours = Tokenizer.load(tuned)
    assert ours.chat_format == (CHATML, (IM_END, 1))
    for text in TEXTS:
        assert ours.encode(text, bos=True, control=True) == theirs.tokenizer(text).input_ids
    assert ours.encode("<|im_start|>x<|im_end|>").count(IM_END) == 0
    assert ours.encode("x <thought>")[-1] == THOUGHT
    assert ours.render_chat(CHAT) == theirs.chat_ids(CHAT)


def test_answers_and_their_end_are_those_of_transformers(stopping: Path) -> None:
    theirs, lm = Theirs(stopping), load(stopping)
    ids = lm.tokenizer.render_chat(CHAT)
    expected = theirs.generate(ids, 40)
    assert 3 <= len(expected) < 40
    assert lm.chat(CHAT, **GREEDY) == lm.tokenizer.decode(expected)
    assert "".join(lm.stream_chat(CHAT, **GREEDY)) == lm.tokenizer.decode(expected)
    with torch.no_grad():
        logits = lm.model(torch.tensor([ids]))[0]
    assert (logits - theirs.logits(ids)).abs().max() < 3e-4


def test_info_names_the_format(tuned: Path, base: Path) -> None:
    about = describe(tuned)
    assert about["tokenizer"]["added_tokens"] == ["<|im_start|>", "<|im_end|>", "<thought>"]
    assert dict(lines(about))["chat"] == (
        "a template of its own, stops at <|im_end|> (513), <eos> (1); 3 added tokens"
    )
    assert dict(lines(describe(base)))["chat"] == (
        "Gemma's turns, stops at <eos> (1), <end_of_turn> (107)"
    )


# --- exports ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("to", "dtype"), [("hf", None), ("gguf", None), ("gguf", "Q8_0"),
                                           ("gemma_pytorch", None)])  # fmt: skip
def test_exports_keep_the_format(
    stopping: Path, tmp_path: Path, to: str, dtype: str | None
) -> None:
    report = convert(stopping, tmp_path / "out", to, dtype)
    source, lm = Tokenizer.load(stopping), load(tmp_path / "out")
    assert same_format(lm.tokenizer, source)
    assert lm.config.vocab_size == 520
    if to == "hf":
        reader = report["verified"]["reader"]
        assert reader["chat_alike"] and reader["stop_ids_alike"]
        assert reader["added_tokens_alike"] == 3
        exported, original = Theirs(tmp_path / "out"), Theirs(stopping)
        for text in TEXTS:
            assert exported.tokenizer(text).input_ids == original.tokenizer(text).input_ids
        assert exported.chat_ids(CHAT) == original.chat_ids(CHAT)
        assert exported.tokenizer.eos_token == "<|im_end|>"
        ids = source.render_chat(CHAT)
        assert exported.generate(ids, 40) == original.generate(ids, 40)
    if dtype is None:
        assert lm.chat(CHAT, **GREEDY) == load(stopping).chat(CHAT, **GREEDY)


def test_quantized_models_keep_the_format(stopping: Path, tmp_path: Path) -> None:
    quantize(stopping, "int8", out=tmp_path / "out")
    assert same_format(load(tmp_path / "out").tokenizer, Tokenizer.load(stopping))
    config = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert config["eos_token_id"] == list(Tokenizer.load(stopping).stop_ids)


def test_a_gguf_file_names_the_stop_tokens(tuned: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    source = Tokenizer.load(tuned)
    metadata = chat_format.to_metadata(source)
    assert metadata["tokenizer.ggml.eos_token_id"] == IM_END
    assert metadata["tokenizer.ggml.eot_token_id"] == 1
    assert metadata["tokenizer.chat_template"] == source.chat_template
    one = source.with_chat_format(source.chat_template, [IM_END])
    assert chat_format.to_metadata(one)["tokenizer.ggml.eot_token_id"] == IM_END
    three = source.with_chat_format(source.chat_template, [1, 107, IM_END])
    metadata = chat_format.to_metadata(three)
    assert [metadata[f"tokenizer.ggml.{k}_token_id"] for k in ("eos", "eot", "eom")] == [
        IM_END, 1, 107,
    ]  # fmt: skip
    for tokenizer in (source, one, three):
        back = chat_format.from_metadata(source, chat_format.to_metadata(tokenizer), "file")
        assert set(back.stop_ids) == set(tokenizer.stop_ids)
    four = source.with_chat_format(source.chat_template, [1, 107, 300, IM_END])
    with pytest.raises(TokenizerError, match=r"ends its answers with 4 tokens \(.*<\|im_end\|>\)"):
        chat_format.to_metadata(four)


def test_a_model_that_gguf_cannot_hold_leaves_nothing(tuned: Path, tmp_path: Path) -> None:
    folder = changed(
        tuned,
        tmp_path / "model",
        lambda to: edit_json(to / "generation_config.json", eos_token_id=[1, 107, 300, IM_END]),
    )
    with pytest.raises(TokenizerError, match="ends its answers with 4 tokens"):
        convert(folder, tmp_path / "out" / "gguf", "gguf")
    assert [p.name for p in (tmp_path / "out").glob("*")] == []
    convert(folder, tmp_path / "ckpt", "gemma_pytorch", verify=False)
    assert set(Tokenizer.load(tmp_path / "ckpt").stop_ids) == {1, 107, 300, IM_END}


def test_gguf_files_of_others(tuned: Path) -> None:
    source = Tokenizer.load(tuned)
    template = {"tokenizer.chat_template": CHATML}
    # Without an eot, a well-known control token is one, as in llama.cpp.
    back = chat_format.from_metadata(source, {**template, "tokenizer.ggml.eos_token_id": 1}, "f")
    assert set(back.stop_ids) == {1, 107, IM_END}
    named = chat_format.to_metadata(
        source.with_chat_format(CHATML, [IM_END], {"tool_use": TOOL_USE})
    )
    named["tokenizer.chat_templates"] = [b"tool_use"]  # as a header is read
    assert chat_format.from_metadata(source, named, "f").named_templates == {"tool_use": TOOL_USE}
    plain = chat_format.from_metadata(source, {"tokenizer.chat_template": CHAT_TEMPLATE}, "f")
    assert plain.chat_format == (None, (1, 107, IM_END))
    for name, bad in (("eos", 515), ("eot", "x"), ("padding", -1)):
        key = f"tokenizer.ggml.{name}_token_id"
        with pytest.raises(TokenizerError, match=rf"f: tokenizer\.ggml\.{name}_token_id is"):
            chat_format.from_metadata(source, {**template, key: bad}, "f")
    with pytest.raises(TokenizerError, match=r"f: tokenizer\.chat_template is not text"):
        chat_format.from_metadata(source, {"tokenizer.chat_template": 3}, "f")


def test_added_tokens_of_a_gguf_file_without_their_flags(tuned: Path) -> None:
    source = Tokenizer.load(tuned)
    stored = gguf_tokenizer.to_metadata(source.pieces, 576)
    metadata: dict[str, Any] = {
        **stored,
        "tokenizer.ggml.scores": np.array(stored["tokenizer.ggml.scores"], np.float32),
        "tokenizer.ggml.token_type": np.array(stored["tokenizer.ggml.token_type"], np.int32),
    }
    ours = gguf_tokenizer.from_metadata(metadata, 576, "f")
    assert [(t.content, t.special) for t in ours.added_tokens] == [
        ("<|im_start|>", True), ("<|im_end|>", True), ("<thought>", False),
    ]  # fmt: skip
    for text in TEXTS:
        for control in (False, True):
            assert ours.encode(text, control=control) == source.encode(text, control=control)
    for bad in ("{", "[1]", '[{"content": "x", "id": 3}]', '[{"content": "x", "id": 9999}]', 3):
        with pytest.raises(TokenizerError, match=r"f: gemmule\.added_tokens"):
            gguf_tokenizer.from_metadata({**metadata, "gemmule.added_tokens": bad}, 576, "f")


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ({"chat_template": None}, "the chat template is not that of the source"),
        ({"chat_template": CHATML + "x"}, "the chat template is not that of the source"),
        ({"stop_ids": (1,)}, r"the stop ids are \[1\], the source's are \[1, 513\]"),
    ],
)
def test_an_export_that_lost_something_is_found(
    tuned: Path, monkeypatch: pytest.MonkeyPatch, lost: dict[str, Any], message: str
) -> None:
    with open_checkpoint(tuned) as source, open_checkpoint(tuned) as export:
        template, stops = source.tokenizer.chat_format
        changes: Any = {"chat_template": template, "stop_ids": stops, **lost}
        vars(export)["tokenizer"] = export.tokenizer.with_chat_format(**changes)
        if lost.get("chat_template", "") is None:  # Gemma's own stop ids would be noticed first
            monkeypatch.setattr(type(source.tokenizer), "stop_ids", (1, 107), raising=False)
            vars(source.tokenizer)["stop_ids"] = vars(export)["tokenizer"].stop_ids
        with pytest.raises(VerificationError, match=message):
            verify.check_export(source, export, "text")


def test_an_export_that_lost_its_added_tokens_is_found(base: Path, tuned: Path) -> None:
    with open_checkpoint(tuned) as source, open_checkpoint(tuned) as export:
        vars(export)["tokenizer"] = Tokenizer.load(base)
        with pytest.raises(VerificationError, match="the tokenizer is not that of the source"):
            verify.check_export(source, export, "text")


# --- relatives ----------------------------------------------------------------------------------


def test_templates_with_names(tuned: Path, tmp_path: Path) -> None:
    def change(folder: Path) -> None:
        (folder / "chat_template.jinja").unlink()
        named = [
            {"name": "default", "template": CHATML}, {"name": "tool_use", "template": TOOL_USE}
        ]  # fmt: skip
        edit_json(folder / "tokenizer_config.json", chat_template=named)

    folder = changed(tuned, tmp_path / "model", change)
    ours = Tokenizer.load(folder)
    assert ours.chat_template == CHATML
    assert ours.named_templates == {"tool_use": TOOL_USE}
    for to in ("hf", "gguf"):
        convert(folder, tmp_path / to, to, verify=to == "hf")
        with open_checkpoint(tmp_path / to) as export:
            assert export.tokenizer.named_templates == {"tool_use": TOOL_USE}
            assert same_format(export.tokenizer, ours)
    assert Theirs(tmp_path / "hf").tokenizer.chat_template["tool_use"] == TOOL_USE


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({"eos_token_id": [IM_END, 107]}, {"eos_token_id": 1}, (IM_END, 107)),
        ({"eos_token_id": IM_END}, {"eos_token_id": 1}, (IM_END,)),
        ({"eos_token_id": None}, {"eos_token_id": IM_END}, (IM_END,)),
        ({"eos_token_id": ...}, {"eos_token_id": [IM_END, 1]}, (IM_END, 1)),
        (None, {"eos_token_id": IM_END}, (IM_END,)),
        (None, {"eos_token_id": ...}, (1, 107)),
    ],
)
def test_stop_ids_are_read_from_where_they_are(
    tuned: Path,
    tmp_path: Path,
    generation: dict[str, Any] | None,
    config: dict[str, Any],
    expected: tuple[int, ...],
) -> None:
    def change(folder: Path) -> None:
        edit_json(folder / "config.json", **config)
        if generation is None:
            (folder / "generation_config.json").unlink()
        else:
            edit_json(folder / "generation_config.json", **generation)

    folder = changed(tuned, tmp_path / "model", change)
    assert Tokenizer.load(folder).stop_ids == expected


@pytest.mark.parametrize("ids", [[9999], [IM_END, -1], ["<eos>"], 515, {"a": 1}])
def test_stop_ids_outside_the_vocabulary_are_refused(
    tuned: Path, tmp_path: Path, ids: object
) -> None:
    folder = changed(
        tuned,
        tmp_path / "model",
        lambda to: edit_json(to / "generation_config.json", eos_token_id=ids),
    )
    with pytest.raises(TokenizerError, match=r"generation_config\.json: eos_token_id holds"):
        Tokenizer.load(folder)


def test_a_template_that_needs_a_system_message(tuned: Path, tmp_path: Path) -> None:
    needs = (
        "{% if messages[0].role != 'system' %}{{ raise_exception('begin with a system message') }}"
        "{% endif %}" + CHATML
    )
    folder = changed(
        tuned, tmp_path / "model", lambda to: (to / "chat_template.jinja").write_text(needs)
    )
    lm = load(folder)
    assert lm.tokenizer.render_chat(CHAT) == Theirs(folder).chat_ids(CHAT)
    with pytest.raises(TokenizerError, match=r"/model refuses this conversation: begin with a sys"):
        lm.chat(CHAT[1:], **GREEDY)
    report = convert(folder, tmp_path / "out", "hf")
    assert report["verified"]["reader"]["chat_alike"]


def test_renamed_turn_markers_get_no_template_of_gemmas(base: Path, tmp_path: Path) -> None:
    def change(folder: Path) -> None:
        file = folder / "tokenizer.json"
        file.write_text(file.read_text().replace("<start_of_turn>", "<|turn|>"))
        (folder / "tokenizer.model").unlink()
        edit_json(
            folder / "tokenizer_config.json", chat_template=..., additional_special_tokens=...
        )

    folder = changed(base, tmp_path / "model", change)
    lm = load(folder)
    with pytest.raises(TokenizerError, match="no chat template"):
        lm.chat(CHAT, **GREEDY)
    for to in ("hf", "gguf"):
        convert(folder, tmp_path / to, to, verify=False)
        with open_checkpoint(tmp_path / to) as export:
            assert export.tokenizer.chat_template is None
            assert export.tokenizer.fingerprint == lm.tokenizer.fingerprint
    assert Theirs(tmp_path / "hf").tokenizer.chat_template is None


@pytest.mark.parametrize("rows", [1, 64])
def test_resized_embeddings(base: Path, tmp_path: Path, rows: int) -> None:
    folder = make_fine_tune(base, tmp_path / "model", rows)
    lm = load(folder)
    assert lm.config.vocab_size == (515 if rows == 1 else 576)
    with torch.no_grad():  # rows without a piece would win every draw
        lm.model.embed_tokens.weight[515:] *= 50
    (done,) = lm.complete(
        [lm.tokenizer.encode("def", bos=True)], SamplingParams(max_new_tokens=20, seed=0)
    )
    assert max(done.ids) < 515
    convert(folder, tmp_path / "gguf", "gguf")
    with open_checkpoint(tmp_path / "gguf") as export:
        assert export.config.vocab_size == lm.config.vocab_size
        assert same_format(export.tokenizer, lm.tokenizer)


def test_a_run_made_from_it_keeps_the_format(tuned: Path, tmp_path: Path) -> None:
    model, tokenizer = load_model(tuned)
    save_model(model, tokenizer, tmp_path / "run")
    assert same_format(Tokenizer.load(tmp_path / "run"), tokenizer)


def test_gemmas_own_format_is_written_as_before(base: Path) -> None:
    lm: LanguageModel = load(base)
    assert lm.tokenizer.chat_format == (None, (1, 107))
    config = json.loads((base / "generation_config.json").read_text())
    assert config == {"bos_token_id": 2, "eos_token_id": [1, 107], "pad_token_id": 0}
    assert json.loads((base / "config.json").read_text())["eos_token_id"] == 1
