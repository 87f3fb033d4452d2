"""Client of the completions API of an OpenAI-compatible server."""

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

from gemmule.errors import ConfigError

TIMEOUT_SECONDS = 120.0
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds before each further attempt
KEY = "GEMMULE_API_KEY"  # environment variable
_BUSY = (408, 409, 425, 429, 500, 502, 503, 504)


class Refused(ConfigError):
    """The server understood the request and rejects its settings."""


class CompletionServer:
    """One model of one server.

    Attributes:
        url: base address, usually ending in /v1.
        model: the server's name for the model.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        pauses: Sequence[float] | None = None,
        option: str = "--set served",
    ) -> None:
        """Connects to the server; without a model's name, takes the first that it lists.

        Args:
            url: base address.
            model: the server's name for the model.
            pauses: seconds before each further attempt while the server is busy or unreachable;
                empty: gives up at once; None: half a minute in all, for work that takes hours.
            option: command-line option that names the model, for error messages.

        Raises:
            ConfigError: when the server cannot be reached or lists no model.
        """
        self.url = url.rstrip("/")
        self._pauses = PAUSES if pauses is None else pauses
        self._option = option
        if not self.url.lower().startswith(("http://", "https://")):
            raise ConfigError(
                f"{url!r} is not an address: use one such as http://127.0.0.1:8000/v1"
            )
        self.model = model or self._first_model()

    def _first_model(self) -> str:
        listed = self._ask("/models", None).get("data")
        if not isinstance(listed, list) or not listed or "id" not in listed[0]:
            raise ConfigError(f"{self.url}/models lists no model: name it with {self._option}")
        return str(listed[0]["id"])

    def complete(
        self, prompt: str | Sequence[str] | Sequence[int], **settings: Any
    ) -> list[dict[str, Any]]:
        """The choices of one completion, in order; can be called from several threads.

        Raises:
            Refused: when the server rejects the settings.
            ConfigError: when the server cannot be reached or its answer makes no sense.
        """
        body = {"model": self.model, "prompt": prompt, "temperature": 0, **settings}
        choices = self._ask("/completions", body).get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise ConfigError(f"{self.url}/completions answered without choices")
        choices = sorted(choices, key=lambda choice: choice.get("index", 0))
        return [_with_openais_logprobs(choice) for choice in choices]

    def _ask(self, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        for pause in (*self._pauses, None):
            try:
                return self._ask_once(self.url + path, body)
            except _NotNow as e:
                if pause is None:
                    tried = f", after {len(self._pauses) + 1} attempts" if self._pauses else ""
                    raise ConfigError(
                        f"{self.url}{path} does not answer ({e}){tried}: is the server running, "
                        "and is this its address?"
                    ) from None
                time.sleep(pause)
        raise AssertionError("unreachable")

    def _ask_once(self, url: str, body: dict[str, Any] | None) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        if os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {os.environ[KEY]}"
        data = None if body is None else json.dumps(body).encode()
        try:
            request = urllib.request.Request(url, data, headers)
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
                text = response.read().decode(errors="replace")
        except urllib.error.HTTPError as e:
            with e:
                message = " ".join(e.read().decode(errors="replace").split())[:300]
            raise self._explained(url, e.code, message) from None
        except (OSError, http.client.HTTPException) as e:
            raise _NotNow(str(getattr(e, "reason", e)) or type(e).__name__) from None
        except ValueError as e:
            raise ConfigError(f"{url!r} is not an address that can be opened ({e})") from None
        try:
            answer = json.loads(text)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise ConfigError(f"{url} did not answer with JSON but {text[:60]!r}: is it the API?")
        return answer

    def _explained(self, url: str, code: int, message: str) -> Exception:
        if code in _BUSY:
            return _NotNow(f"HTTP {code}: {message}")
        if code in (401, 403):
            return ConfigError(
                f"{url} requires a key (HTTP {code}): set the environment variable {KEY}"
            )
        if code == 404:
            name = getattr(self, "model", None)
            return ConfigError(
                f"{url} does not exist (HTTP 404): give the base address, usually ending in /v1"
                f"{f', and check the name of the model, {name!r} ({self._option})' if name else ''}"
            )
        return Refused(f"{url} answered HTTP {code}: {message}")


def _with_openais_logprobs(choice: dict[str, Any]) -> dict[str, Any]:
    """A choice with log-probabilities in the form of OpenAI's completions.

    llama.cpp's server has those of chat completions there, with ids.
    """
    logprobs = choice.get("logprobs")
    entries = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not isinstance(entries, list):
        return choice

    def name(entry: dict[str, Any]) -> str:
        return f"token_id:{entry['id']}" if "id" in entry else str(entry["token"])

    try:
        tops = [entry.get("top_logprobs") or [] for entry in entries]
        openais = {
            "tokens": [name(entry) for entry in entries],
            "token_logprobs": [entry["logprob"] for entry in entries],
            "top_logprobs": [{name(entry): entry["logprob"] for entry in top} for top in tops],
        }
    except (AttributeError, KeyError, TypeError) as e:
        raise ConfigError(f"a completion's log-probabilities make no sense ({e!r})") from None
    return {**choice, "logprobs": openais}


class _NotNow(Exception):
    """A failure that may be over at the next attempt."""
