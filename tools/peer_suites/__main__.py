"""Runs the server tests of llama.cpp and of openai-python against `gemmule serve`.

Usage: python tools/peer_suites MODEL [--fetch] [--suite NAME] [--out FILE]

Each test passes, fails, or cannot apply here, for a reason that suites.toml gives. The result is
bench/results/peer_suites.json, and docs/serving.md has its table. --fetch downloads the suites and
makes an environment for each under build/peer_suites; without it nothing is downloaded.
"""

import argparse
import fnmatch
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build/peer_suites"
OUT = ROOT / "bench/results/peer_suites.json"
Suite = dict[str, Any]
TEST_SECONDS = 120
RUN_SECONDS = 1800


def suites() -> dict[str, Suite]:
    """The suites by name."""
    return tomllib.loads((HERE / "suites.toml").read_text(encoding="utf-8"))


def fetch(name: str, suite: Suite) -> None:
    """Downloads a suite and makes its environment."""
    folder = BUILD / name
    if not (folder / suite["folder"]).is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        package = suite["package"].partition("==")[0]
        _run(
            sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", package,
            suite["package"], "--dest", folder,
        )  # fmt: skip
        with tarfile.open(folder / suite["archive"]) as archive:
            members = [m for m in archive if m.name.startswith(suite["folder"] + "/")]
            archive.extractall(folder, members, filter="data")
    if not python_of(name).exists():
        _run(sys.executable, "-m", "venv", folder / "environment")
        _run(python_of(name), "-m", "pip", "install", "--quiet", *suite["requirements"])


def python_of(name: str) -> Path:
    """The interpreter of a suite's environment."""
    return BUILD / name / "environment/bin/python"


def run_suite(name: str, suite: Suite, model: str) -> list[dict[str, str]]:
    """Runs a suite; returns each test with its outcome, message and reason."""
    results = []
    for run in suite["runs"]:
        with tempfile.TemporaryDirectory() as scratch:
            report = Path(scratch) / "report.jsonl"
            report.touch()
            with served(model, suite["names"], run.get("key"), Path(scratch)) as port:
                _run_pytest(name, suite, run, port, report)
            lines = report.read_text(encoding="utf-8").splitlines()
        results += [judged(json.loads(line), suite) for line in lines]
    return results


def judged(result: dict[str, str], suite: Suite) -> dict[str, str]:
    """What became of a test: passed, failed, or not applicable, with the reason."""
    test, message = result["test"], _one_line(result["message"])
    if result["outcome"] == "passed":
        return {"test": test, "outcome": "passed"}
    for rule in suite.get("rules", ()):
        if any(fnmatch.fnmatchcase(test, pattern) for pattern in rule["tests"]) and re.search(
            rule.get("message", ""), message
        ):
            return {"test": test, "outcome": "not applicable", "reason": rule["reason"]}
    return {"test": test, "outcome": "failed", "message": message}


def unused_rules(results: list[dict[str, str]], suite: Suite) -> list[str]:
    """Reasons of rules that excuse no test."""
    used = {result.get("reason") for result in results}
    rules = [rule for rule in suite.get("rules", ()) if not rule.get("may_pass")]
    return [rule["reason"] for rule in rules if rule["reason"] not in used]


def table(report: dict[str, Any]) -> str:
    """The counts as markdown."""
    rows = ["| Suite | Passed | Failed | Not applicable |", "|---|---:|---:|---:|"]
    for suite in report["suites"].values():
        counts = suite["counts"]
        numbers = [str(counts.get(k, 0)) for k in ("passed", "failed", "not applicable")]
        name = f"{suite['title']} ({suite['package'].replace('==', ' ')})"
        rows.append(f"| {' | '.join([name, *numbers])} |")
    return "\n".join(rows)


@contextmanager
def served(model: str, names: list[str], key: str | None, scratch: Path) -> Iterator[int]:
    """A server on a port of loopback, which it yields."""
    command = [
        sys.executable,
        "-m",
        "gemmule",
        "serve",
        f"{','.join(names)}={model}",
        "--port",
        "0",
    ]
    if key is not None:
        (scratch / "key").write_text(key, encoding="utf-8")
        (scratch / "key").chmod(0o600)
        command += ["--key-file", str(scratch / "key")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8") as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if match := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                    yield int(match[1])
                    break
            else:
                raise SystemExit("gemmule serve ended without an address")
        finally:
            process.terminate()
            process.wait(60)


def _run_pytest(name: str, suite: Suite, run: Suite, port: int, report: Path) -> None:
    environment = {k: v.format(port=port) for k, v in suite["environment"].items()}
    subprocess.run(
        [
            python_of(name), "-m", "pytest", *run["tests"], "--override-ini=addopts=", "--quiet",
            "--tb=no", "--no-header", "-p", "reporter", "-p", "no:cacheprovider",
            f"--timeout={TEST_SECONDS}",
        ],
        cwd=BUILD / name / suite["folder"],
        env={
            **os.environ,
            **environment,
            "PYTHONPATH": str(HERE),
            "PEER_SUITES_REPORT": str(report),
            "PEER_SUITES_ANY_TEXT": json.dumps(suite.get("any_text", [])),
        },
        timeout=RUN_SECONDS,
        check=False,  # some tests fail, and the report has them
    )  # fmt: skip


def _one_line(message: str) -> str:
    # Ids and times differ from run to run.
    line = " ".join(message.split())
    line = re.sub(r"0x[0-9a-f]+|[0-9a-f]{24,}|\b\d{10}\b", "…", line)
    return line if len(line) <= 300 else line[:299] + "…"


def _run(*command: str | Path) -> None:
    subprocess.run([os.fspath(part) for part in command], check=True, timeout=RUN_SECONDS)


def main() -> int:
    """Runs the suites and writes the report."""
    parser = argparse.ArgumentParser(prog="tools/peer_suites", description=__doc__)
    parser.add_argument("model", help="model to serve, with a tokenizer")
    parser.add_argument("--fetch", action="store_true", help="download the suites first")
    parser.add_argument("--suite", action="append", choices=[*suites()], help="only this one")
    parser.add_argument("--out", type=Path, default=OUT, help="file of the result")
    options = parser.parse_args()
    report: dict[str, Any] = {"model": Path(options.model).name, "suites": {}}
    unused = []
    for name, suite in suites().items():
        if options.suite and name not in options.suite:
            continue
        if options.fetch:
            fetch(name, suite)
        if not python_of(name).exists():
            raise SystemExit(f"{python_of(name)} does not exist: make it with --fetch")
        results = run_suite(name, suite, options.model)
        report["suites"][name] = {
            "title": suite["title"],
            "package": suite["package"],
            "counts": dict(Counter(result["outcome"] for result in results)),
            "left_out": suite["left_out"],
            "tests": results,
        }
        unused += unused_rules(results, suite)
    options.out.write_text(
        json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    print(table(report))
    failed = [
        result
        for suite in report["suites"].values()
        for result in suite["tests"]
        if result["outcome"] == "failed"
    ]
    for result in failed:
        print(f"failed: {result['test']}\n    {result['message']}")
    for reason in unused:
        print(f"a rule excuses no test any more: {reason}")
    return 1 if failed or unused else 0


if __name__ == "__main__":
    sys.exit(main())
