"""A model on an OpenAI-compatible server to chat with, for `gemmule chat --url`."""

import dataclasses
import ipaddress
import json
import os
import re
from pathlib import Path
from typing import Any

import httpx2

from gemmule import files
from gemmule.errors import ConfigError, UserError, first_line
from gemmule.infer.conversation import Answer, Messages, TooLongError
from gemmule.teachers.completions import KEY

CONNECT_SECONDS = 10.0
READ_SECONDS = 600.0  # a long prompt on a slow server; ours sends comments meanwhile
_MAX_QUOTED = 300
_EXAMPLE = "use one such as http://127.0.0.1:8000/v1"
# What servers say of messages that do not fit: OpenAI's code, llama.cpp's type, vLLM's message.
_TOO_LONG = re.compile(
    r"context_length_exceeded|exceed_context_size|maximum context length|context (size|window)"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RemoteSampling:
    """Settings that are sent; None leaves the server's own.

    Attributes:
        max_tokens: maximum number of tokens of an answer.
        temperature: sampling temperature.
        top_p: probability that the candidates sum to.
        top_k: number of candidates; not every server knows it.
        seed: seed of the sampler.
        repetition_penalty: as in `SamplingParams`; not every server knows it.
    """

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    repetition_penalty: float | None = None


class RemoteModel:
    """A `ChatModel` on a server.

    Attributes:
        url: base address, with its path.
        name: the server's name for the model.
    """

    def __init__(
        self,
        url: str,
        name: str | None = None,
        *,
        sampling: RemoteSampling | None = None,
        key: str | None = None,
    ) -> None:
        """Connects to the server and checks that it lists the model.

        Args:
            url: base address; without a path, /v1.
            name: the server's name for the model; default: the first that it lists.
            sampling: settings of the answers.
            key: API key; None for none.

        Raises:
            ConfigError: if the server cannot be reached, refuses the key, or lists no such model.
        """
        address = _address(url)
        self.url = str(address).rstrip("/")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx2.Client(
            headers=headers,
            timeout=httpx2.Timeout(READ_SECONDS, connect=CONNECT_SECONDS),
            trust_env=not _is_local(address.host),  # no proxy leads to this machine
        )
        sampling = sampling or RemoteSampling()
        self._settings = {k: v for k, v in vars(sampling).items() if v is not None}
        try:
            self.name, self._facts = self._choose(name)
        except BaseException:
            self.close()
            raise

    def describe(self) -> str:
        """Returns the address, and the size and context if the server tells them."""
        return " · ".join([*self._facts, self.url])

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    def stream(self, messages: Messages) -> Answer:
        """Returns the parts of an answer.

        Raises:
            TooLongError: if the server says so.
            UserError: if it cannot be reached, refuses the request, or fails. Also while the answer
                streams.
        """
        body = {"model": self.name, "messages": messages, "stream": True, **self._settings}
        request = self._client.build_request("POST", f"{self.url}/chat/completions", json=body)
        response = self._send(request, stream=True)
        return self._parts(response)

    def _parts(self, response: httpx2.Response) -> Answer:
        finished = False
        try:
            for event in httpx2.EventSource(response):
                if event.data == "[DONE]":
                    return
                text, ended = _delta(event.data)
                finished = finished or ended
                yield text
        except httpx2.SSEError:
            raise ConfigError(_not_an_api(self.url, response)) from None
        except httpx2.HTTPError as e:
            raise UserError(
                f"{self.url} broke off in the middle of an answer ({first_line(e)})"
            ) from None
        finally:
            response.close()
        if not finished:
            raise UserError(f"{self.url} broke off in an answer: try again")

    def _choose(self, name: str | None) -> tuple[str, list[str]]:
        """The model's name, and facts about it; a server need not list its models."""
        request = self._client.build_request("GET", f"{self.url}/models")
        response = self._send(request, optional=name is not None)
        if response.status_code == 404 and name:
            return name, []
        listed = _object(response.text).get("data")
        models = [_mapping(m) for m in listed] if isinstance(listed, list) else []
        models = [m for m in models if isinstance(m.get("id"), str)]
        if not models:
            raise ConfigError(f"{self.url}/models lists no model: is this the API's base address?")
        if name is None:
            return models[0]["id"], _facts(models[0])
        for model in models:
            if name == model["id"] or name in (model.get("aliases") or ()):
                return name, _facts(model)
        known = ", ".join(m["id"] for m in models[:10])
        raise ConfigError(f"{self.url} has no model {name!r}: it lists {known} (--model)")

    def _send(
        self, request: httpx2.Request, *, stream: bool = False, optional: bool = False
    ) -> httpx2.Response:
        """The server's response; one that is optional may be a 404."""
        try:
            response = self._client.send(request, stream=stream)
            if response.is_success or (optional and response.status_code == 404):
                return response
            response.read()
        except httpx2.TimeoutException:
            raise ConfigError(f"{request.url} does not answer in time: is it overloaded?") from None
        except httpx2.ConnectError as e:
            raise ConfigError(
                f"cannot connect to {request.url} ({first_line(e)}): is the server running, and "
                "is this its address?"
            ) from None
        except httpx2.HTTPError as e:
            raise ConfigError(f"{request.url}: {first_line(e)}: is this an HTTP server?") from None
        raise _refused(response, self.url)


def read_key(path: Path | None) -> str | None:
    """Returns the API key: the first line of a file, else the variable GEMMULE_API_KEY.

    Raises:
        ConfigError: if the file has no key in its first line.
    """
    if path is None:
        return os.environ.get(KEY) or None
    lines = files.read_text(path).split()
    if not lines or not lines[0].isascii():
        raise ConfigError(f"{path} holds no API key: put it into the first line")
    return lines[0]


def _address(url: str) -> httpx2.URL:
    try:
        address = httpx2.URL(url)
    except httpx2.InvalidURL as e:
        raise ConfigError(f"{url!r} is not an address ({e}): {_EXAMPLE}") from None
    if address.scheme not in ("http", "https") or not address.host:
        raise ConfigError(f"{url!r} is not an address of a server: {_EXAMPLE}")
    return address if address.path.strip("/") else address.copy_with(path="/v1")


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _delta(data: str) -> tuple[str, bool]:
    """The text of a chunk, and whether it is the last one of the answer."""
    chunk = _object(data)
    if chunk.get("error"):
        raise UserError(f"the server failed: {_message(chunk['error'])}")
    choices = chunk.get("choices")
    choice = _mapping(choices[0]) if isinstance(choices, list) and choices else {}
    text = _mapping(choice.get("delta")).get("content")
    return text if isinstance(text, str) else "", choice.get("finish_reason") is not None


def _refused(response: httpx2.Response, url: str) -> UserError:
    """The error for an answer with a status of 300 or more."""
    status = response.status_code
    answer = _object(response.text)
    given = answer.get("error") or answer.get("message") or answer.get("detail")
    message = _message(given) if given else ""
    answered = f"HTTP {status}" + (f": {message}" if message else "")
    if status in (401, 403):
        return ConfigError(
            f"{url} requires an API key, or refuses this one ({answered}): set the environment "
            f"variable {KEY} or give --key-file"
        )
    if status == 404:
        return ConfigError(
            f"{response.request.url} does not exist ({answered}): give the base address, usually "
            "ending in /v1, and check the name of the model (--model)"
        )
    if status in (429, 503):
        wait = response.headers.get("retry-after", "")
        when = f"in {wait} seconds" if wait.isdigit() else "later"
        return UserError(f"{url} is busy ({answered}): try again {when}")
    if status in (400, 413) and _TOO_LONG.search(json.dumps(answer)):
        return TooLongError(f"{answered}. That message was left out")
    if not given:
        return ConfigError(_not_an_api(url, response))
    return UserError(f"{url} refuses the request ({answered})")


def _not_an_api(url: str, response: httpx2.Response) -> str:
    kind = response.headers.get("content-type", "no content type")
    return (
        f"{url} answered with HTTP {response.status_code} and {kind:.60}, not as an "
        "OpenAI-compatible API: give its base address, usually ending in /v1"
    )


def _message(error: Any) -> str:
    text = error.get("message") if isinstance(error, dict) else error
    return " ".join(str(text or json.dumps(error)).split())[:_MAX_QUOTED]


def _object(text: str) -> dict[str, Any]:
    try:
        return _mapping(json.loads(text))
    except ValueError:
        return {}


def _facts(model: dict[str, Any]) -> list[str]:
    """Parameters and context as gemmule, llama.cpp and vLLM list them."""
    meta, ours = _mapping(model.get("meta")), _mapping(model.get("gemmule"))
    parameters = meta.get("n_params")
    context = ours.get("context_length") or model.get("max_model_len") or meta.get("n_ctx_train")
    facts = [f"{parameters / 1e6:.1f}M parameters"] if isinstance(parameters, int) else []
    return facts + ([f"context {context} tokens"] if isinstance(context, int) else [])


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
