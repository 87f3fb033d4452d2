"""What is printed once a server takes requests: its address, and code that uses it."""

from pathlib import Path
from typing import Any

from gemmule.serve.key_file import VARIABLE
from gemmule.serve.served_models import ServedModels
from gemmule.serve.settings import ServeSettings


def announcement(
    url: str, models: ServedModels, settings: ServeSettings, key_file: Path | None = None
) -> str:
    """The text for people.

    Args:
        url: the server's address.
        models: its models.
        settings: its settings.
        key_file: file of its keys, if they come from one.
    """
    page = f"open {url} to chat" if settings.page else f"{url} takes requests"
    return "\n".join(
        [
            f"gemmule serves {', '.join(models.names)}: {page}, or in Python:",
            "",
            *(f"    {line}" for line in python_lines(url, models, settings, key_file)),
            "",
            "Ctrl-C finishes what runs, a second one stops at once",
        ]
    )


def python_lines(
    url: str, models: ServedModels, settings: ServeSettings, key_file: Path | None
) -> list[str]:
    """Three lines that use the server with OpenAI's library, as they can be typed."""
    name, key = models.names[0], '"none"'
    if settings.keys:
        key = f'os.environ["{VARIABLE}"]'
        if key_file is not None:
            key = f"open({str(key_file.resolve())!r}).readline().strip()"
    modules = "os, openai" if "os." in key else "openai"
    call, field = f'completions.create(model={name!r}, prompt="The ", max_tokens=32)', "text"
    if name.endswith("-it"):  # tuned for conversation
        messages = '[{"role": "user", "content": "Hello"}]'
        call = f"chat.completions.create(model={name!r}, messages={messages}, max_tokens=32)"
        field = "message.content"
    return [
        f"import {modules}",
        f'client = openai.OpenAI(base_url="{url}/v1", api_key={key})',
        f"print(client.{call}.choices[0].{field})",
    ]


def readiness(url: str, models: ServedModels) -> dict[str, Any]:
    """The same for programs."""
    return {"url": url, "models": models.names}
