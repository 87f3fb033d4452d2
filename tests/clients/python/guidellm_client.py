"""guidellm: a short benchmark of synthetic text, with the tokenizer of the model's folder.

GEMMULE_FOLDER is the folder of the model that the server serves as GEMMULE_MODEL.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from checking import MODEL, URL, run

FOLDER = os.environ["GEMMULE_FOLDER"]


def benchmark(path: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        done = subprocess.run(
            [
                sys.executable, "-m", "guidellm", "run",
                "--backend", f"kind=openai_http,target={URL},model={MODEL},request_format={path}",
                "--profile", "kind=concurrent,streams=2",
                "--constraint", "kind=max_requests,count=6",
                "--tokenizer", f"kind=hf_auto,model={FOLDER}",
                "--data", "kind=synthetic_text,prompt_tokens=40,output_tokens=9",
                "--output", f"kind=json,path={report}", "--disable-console",
            ],
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        requests = json.loads(report.read_text())["benchmarks"][0]["requests"]
    assert len(requests["successful"]) >= 6, requests
    assert not requests["errored"], requests["errored"]
    # It sends ignore_eos, so that each answer has the number of tokens that it asked for.
    assert {request["output_tokens"] for request in requests["successful"]} == {9}
    assert all(request["prompt_tokens"] >= 40 for request in requests["successful"])


run("guidellm", {
    "chat completions": lambda: benchmark("/v1/chat/completions"),
    "completions": lambda: benchmark("/v1/completions"),
})  # fmt: skip
