"""schemathesis on /openapi.json: no 5xx, and every answer is true to its schema."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from checking import URL, run

CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,"
    "response_schema_conformance,response_headers_conformance"
)


# Each route under /v1 is also served without it.
PATHS = "^/(v1|metrics|openapi)"


def fuzz(phases: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [
                os.fspath(Path(sys.executable).with_name("st")), "run", f"{URL}/openapi.json",
                "--phases", phases, "--checks", CHECKS, "--max-examples", "15", "--seed", "1",
                "--include-path-regex", PATHS, "--warnings", "off", "--continue-on-failure",
                "--request-timeout", "60", "--workers", "2",
            ],
            cwd=folder, capture_output=True, text=True, timeout=540, check=False,
        )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]


run("schemathesis", {
    "examples and coverage": lambda: fuzz("examples,coverage"),
    "fuzzing": lambda: fuzz("fuzzing"),
})  # fmt: skip
