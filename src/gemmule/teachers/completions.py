"""Asking an OpenAI-compatible server for completions."""

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
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds before each new attempt
KEY = "GEMMULE_API_KEY"  # environment variable
_BUSY = (408, 409, 425, 429, 500, 502, 503, 504)


class Refused(ConfigError):
    """The server understood, and will not do it with these settings."""


class CompletionServer:
    """One model of one server.

    Attributes:
        url: its base address, usually ending in /v1.
        model: the name it serves the model under.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        pauses: Sequence[float] | None = None,
        option: str = "--set served",
    ) -> None:
        """Finds the server, and the model's name where it is not given: the first it lists.

        Args:
            url: its base address.
            model: the name it serves the model under.
            pauses: seconds before each new attempt when it is busy or away; none gives up at once.
                By default half a minute in all, for work of hours.
            option: how a user names the model.

        Raises:
            ConfigError: when it cannot be asked.
        """
        self.url = url.rstrip("/")
        self._pauses = PAUSES if pauses is None else pauses
        self._option = option
        if not self.url.lower().startswith(("http://", "https://")):
            raise ConfigError(f"{url!r} is no address: use one such as http://127.0.0.1:8000/v1")
        self.model = model or self._first_model()

    def _first_model(self) -> str:
        listed = self._ask("/models", None).get("data")
        if not isinstance(listed, list) or not listed or "id" not in listed[0]:
            raise ConfigError(f"{self.url}/models lists no model: name it with {self._option}")
        return str(listed[0]["id"])

    def complete(
        self, prompt: str | Sequence[str] | Sequence[int], **settings: Any
    ) -> list[dict[str, Any]]:
        """The choices of one completion, in order; safe to call from several threads.

        Raises:
            Refused: when it will not have these settings.
            ConfigError: when it cannot be asked.
        """
        body = {"model": self.model, "prompt": prompt, "temperature": 0, **settings}
        choices = self._ask("/completions", body).get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise ConfigError(f"{self.url}/completions answered without choices")
        return sorted(choices, key=lambda choice: choice.get("index", 0))

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
                said = " ".join(e.read().decode(errors="replace").split())[:300]
            raise self._explained(url, e.code, said) from None
        except (OSError, http.client.HTTPException) as e:
            raise _NotNow(str(getattr(e, "reason", e)) or type(e).__name__) from None
        except ValueError as e:
            raise ConfigError(f"{url!r} is no address that can be asked ({e})") from None
        try:
            answer = json.loads(text)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise ConfigError(f"{url} did not answer with JSON but {text[:60]!r}: is it the API?")
        return answer

    def _explained(self, url: str, code: int, said: str) -> Exception:
        if code in _BUSY:
            return _NotNow(f"HTTP {code}: {said}")
        if code in (401, 403):
            return ConfigError(
                f"{url} wants a key (HTTP {code}): put it into the environment variable {KEY}"
            )
        if code == 404:
            name = getattr(self, "model", None)
            return ConfigError(
                f"{url} is not there (HTTP 404): the address is the base one, usually ending in "
                f"/v1{f', and the model {name!r} was asked for ({self._option})' if name else ''}"
            )
        return Refused(f"{url} answered HTTP {code}: {said}")


class _NotNow(Exception):
    """Worth another attempt."""
