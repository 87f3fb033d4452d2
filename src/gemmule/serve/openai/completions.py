"""/v1/completions: texts or token ids are continued, and scored with echo and logprobs."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gemmule.infer.core.request import Completion
from gemmule.infer.core.request import Request as EngineRequest
from gemmule.infer.language_model import LanguageModel
from gemmule.model.tokenizer import Tokenizer
from gemmule.serve.api_errors import ApiError
from gemmule.serve.events import TextDelta, finish_reason, timings
from gemmule.serve.generation import Generation
from gemmule.serve.off_loop import json_response
from gemmule.serve.openai import answers
from gemmule.serve.openai.chunks import ChunkStream, answer_fields, answer_size, energy_answer
from gemmule.serve.openai.logprobs import CompletionLogprobs, joined, prompt_logprobs
from gemmule.serve.openai.schemas import CompletionRequest
from gemmule.serve.prompts import check_room, encode
from gemmule.serve.request_body import read_body
from gemmule.serve.route import ApiRoute
from gemmule.serve.served_models import ServedModel
from gemmule.serve.settings import ServeSettings
from gemmule.serve.sse import EventStream
from gemmule.serve.starting import start
from gemmule.serve.state import state_of, use_model


async def completions(request: Request) -> Response:
    """Continues prompts."""
    body = await read_body(request, CompletionRequest)
    body.check()
    settings = state_of(request).settings
    samples = len(body.prompt) * min(body.n or 1, settings.max_n)
    if samples > settings.max_samples:
        raise ApiError(
            400,
            f"the request asks for {samples} answers; this server takes at most "
            f"{settings.max_samples} at a time: send it in parts",
            param="prompt",
        )
    served = await use_model(request, body.model)
    prompts = [await _encoded(served.lm, body, prompt) for prompt in body.prompt]
    answer_format = body.answer_format(served.grammars)
    constraint = None if answer_format is None else answer_format.constraint()
    requests = [
        replace(_engine_request(served, settings, body, ids), constraint=constraint)
        for ids in prompts
    ]
    generation = await start(
        request, served, requests, stream=body.stream, report_progress=body.return_progress
    )
    model, tokenizer = body.model or served.name, served.lm.tokenizer
    echo = [_echo(tokenizer, body, i, ids) for i, ids in enumerate(prompts)]
    if body.stream:
        writer = CompletionStream(body, requests, echo, generation, tokenizer, model)
        return EventStream(generation, writer)
    results = await generation.result(request.receive)
    n = requests[0].params.n

    def answer() -> dict[str, Any]:
        return {
            **answer_fields("text_completion", "cmpl", model),
            "choices": [
                _choice(i, completion, body, prompts[i // n], echo[i // n], tokenizer)
                for i, completion in enumerate(results)
            ],
            "usage": usage.openai(),
            "timings": timings(results) if len(prompts) == 1 else None,
            "energy": energy,
        }

    usage, energy = generation.usage(), energy_answer(generation)
    tokens = usage.generated + (usage.prompt * n if body.echo else 0)
    return await json_response(tokens * answer_size(body.logprobs), answer)


async def _encoded(
    lm: LanguageModel, body: CompletionRequest, prompt: str | tuple[int, ...]
) -> tuple[int, ...]:
    if not isinstance(prompt, str):
        return prompt
    return tuple(await encode(lm, prompt, bos=body.add_special_tokens is not False))


def _engine_request(
    served: ServedModel, settings: ServeSettings, body: CompletionRequest, ids: tuple[int, ...]
) -> EngineRequest:
    room = check_room(served, len(ids), wanted=0 if body.max_tokens == 0 else 1)
    params = body.sampling_params(
        settings, max_tokens=body.max_tokens, room=room, logprobs=body.logprobs, least_tokens=0
    )
    if body.echo and body.logprobs is not None:
        params = replace(params, prompt_logprobs=max(body.logprobs, body.prompt_logprobs or 0))
    return EngineRequest(ids, params)


def _echo(tokenizer: Tokenizer, body: CompletionRequest, i: int, ids: Sequence[int]) -> str:
    """The prompt as its answer begins with it."""
    if not body.echo:
        return ""
    prompt = body.prompt[i]
    return prompt if isinstance(prompt, str) else tokenizer.decode(ids)


def _choice(
    index: int,
    completion: Completion,
    body: CompletionRequest,
    prompt: Sequence[int],
    echo: str,
    tokenizer: Tokenizer,
) -> dict[str, Any]:
    choice: dict[str, Any] = {
        "index": index,
        "text": echo + completion.text,
        "logprobs": None,
        "finish_reason": finish_reason(completion),
    }
    scored = completion.prompt_logprobs or ()
    if body.logprobs is not None:
        lists = CompletionLogprobs(tokenizer, body.logprobs)
        parts = [lists.first_token(prompt[0]), lists.of(scored)] if body.echo else []
        choice["logprobs"] = joined(*parts, lists.of(completion.logprobs or ()))
    if body.prompt_logprobs is not None:
        choice["prompt_logprobs"] = prompt_logprobs(tokenizer, scored, body.prompt_logprobs)
    if body.return_token_ids:
        choice["prompt_token_ids"] = [*prompt]
        choice["token_ids"] = [*completion.ids]
    return choice


class CompletionStream(ChunkStream):
    """Writes the stream of completions."""

    def __init__(
        self,
        body: CompletionRequest,
        requests: Sequence[EngineRequest],
        echo: Sequence[str],
        generation: Generation,
        tokenizer: Tokenizer,
        model: str,
    ) -> None:
        """Prepares one stream, with one id and time."""
        super().__init__(
            answer_fields("text_completion", "cmpl", model),
            generation,
            body,
            '"text":',
            ',"logprobs":null,"finish_reason":null}',
            plain=body.logprobs is None and not body.return_token_ids,
        )
        self._asked = body
        n = requests[0].params.n
        self._prompts = [request.prompt for request in requests for _ in range(n)]
        self._echo = [text for text in echo for _ in range(n)]
        self._lists: list[CompletionLogprobs] = []
        if body.logprobs is not None:
            self._lists = [CompletionLogprobs(tokenizer, body.logprobs) for _ in self._prompts]

    def start(self) -> bytes:
        """The prompts, if they are echoed or their ids are asked for."""
        body = self._asked
        if not (body.echo or body.return_token_ids):
            return b""
        chunks = []
        for sample, prompt in enumerate(self._prompts):
            choice = self.choice(sample, self._echo[sample])
            if self._lists and body.echo:
                choice["logprobs"] = self._lists[sample].first_token(prompt[0])
            if body.return_token_ids:
                choice["prompt_token_ids"] = [*prompt]
            chunks.append(self.chunk([choice]))
        return b"".join(chunks)

    def choice(self, sample: int, text: str = "", reason: str | None = None) -> dict[str, Any]:
        """A choice with a part of its text."""
        return {"index": sample, "text": text, "logprobs": None, "finish_reason": reason}

    def add_tokens(self, choice: dict[str, Any], event: TextDelta) -> None:
        """Adds log-probabilities and ids."""
        if self._lists:
            entries = (*event.prompt_logprobs, *event.logprobs)
            choice["logprobs"] = self._lists[event.sample].of(entries)
        if self._asked.return_token_ids:
            choice["token_ids"] = [*event.ids]


def routes() -> list[ApiRoute]:
    """Routes of this module."""
    return [
        ApiRoute(
            method="POST", path="/v1/completions", handler=completions, body=CompletionRequest,
            answer=answers.Completion, event=answers.Completion,
            summary="Continues a text, or each of several",
        )
    ]  # fmt: skip
