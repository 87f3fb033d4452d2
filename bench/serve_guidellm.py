"""The client of bench/serve.py against guidellm: the same load, the same server, in turns.

Both ask `gemmule serve` with the student of a quickstart run for answers of a fixed number of
tokens to prompts of about the same length, a number of them at a time. A client that is slow
itself, or reads its clock at another place, shows as a difference in tokens a second or in the time
to the first token. guidellm is a tool of this benchmark, not a dependency: the clients' tests have
an environment with it (build/clients/guidellm, made by `make clients`).
"""

import argparse
import json
import random
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import harness
import serve_servers as servers
from gemmule.checkpoints.convert import convert
from gemmule.runtime import host
from inference import Others
from serve import CLIENT, gaps, percentile, show, ttft

PROMPT, ANSWER = 64, 128  # tokens
OF_EACH = 12  # requests of a stream in a round


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="Example: python bench/serve_guidellm.py --student runs/quickstart/student "
        "--json bench/results/serve_guidellm.json",
    )
    add = parser.add_argument
    add("--json", type=Path, metavar="FILE", help="write every figure there")
    add("--student", required=True, metavar="RUN", help="a quickstart's student")
    add("--python", default="build/clients/guidellm/bin/python", metavar="PATH",
        help="an interpreter with guidellm")  # fmt: skip
    add("--streams", default="1,8", help="streams at once, separated by commas")
    add("--rounds", type=int, default=3)
    add("--threads", type=int, default=host.usable_cores())
    return harness.run(parser.parse_args(), measure, show)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All numbers of streams."""
    others, figures = Others(), dict[str, Any]()
    model = {"path": args.student, "quantize": "int8"}
    with (
        tempfile.TemporaryDirectory() as name,
        harness.Worker(CLIENT, "client", {}) as client,
        servers.ours(model, args.threads) as server,
    ):
        folder = Path(name) / "student"
        convert(args.student, folder, "hf")  # for its tokenizer
        ask(client, server.port, 8)
        for streams in map(int, args.streams.split(",")):
            mine, theirs = [], []
            for _ in range(args.rounds):
                mine.append(ask(client, server.port, streams))
                theirs.append(ask_guidellm(args.python, server.port, streams, folder))
                harness.say(f"{streams} streams: {mine[-1]}, guidellm {theirs[-1]}")
            both = {"bench/serve.py": middle(mine), "guidellm": middle(theirs)}
            ratios = {key: both["bench/serve.py"][key] / both["guidellm"][key] for key in mine[0]}
            both["ratio"] = {key: harness.rounded(value) for key, value in ratios.items()}
            figures[f"{streams} streams"] = both
    return {
        "settings": {
            "prompt": PROMPT,
            "answer": ANSWER,
            "rounds": args.rounds,
            "requests": OF_EACH,
        },
        "models": {"student": figures},
        "others_cpu_share": others.share(),
    }


def ask(client: harness.Worker, port: int, streams: int) -> dict[str, float]:
    """Figures of one round of bench/serve.py's client."""
    rng = random.Random(streams)
    body = {"max_tokens": ANSWER, "ignore_eos": True, "stream": True,
            "stream_options": {"include_usage": True}}  # fmt: skip
    requests = [
        {"path": "/v1/completions", "body": {**body, "prompt": [2, *ids]}}
        for ids in ([rng.randrange(300, 1000) for _ in range(PROMPT)] for _ in range(OF_EACH))
        for _ in range(streams)
    ]
    results = client.ask(port=port, requests=requests, concurrency=streams)["results"]
    end = max(one["times"][-1] for one in results)
    return {
        "tokens_per_second": sum(one["tokens"] for one in results) / end,
        "ttft_ms": 1e3 * percentile([ttft(one) for one in results], 50),
        "gap_ms": 1e3 * sum(gaps(results)) / (len(results) * (ANSWER - 1)),
    }


def ask_guidellm(python: str, port: int, streams: int, folder: Path) -> dict[str, float]:
    """The same of guidellm's."""
    report = folder.parent / "report.json"
    command = [
        python, "-m", "guidellm", "run",
        "--backend", f"kind=openai_http,target=http://127.0.0.1:{port},model=m,"
        "request_format=/v1/completions",
        "--profile", f"kind=concurrent,streams={streams}",
        "--constraint", f"kind=max_requests,count={OF_EACH * streams}",
        "--tokenizer", f"kind=hf_auto,model={folder}",
        "--data", f"kind=synthetic_text,prompt_tokens={PROMPT},output_tokens={ANSWER}",
        "--output", f"kind=json,path={report}", "--disable-console",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        raise harness.WorkerError("\n".join((done.stdout + done.stderr).splitlines()[-12:]))
    requests = json.loads(report.read_text())["benchmarks"][0]["requests"]["successful"]
    if {request["output_tokens"] for request in requests} != {ANSWER}:
        raise harness.WorkerError("guidellm: answers with another number of tokens")
    return of_guidellm(requests)


def of_guidellm(requests: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The figures as above, from its times of single requests: its own leave out the edges."""
    begin = min(request["request_start_time"] for request in requests)
    end = max(request["request_end_time"] for request in requests)
    firsts = [request["time_to_first_token_ms"] for request in requests]
    between = [request["inter_token_latency_ms"] for request in requests]
    return {
        "tokens_per_second": sum(request["output_tokens"] for request in requests) / (end - begin),
        "ttft_ms": percentile(firsts, 50),
        "gap_ms": sum(between) / len(between),
    }


def middle(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Medians over the rounds."""
    return {key: harness.median([one[key] for one in rounds]) for key in rounds[0]}


if __name__ == "__main__":
    raise SystemExit(main())
