"""A healthy stack passes whatever its probes could have failed."""

import pytest
from fake_server import Server

from gemmule.doctor.examine import run_doctor
from gemmule.doctor.report import DoctorReport


def results(report: DoctorReport) -> dict[str, set[str]]:
    checks: dict[str, set[str]] = {}
    for row in report.rows:
        checks.setdefault(row.result, set()).add(row.check)
    return checks


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gemmule(folder: str, dtype: str) -> None:
    report = run_doctor(folder, dtype=dtype)
    checks = results(report)
    assert checks.pop("not tested") == {"published settings"}
    assert set(checks) == {"pass"}, checks
    assert len(report.rows) == 25
    assert report.dtype == dtype


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_transformers(folder: str, dtype: str) -> None:
    report = run_doctor(folder, backend="transformers", dtype=dtype)
    checks = results(report)
    assert checks.pop("not tested") == {"published settings"}
    assert checks.pop("warning") == {"markers in user text"}
    assert set(checks) == {"pass"}, checks


@pytest.mark.parametrize("echo", [True, False])
def test_endpoint(folder: str, server: Server, echo: bool) -> None:
    server.echo = echo
    report = run_doctor(folder, backend="openai", url=server.url)
    checks = results(report)
    assert checks.pop("not tested") == {
        "published settings", "tied head", "left padding", "right padding", "markers in user text",
    }  # fmt: skip
    # No position is far enough for rounding to show.
    assert checks.pop("cannot tell") == {"rotary positions"}
    assert set(checks) == {"pass"}, checks
