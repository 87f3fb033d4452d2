"""The load generator of bench/serve.py: many streams in one process that takes hardly any time.

While a load runs, bytes are only kept with the time at which they came. They are read afterwards.
"""

import asyncio
import bisect
import itertools
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from worker_side import Handler, Reply, serve

TIMEOUT = 900.0  # seconds for a load


def build() -> Handler:
    """The worker: each request is a load."""
    return lambda load: asyncio.run(run(load))


async def run(load: Mapping[str, Any]) -> Reply:
    """Sends requests, at given times or a given number at a time.

    Args:
        load: `port`; `requests`, each with `path` and `body`, and for those that leave `leave`, the
            number of events after which they do; `at`, the seconds at which each begins, or
            `concurrency`, the number that run at once.

    Returns:
        `results` in the same order (see `Stream.result`), `seconds`, and `cpu_seconds` of this
        process meanwhile.
    """
    requests, port = load["requests"], load["port"]
    messages = [_message(port, request) for request in requests]
    streams = [Stream(request.get("leave")) for request in requests]
    used, began = time.process_time(), time.perf_counter()

    async def one(i: int) -> None:
        loop = asyncio.get_running_loop()
        streams[i].sent = time.perf_counter()
        transport, _ = await loop.create_connection(lambda: streams[i], "127.0.0.1", port)
        transport.write(messages[i])
        await streams[i].ended.wait()

    async def at(i: int, second: float) -> None:
        await asyncio.sleep(max(0.0, began + second - time.perf_counter()))
        await one(i)

    async def next_ones(numbers: "itertools.count[int]") -> None:
        while (i := next(numbers)) < len(requests):
            await one(i)

    async with asyncio.timeout(TIMEOUT):
        if "at" in load:
            await asyncio.gather(*(at(i, second) for i, second in enumerate(load["at"])))
        else:
            numbers = itertools.count()
            await asyncio.gather(*(next_ones(numbers) for _ in range(load["concurrency"])))
    used, seconds = time.process_time() - used, time.perf_counter() - began
    return {
        "results": [stream.result(began) for stream in streams],
        "seconds": seconds,
        "cpu_seconds": used,
    }


def _message(port: int, request: Mapping[str, Any]) -> bytes:
    body = json.dumps(request["body"]).encode()
    head = (
        f"POST {request['path']} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Stream(asyncio.Protocol):
    """One answer."""

    def __init__(self, leave: int | None) -> None:
        self.ended = asyncio.Event()
        self.sent = 0.0
        self._leave, self._events = leave, 0
        self._parts: list[bytes] = []
        self._times: list[float] = []
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the connection, to be able to leave."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Keeps what came, and when."""
        self._times.append(time.perf_counter())
        self._parts.append(data)
        if self._leave is not None:
            self._events += data.count(b"data: ")
            if self._events >= self._leave:
                self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """The answer has ended."""
        self.ended.set()

    def result(self, began: float) -> dict[str, Any]:
        """The status, times in seconds after `began` (of each event with text), text and usage."""
        raw = b"".join(self._parts)
        head, _, rest = raw.partition(b"\r\n\r\n")
        status = int(head.split(b" ", 2)[1]) if head else 0
        sent = self.sent - began
        if b"text/event-stream" not in head:
            return {"status": status, "sent": sent, "text": rest.decode(errors="replace")}
        ends = list(itertools.accumulate(map(len, self._parts)))
        times, texts, usage, reason = [], [], {}, None
        for event, end in _events(rest, len(raw) - len(rest)):
            if not event.startswith(b"data: {"):
                continue
            content = json.loads(event[6:])
            usage = content.get("usage") or usage
            for choice in content.get("choices", ()):
                reason = choice.get("finish_reason") or reason
                texts.append(choice.get("text") or "")
                # An answer without any text has its end, at least.
                if texts[-1] or (reason and not times):
                    times.append(self._times[bisect.bisect_left(ends, end)] - began)
        details = usage.get("prompt_tokens_details") or {}
        return {
            "status": status, "sent": sent, "times": times, "text": "".join(texts),
            "reason": reason, "tokens": usage.get("completion_tokens", 0),
            "cached": details.get("cached_tokens"),
        }  # fmt: skip


def _events(rest: bytes, start: int) -> Sequence[tuple[bytes, int]]:
    """Events of a body in HTTP's chunks, each with the place in the answer where it ends."""
    body, places = bytearray(), []  # where each chunk begins in the body, and in the answer
    at = 0
    while (line := rest.find(b"\r\n", at)) >= 0:
        size = int(rest[at:line] or b"0", 16)
        places.append((len(body), start + line + 2))
        body += rest[line + 2 : line + 2 + size]
        at = line + 2 + size + 2
        if not size:
            break
    events, at = [], 0
    begins = [begin for begin, _ in places]
    while (end := body.find(b"\n\n", at)) >= 0:
        begin, place = places[bisect.bisect_right(begins, end + 1) - 1]
        events.append((bytes(body[at:end]), place + end + 2 - begin))
        at = end + 2
    return events


if __name__ == "__main__":
    serve(build)
