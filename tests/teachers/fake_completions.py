"""A loopback server of a small model that gives log-probabilities of its prompts."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

from gemmule.model.gemma import Gemma
from gemmule.model.tokenizer import Tokenizer


class FakeServer:
    """Speaks one dialect.

    Attributes:
        dialect: "vllm" (prompt_logprobs), "ids" (echo, tokens by id) or "text" (echo, by text).
        most: limit of the tokens that it gives at a position.
        extra: whether one generated token comes back even where none was asked for is refused.
        busy: requests still to be answered with 503.
        dead_after: requests after which every one is answered with 503; None: never.
        tokenizer: tokenizer whose texts it shows.
    """

    def __init__(self, model: Gemma, tokenizer: Tokenizer) -> None:
        self.model, self.own = model.eval(), tokenizer
        handler = type("Handler", (_Handler,), {"served": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        self.lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        self.dialect, self.most, self.needs_one, self.busy = "vllm", 20, False, 0
        self.dead_after: int | None = None
        self.tokenizer, self.requests, self.keys = self.own, 0, set[str]()

    def refusal(self, request: dict[str, Any]) -> str | None:
        asked = max(request.get("prompt_logprobs") or 0, request.get("logprobs") or 0)
        if asked > self.most:
            return f"Requested {asked} logprobs, which is greater than max allowed: {self.most}"
        if self.dialect != "vllm" and "prompt_logprobs" in request:
            return "unknown field prompt_logprobs"
        if self.dialect == "text" and "return_tokens_as_token_ids" in request:
            return "unknown field return_tokens_as_token_ids"
        if self.needs_one and request["max_tokens"] < 1:
            return "max_tokens must be at least 1"
        return None

    @torch.no_grad()
    def choice(self, request: dict[str, Any]) -> dict[str, Any]:
        prompt = request["prompt"]
        logs = self.model(torch.tensor([prompt]))[0].log_softmax(-1)
        rows: list[dict[int, float] | None] = [None]
        for at, token in enumerate(prompt[1:]):
            k = request.get("prompt_logprobs") or request.get("logprobs")
            best = logs[at].topk(k)
            row = dict(zip(best.indices.tolist(), best.values.tolist(), strict=True))
            row.setdefault(token, float(logs[at, token]))  # as vLLM does
            rows.append(row)
        if self.dialect == "vllm":
            shown = [
                row and {str(i): {"logprob": v, "decoded_token": self.text(i)}
                         for i, v in row.items()}
                for row in rows
            ]  # fmt: skip
            return {"text": "", "prompt_logprobs": shown}
        by_id = self.dialect == "ids"
        name = (lambda i: f"token_id:{i}") if by_id else self.text
        tokens = [name(i) for i in prompt]
        tops: list[Any] = [row and {name(i): v for i, v in row.items()} for row in rows]
        if request["max_tokens"]:
            tokens.append(name(5))
            tops.append({name(5): -0.1})
        return {"text": "", "logprobs": {"tokens": tokens, "top_logprobs": tops}}

    def text(self, token: int) -> str:
        return self.tokenizer.decode([token], control=True)


class _Handler(BaseHTTPRequestHandler):
    served: FakeServer

    def send(self, status: int, answer: Any) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.send(200, {"data": [{"id": "served-name"}]})

    def do_POST(self) -> None:
        s = self.served
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with s.lock:
            s.requests += 1
            s.keys.add(self.headers.get("Authorization", ""))
            failing = s.busy > 0 or (s.dead_after is not None and s.requests > s.dead_after)
            s.busy = max(0, s.busy - 1)
        if failing:
            self.send(503, {"error": "busy"})
        elif message := s.refusal(request):
            self.send(400, {"error": message})
        else:
            self.send(200, {"choices": [s.choice(request)]})

    def log_message(self, *_: object) -> None:
        """Quiet."""
