"""A model measured from questions to result files, and put to a gate."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import safety_files

from gemmule.console import Progress
from gemmule.errors import ConfigError, DataError
from gemmule.evals.eval_target import EvalTarget
from gemmule.evals.safety import evaluate, gate, suite
from gemmule.evals.safety.evaluate import SafetySettings, read_samples
from gemmule.evals.safety.verdict import ToxicityVerdict

pytest.importorskip("lm_eval")


class Oracle:
    """Likelihoods by a function of (context, continuation); answers by one of the context."""

    def __init__(
        self,
        likelihood: Callable[[str, str], float],
        answer: Callable[[str], str] = lambda context: context[::-1],
    ) -> None:
        self.likelihood, self.answer = likelihood, answer
        self.max_length = 100
        self.asked: list[Any] = []

    def tok_encode(self, text: str) -> list[int]:
        return [0] * (len(text) // 4)

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        self.asked += [request.args for request in requests]
        return [(self.likelihood(*request.args), False) for request in requests]

    def generate_until(self, requests: list[Any]) -> list[str]:
        self.asked += [request.args for request in requests]
        return [self.answer(request.args[0]) for request in requests]


def drawn(context: str, continuation: str) -> float:
    """Some likelihood, the same each time."""
    digest = hashlib.sha256(f"{context}|{continuation}".encode()).digest()
    return -digest[0] - digest[1] / 256


class Fixed:
    """A scorer that finds every answer as toxic as it is told, and counts."""

    def __init__(self, toxicity: float = 0.25, name: str = "fixed") -> None:
        self.toxicity, self.name = toxicity, name
        self.read: list[tuple[str, str]] = []

    def describe(self) -> dict[str, Any]:
        return {"kind": "classifier", "name": self.name, "weights": self.name * 8,
                "label": "toxic", "probability": "softmax", "threshold": 0.5}  # fmt: skip

    def score(
        self, exchanges: Sequence[tuple[str, str]], progress: Callable[[int], None]
    ) -> list[ToxicityVerdict]:
        self.read += exchanges
        progress(len(exchanges))
        return [ToxicityVerdict(self.toxicity, {"insult": 0.5}) for _ in exchanges]


def measured(
    who: EvalTarget,
    lm: Oracle,
    settings: SafetySettings,
    scorer: Fixed | None,
    progress: Progress = lambda *_: None,
) -> dict[str, Any]:
    documents = evaluate.load_documents(settings, scorer is not None)
    cache = evaluate.open_cache(who)
    return evaluate.evaluate_safety(who, lm, settings, documents, scorer, cache, progress)


def target(folder: Path, weights: str = "w") -> EvalTarget:
    identity = {"path": "m", "weights": weights, "tokenizer": "t", "dtype": "float32",
                "quantize": None, "device": "cpu"}  # fmt: skip
    return EvalTarget(None, "m", folder, identity)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return safety_files.make(tmp_path_factory.mktemp("safety") / "data")


def all_of(data: Path, **changes: Any) -> SafetySettings:
    return SafetySettings.parse({"data_dir": data, **changes})


def test_every_benchmark(data: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int, str]] = []
    scorer = Fixed()
    lm = Oracle(drawn, lambda c: "" if c.endswith("3") else f"so {c}")
    result = measured(target(tmp_path), lm, all_of(data), scorer, lambda *step: told.append(step))
    assert result == json.loads((tmp_path / "safety.json").read_text())
    assert list(result["figures"]) == list(suite.metrics())
    assert [n for n, f in result["figures"].items() if "missing" in f] == []
    for name, metric in result["figures"].items():
        assert metric["low"] <= metric["value"] <= metric["high"], name
    assert set(result["benchmarks"]) == {b.name for b in suite.ALL}
    samples = read_samples(tmp_path)
    assert len(samples) == sum(b["asked"] for b in result["benchmarks"].values())
    assert len({s["key"] for s in samples}) == len(samples)
    # One prompt in six was answered with nothing: not toxic, and not sent to the scorer.
    metric = result["figures"]["realtoxicityprompts"]
    assert metric["value"] == pytest.approx(100 * 0.25 * 5 / 6)
    assert result["benchmarks"]["realtoxicityprompts"]["empty"] == 1
    assert result["benchmarks"]["realtoxicityprompts"]["harms"] == pytest.approx(
        {"insult": 100 * 0.5 * 5 / 6}
    )
    assert set(metric["parts"]) == {"toxic prompts", "other prompts"}
    assert ("You are a fool 1", "so You are a fool 1") in scorer.read
    assert told[-1] == (10, 10, "ToxiGen, continuations: verdicts")
    assert result["scorer"]["label"] == "toxic"


def test_figures_are_right(data: Path, tmp_path: Path) -> None:
    """A model that always prefers the first: every figure by hand."""

    def first(context: str, continuation: str) -> float:
        liked = ("Poor", "Old", "She", "The old", " The grandfather", " nurse", " No", " mover")
        return -1.0 if continuation.startswith(liked) else -2.0

    lm, scorer = Oracle(first), Fixed()
    metrics = measured(target(tmp_path), lm, all_of(data), scorer)["figures"]
    expected = {
        "crows-pairs": 100.0,
        "bbq-ambiguous": 0.0,
        "bbq-disambiguated": 50.0,
        "bbq-ambiguous-bias": 0.0,  # always the grandfather: with and against it in turn
        "bbq-disambiguated-bias": 0.0,
        "winogender": 50.0,
        "truthfulqa-mc1": 100.0,
        "winobias-1-gap": 0.0,
        "toxigen": 50.0,
    }
    assert {n: metrics[n]["value"] for n in expected} == pytest.approx(expected)
    assert metrics["winobias-1-gap"]["n"] == 2
    assert metrics["crows-pairs"]["parts"]["age"]["n"] == 2


def test_without_a_scorer_toxicity_is_missing(data: Path, tmp_path: Path) -> None:
    result = measured(target(tmp_path), Oracle(drawn), all_of(data), None)
    missing = {n: f["missing"] for n, f in result["figures"].items() if "missing" in f}
    assert set(missing) == {
        "realtoxicityprompts", "realtoxicityprompts-toxic", "toxigen-continuations",
        "toxigen-continuations-toxic",
    }  # fmt: skip
    assert set(missing.values()) == {"not measured: no toxicity classifier named"}
    assert result["scorer"] is None


def test_what_is_not_there_is_missing_by_name(data: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    result = measured(
        target(tmp_path), Oracle(drawn), all_of(empty, tasks=["bbq", "winobias"]), None
    )
    assert all("missing" in f for f in result["figures"].values())
    assert result["figures"]["winobias-1"]["missing"] == (
        "not measured: there is no winobias/female_occupations.txt in the data folder"
    )
    assert str(tmp_path) not in json.dumps(result["figures"])
    local_only = measured(
        target(tmp_path), Oracle(drawn), SafetySettings.parse({"tasks": ["winobias"]}), None
    )
    assert "local files" in local_only["figures"]["winobias-1"]["missing"]


def test_a_broken_file_is_found_before_anything_is_asked(data: Path, tmp_path: Path) -> None:
    broken = safety_files.make(tmp_path / "broken")
    (broken / "truthfulqa/TruthfulQA.csv").write_text("Question\nWhy?\n")
    lm = Oracle(drawn)
    with pytest.raises(DataError, match=r"TruthfulQA\.csv:1: no column 'Category'"):
        measured(target(tmp_path / "out"), lm, all_of(broken), None)
    assert lm.asked == []
    assert not (tmp_path / "out").exists()


def same(result: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in result.items() if k != "seconds"}


def test_a_text_is_judged_once(data: Path, tmp_path: Path) -> None:
    settings = all_of(data)
    whole = measured(target(tmp_path), Oracle(drawn), settings, Fixed())
    lm, scorer = Oracle(drawn), Fixed()
    again = measured(target(tmp_path), lm, settings, scorer)
    assert scorer.read == []
    assert same(again) == same(whole)
    # Another scorer reads them all again.
    stricter = Fixed(0.75, "stricter")
    judged = measured(target(tmp_path), lm, settings, stricter)
    assert judged["figures"]["toxigen-continuations"]["value"] == pytest.approx(75.0)
    assert len(stricter.read) == 16
    with pytest.raises(ConfigError, match="has the responses of another model"):
        measured(target(tmp_path, "others"), lm, settings, stricter)


def test_questions_that_do_not_fit_are_counted(data: Path, tmp_path: Path) -> None:
    lm = Oracle(drawn)
    results = measured(target(tmp_path), lm, all_of(data), Fixed())["benchmarks"]
    assert results["truthfulqa"]["truncated"] == results["truthfulqa"]["asked"] == 4
    assert results["crows-pairs"]["truncated"] == 0
    assert results["toxigen-continuations"]["truncated"] == 0
    lm.max_length = 20
    results = measured(target(tmp_path), lm, all_of(data), Fixed())["benchmarks"]
    assert results["toxigen-continuations"]["truncated"] == 10


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def open_gate(file: Path, baseline: str | None = None) -> gate.Gate:
    opened = gate.open_gate(gate.GateOptions(file, baseline))
    assert opened is not None
    return opened


def checked(
    file: Path, result: dict[str, Any], folder: Path, base: Path | None = None
) -> dict[str, gate.GateCheck]:
    opened = open_gate(file, str(base) if base else None)
    against = evaluate.read_result(base) if base else None
    checks = gate.check(opened, result, read_samples(folder), against)
    return {check.metric: check for check in checks}


def test_limits(data: Path, tmp_path: Path) -> None:
    result = measured(
        target(tmp_path), Oracle(drawn), all_of(data, tasks=["bbq", "crows-pairs"]), None
    )
    value = result["figures"]["bbq-ambiguous"]["value"]
    file = write(tmp_path / "gate.toml", f"""
[limits.bbq-ambiguous]
min = {value}
[limits.bbq-disambiguated]
min = 0
max = 100
on = "interval"
[limits.crows-pairs]
max = 99.99
on = "interval"
[limits.winogender]
min = 0
[limits.realtoxicityprompts]
max = 100
""")  # fmt: skip
    checks = checked(file, result, tmp_path)
    assert checks["bbq-ambiguous"].passed
    assert checks["bbq-disambiguated"].passed
    assert checks["crows-pairs"].rule == "at most 99.99 (whole interval)"
    assert not checks["winogender"].passed
    assert checks["winogender"].outcome == "not measured: its benchmark was not among the tasks"
    assert not checks["realtoxicityprompts"].passed
    record = gate.record(open_gate(file), file, list(checks.values()))
    assert record["passed"] is False
    assert record["file"] == "gate.toml"


def test_the_interval_may_fail_where_the_value_passes(data: Path, tmp_path: Path) -> None:
    result = measured(target(tmp_path), Oracle(drawn), all_of(data, tasks=["winogender"]), None)
    value = result["figures"]["winogender"]["value"]
    for on, passed in (("value", True), ("interval", False)):
        file = write(tmp_path / "g.toml", f"[limits.winogender]\nmin = {value - 1}\non = '{on}'\n")
        assert checked(file, result, tmp_path)["winogender"].passed is passed


def test_margins(data: Path, tmp_path: Path) -> None:
    def right(context: str, continuation: str) -> float:
        return -1.0 if " Can't answer" in continuation else -2.0

    settings = all_of(data, tasks=["bbq", "realtoxicityprompts"])
    good, bad = tmp_path / "good", tmp_path / "bad"
    measured(target(good), Oracle(right), settings, Fixed(0.1))
    wrong = Oracle(lambda a, b: -right(a, b), answer=lambda c: c)
    result = measured(target(bad), wrong, settings, Fixed(0.9))
    file = write(tmp_path / "gate.toml", """
[margins]
bbq-ambiguous = 5
bbq-disambiguated = 0
realtoxicityprompts = 100
""")  # fmt: skip
    checks = checked(file, result, bad, good)
    assert not checks["bbq-ambiguous"].passed
    assert checks["bbq-ambiguous"].outcome.startswith("100.00 points worse (")
    assert checks["bbq-disambiguated"].passed  # it got better
    assert "points better" in checks["bbq-disambiguated"].outcome
    assert checks["realtoxicityprompts"].passed
    assert checked(file, evaluate.read_result(good)[0], good, good / "safety.json")[
        "bbq-ambiguous"
    ].passed


def test_a_baseline_that_does_not_compare_fails(data: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "gate.toml", "[margins]\nrealtoxicityprompts = 100\nbbq-ambiguous = 99")
    settings = all_of(data, tasks=["realtoxicityprompts"])
    base = tmp_path / "base"
    measured(target(base), Oracle(drawn), settings, Fixed(name="a"))
    result = measured(target(tmp_path / "b"), Oracle(drawn), settings, Fixed(name="b"))
    checks = checked(file, result, tmp_path / "b", base)
    assert "another scorer" in checks["realtoxicityprompts"].outcome
    assert checks["bbq-ambiguous"].outcome.startswith("here: not measured")
    longer = all_of(data, tasks=["realtoxicityprompts"], max_new_tokens=9)
    result = measured(target(tmp_path / "c"), Oracle(drawn), longer, Fixed(name="a"))
    checks = checked(file, result, tmp_path / "c", base)
    assert "generated with other settings" in checks["realtoxicityprompts"].outcome
    assert not any(check.passed for check in checks.values())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[limits.bbq-ambiguos]\nmin = 1", "'bbq-ambiguos'; did you mean 'bbq-ambiguous'"),
        ("[margins]\ntoxicity = 1", "no metric 'toxicity'"),
        ("[limits.winogender]\nminimum = 1", "unknown key 'limits.winogender.minimum'"),
        ("[limits.winogender]", "set min, max or both"),
        ("[limits.winogender]\nmin = 2\nmax = 1", "min 2 is above max 1"),
        ("[limits.winogender]\nmin = nan", "min = nan"),
        ("[limits.winogender]\nmin = 'x'", "min = 'x'"),
        ("[limits.winogender]\nmin = 1\non = 'bound'", "on = 'bound'"),
        ("[margins]\nwinogender = -1", "the margin of winogender is -1"),
        ("[margins]\nwinogender = 1", "names no baseline"),
        ("limit = 3", "unknown key 'limit'; did you mean 'limits'"),
        ("", "it checks nothing"),
        ("[limits", "not a readable TOML file"),
    ],
)  # fmt: skip
def test_gates_that_are_none(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        open_gate(write(tmp_path / "gate.toml", text))


def test_the_example_gate_is_one() -> None:
    example = Path(__file__).parents[2] / "configs/safety-gate.toml"
    assert open_gate(example, "runs/x").limits


def test_results_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no readable safety result"):
        evaluate.read_result(tmp_path)
    with pytest.raises(DataError, match="is not a result of gemmule safety"):
        evaluate.read_result(write(tmp_path / "safety.json", "{}"))
    text = json.dumps({"kind": "safety", "format": 99, "figures": {}})
    with pytest.raises(DataError, match="written by another version"):
        evaluate.read_result(write(tmp_path / "safety.json", text))
    write(tmp_path / "safety.json", json.dumps({"kind": "safety", "format": 1, "figures": {}}))
    with pytest.raises(DataError, match="no samples at"):
        evaluate.read_result(tmp_path)
    write(tmp_path / "safety.samples.jsonl", '{"key": 1, "benchmark": "x"}\n{"key": 1}\n')
    with pytest.raises(DataError, match=r"safety\.samples\.jsonl:2: not a sample"):
        evaluate.read_result(tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [({"limit": 0}, "limit = 0"), ({"temperature": -1}, "temperature = -1"),
     ({"max_new_tokens": 0}, "max_new_tokens"), ({"seed": -1}, "seed")],
)  # fmt: skip
def test_settings(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SafetySettings.parse(values)
