"""Whether requests and idle time add up to the meter: a mixed load on a server, then its ledger.

    python bench/ledger_serve.py runs/quickstart/student --minutes 10 --json FILE

Clients come at random, alone and in crowds, with short and long prompts and answers, as streams and
whole, and some of them leave early; in between no one does. What the answers say they used, what
/metrics shows, what a meter of this process counts and what the ledger has in the end are compared.
"""

import argparse
import http.client
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from gemmule import files
from gemmule.console import key_values
from gemmule.runs.ledger.file import own_lines
from gemmule.runs.power.machine import MachineMeter
from gemmule.runtime import host

PROMPT = "def add(a, b):\n    return a + b\n\n\n"
LEAVING = 0.1  # part of the clients of streams that do not wait for the end
STREAMS = 0.5


class Load:
    """Requests that come and go.

    Attributes:
        joules: what answers said they used.
        answers, left: numbers of answers, and of clients that did not wait.
    """

    def __init__(self, port: int, seed: int) -> None:
        self.joules, self.answers, self.left = 0.0, 0, 0
        self._port, self._random, self._lock = port, random.Random(seed), threading.Lock()

    def run(self, seconds: float) -> None:
        """Sends requests for some seconds, and waits for the last answers."""
        until, threads = time.monotonic() + seconds, []
        while time.monotonic() < until:
            crowd = self._random.choice([0, 1, 1, 2, 4, 8])
            for _ in range(crowd):
                request = self._request()
                thread = threading.Thread(target=self._ask, args=request)
                thread.start()
                threads.append(thread)
            time.sleep(self._random.expovariate(1 / 2.0))
        for thread in threads:
            thread.join()

    def _request(self) -> tuple[dict[str, Any], bool]:
        body = {
            "prompt": PROMPT * self._random.choice([1, 1, 4, 10]),
            "max_tokens": self._random.choice([1, 8, 32, 96]),
            "seed": self._random.randrange(1000),
            "stream": self._random.random() < STREAMS,
        }
        return body, bool(body["stream"]) and self._random.random() < LEAVING

    def _ask(self, body: dict[str, Any], leaves: bool) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=600)
        connection.request(
            "POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"}
        )
        response = connection.getresponse()
        if leaves:
            response.read(1)
            connection.close()
            with self._lock:
                self.left += 1
            return
        text = response.read().decode()
        connection.close()
        if response.status != 200:
            raise RuntimeError(f"{response.status}: {text[:200]}")
        events = [e[6:] for e in text.split("\n\n") if e.startswith("data: {")]
        answers = map(json.loads, events) if body["stream"] else [json.loads(text)]
        with self._lock:
            self.answers += 1
            for answer in answers:
                energy = answer.get("energy")
                self.joules += (energy or {}).get("joules") or 0.0


def measure(model: Path, minutes: float, seed: int) -> dict[str, Any]:
    """Serves a copy of a run under load, and compares the three accounts of its energy."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "model"
        shutil.copytree(model, run, ignore=shutil.ignore_patterns("checkpoints", "ledger.jsonl"))
        server = subprocess.Popen(
            [sys.executable, "-P", "-m", "gemmule", "serve", str(run), "--port", "0", "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert server.stdout is not None
        ready = json.loads(server.stdout.readline())
        port = int(str(ready["url"]).rpartition(":")[2].rstrip("/"))
        time.sleep(3.0)  # the meter has started: before, requests have no figures
        load = Load(port, seed)
        before, meter, began = _metrics(port), MachineMeter.open(), time.monotonic()
        load.run(60 * minutes)
        metrics, counted = _metrics(port), sum(meter.read().values())
        seconds = time.monotonic() - began
        meter.close()
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=120)
        (line,) = own_lines(run)
    requests, idle = (metrics[part] - before[part] for part in ("requests", "idle"))
    assert line.request_joules is not None
    whole = line.total_joules * line.pue
    return {
        "machine": host.machine(),
        "how": {name: part.how for name, part in line.joules.items()},
        "seconds": seconds,
        "answers": load.answers,
        "left": load.left,
        "answers_joules": load.joules,
        "metered_joules": counted,
        "requests_joules": requests,
        "idle_joules": idle,
        "ledger": {
            "joules": whole,
            "request_joules": line.request_joules * line.pue,
            "seconds": line.seconds,
            "tokens_in": line.tokens_in,
            "tokens_out": line.tokens_out,
        },
        # Answers of clients that left were computed too, so requests used a little more.
        "answers_over_requests": load.joules / requests,
        # Of a meter of this process's own, on the same machine at the same time.
        "requests_and_idle_over_meter": (requests + idle) / counted,
    }


def _metrics(port: int) -> dict[str, float]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    values = {}
    for row in text.splitlines():
        name, _, value = row.rpartition(" ")
        if name.startswith("gemmule:energy_joules_total{"):
            values[name.split('part="')[1].split('"')[0]] = float(value)
    return values


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", type=Path, help="folder of a run")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long clients come")
    parser.add_argument("--seed", type=int, default=0, help="seed of the load")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    args = parser.parse_args()
    result = measure(args.model, args.minutes, args.seed)
    if args.json:
        files.write_json(args.json, result)
    key_values(
        [
            ["answers", f"{result['answers']}, and {result['left']} clients left"],
            ["answers' joules / requests'", f"{result['answers_over_requests']:.4f}"],
            ["(requests + idle) / meter", f"{result['requests_and_idle_over_meter']:.4f}"],
            ["requests", f"{result['requests_joules']:.1f} J"],
            ["idle", f"{result['idle_joules']:.1f} J"],
        ],
        title=str(args.model),
    )


if __name__ == "__main__":
    main()
