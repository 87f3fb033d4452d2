"""`gemmule data` and `gemmule tokenizer` on text as people have it, as they are typed."""

import json
import os
import random
import subprocess
import sys

import pytest

from gemmule import cli
from gemmule.model.tokenizer import train_tokenizer

TEXT = "the a sea ship captain said never wind old and of to under red sail harbour"
WORDS = TEXT.split()
GEMMULE = [sys.executable, "-m", "gemmule.cli"]


def story(seed, words=200):
    rng = random.Random(seed)
    return " ".join(rng.choices(WORDS, k=words)) + f" {seed}."


STORIES = [story(seed) for seed in range(40)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer([story(seed, 2000) for seed in range(20)], 512).save(folder)
    return folder


@pytest.fixture
def data(tokenizer, tmp_path, capsys):
    """Runs `gemmule data`; gives the exit code, the result as JSON, and the error."""

    def run(*arguments):
        command = ["data", *map(str, arguments), "--tokenizer", str(tokenizer)]
        with pytest.raises(SystemExit) as e:
            cli.main([*command, "--out", str(tmp_path / "out"), "--json"])
        out, err = capsys.readouterr()
        return e.value.code or 0, json.loads(out) if out else None, " ".join(err.split())

    return run


def documents(result):
    return sum(split["documents"] for split in result["splits"].values())


@pytest.mark.parametrize("name", ["train.json", "train.JSON", "train.csv", "train.tsv"])
@pytest.mark.parametrize("lines", [True, False])
def test_records_by_another_ending(data, tmp_path, name, lines):
    rows = [{"id": n, "body": story} for n, story in enumerate(STORIES)]
    text = "\n".join(map(json.dumps, rows)) if lines else json.dumps(rows)
    if name.endswith("sv"):
        mark = "," if name == "train.csv" else "\t"
        text = "\n".join([f"id{mark}body", *(f"{row['id']}{mark}{row['body']}" for row in rows)])
    (tmp_path / name).write_text(text)
    code, result, _ = data(tmp_path / name, "--field", "body")
    assert code == 0
    assert documents(result) == 40
    assert result["dropped"] == {}


def test_a_field_of_text_without_fields_is_an_error(data, tmp_path):
    for n, text in enumerate(STORIES):
        (tmp_path / f"{n}.txt").write_text(text)
    for field in ("text", "body"):
        code, _, error = data(tmp_path, "--field", field)
        assert code == 2
        assert f"so it has no field '{field}'" in error
    assert not (tmp_path / "out").exists()


def test_what_is_left_out_is_shown_with_names(tokenizer, tmp_path, capsys):
    corpus = tmp_path / "corpus"
    (corpus / "linked").mkdir(parents=True)
    for n, text in enumerate(STORIES):
        (corpus / f"{n}.txt").write_text(text)
    (corpus / "10.txt").write_text(STORIES[10], encoding="utf-16")
    (corpus / "a.pdf").write_bytes(b"%PDF-")
    (corpus / "koi\n8.txt").write_bytes("русский".encode("koi8-r"))
    os.mkfifo(corpus / "pipe.txt")
    (corpus / "gone.txt").symlink_to("nowhere")
    for command in (
        ["data", str(corpus), "--tokenizer", str(tokenizer), "--out", str(tmp_path / "out")],
        ["tokenizer", "train", str(corpus), "--vocab-size", "512", "--out", str(tmp_path / "t")],
    ):
        with pytest.raises(SystemExit) as e:
            cli.main(command)
        assert not e.value.code
        shown = " ".join("".join(capsys.readouterr()).split())
        assert "decoded from UTF-16: 1 (10.txt)" in shown
        for reason in (
            "PDF files", "(a.pdf): convert them to text first", "broken links",
            r"(koi\n8.txt): convert them with iconv", "pipes, sockets and devices",
        ):  # fmt: skip
            assert reason in shown, command[0]


@pytest.mark.parametrize("source", ["FIFO", "<(cat a.txt)", "/dev/stdin < <(cat a.txt)", "-"])
def test_pipes_are_refused_at_once(tokenizer, tmp_path, source):
    os.mkfifo(tmp_path / "FIFO")
    (tmp_path / "a.txt").write_text("text " * 100)
    command = " ".join(GEMMULE) + f" data --tokenizer {tokenizer} --out out {source}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "text is read more than once" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_standard_input_from_a_file_is_a_file(tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("\n\n".join(story(n, 2000) for n in range(40)))
    command = " ".join(GEMMULE) + f" data --tokenizer {tokenizer} --out out /dev/stdin < a.txt"
    subprocess.run(["bash", "-c", command], cwd=tmp_path, timeout=60, check=True)
    assert (tmp_path / "out" / "manifest.json").exists()
