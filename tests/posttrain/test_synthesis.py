"""Teacher-generated answers: provenance, what is left out, and stops at any point."""

import json
import signal
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from stopping_models import stopping_model
from typer.testing import CliRunner

from gemmule import cli
from gemmule.checkpoints.checkpoint import weights_fingerprint
from gemmule.checkpoints.hf.writer import save_model
from gemmule.checkpoints.load import load_to_run
from gemmule.errors import ConfigError, DataError, Interrupted, OutputError
from gemmule.infer.core.sampling import SamplingParams
from gemmule.infer.language_model import LanguageModel, load
from gemmule.model.tokenizer import train_tokenizer
from gemmule.posttrain import synthesis
from gemmule.posttrain.conversations import Message, Prompt
from gemmule.posttrain.rewards.protocol import Answer
from gemmule.posttrain.synthesis import SynthesisConfig, describe, synthesize

COUNT = 12


def ask(text: str, **record: Any) -> Prompt:
    return Prompt((Message("user", text),), f"questions#{text}", record)


QUESTIONS = [ask(f"Question {i}?", answer=str(i)) for i in range(COUNT)]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    tokenizer = train_tokenizer([Path(textwrap.__file__).read_text()], 540)
    folder = tmp_path_factory.mktemp("teacher") / "model"
    save_model(stopping_model(540, 3), tokenizer, folder)
    return str(folder)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthesis, "CHUNK", 4)


def config(teacher: str, **changes: Any) -> SynthesisConfig:
    return SynthesisConfig.parse({"teacher": teacher, "max_new_tokens": 24, **changes})


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_answers_are_the_teachers_and_say_where_they_come_from(
    teacher: str, tmp_path: Path
) -> None:
    out = tmp_path / "answers.jsonl"
    summary = synthesize(config(teacher, seed=5), QUESTIONS, out)
    answers = lines(out)
    cut = summary["left_out"]["cut"]
    assert 0 < cut < COUNT  # both kinds occur
    assert len(answers) == summary["answers"] == COUNT - sum(summary["left_out"].values())
    fingerprint = weights_fingerprint(load_to_run(teacher)[0])
    numbers = [line["provenance"]["prompt"] for line in answers]
    assert numbers == sorted(set(numbers))
    for line in answers:
        provenance = line["provenance"]
        question = QUESTIONS[provenance["prompt"]]
        assert provenance["key"] == question.key
        assert line["messages"][:-1] == [m.to_dict() for m in question.messages]
        assert line["messages"][-1]["role"] == "assistant"
        assert line["answer"] == question.record["answer"]
        assert provenance["teacher"] == {"path": teacher, "fingerprint": fingerprint}
        assert provenance["sampling"]["seed"] == 5
        assert 0 < provenance["tokens"] <= 24
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "answers.jsonl", "answers.jsonl.manifest.json",
    ]  # fmt: skip
    assert describe(summary)[0] == ("prompts", "12")


def manifest_of(out: Path) -> Path:
    return out.with_name(out.name + ".manifest.json")


def test_files_that_differ_in_their_suffix_have_manifests_of_their_own(
    teacher: str, tmp_path: Path
) -> None:
    """a.jsonl and a.json would otherwise share one, and each refuse the other."""
    files = [tmp_path / "a.jsonl", tmp_path / "a.json"]
    for seed, out in enumerate(files):
        synthesize(config(teacher, seed=seed), QUESTIONS[:4], out)
    for seed, out in enumerate(files):
        again = synthesize(config(teacher, seed=seed), QUESTIONS[:4], out)
        assert again["sampling"]["seed"] == seed


def test_greedy_answers_are_those_of_the_engine(teacher: str, tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    synthesize(config(teacher, temperature=0.0, max_new_tokens=40), QUESTIONS, out)
    lm = load(teacher)
    params = SamplingParams(temperature=0.0, max_new_tokens=40)
    prompts = [
        lm.tokenizer.render_chat([m.to_dict() for m in question.messages]) for question in QUESTIONS
    ]
    expected = {
        number: done.text.strip()
        for number, done in enumerate(lm.complete(prompts, params))
        if done.finish_reason == "stop" and done.text.strip()
    }
    assert {a["provenance"]["prompt"]: a["messages"][-1]["content"] for a in lines(out)} == expected


def test_an_answer_does_not_depend_on_the_other_prompts(teacher: str, tmp_path: Path) -> None:
    whole, few = tmp_path / "whole.jsonl", tmp_path / "few.jsonl"
    synthesize(config(teacher, seed=5), QUESTIONS, whole)
    synthesize(config(teacher, seed=5), QUESTIONS[:6], few)
    assert whole.read_bytes().startswith(few.read_bytes())


def test_other_seeds_give_other_answers(teacher: str, tmp_path: Path) -> None:
    texts = set()
    for seed in range(3):
        out = tmp_path / f"{seed}.jsonl"
        synthesize(config(teacher, seed=seed), QUESTIONS, out)
        texts.add(tuple(a["messages"][-1]["content"] for a in lines(out)))
    assert len(texts) == 3


@pytest.mark.parametrize("stops", [1, 2, 3])
def test_a_stopped_synthesis_ends_in_the_same_bytes(
    teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stops: int
) -> None:
    whole, out = tmp_path / "whole.jsonl", tmp_path / "answers.jsonl"
    settings = config(teacher, samples=3)
    synthesize(settings, QUESTIONS, whole)
    plain, chunks = LanguageModel.engine, 0

    def engine(self: LanguageModel) -> Any:
        nonlocal chunks
        chunks += 1
        if chunks == stops:
            signal.raise_signal(signal.SIGTERM)
        return plain(self)

    with monkeypatch.context() as patch:
        patch.setattr(LanguageModel, "engine", engine)
        with pytest.raises(Interrupted, match=f"stopped after {4 * stops} of 12 prompts"):
            synthesize(settings, QUESTIONS, out)
    assert not out.exists()
    synthesize(settings, QUESTIONS, out)
    assert out.read_bytes() == whole.read_bytes()
    manifests = [manifest_of(p).read_bytes() for p in (out, whole)]
    assert manifests[0] == manifests[1]


@pytest.mark.parametrize("kept", [0, 30, 600, 1500, 2300])
def test_what_a_killed_process_left_is_continued(
    teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    """The file may end anywhere, in the middle of its first line too."""
    whole, out = tmp_path / "whole.jsonl", tmp_path / "answers.jsonl"
    partial = tmp_path / "answers.jsonl.partial"
    with monkeypatch.context() as patch:
        patch.setattr(synthesis.PartialAnswers, "remove", lambda self: None)
        synthesize(config(teacher), QUESTIONS, whole)
    content = (tmp_path / "whole.jsonl.partial").read_bytes()
    assert len(content) > 2300
    partial.write_bytes(content[:kept])
    synthesize(config(teacher), QUESTIONS, out)
    assert out.read_bytes() == whole.read_bytes()
    assert not partial.exists()


def test_a_damaged_partial_file_is_refused(
    teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "answers.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(synthesis.PartialAnswers, "remove", lambda self: None)
        synthesize(config(teacher), QUESTIONS, out)
    out.unlink()
    partial = tmp_path / "answers.jsonl.partial"
    head, first, rest = partial.read_bytes().split(b"\n", 2)
    partial.write_bytes(b"\n".join((head, first[:-5], rest)))
    with pytest.raises(DataError, match=r"answers\.jsonl\.partial:2: not a line of a synthesis"):
        synthesize(config(teacher), QUESTIONS, out)


def test_a_finished_file_is_left_as_it_is(teacher: str, tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    summary = synthesize(config(teacher), QUESTIONS, out)
    before = out.stat()
    assert synthesize(config(teacher), QUESTIONS, out) == summary
    assert out.stat().st_mtime_ns == before.st_mtime_ns
    for other, questions in (
        (config(teacher, seed=1), QUESTIONS),
        (config(teacher), QUESTIONS[1:]),
    ):
        with pytest.raises(OutputError, match="not from this teacher, these prompts and settings"):
            synthesize(other, questions, out)
    manifest_of(out).unlink()
    with pytest.raises(OutputError, match="choose another --out, or delete it"):
        synthesize(config(teacher), QUESTIONS, out)


def test_a_partial_file_of_other_settings_is_refused(teacher: str, tmp_path: Path) -> None:
    (tmp_path / "answers.jsonl.partial").write_text('{"format": 1}\n')
    with pytest.raises(OutputError, match="answers of another teacher, or to other prompts"):
        synthesize(config(teacher), QUESTIONS, tmp_path / "answers.jsonl")


def test_what_is_left_out_is_counted(teacher: str, tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    questions = [*QUESTIONS, ask("a b c d e f g h " * 20)]
    summary = synthesize(config(teacher, samples=4), questions, out)
    left_out = summary["left_out"]
    assert left_out["prompt_too_long"] == 1
    assert left_out["cut"] > 0
    assert summary["answers"] + sum(left_out.values()) == 4 * COUNT + 1
    by_prompt: dict[int, list[str]] = {}
    for line in lines(out):
        by_prompt.setdefault(line["provenance"]["prompt"], []).append(
            line["messages"][-1]["content"]
        )
    assert max(map(len, by_prompt.values())) > 1
    assert all(len(set(texts)) == len(texts) and all(texts) for texts in by_prompt.values())


def test_answers_whose_text_has_other_tokens_are_counted(teacher: str, tmp_path: Path) -> None:
    """Random ids are rarely those that their text is encoded as: sampled ids cannot be restored."""
    summary = synthesize(config(teacher), QUESTIONS, tmp_path / "answers.jsonl")
    assert 0 < summary["retokenized"] <= summary["answers"]


class Length:
    name = "length"

    def score(self, answers: Sequence[Answer]) -> list[float]:
        assert all(a.record["answer"].isdigit() and a.prompt and a.ids for a in answers)
        return [float(len(a.text)) for a in answers]

    def describe(self) -> dict[str, Any]:
        return {"name": self.name}


def test_the_best_answer_is_kept_with_its_reward(teacher: str, tmp_path: Path) -> None:
    every, best = tmp_path / "every.jsonl", tmp_path / "best.jsonl"
    synthesize(config(teacher, samples=4), QUESTIONS, every, Length())
    summary = synthesize(config(teacher, samples=4, best=True), QUESTIONS, best, Length())
    longest: dict[int, dict[str, Any]] = {}
    for line in lines(every):
        text, number = line["messages"][-1]["content"], line["provenance"]["prompt"]
        assert line["provenance"]["reward"] == len(text)
        if number not in longest or len(text) > len(longest[number]["messages"][-1]["content"]):
            longest[number] = line
    assert [a["messages"] for a in lines(best)] == [a["messages"] for a in longest.values()]
    assert summary["left_out"]["not_best"] == len(lines(every)) - len(lines(best)) > 0


def test_settings_are_checked(teacher: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="samples = 2 at temperature 0 would be the same answer"):
        config(teacher, samples=2, temperature=0.0)
    with pytest.raises(ConfigError, match="name a reward as well"):
        synthesize(config(teacher, best=True), QUESTIONS, tmp_path / "a.jsonl")
    with pytest.raises(ConfigError, match="no prompts to answer"):
        synthesize(config(teacher), [], tmp_path / "a.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_the_command_reads_prompts_in_any_form(teacher: str, tmp_path: Path) -> None:
    file, out = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    records = [
        {"prompt": f"Question {i}?", "answer": str(i)}
        if i % 2
        else {"messages": [{"role": "user", "content": f"Question {i}?"}], "answer": str(i)}
        for i in range(COUNT)
    ]
    file.write_text("".join(json.dumps(r) + "\n" for r in [*records, {"title": "none"}]))
    command = ["synthesize", file, "--teacher", teacher, "--out", out, "--max-new-tokens", 24,
               "--samples", 2, "--reward", "exact", "--best", "--json"]  # fmt: skip
    done = CliRunner().invoke(cli.app, [str(word) for word in command])
    assert done.exit_code == 0, done.output
    summary = json.loads(done.stdout)
    assert summary["num_prompts"] == COUNT
    assert summary["reward"] == {"name": "exact"}
    assert sum(summary["unreadable"].values()) == 1
    for line in lines(out):
        number = line["provenance"]["prompt"]
        assert line["messages"][0] == {"role": "user", "content": f"Question {number}?"}
        assert line["answer"] == str(number)
        assert line["provenance"]["reward"] in {0.0, 1.0}
