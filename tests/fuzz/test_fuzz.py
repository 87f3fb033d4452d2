"""A short run over every parser; the long one; and that the fuzzing sees what it looks for."""

import json
import os
import random
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import mutate
import pytest
import targets
from mutate import pack, unpack

HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def fuzz(folder: Path, *arguments: str) -> dict[str, Any]:
    """run.py's report; the inputs that found something are left in `folder`."""
    done = subprocess.run(
        [
            sys.executable, str(HERE / "run.py"), "--json", str(folder / "fuzz.json"),
            "--findings", str(folder / "findings"), *arguments,
        ],
        capture_output=True, text=True, env=ENVIRONMENT, check=False,
    )  # fmt: skip
    assert (folder / "fuzz.json").exists(), done.stdout + done.stderr
    report = json.loads((folder / "fuzz.json").read_text())
    bad = [f for target in report["targets"] for f in target["findings"]]
    assert not bad, f"{json.dumps(bad, indent=1)}\nthe inputs are in {folder / 'findings'}"
    assert done.returncode == 0
    return report


def check_report(report: dict[str, Any], inputs: int) -> None:
    total = report["total"]
    assert total["inputs"] == inputs == total["loaded"] + total["refused"]
    assert total["crashes"] == total["hangs"] == total["executed"] == total["memory"] == 0
    assert total["growth_mb"] <= 512
    assert total["slowest_ms"] < 10_000
    # Damage that is always seen at once, or never, would say little of the parsers.
    for target in report["targets"]:
        assert target["loaded"] >= 1, target["target"]
        assert target["refused"] >= target["inputs"] / 5, target["target"]


def test_two_thousand_hostile_inputs(tmp_path: Path) -> None:
    check_report(fuzz(tmp_path, "--inputs=2000", "--engine=random"), 2000)


@pytest.mark.skipif(find_spec("atheris") is None, reason="needs the atheris package")
def test_inputs_chosen_by_coverage(tmp_path: Path) -> None:
    chosen = ("--target=safetensors", "--target=gguf", "--engine=atheris")
    check_report(fuzz(tmp_path, "--inputs=600", *chosen), 600)


@pytest.mark.slow
def test_a_hundred_thousand_hostile_inputs(tmp_path: Path) -> None:
    check_report(fuzz(tmp_path, "--inputs=100000", "--seed=1"), 100_000)


def test_a_kept_input_can_be_read_again(
    everything: dict[str, targets.Target], tmp_path: Path
) -> None:
    for data, verdict in (
        (everything["config"].seeds[0], "loaded"),
        (b"", "refused: no config.json"),
    ):
        (tmp_path / "kept.input").write_bytes(data)
        done = subprocess.run(
            [sys.executable, str(HERE / "run.py"), "--target=config", "--engine=random",
             f"--replay={tmp_path / 'kept.input'}"],
            capture_output=True, text=True, env=ENVIRONMENT, check=True,
        )  # fmt: skip
        assert done.stdout.startswith(verdict)


def test_a_target_that_does_not_exist() -> None:
    done = subprocess.run(
        [sys.executable, str(HERE / "run.py"), "--target=nothing", "--engine=random"],
        capture_output=True, text=True, env=ENVIRONMENT, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "no target nothing; there are safetensors, " in done.stdout


# --- that it would notice -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def noticed() -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(HERE / "planted.py")],
        capture_output=True, text=True, env=ENVIRONMENT, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("bug", "kind", "detail"),
    [
        ("segfault", "crashes", "SIGSEGV"),
        ("abort", "crashes", "SIGABRT"),
        ("leave", "crashes", "it ended the process"),
        ("busy_hang", "hangs", "longer than 0.4 s of work"),
        ("native_hang", "hangs", "longer than 0.4 s of work"),
        ("sleeping_hang", "hangs", "it waits, or no alarm ends it"),
        ("foreign", "crashes", "KeyError: 'x' (planted.py"),
        ("panic", "crashes", "BaseException: as Rust code ends (planted.py"),
        ("ask_for_too_much", "crashes", "MemoryError"),
        ("fill_memory", "memory", "grew by "),
        ("fill_slowly", "memory", "grew by "),
        ("run_pickle", "executed", "os.system"),
        ("evaluate", "executed", "code from the input ran"),
        ("start_process", "executed", "subprocess.Popen"),
        ("read_outside", "executed", "outside.bin"),
        ("write_outside", "executed", "open "),
        ("mutter", "crashes", "an error without a message"),
    ],
)
def test_planted_bugs_are_noticed(
    noticed: dict[str, Any], bug: str, kind: str, detail: str
) -> None:
    tally = noticed[bug]
    assert tally[kind] >= 1
    assert all(tally[other] == 0 for other in {"crashes", "hangs", "executed", "memory"} - {kind})
    assert detail in tally["what"][0]
    assert "sound" in tally["kept"][0]  # the very input that did it is kept


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        ("", "without a message"),
        ("x" * 3000, "3000 characters"),
        ("\x1b[2J", "cannot show"),
        ("\u202e", "cannot show"),
    ],
)
def test_unclear_messages_are_noticed(message: str, problem: str) -> None:
    with pytest.raises(AssertionError, match=problem):
        targets.check_message(message)


# --- that the damage is damage -------------------------------------------------------------------


def test_mutations_understand_the_sound_inputs_and_change_them(
    everything: dict[str, targets.Target],
) -> None:
    """None fails on them, which `mutated` would pass over; most of what comes out is new."""
    for name, target in everything.items():
        for i, own in enumerate(target.mutations):
            sound = [unpack(seed, len(target.files))[i] for seed in target.seeds]
            present = [data for data in sound if data]
            for mutation in {id(m): m for m in (*own, *mutate.PLAIN)}.values():
                changed = 0
                for seed in range(8):
                    rng = random.Random(seed)
                    data = rng.choice(present)
                    changed += mutation(rng, data, data) != data
                assert changed >= 2, (name, mutation)


def test_inputs_depend_on_the_seed_alone(everything: dict[str, targets.Target]) -> None:
    for target in everything.values():
        first, second, third = (
            [
                mutate.mutated(rng, target.seeds[0], target.seeds[-1], target.mutations)
                for rng in (random.Random(f"{seed} {i}") for i in range(5))
            ]
            for seed in (1, 1, 2)
        )
        assert first == second != third


def test_any_bytes_are_a_bundle() -> None:
    parts = [b"one", None, b""]
    assert unpack(pack(parts), 3) == parts
    assert unpack(b"\3\0\0\0on", 2) == [b"on", None]
    assert unpack(b"", 2) == [None, None]
