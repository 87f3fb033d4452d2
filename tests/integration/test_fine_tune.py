"""A fine-tune made with peft and TRL goes through every command and stays as in transformers."""

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fine_tunes import Theirs
from gemmule.checkpoints.hf.writer import save_model
from gemmule.infer.language_model import LanguageModel, load
from gemmule.model.tokenizer import Tokenizer
from models import GROUPED, fresh_model, tiny_config

pytest.importorskip("trl")
pytestmark = pytest.mark.slow
CHAT = [
    {"role": "system", "content": "Answer with one word."},
    {"role": "user", "content": "What follows 7?"},
]
TEXTS = [
    "What follows 7?\n\n  <|im_end|> x",
    "<|im_start|>user\nhi<|im_end|>\n<thought>a Grüße dich<end_of_turn>",
]
TOLERANCE = 1e-4  # of logits within (-30, 30), in fp32


class Reference(Theirs):
    """transformers' reading of a folder, with its answers."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.texts = [self.tokenizer(text).input_ids for text in TEXTS]
        self.chat = self.chat_ids(CHAT)
        self.answer = self.continuation(self.chat, 24)


def check(lm: LanguageModel, theirs: Reference) -> None:
    """Same ids, logits, answer and end of the answer."""
    ours = lm.tokenizer
    assert [ours.encode(text, bos=True, control=True) for text in TEXTS] == theirs.texts
    assert ours.render_chat(CHAT) == theirs.chat
    with torch.inference_mode():
        logits = lm.model(torch.tensor([theirs.chat]))[0]
    assert (logits - theirs.logits(theirs.chat)).abs().max() <= TOLERANCE
    assert set(theirs.model.generation_config.eos_token_id) <= set(ours.stop_ids)
    text = lm.chat(CHAT, temperature=0.0, max_new_tokens=24)
    ended = theirs.answer[-1] in ours.stop_ids
    assert text == ours.decode(theirs.answer[:-1] if ended else theirs.answer)


def gemmule(*arguments: object, given: str | None = None) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "gemmule.cli", *map(str, arguments)],
        input=given,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, pieces: Tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("fine_tune")
    config = tiny_config(
        GROUPED, vocab_size=pieces.vocab_size, hidden_size=64, max_position_embeddings=128
    )
    save_model(fresh_model(config, 0), pieces, folder / "base")
    script = Path(__file__).with_name("fine_tune.py")
    subprocess.run(
        [sys.executable, script, folder / "base", folder],
        check=True,
        capture_output=True,
        timeout=300,
    )
    return folder


@pytest.fixture(scope="module")
def theirs(made: Path) -> Reference:
    return Reference(made / "merged")


def test_it_answers_as_in_transformers(made: Path, theirs: Reference) -> None:
    lm = load(made / "merged")
    assert lm.config.vocab_size % 64 == 0
    assert lm.tokenizer.vocab_size < lm.config.vocab_size
    assert lm.tokenizer.stop_ids == tuple(theirs.model.generation_config.eos_token_id)
    assert theirs.answer[-1] in lm.tokenizer.stop_ids  # it has learned to end its answer
    assert len(theirs.answer) > 1
    check(lm, theirs)


def test_the_adapter_is_the_merged_model(made: Path, theirs: Reference) -> None:
    """It stops where its base does, too: peft writes no generation_config.json."""
    check(load(made / "adapter"), theirs)


def test_info_and_generate(made: Path, theirs: Reference) -> None:
    about = json.loads(gemmule("info", made / "merged", "--json"))
    assert about["tokenizer"]["pieces"] == len(theirs.tokenizer)
    prompt = "What follows 7?"
    ids = theirs.tokenizer(prompt).input_ids
    new = theirs.continuation(ids, 24)
    stops = theirs.model.generation_config.eos_token_id
    text = theirs.tokenizer.decode(new[:-1] if new[-1] in stops else new, skip_special_tokens=True)
    shown = gemmule("generate", made / "merged", prompt, "--temperature", 0, "--max-new-tokens", 24)
    assert shown.rstrip("\n").endswith(text.rstrip("\n"))


def test_chat_from_a_pipe(made: Path, theirs: Reference) -> None:
    lm = load(made / "merged")
    arguments = ["--system", CHAT[0]["content"], "--temperature", 0, "--max-new-tokens", 24]
    shown = gemmule("chat", made / "merged", *arguments, given=CHAT[1]["content"] + "\n")
    assert shown.strip() == lm.tokenizer.decode(theirs.answer[:-1]).strip()


def test_chat_in_a_terminal(made: Path, theirs: Reference) -> None:
    answer = theirs.tokenizer.decode(theirs.answer[:-1], skip_special_tokens=True).strip()
    for screen in terminal(made / "merged", [CHAT[1]["content"], "/exit"]):
        assert b"Traceback" not in screen
        if answer.encode() in screen and screen.count(b"you>") >= 2:
            break
    else:
        pytest.fail(repr(screen))


def terminal(model: Path, lines: list[str]) -> Iterator[bytes]:
    """The growing screen of `gemmule chat` in a terminal, in which `lines` are typed."""
    import pty

    parent, child = pty.openpty()
    command = [sys.executable, "-m", "gemmule.cli", "chat", str(model), "--temperature", "0"]
    command += ["--system", CHAT[0]["content"], "--max-new-tokens", "24"]
    environment = {**os.environ, "TERM": "xterm"}
    process = subprocess.Popen(
        command, stdin=child, stdout=child, stderr=child, start_new_session=True, env=environment
    )
    os.close(child)
    screen, typed, end = b"", 0, time.monotonic() + 120
    try:
        while time.monotonic() < end:
            if select.select([parent], [], [], 0.2)[0]:
                try:
                    screen += os.read(parent, 4096)
                except OSError:  # the program has left the terminal
                    break
                yield screen
            if typed < len(lines) and screen.count(b"you>") > typed:
                os.write(parent, lines[typed].encode() + b"\r")
                typed += 1
        yield screen
    finally:
        process.kill()
        process.wait()
        os.close(parent)


def test_evaluation_sees_the_same_model(made: Path, theirs: Reference) -> None:
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance

    from gemmule.evals.lm_eval_model import GemmuleLM

    lm = GemmuleLM(load(made / "merged"))
    context = lm.apply_chat_template(CHAT)
    requests = [Instance("loglikelihood", {}, (context, answer), 0) for answer in ("8", "nine")]
    scores = lm.loglikelihood(requests, disable_tqdm=True)
    for (value, _), answer in zip(scores, ("8", "nine"), strict=True):
        ids = theirs.tokenizer(answer, add_special_tokens=False).input_ids
        row = torch.tensor([theirs.chat + ids])
        with torch.inference_mode():
            log_probs = theirs.model(row).logits[0].log_softmax(-1)
        expected = sum(float(log_probs[len(theirs.chat) - 1 + n, i]) for n, i in enumerate(ids))
        assert value == pytest.approx(expected, abs=1e-3)
    settings: dict[str, Any] = {"until": [], "max_gen_toks": 24, "do_sample": False}
    (text,) = lm.generate_until(
        [Instance("generate_until", {}, (context, settings), 0)], disable_tqdm=True
    )
    assert text == lm.tokenizer.decode(theirs.answer[:-1])


@pytest.mark.parametrize(("to", "dtype"), [("hf", "float32"), ("gguf", "F32")])
def test_exports_are_the_same_model(
    made: Path, theirs: Reference, tmp_path: Path, to: str, dtype: str
) -> None:
    gemmule("convert", made / "merged", tmp_path / "out", "--to", to, "--dtype", dtype)
    check(load(tmp_path / "out"), theirs)
    if to == "hf":
        exported = Reference(tmp_path / "out")
        assert exported.texts == theirs.texts
        assert exported.chat == theirs.chat
        assert exported.answer == theirs.answer
        assert exported.model.generation_config.eos_token_id == (
            theirs.model.generation_config.eos_token_id
        )


def test_the_quantized_model_is_what_transformers_makes_of_its_weights(
    made: Path, tmp_path: Path
) -> None:
    gemmule("quantize", made / "merged", "--to", "int8", "--out", tmp_path / "int8")
    gemmule("convert", tmp_path / "int8", tmp_path / "hf", "--to", "hf", "--dtype", "float32")
    lm = load(tmp_path / "int8", dtype="float32")
    check(lm, Reference(tmp_path / "hf"))
    assert load(tmp_path / "int8").tokenizer.chat_format == lm.tokenizer.chat_format
