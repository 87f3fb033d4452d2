"""A small model, and a loopback server of it with switches for what may be wrong."""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

from gemmule.infer.language_model import LanguageModel
from gemmule.model.gemma import Gemma
from models import GROUPED, random_model, tiny_config


def felt_model() -> Gemma:
    """Weights under which caps, window and scale are all felt on the served weights too."""
    config = tiny_config(
        GROUPED, vocab_size=544, hidden_size=48, intermediate_size=96, num_attention_heads=8,
        num_key_value_heads=4, query_pre_attn_scalar=12, sliding_window=9,
        max_position_embeddings=128,
    )  # fmt: skip
    return random_model(config, 5, std={"norm": 0.3, "": 1.0})


class Server:
    """Completions of a model, with switches for what a real server may lack or get wrong.

    Attributes:
        echo: whether `echo` is supported.
        bos: how many <bos> it puts before a text.
        model: what computes; planted bugs replace it.
        llama: whether log-probabilities have the form of llama.cpp's server.
        status: answered to everything instead, when set.
        body: sent instead of JSON, when set.
    """

    def __init__(self, lm: LanguageModel) -> None:
        self.lm = lm
        self.reset()
        handler = type("Handler", (_Handler,), {"served": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"

    def reset(self) -> None:
        self.echo, self.llama, self.bos, self.status = True, False, 1, 0
        self.body = b""
        self.model: Any = self.lm.model
        self.decoding: Any = None  # a model that computes generated tokens, when set
        self.beside = 0.0  # added to logits for each other prompt of the batch

    def completion(self, request: dict[str, Any]) -> dict[str, Any] | None:
        if request.get("echo") and not self.echo:
            return None
        prompt = request["prompt"]
        prompts = [prompt] if isinstance(prompt, str) else prompt
        choices = [self.choice(text, request, i, len(prompts)) for i, text in enumerate(prompts)]
        return {"choices": choices}

    @torch.no_grad()
    def choice(self, text: str, request: dict[str, Any], i: int, n: int) -> dict[str, Any]:
        tokenizer = self.lm.tokenizer
        prompt = [2] * self.bos + tokenizer.encode(text)
        ids, generated = list(prompt), []
        for _ in range(request["max_tokens"]):
            model = (self.decoding or self.model) if generated else self.model
            logits = model(torch.tensor([ids]))[0, -1] * (1 + self.beside * (n - 1))
            log_probs = logits.log_softmax(-1)[: tokenizer.vocab_size]
            generated.append((int(log_probs.argmax()), log_probs))
            ids.append(generated[-1][0])
        tokens, values = [], []
        tops: list[dict[str, float] | None] = []
        if request.get("echo"):
            log_probs = self.model(torch.tensor([prompt]))[0].log_softmax(-1)
            for at, token in enumerate(prompt):
                tokens.append(tokenizer.decode([token], control=True))
                values.append(None if at == 0 else float(log_probs[at - 1, token]))
                tops.append(None)
        for token, row in generated:
            tokens.append(tokenizer.decode([token], control=True))
            values.append(float(row[token]))
            best = row.topk(request["logprobs"])
            pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            tops.append({tokenizer.decode([t], control=True): v for t, v in pairs})
        if self.llama:
            content = [
                entry(token, row) | {"top_logprobs": [entry(t, row) for t in row.topk(5).indices]}
                for token, row in generated
            ]
            return {"index": i, "text": "", "logprobs": {"content": content}}
        given = {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops}
        return {"index": i, "text": "", "logprobs": given}


def entry(token: int, log_probs: torch.Tensor) -> dict[str, Any]:
    return {"id": int(token), "token": "not read", "logprob": float(log_probs[token])}


class _Handler(BaseHTTPRequestHandler):
    served: Server

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        models = {"data": [{"id": "small"}]}
        self._send(self.served.status or 200, self.served.body or json.dumps(models).encode())

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/v1/completions" or request["model"] != "small":
            self._send(404, b'{"error": "no such model"}')
            return
        answer = self.served.completion(request)
        if answer is None:
            self._send(400, b'{"error": "echo is not supported"}')
        else:
            self._send(self.served.status or 200, json.dumps(answer).encode())

    def log_message(self, *_: object) -> None:
        """Quiet."""
