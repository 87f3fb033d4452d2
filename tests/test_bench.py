"""The benchmarks run at toy size, agree with their peers, and write what they promise.

Times are never judged here: other work on the machine decides them.
"""

import argparse
import itertools
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gemmule.model.tokenizer import train_tokenizer

BENCH = Path(__file__).parent.parent / "bench"
TRAIN_MODES = ["gemmule-eager", "transformers-eager"]  # compiling would take a minute
ATTENTION_MODES = ["gemmule-windowed-eager", "plain-windowed"]
LOSS_MODES = ["gemmule-eager", "plain", "products"]
SCRIPTS = {
    "train.py": TRAIN_MODES,
    "attention.py": ATTENTION_MODES,
    "distill_loss.py": LOSS_MODES,
}


def start(script: str, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, str(BENCH / script), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The benchmarks' JSON and what they printed; they run side by side."""
    folder = tmp_path_factory.mktemp("bench")
    running = {
        script: start(
            script, "--toy", "--rounds=2", "--steps=1", f"--modes={','.join(modes)}",
            f"--json={folder / script}.json",
        )
        for script, modes in SCRIPTS.items()
    }  # fmt: skip
    reports = {}
    for script, process in running.items():
        _, printed = process.communicate(timeout=120)
        assert process.returncode == 0, printed
        reports[script] = json.loads((folder / f"{script}.json").read_text()) | {"printed": printed}
    return reports


@pytest.mark.parametrize("script", list(SCRIPTS))
def test_every_report_says_where_and_how(reports: dict[str, Any], script: str) -> None:
    report = reports[script]
    assert report["machine"].keys() == {"processor", "cores", "memory_gib", "system"}
    assert {"python", "torch", "transformers"} <= report["versions"].keys()
    settings = report["settings"]
    assert settings["toy"] is True
    assert (settings["rounds"], settings["steps_per_repetition"]) == (2, 1)
    assert settings["threads"] == report["machine"]["cores"]
    assert all(r > 0 for r in report["ratios"].values())
    for mode, figures in report["modes"].items():
        assert len(figures["repetitions"]) == 2
        assert all(r > 0 for r in figures["repetitions"])
        assert figures["peak_rss_mb"] >= figures["imports_rss_mb"] > 0
        assert mode in report["printed"]  # the table


def test_training_contestants_do_the_same_work(reports: dict[str, Any]) -> None:
    report = reports["train.py"]
    assert list(report["modes"]) == TRAIN_MODES
    assert report["agreement"]["agrees"] is True
    ours, theirs = report["modes"].values()
    assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4)
    assert 3 < ours["loss"] < 9  # ln(256) = 5.5, and random weights know less than nothing


def test_training_report_relates_speed_to_peers_and_to_matmul(reports: dict[str, Any]) -> None:
    report = reports["train.py"]
    ours, theirs = report["modes"].values()
    speed = ours["tokens_per_second"] / theirs["tokens_per_second"]
    memory = ours["peak_memory_mb"] / theirs["peak_memory_mb"]
    assert report["ratios"]["vs_transformers_eager"] == pytest.approx(speed, rel=1e-4)
    assert report["ratios"]["vs_transformers_best"] == pytest.approx(speed, rel=1e-4)
    assert report["ratios"]["memory_vs_transformers_best"] == pytest.approx(memory, rel=1e-4)
    flops = report["settings"]["training_flops_per_token"]
    share = ours["tokens_per_second"] * flops / (report["matmul_gflops"]["median"] * 1e9)
    assert ours["matmul_share"] == pytest.approx(share, rel=1e-4)
    assert len(report["matmul_gflops"]["repetitions"]) == 2


def test_ways_to_wait_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    import busy_cores

    rates = {"default": {"alone": [9.0, 10.0, 11.0], "busy": [2.0, 5.0, 4.0]},
             "passive": {"alone": [9.0, 9.0, 8.0], "busy": [6.0, 6.0, 7.0]}}  # fmt: skip
    ways = busy_cores.summary(rates)
    assert ways["default"]["share"] == 0.4
    assert ways["passive"]["over_default"] == {"alone": 0.9, "busy": 1.5}
    busy_cores.show({"settings": {"busy": 1}, "ways": ways})


def test_the_funnel_of_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    import data_funnel

    (tmp_path / "texts").mkdir()
    for number in range(40):
        words = " ".join(f"word{number}x{place % 60}" for place in range(300))
        (tmp_path / f"texts/{number}.txt").write_text("" if number == 7 else words)
    recipe = tmp_path / "data.toml"
    recipe.write_text('[[sources]]\nname = "a"\npath = "$corpora/texts"\n[normalize]\n')
    places = {"corpora": tmp_path, "benchmarks": tmp_path}
    report = data_funnel.measure(argparse.Namespace(recipe=recipe, **places))
    data_funnel.show(report)
    stages = report["funnel"]["total"]["stages"]
    assert report["funnel"]["total"]["read"][0] == 40
    assert stages["read"]["dropped"] == {"empty": [1, 0]}
    assert stages["normalize"]["passed"][0] == 39


def test_attention_contestants_agree_and_sweep_over_lengths(reports: dict[str, Any]) -> None:
    report = reports["attention.py"]
    assert list(report["modes"]) == list(report["sweep"]) == ATTENTION_MODES
    assert report["agreement"]["agrees"] is True
    assert 0 < report["modes"]["gemmule-windowed-eager"]["difference_from_plain"] < 1e-4
    for mode, rows in report["sweep"].items():
        assert [r["seq_len"] for r in rows] == report["settings"]["sweep"]
        assert [r["growth"] is None for r in rows] == [True, False, False]
        main = next(r for r in rows if r["seq_len"] == report["settings"]["seq_len"])
        assert main["seconds"] == report["modes"][mode]["seconds"]


def test_checkpoints_are_read_and_written(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    running = start(
        "checkpoints.py", "--toy", "--rounds=2", "--modes=gemmule,read", f"--json={out}"
    )
    _, printed = running.communicate(timeout=120)
    assert running.returncode == 0, printed
    report = json.loads(out.read_text())
    for figures in report["modes"].values():
        assert len(figures["repetitions"]) == 2
        assert figures["peak_over_model"] > 0
    assert report["ratios"].keys() == {"warm_vs_read", "cold_vs_read", "peak_vs_read"}
    assert report["generated"]["generate_seconds"] > 0
    assert 0 < report["export"]["weights"]["relative_error"] < 0.01  # eight bits
    assert report["export"]["against_source"]["top1_agreement"] > 0.9
    assert "GGUF Q8_0" in printed


def test_a_trimmed_model_is_compared_with_the_full_one(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    running = start("trim.py", "--toy", "--rounds=2", "--steps=2", f"--json={out}")
    _, printed = running.communicate(timeout=120)
    assert running.returncode == 0, printed
    report = json.loads(out.read_text())
    assert report["vocabulary"] == {"before": 1100, "after": 800}
    segmentation = report["segmentation"]
    assert segmentation["tokens_after"] > segmentation["tokens_before"]  # fewer than the text has
    assert report["ratios"]["bytes"] < 1
    for figures in report["modes"].values():
        assert len(figures["repetitions"]) == 2
        assert figures["step_seconds"] > 0
    assert "1,100 tokens trimmed to 800" in printed


@pytest.mark.slow
def test_ways_to_learn_from_a_teacher_are_compared(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    running = start("posttrain_distill.py", "--toy", "--rounds=2", f"--json={out}")
    _, printed = running.communicate(timeout=900)
    assert running.returncode == 0, printed
    report = json.loads(out.read_text())
    arms = {"start", "opd", "sft", "seqkd", "logits", "jsd", "mixed"}
    longer = {f"{name}, equal seconds" for name in ("sft", "seqkd", "logits")}
    assert report["arms"].keys() == arms | longer
    assert report["against_seqkd"].keys() == (arms | longer) - {"seqkd"}
    for figures in report["seeds"]:
        assert figures["sft"]["tokens"] == pytest.approx(figures["opd"]["tokens"], rel=0.5)
        assert all(len(figures[arm]["greedy"]) == 8 for arm in arms)
        assert all(figures[arm]["own_answers"]["loss"] >= 0 for arm in arms)
    assert "exact match on 8 questions, 2 seeds" in printed


@pytest.mark.slow
def test_over_optimization_and_warp_s_front_are_measured(tmp_path: Path) -> None:
    """The toy case end to end; what is finished is not done again."""
    out, plots = tmp_path / "report.json", tmp_path / "plots"
    command = (
        "posttrain_warp.py", "--toy", f"--out={tmp_path / 'models'}", f"--plots={plots}",
        f"--json={out}",
    )  # fmt: skip
    _, printed = (running := start(*command, "--seeds", "0")).communicate(timeout=900)
    assert running.returncode == 0, printed
    report = json.loads(out.read_text())
    (first,) = report["seeds"]
    assert first["start"][0]["kl"] == 0
    ways = {"rloo 0.1", "ema, longer", "jbond", "dpo 0.1"}
    merged = {"ema run 1", "ema run 2", "slerp", "lerp"}
    merged |= {f"{name}, second" for name in merged}
    best = {"best of n, 24 pairs", "best of n, 48 pairs"}
    assert report["summary"]["places"].keys() == {"start"} | ways | merged | best
    assert [place["at"] for place in first["ema, longer"]] == [2, 4]
    half, whole = first["slerp"]
    assert 0 < half["kl"] < whole["kl"]
    assert all(0 < angle < 180 for angle in first["angles"].values())
    assert "slerp over lerp" in printed
    assert {path.name for path in plots.iterdir()} == {"over-optimization.svg", "warp-front.svg"}
    # A seed of which nothing is there changes nothing, and nothing is trained.
    again = start(*command, "--seeds", "0", "1", "--finished")
    _, printed = again.communicate(timeout=60)
    assert again.returncode == 0, printed
    assert " steps" not in printed
    assert json.loads(out.read_text())["seeds"] == [first, {"seed": 1}]
    assert json.loads(out.read_text())["summary"]["places"] == report["summary"]["places"]


def test_best_of_n_is_the_mean_over_all_subsets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    from posttrain_warp_measure import best_of

    proxies, golds = [0.3, -1.0, 2.0, 0.7, 0.1], [1.0, 5.0, 2.0, 4.0, 3.0]
    for n in range(1, 6):
        subsets = list(itertools.combinations(range(5), n))
        best = [golds[max(subset, key=proxies.__getitem__)] for subset in subsets]
        assert best_of(n, [proxies], [golds]) == pytest.approx(sum(best) / len(best))


def test_the_known_reward_of_word_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    from word_lines import BEST, gold, word_line

    record = {"words": ["module", "option"], "ending": "ing"}
    assert gold("module local option string", record) == BEST
    assert gold("module local string option", record) == pytest.approx(2)
    assert gold("module option string", record) == pytest.approx(3 - 0.3)
    assert gold("module module module option string", record) == pytest.approx(3 - 0.6)
    assert gold("", record) == pytest.approx(-1.2)
    lines = [word_line(random.Random(seed)) for seed in range(300)]
    mean = sum(gold(line.answer, line.record) for line in lines) / len(lines)
    assert 0.5 < mean < 1.5  # there is room in both directions


def test_places_are_compared_with_a_curve_at_the_same_distance(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    from posttrain_warp_summary import above, compared

    def way(*places: tuple[float, float]) -> list[dict[str, float]]:
        return [{"distance": x, "gold": y} for x, y in places]

    seed = {"a": way((1.0, 1.5), (3.0, 1.0), (9.0, 7.0)), "b": way((2.0, 2.0), (4.0, 1.0))}
    assert above("a", ["b"])(seed) == pytest.approx([0.5, -0.5])  # 9 is beyond the curve's end
    result = compared([[1.0, 2.0, 3.0], [4.0, 1.0]])
    assert (result["above"], result["places"], result["p"]) == (5, 5, 0.0625)
    assert result["by_seed"] == [2.0, 2.5]


@pytest.mark.slow
def test_students_of_a_pretrained_teacher_are_compared(tmp_path: Path) -> None:
    """From a text and a teacher with more tokens to the report; a second call only reports."""
    pytest.importorskip("transformers", reason="transformers is in the extra teachers")
    out, plot = tmp_path / "report.json", tmp_path / "plot.svg"
    command = [
        "real_teacher.py", "--toy", "--seeds=2", "--threads=1",
        "--arms", "scratch-1", "scratch-2", "stored-2", "alpha-0.5", "adapted-4", "online-2",
        f"--out={tmp_path / 'runs'}",
        f"--json={out}", f"--plot={plot}",
    ]  # fmt: skip
    running = start(*command)
    _, printed = running.communicate(timeout=900)
    assert running.returncode == 0, printed
    report = json.loads(out.read_text())
    vocabulary = report["text"]["vocabulary"]
    assert vocabulary["after"] < vocabulary["before"]
    assert vocabulary["equal_documents"] == vocabulary["documents"]
    assert report["teachers"].keys() == {"plain", "adapted"}
    for teacher in report["teachers"].values():
        assert teacher["recording"]["tokens"] == report["settings"]["tokens"]
        assert teacher["recording"]["dropped_probability"]["mean"] > 0
    for name, arm in report["arms"].items():
        assert arm["seeds"] == [0, 1], name
        assert (arm["teacher_flops"] > 0) is (arm["source"] == "stored")
    for run in report["runs"]:
        assert [point["epoch"] for point in run["points"]] == [*range(1, run["epochs"] + 1)]
    compared = report["comparisons"]["stored-2"]
    last = {
        name: [r["points"][-1]["heldout"] for r in report["runs"] if r["arm"] == name]
        for name in ("scratch-2", "stored-2")
    }
    differences = [a - b for a, b in zip(last["scratch-2"], last["stored-2"], strict=True)]
    assert list(compared["equal_tokens"]["by_seed"].values()) == pytest.approx(differences)
    assert compared["best_epoch"]["half_width"] >= 0
    assert plot.read_text().startswith("<?xml")
    assert "recording shared" in plot.read_text()
    again = start(*command[:-2], "--report", f"--json={tmp_path / 'again.json'}")
    _, printed = again.communicate(timeout=120)
    assert again.returncode == 0, printed
    assert json.loads((tmp_path / "again.json").read_text())["arms"] == report["arms"]


def test_what_cleaning_the_data_changes_is_measured(tmp_path: Path) -> None:
    """Recipes, students, measurements; what is finished is not done again."""
    pytest.importorskip("stdnum", reason="needs python-stdnum, of the extra eval")
    out = tmp_path / "report.json"
    command = (
        "data_effects.py", "--toy", "--threads=1", "--versions", "raw", "all-passes",
        f"--out={tmp_path / 'runs'}", f"--json={out}",
    )  # fmt: skip
    _, printed = (running := start(*command, "--seeds", "0", "1")).communicate(timeout=120)
    assert running.returncode == 0, printed
    report = json.loads(out.read_text())
    raw, cleaned = report["arms"]["raw"], report["arms"]["all-passes"]
    for name, difference in cleaned["against_raw"].items():
        means = [version["figures"][name]["mean"] for version in (cleaned, raw)]
        assert difference["mean"] == pytest.approx(means[0] - means[1])
        assert difference["half_width"] >= 0
    assert raw["audit_personal_data"]["in_text"] > 0
    for run in report["runs"]:
        assert all(run[name] > 0 for name in ("heldout", "clean", "planted", "fresh"))
        if run["version"] == "raw":
            assert sum(run["documents"].values()) == run["stages"]["read"]["passed"][0]
            continue
        stages = run["stages"]
        assert stages["decontaminate"]["dropped"]["text of a benchmark"][0] == 8  # all of them
        assert stages["near_duplicates"]["dropped"]["near-duplicate"][0] > 12  # of 24
        assert any(what.endswith("removed") for what in stages["redact"]["counts"])
    again = start(*command, "--report", "--seeds", "0")
    _, printed = again.communicate(timeout=60)
    assert again.returncode == 0, printed
    assert json.loads(out.read_text())["arms"] == report["arms"]


@pytest.mark.slow
def test_post_training_takes_the_steps_that_trl_takes(tmp_path: Path) -> None:
    """SFT, DPO and RLOO: losses and gradients of the first steps."""
    pytest.importorskip("trl", reason="trl is in the extra dev")
    out, modes = tmp_path / "report.json", ["gemmule-sft", "trl-sft", "gemmule-dpo", "trl-dpo"]
    running = start(
        "posttrain.py", "--toy", "--rounds=2", "--steps=1", f"--modes={','.join(modes)}",
        f"--json={out}",
    )  # fmt: skip
    _, printed = running.communicate(timeout=600)
    assert running.returncode == 0, printed
    report = json.loads(out.read_text())
    assert report["equality"]["agrees"] is True
    for method in ("sft", "dpo", "rloo"):
        losses = report["equality"][method]["losses"]
        assert losses["gemmule"] == pytest.approx(losses["trl"], rel=1e-5)
        assert len(set(losses["gemmule"])) == 3  # each step has another batch and other weights
    part = report["vocabularies"]["512"]
    assert sorted(part["modes"]) == sorted(modes)
    assert part["ratios"].keys() == {
        f"{kind}_vs_trl-{method}" for kind in ("speed", "memory") for method in ("sft", "dpo")
    }


def test_distillation_losses_agree_and_say_what_they_hold(reports: dict[str, Any]) -> None:
    report = reports["distill_loss.py"]
    assert list(report["modes"]) == LOSS_MODES
    assert report["agreement"]["agrees"] is True
    ours, plain, _ = report["modes"].values()
    assert ours["loss"] == pytest.approx(plain["loss"], rel=1e-4)
    assert 1 < ours["loss"] < 30
    assert ours["gradient_norms"] == pytest.approx(plain["gradient_norms"], rel=1e-4)
    speed = ours["seconds"] / plain["seconds"]
    assert report["ratios"]["time_vs_plain"] == pytest.approx(speed, rel=1e-4)
    assert isinstance(report["peak_extra_mb"], float)
    assert list(report["plain_peaks_mb"]) == ["256", "384"]
    assert isinstance(report["plain_peak_extra_mb"], float)
    assert set(report["peers"]) == {"trl", "liger-kernel"}


def test_a_user_s_mistake_is_one_line_and_exit_2(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    unknown = start("train.py", "--modes=gemma")
    blocked = start("train.py", "--toy", f"--json={tmp_path / 'file' / 'x.json'}")
    _, printed = unknown.communicate(timeout=60)
    assert unknown.returncode == 2
    assert "no contestant 'gemma'; there are: gemmule, " in printed
    _, printed = blocked.communicate(timeout=60)
    assert blocked.returncode == 2
    assert printed.startswith("cannot write to")
    assert "Traceback" not in printed


def test_logit_store(tiny: Any, prepared: Path, tmp_path: Path, no_meter: None) -> None:
    """Every kind of targets is recorded, learned from, timed and drawn."""
    from gemmule.train.config import RunConfig
    from gemmule.train.run import run_training

    run_training(RunConfig.parse(tiny(steps=2)), tmp_path / "teacher")
    (tmp_path / "data").symlink_to(prepared)
    process = start(
        "logit_store.py", "--toy", "--steps=2", "--seeds=1", "--rounds=1",
        f"--quickstart={tmp_path}", f"--work={tmp_path / 'work'}",
        f"--json={tmp_path / 'out.json'}", f"--plot={tmp_path / 'out.svg'}",
    )  # fmt: skip
    _, printed = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    report = json.loads((tmp_path / "out.json").read_text())
    kinds = {"systematic-50", "sampled-12", "sampled-50", "sampled-256", "top-32", "top-32+tail"}
    assert kinds < set(report["targets"])
    assert set(report["quality"]) == {"scratch", "full", *report["targets"]}
    assert report["quality"]["full"]["over_full"] == 0.0
    sizes = [report["targets"][f"sampled-{n}"]["bytes_per_token"] for n in (12, 50, 256)]
    assert sizes == sorted(sizes)
    assert report["cost"]["ratios"].keys() == {
        "stored_vs_online_training", "stored_vs_scratch_training", "read_vs_training",
    }  # fmt: skip
    assert "sampled-256" in printed
    assert (tmp_path / "out.svg").read_text().startswith("<?xml")


def test_quantization(tiny: Any, prepared: Path, tmp_path: Path, no_meter: None) -> None:
    """Every format is made, read and measured; llama.cpp's where it is installed."""
    from gemmule.train.config import RunConfig
    from gemmule.train.run import run_training

    run_training(RunConfig.parse(tiny(steps=2)), tmp_path / "teacher")
    (tmp_path / "data").symlink_to(prepared)
    out = tmp_path / "out.json"
    process = start(
        "quantization.py", "--toy", "--calibration-rows=8", "--held-out-rows=8",
        f"--quickstart={tmp_path}", f"--json={out}",
    )  # fmt: skip
    _, printed = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    report = json.loads(out.read_text())
    assert len(report["modes"]) >= 7
    assert report["bars"]["int8"]["holds"]
    for name, figures in report["modes"].items():
        assert 0 < figures["kl_nats"] < 0.1
        assert name in printed
    bits = [report["modes"][f"int4, head {head}"]["bits_per_weight"] for head in ("int4", "bf16")]
    assert bits == sorted(bits)


def test_inference(tmp_path: Path) -> None:
    """Ours is measured; llama.cpp too, where it is installed."""
    out = tmp_path / "out.json"
    process = start(
        "inference.py", "--toy", "--rounds=1", "--steps=2", "--threads=1", "--context=128",
        f"--folder={tmp_path / 'models'}", f"--json={out}",
    )  # fmt: skip
    _, printed = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    report = json.loads(out.read_text())
    assert {"gemmule int4", "gemmule int8"} <= set(report["modes"])
    for figures in report["modes"].values():
        for name in ("decode", "batched8", "prefill"):
            assert figures[f"{name}_tokens_per_second"] > 0
        assert figures["load_seconds"] > 0
        assert figures["peak_rss_mb"] >= figures["imports_rss_mb"] > 0
    assert report["modes"]["gemmule int4"]["context_int8_cache_slowdown"] > 0
    assert "others_cpu_share" in report
    if "llama.cpp Q4_0" in report["modes"]:  # installed, and no build that crashes
        ours, theirs = (report["modes"][name] for name in ("gemmule int4", "llama.cpp Q4_0"))
        assert ours["bits_per_weight"] <= theirs["bits_per_weight"]
        assert {"decode_int4", "load_int4", "memory_int4"} <= report["ratios"].keys()


def test_evaluation(tmp_path: Path) -> None:
    """Both answer every request alike, of made-up documents and of a user's."""
    pytest.importorskip("lm_eval")
    (tmp_path / "arc").mkdir()
    row = {"query": "Question: What is wet?", "choices": ["a sea", "sand", "wood"], "gold": 0}
    (tmp_path / "arc/arc_easy.jsonl").write_text(f"{json.dumps(row)}\n" * 3)
    common = ("eval.py", "--toy", "--rounds=2", "--threads=1", "--modes=gemmule,hf-1,hf-4")
    running = [
        start(*common, "--documents=3", f"--json={tmp_path / 'made-up.json'}"),
        start(
            *common,
            "--benchmarks=arc-e",
            f"--data-dir={tmp_path}",
            f"--json={tmp_path / 'own.json'}",
        ),
        start(*common, "--benchmarks=piqa", f"--data-dir={tmp_path}"),
    ]
    done = [(process.communicate(timeout=300)[1], process.returncode) for process in running]
    for printed, code in done[:2]:
        assert code == 0, printed
        assert "x best hf" in printed
    assert done[2][1] == 2
    assert "piqa: there is no piqa/valid.jsonl in the data folder; leave it out" in done[2][0]
    report = json.loads((tmp_path / "made-up.json").read_text())
    names = ["arc-e", "piqa", "boolq", "hellaswag-0", "winogrande", "mmlu"]
    assert list(report["benchmarks"]) == names
    assert list(report["ratios"]) == [*names, "all"]
    for benchmark in report["benchmarks"].values():
        assert (benchmark["documents"], benchmark["left_out"]) == (3, 0)
        rates = {m: f["documents_per_second"] for m, f in benchmark["modes"].items()}
        best = max(rates["hf-1"], rates["hf-4"])
        assert rates[benchmark["hf_best"]] == best
        assert benchmark["vs_hf_best"] == pytest.approx(rates["gemmule"] / best, rel=1e-4)
        assert all(len(f["repetitions"]) == 2 for f in benchmark["modes"].values())
    assert report["agreement"]["agrees"] is True
    assert report["agreement"]["greedy_unlike"] == 0
    for figures in report["modes"].values():
        assert figures["peak_rss_mb"] >= figures["imports_rss_mb"] > 0
    own = json.loads((tmp_path / "own.json").read_text())
    assert own["settings"]["documents"] == "published"
    assert own["benchmarks"]["arc-e"]["requests"] == 9


def test_a_worker_s_peak_memory_is_its_own() -> None:
    """Not that of a larger parent, which the system's own figure keeps after exec."""
    held = bytearray(300_000_000)
    done = subprocess.run(
        [sys.executable, "-c", "import worker_side; print(worker_side.peak_mb())"],
        cwd=BENCH, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert 0 < float(done.stdout) < len(held) / 1e6


def test_tokenizer(tmp_path: Path) -> None:
    train_tokenizer(["The sea, said the captain.\n" * 40], 520).save(tmp_path)
    printed = tmp_path / "report.json"
    process = start(
        "tokenizer.py", f"--tokenizer={tmp_path}", "--texts=40", "--rounds=1",
        f"--catalogs={tmp_path}", f"--json={printed}",
    )  # fmt: skip
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    report = json.loads(printed.read_text())
    for kind in report["compared"].values():
        assert kind["equal_ids"] == kind["without_u2581"]
        assert kind["round_trips"] == kind["texts"]
    assert report["compared"]["random"]["texts"] == 10
    assert report["gemmule_against"].keys() == report["contestants"].keys() - {"gemmule"}


def test_a_tokenizer_has_to_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GEMMULE_GEMMA_TOKENIZER", raising=False)
    process = start("tokenizer.py")
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "--tokenizer: name a folder" in printed


def test_the_server_benchmark_runs(tmp_path: Path) -> None:
    for module in ("starlette", "uvicorn", "httptools", "prometheus_client", "pydantic"):
        pytest.importorskip(module, reason="needs the extra serve")
    report = tmp_path / "serve.json"
    process = start(
        "serve.py", "--toy", f"--folder={tmp_path}", "--part=load,determinism", f"--json={report}"
    )
    _, printed = process.communicate(timeout=120)
    assert process.returncode == 0, printed
    figures = json.loads(report.read_text())["models"]["toy"]
    for load in figures["load"].values():
        assert load["gemmule"]["tokens_per_second"] > 0
        assert 0 <= load["gemmule"]["gap_ms_p50"] <= load["gemmule"]["gap_ms_p99"]
    answers = figures["determinism"]["gemmule"]
    assert (answers["different_sets_of_answers"], answers["answers_that_differ"]) == (1, 0)


def test_filters_find_what_was_planted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The contestant of each part, in this process, on a little of the real text."""
    monkeypatch.syspath_prepend(str(BENCH))
    import data_filters

    documents = data_filters.documents_of(None, 0.3)
    pieces = data_filters.pieces_of(documents)
    figures = {}
    for part, materials in (
        ("redaction", data_filters.redaction_materials(pieces)),
        ("decontamination", data_filters.decontamination_materials(pieces)),
        ("quality", data_filters.quality_materials(documents)),
    ):
        judge, (ours, *_) = data_filters.PARTS[part]
        figures[part] = judge(data_filters.OURS[ours](materials)(), materials)
    assert figures["redaction"]["recall"] > 0.8
    assert figures["redaction"]["precision"] > 0.95
    assert figures["decontamination"] == {"recall": 1.0, "false_alarms": 0, "planted": 13}
    assert figures["quality"]["auc"] > 0.8
