"""The chat stages of the quickstart with tiny models, stopped anywhere and resumed."""

import html
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gemmule import files
from gemmule.cli import main
from gemmule.errors import ConfigError, OutputError
from gemmule.infer.language_model import load
from gemmule.model.tokenizer import Tokenizer
from gemmule.posttrain import chat_quickstart
from gemmule.posttrain.chat_quickstart import ChatConfig, ChatPlan, run_chat
from gemmule.posttrain.tasks import definitions
from gemmule.posttrain.tasks.library_questions import Questions, library_questions
from gemmule.runs.layout import ChatLayout
from gemmule.runtime import device, torch_compile
from gemmule.train import loop, run
from gemmule.train.config import RunConfig
from gemmule.train.run import run_training
from killed import Killed, after
from models import TINY

RUNS = ("teacher", "student_sft", "student")
SOURCE = '''
class Reader_{n}(Base_{n}):
    """Reads lines."""
    def read_{n}(self, size=-{n}):
        """Return up to size characters."""
    def close_{n}(self):
        pass
'''


def few_questions(seed: int = 0) -> Questions:
    rows = (
        row for n in range(130) for row in definitions.definitions(f"m{n}.py", SOURCE.format(n=n))
    )
    return library_questions(seed, rows)


def shrink(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(chat_quickstart, "SEQ_LEN", 320)
    patch.setattr(chat_quickstart, "BATCH_SIZE", 2)
    patch.setattr(chat_quickstart, "ANSWERS_PER_STEP", 4)
    patch.setattr(chat_quickstart, "MAX_NEW_TOKENS", 8)
    patch.setattr(chat_quickstart, "GATE_WINDOW", 8)
    patch.setattr(chat_quickstart, "library_questions", few_questions)
    patch.setattr(device, "fastest_dtype", lambda device: "float32")
    patch.setattr(torch_compile, "can_compile", lambda: False)
    patch.setattr("gemmule.runs.carbon.start_tracker", lambda *_: 1 / 0)

    def plan(config: ChatConfig, layout: ChatLayout, quickstart: Any) -> ChatPlan:
        plan = ChatPlan(teacher_steps=3, student_steps=3, distillation_steps=2)
        files.write_json(layout.plan, plan.model_dump())
        return plan

    patch.setattr(chat_quickstart, "_plan", plan)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch)


@pytest.fixture(scope="module")
def base(
    tiny: Callable[..., dict[str, Any]], pieces: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What the chat stages read of a finished quickstart."""
    out = tmp_path_factory.mktemp("quickstart") / "base"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gemmule.runs.carbon.start_tracker", lambda *_: 1 / 0)
        for name, width in (("teacher", 48), ("student", 32)):
            shape = {**TINY, "hidden_size": width, "max_position_embeddings": 1024}
            run_training(RunConfig.parse(tiny(steps=2, model=shape)), out / name)
    pieces.save(out / "tokenizer")
    shutil.copytree(tiny()["data"]["path"], out / "data")
    files.write_json(out / "plan.json", {"speed": 1.0})
    files.write_json(out / "comparison.json", {})
    return out


@pytest.fixture(scope="module")
def finished(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    out = tmp_path_factory.mktemp("finished") / "base"
    shutil.copytree(base, out)
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        run_chat(ChatConfig(minutes=1, seed=3), out)
    yield out


def test_leaves_every_file(finished: Path) -> None:
    chat = finished / "chat"
    expected = {
        "config.toml", "plan.json", "questions", "data", "prompts", "answers.json", *RUNS
    }  # fmt: skip
    assert {p.name for p in chat.iterdir()} == expected
    for name in RUNS:
        assert (chat / name / "model" / "model.safetensors").is_file()
    assert {"README.md", "index.html"} <= {p.name for p in (chat / "student" / "card").iterdir()}
    untouched = {"teacher", "student", "tokenizer", "data", "plan.json", "comparison.json", "chat"}
    assert {p.name for p in finished.iterdir()} == untouched


def test_each_run_names_what_it_came_from(finished: Path) -> None:
    chat = ChatLayout.of(finished)
    parents = {
        name: [
            Path(p["path"]) for p in _parents(files.read_json(chat.path / name / "manifest.json"))
        ]
        for name in RUNS
    }
    assert parents["teacher"] == [finished / "teacher"]
    assert parents["student_sft"] == [finished / "student"]
    assert set(parents["student"]) == {chat.student_sft.path, chat.teacher.path}


def _parents(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    return manifest.get("parents") or [manifest["parent"]]


def test_answers_are_scored_on_held_out_modules(finished: Path) -> None:
    answers = files.read_json(finished / "chat" / "answers.json")
    questions = few_questions(3)
    assert answers["questions"] == len(questions.heldout)
    assert list(answers["models"]) == list(RUNS)
    for scores in answers["models"].values():
        assert 0 <= scores["exact"]["low"] <= scores["exact"]["high"] <= 1
        assert sum(f["n"] for f in scores["families"].values()) == answers["questions"]
    assert answers["chosen"] == "student_sft"  # models this small have gained nothing
    gates = files.read_json(finished / "chat" / "student" / "evals" / "gates.json")
    assert gates["passed"] is False
    names = {check["name"] for check in gates["checks"]}
    assert {"reward", "base loss", "KL", "length", "stop rate"} <= names
    roles = [m["role"] for m in answers["conversations"][0]]
    assert roles == ["user", "assistant"] * 4
    trained = (finished / "chat" / "questions" / "train.jsonl").read_text()
    assert not any(p.key in trained for p in questions.heldout)


def test_the_card_shows_questions_with_their_answers(finished: Path) -> None:
    answers = files.read_json(finished / "chat" / "answers.json")
    first = answers["examples"][0]
    for name in ("README.md", "index.html"):
        card = html.unescape((finished / "chat/student/card" / name).read_text())
        assert first["question"] in card
        assert all(answer["text"] in card for answer in first["answers"].values())
        assert answers["conversations"][0][0]["content"] in card
        assert "../answers.json" in card  # among the sources of values


def test_the_chosen_model_answers_in_turns(finished: Path) -> None:
    lm = load(finished / "chat" / "student")
    messages = [{"role": "user", "content": "Hello"}]
    messages.append({"role": "assistant", "content": lm.chat(messages, max_new_tokens=4, seed=0)})
    messages.append({"role": "user", "content": "And now?"})
    assert isinstance(lm.chat(messages, max_new_tokens=4, seed=0), str)


MOMENTS = [
    pytest.param(chat_quickstart, "write_problems", 2, id="questions"),
    pytest.param(chat_quickstart, "prepare_conversations", 1, id="data", marks=pytest.mark.slow),
    pytest.param(run, "_save", 1, id="teacher's last step done"),
    pytest.param(loop, "clip_gradients", 5, id="student at step 2", marks=pytest.mark.slow),
    pytest.param(loop, "clip_gradients", 8, id="distillation at step 2"),
    pytest.param(chat_quickstart, "gate", 1, id="gate", marks=pytest.mark.slow),
    pytest.param(chat_quickstart, "_answers", 1, id="answers"),
    pytest.param(chat_quickstart, "write_card", 1, id="card", marks=pytest.mark.slow),
]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("owner", "name", "count"), MOMENTS)
def test_resumed_it_ends_in_the_same_bytes(
    owner: Any, name: str, count: int, base: Path, finished: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    out = tmp_path / "base"
    shutil.copytree(base, out)
    monkeypatch.setattr(chat_quickstart, "write_card", lambda run: None)  # seconds of drawing
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, after(count, getattr(owner, name)))
        with pytest.raises(Killed):
            run_chat(ChatConfig(minutes=1, seed=3), out)
    assert not ChatLayout.of(out).finished
    run_chat(ChatConfig(), out, resume=True)
    for file in ("answers.json", *(f"{name}/model/model.safetensors" for name in RUNS)):
        assert (out / "chat" / file).read_bytes() == (finished / "chat" / file).read_bytes(), file


@pytest.mark.usefixtures("small")
def test_a_folder_that_cannot_be_gone_on_from_is_refused(
    base: Path, finished: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"no finished quickstart .* gemmule quickstart --out"):
        run_chat(ChatConfig(), tmp_path)
    with pytest.raises(OutputError, match="is finished, see"):
        run_chat(ChatConfig(), finished)
    out = tmp_path / "base"
    shutil.copytree(base, out)
    (out / "chat").mkdir()
    (out / "chat" / "config.toml").write_text("minutes = 1.0\n")
    with pytest.raises(OutputError, match=r"unfinished: continue with .* --chat --resume"):
        run_chat(ChatConfig(), out)


def test_options_of_the_quickstart_itself_are_refused(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["quickstart", "--chat", "--teacher", "10m", "--out", str(base)])
    assert stopped.value.code == 2
    assert "--teacher is decided by the quickstart that --chat goes on from" in " ".join(
        capsys.readouterr().err.split()
    )


def test_the_plan_follows_minutes_and_machine(base: Path, tmp_path: Path) -> None:
    from gemmule.runs.layout import QuickstartLayout

    plans = {}
    for minutes in (5.0, 10.0):
        layout = ChatLayout(tmp_path / str(minutes))
        layout.path.mkdir()
        plans[minutes] = chat_quickstart._plan(
            ChatConfig(minutes=minutes), layout, QuickstartLayout(base)
        )
        files.write_json(base / "plan.json", {"speed": 0.25})
        again = chat_quickstart._plan(ChatConfig(minutes=minutes), layout, QuickstartLayout(base))
        files.write_json(base / "plan.json", {"speed": 1.0})
        assert again == plans[minutes]  # a resumed one keeps to its plan
    assert plans[10.0].student_steps == pytest.approx(2 * plans[5.0].student_steps, abs=1)
