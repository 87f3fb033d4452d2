"""Fails when a test was skipped in every run that met it: `tools/check_skips.py RUN.xml…`.

The runs are JUnit reports (`pytest --junitxml`). CI runs the tests as on a bare machine and again
with more installed; a test that is skipped in both can break unseen. What CI cannot provide is in
ALLOWED. The runs are named in the order of what is installed: the last reason counts.
"""

import re
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

# What the message of a skip matches, and why CI need not run the test.
ALLOWED = {
    r"no kernels for \w+ here": "another processor's instructions",
    r"'orbax|orbax\.checkpoint|ml_dtypes": "needs the extra jax, an environment of its own",
    r"'gemma|gemma\.gm": "needs the extra gemma, an environment of its own",
    r"atheris": "has no build for every Python; `make fuzz` is run by hand",
    r"GEMMULE_BENCHMARKS": "the published files are not ours to download",
    r"CUDA|no GPU": "CI has no GPU",
    r"may read everything": "CI runs as root",
    r"file systems cannot be mounted|other users cannot enter": "a container may not allow it",
    r"as its guarantee says": "a weaker sandbox promises less",
}


@dataclass
class Test:
    """What all runs together say of one test.

    Attributes:
        ran: whether any run did more than skip it.
        reason: reason that the last run skipped it for; None if none did.
    """

    ran: bool = False
    reason: str | None = None


def read(paths: list[Path]) -> dict[str, Test]:
    """The tests of all reports by name; a module skipped whole is one entry named after it."""
    tests: dict[str, Test] = {}
    for path in paths:
        for case in ElementTree.parse(path).iter("testcase"):
            module, name = case.get("classname", ""), case.get("name", "")
            test = tests.setdefault(f"{module}.{name}" if module else name, Test())
            skipped = case.find("skipped")
            if skipped is None:
                test.ran = True
            elif skipped.get("type") != "pytest.xfail":
                test.reason = _reason(skipped)
    return tests


def never_run(tests: dict[str, Test]) -> dict[str, str]:
    """Tests that every run skipped for a reason that is not allowed, with the reason."""
    ran = {name for name, test in tests.items() if test.ran}
    modules = {name.partition("[")[0].rpartition(".")[0] for name in ran}
    return {
        name: test.reason
        for name, test in sorted(tests.items())
        if test.reason is not None
        and not test.ran
        and name not in modules
        and not _allowed(test.reason)
    }


def _reason(skipped: ElementTree.Element) -> str:
    message = skipped.get("message") or ""
    # Of a module that was skipped whole, pytest writes the repr of (file, line, reason) instead.
    whole = re.fullmatch(r"\('.*', \d+, (['\"])(.*)\1\)", skipped.text or "", re.DOTALL)
    return (whole[2] if whole else message).removeprefix("Skipped: ")


def _allowed(reason: str) -> bool:
    return any(re.search(pattern, reason) for pattern in ALLOWED)


def main() -> int:
    """Prints what was skipped and why; the exit status is 1 when a test never ran."""
    tests = read([Path(path) for path in sys.argv[1:]])
    if not tests:
        print("no tests in these reports")
        return 1
    reasons = Counter(t.reason for t in tests.values() if t.reason is not None and not t.ran)
    ran = sum(test.ran for test in tests.values())
    print(f"{ran} tests ran in at least one of {len(sys.argv) - 1} runs. Skipped in all of them:")
    for reason, count in reasons.most_common():
        print(f"{count:6}  {reason}{'  (allowed)' if _allowed(reason) else ''}")
    failures = never_run(tests)
    for name, reason in failures.items():
        print(f"never ran: {name}: {reason}")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
