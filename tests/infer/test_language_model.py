"""gemmule.load and what it returns."""

import copy
import dataclasses
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from constraints import PlainConstraint

import gemmule
from gemmule.checkpoints.checkpoint import weights_fingerprint
from gemmule.checkpoints.hf.writer import save_model
from gemmule.checkpoints.packed.model import QuantizedGemma
from gemmule.errors import CheckpointError, ConfigError, GemmuleError, TokenizerError
from gemmule.infer.language_model import LanguageModel
from gemmule.infer.runners import torch_runner
from gemmule.model.gemma import Gemma


@pytest.fixture(scope="module")
def run_directory(lm: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run")
    save_model(lm.model, lm.tokenizer, run / "model")
    return run


def test_load(run_directory: Path, lm: LanguageModel) -> None:
    for path in (run_directory, str(run_directory / "model")):
        loaded = gemmule.load(path)
        assert loaded.config == lm.config
        assert loaded.tokenizer.fingerprint == lm.tokenizer.fingerprint
        assert weights_fingerprint(loaded.model) == weights_fingerprint(lm.model)
        greedy: Any = {"temperature": 0.0, "max_new_tokens": 10}
        assert loaded.generate("def", **greedy) == lm.generate("def", **greedy)
    assert gemmule.load(run_directory, dtype="bfloat16").model.norm.weight.dtype == torch.bfloat16


def test_load_quantized(lm: LanguageModel, tmp_path: Path) -> None:
    """Packed as it is read: near what it was, and the same on the engine as in the module."""
    torch.manual_seed(0)
    calm = Gemma(lm.config)  # as initialised: small errors stay small
    save_model(calm, lm.tokenizer, tmp_path / "m")
    loaded = gemmule.load(tmp_path / "m", quantize="int8")
    assert isinstance(loaded.model, QuantizedGemma)
    text = "def add(a, b):\n    return a + b"
    scores, exact = loaded.score(text), LanguageModel(calm, lm.tokenizer).score(text)
    assert scores == pytest.approx(exact, abs=0.1)
    assert scores != exact
    ids = loaded.tokenizer.encode(text, bos=True)
    log_probs = loaded.model(torch.tensor([ids])).log_softmax(-1)[0, :-1]
    chosen = log_probs.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    assert scores == pytest.approx(chosen.tolist(), abs=0.1)


def test_load_refusals(run_directory: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown format 'int5'"):
        gemmule.load(run_directory, quantize="int5")
    with pytest.raises(ConfigError, match=r"quantize='int8' sets the weights' format"):
        gemmule.load(run_directory, quantize="int8", dtype="bfloat16")
    with pytest.raises(CheckpointError, match="expected a run directory"):
        gemmule.load(tmp_path)
    folder = Path(shutil.copytree(run_directory / "model", tmp_path / "m"))
    (folder / "tokenizer.model").write_bytes(b"damaged")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(TokenizerError, match="is not a SentencePiece model"):
        gemmule.load(folder)


def test_a_tokenizer_larger_than_the_model(lm: LanguageModel) -> None:
    from gemmule.model.gemma import Gemma

    small = Gemma(lm.config.model_copy(update={"vocab_size": 530}))
    with pytest.raises(TokenizerError, match="540 tokens, the model only 530"):
        LanguageModel(small, lm.tokenizer)


def test_score_is_log_softmax(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "def wrap(self, text): return 🙂"
    ids = lm.tokenizer.encode(text, bos=True)
    with torch.no_grad():
        logits = lm.model(torch.tensor([ids]))[0].double()
    logs = logits.log_softmax(-1)
    expected = [float(logs[i, token]) for i, token in enumerate(ids[1:])]
    for at_once in (2**24, 1000, 1):  # all, one and "less than one" token's logits at a time
        monkeypatch.setattr(torch_runner, "MAX_LOGITS", at_once)
        lm = LanguageModel(lm.model, lm.tokenizer)  # with nothing computed yet
        got = lm.score(text)
        assert len(got) == len(lm.tokenizer.encode(text))
        assert max(abs(a - b) for a, b in zip(got, expected, strict=True)) <= 1e-4
    assert all(math.isfinite(x) and x < 0 for x in got)


def test_score_edges(lm: LanguageModel) -> None:
    assert lm.score("") == []
    full = "x" * 96
    while len(lm.tokenizer.encode(full)) > 96:
        full = full[:-1]
    while len(lm.tokenizer.encode(full)) < 96:
        full += "x"
    assert len(lm.score(full)) == 96
    with pytest.raises(ConfigError, match=r"the text has \d+ tokens; .*context is 96"):
        lm.score(full + "xxxx")


def test_chat_renders_and_stops(lm: LanguageModel) -> None:
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes?"},
        {"role": "user", "content": "<end_of_turn>"},
    ]
    ids = lm.tokenizer.render_chat(messages)
    assert ids.count(lm.tokenizer.end_of_turn_id) == 3
    answer = lm.chat(messages, temperature=0.0, max_new_tokens=9)
    params = gemmule.SamplingParams(temperature=0.0, max_new_tokens=9)
    assert answer == lm.complete([ids], params)[0].text
    assert "".join(lm.stream_chat(messages, temperature=0.0, max_new_tokens=9)) == answer
    with pytest.raises(TokenizerError, match="roles must alternate"):
        lm.chat([messages[0], messages[0]])
    system = [{"role": "system", "content": "Be brief."}, *messages]
    for chat in (lm.chat, lm.stream_chat):
        with pytest.raises(TokenizerError, match="no system role"):
            chat(system, strict=True)


def test_bad_arguments(lm: LanguageModel) -> None:
    with pytest.raises(ConfigError, match="did you mean 'max_new_tokens'"):
        lm.generate("x", max_tokens=3)  # type: ignore[call-overload]
    with pytest.raises(ConfigError, match="expected text, got int"):
        lm.generate([3])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="temperature is -1"):
        lm.stream("x", temperature=-1)


def test_a_draft_changes_nothing(lm: LanguageModel) -> None:
    from gemmule.model.gemma import Gemma
    from gemmule.model.tokenizer import train_tokenizer

    small = LanguageModel(
        Gemma(lm.config.model_copy(update={"num_hidden_layers": 1})), lm.tokenizer
    )
    both = LanguageModel(lm.model, lm.tokenizer, draft=small)
    for settings in ({"temperature": 0.0}, {"temperature": 0.9, "seed": 2, "top_k": 20}):
        more: Any = {**settings, "max_new_tokens": 40}
        assert both.generate("def def", **more) == lm.generate("def def", **more)
    other = LanguageModel(lm.model, train_tokenizer([Path(shutil.__file__).read_text()], 540))
    with pytest.raises(TokenizerError, match="another tokenizer"):
        LanguageModel(lm.model, lm.tokenizer, draft=other)


def test_a_copy_generates_by_itself(lm: LanguageModel) -> None:
    expected = lm.generate("def", temperature=0.0, max_new_tokens=9)
    assert copy.deepcopy(lm).generate("def", temperature=0.0, max_new_tokens=9) == expected


def test_completions_carry_log_probabilities(lm: LanguageModel) -> None:
    ids = lm.tokenizer.encode("def wrap", bos=True)
    params = gemmule.SamplingParams(logprobs=3, max_new_tokens=8, seed=1)
    (done,) = lm.complete([ids], params)
    assert done.logprobs is not None
    assert [t.id for t in done.logprobs] == list(done.ids)
    assert all(len(t.top) == 3 for t in done.logprobs)
    plain = lm.score("def wrap" + done.text)
    if lm.tokenizer.encode("def wrap" + done.text, bos=True) == [*ids, *done.ids]:
        expected = plain[len(ids) - 1 :]
        got = [t.logprob for t in done.logprobs]
        assert max(abs(a - b) for a, b in zip(got, expected, strict=True)) < 1e-4


def test_a_penalty_makes_repetition_rarer(lm: LanguageModel) -> None:
    ids = lm.tokenizer.encode("def", bos=True)
    distinct = []
    for penalty in (1.0, 1.5):
        params = gemmule.SamplingParams(
            temperature=0.0, max_new_tokens=60, repetition_penalty=penalty
        )
        (done,) = lm.complete([ids], params)
        distinct.append(len(set(done.ids)) / len(done.ids))
    assert distinct[1] >= distinct[0]


def test_several_samples_of_each_prompt(lm: LanguageModel) -> None:
    prompts = [lm.tokenizer.encode(text, bos=True) for text in ("def wrap", "import os\n" * 8)]
    params = gemmule.SamplingParams(n=3, seed=5, max_new_tokens=9, temperature=1.0)
    completions = lm.complete(prompts, params)
    one = dataclasses.replace(params, n=1)
    for i, completion in enumerate(completions):
        single = dataclasses.replace(one, seed=5 + i)
        assert lm.complete([prompts[i // 3]], single) == [completion]
    assert [c.counts.prompt for c in completions[3:]] == [len(prompts[1])] * 3
    assert [c.counts.cached // 32 for c in completions[3:]] == [0, *[len(prompts[1]) // 32] * 2]
    for ask in (lm.generate, lm.stream):
        with pytest.raises(ConfigError, match="n is 2; this returns one text for each prompt"):
            ask("def", n=2)


def test_settings_of_the_end_and_of_the_logits(lm: LanguageModel) -> None:
    comma = lm.tokenizer.encode(",")[-1]
    settings: Any = {"temperature": 0.0, "max_new_tokens": 6, "logit_bias": {comma: 100}}
    assert lm.generate("def", **settings) == "," * 6
    assert "," not in lm.generate("def", **{**settings, "logit_bias": {comma: -100}})
    stop: Any = {**settings, "logit_bias": {lm.tokenizer.eos_id: 100, comma: 80}}
    assert lm.generate("def", **stop) == ""
    assert lm.generate("def", **stop, min_tokens=2) == ",,"
    assert lm.generate("def", **stop, ignore_eos=True) == "," * 6
    assert lm.generate("def", **stop, ignore_eos=True, stop=",,") == ""
    assert lm.generate("def", **stop, min_tokens=5, stop=",") == "," * 4
    with pytest.raises(
        ConfigError, match="logit_bias has the id 540; this model's ids are 0 to 539"
    ):
        lm.generate("def", logit_bias={540: 1})


def test_completions_under_a_constraint(lm: LanguageModel) -> None:
    ids = lm.tokenizer.encode("def", bos=True)
    params = gemmule.SamplingParams(n=2, seed=1, max_new_tokens=8)
    constraint = PlainConstraint(540, 0, 5)
    for completion in lm.complete([ids, ids[:1]], params, constraint):
        assert completion.finish_reason == "stop"
        for i, token in enumerate(completion.ids):
            assert token in constraint.allowed(completion.ids[:i])
            assert lm.tokenizer.decode([token])
    dead_end = PlainConstraint(540, 4)
    with pytest.raises(GemmuleError, match="the constraint allows no token after"):
        lm.complete([ids] * 9, params, dead_end)
