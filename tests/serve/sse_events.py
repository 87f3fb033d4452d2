"""Reading a stream of server-sent events strictly."""

import json
from typing import Any

DONE = "[DONE]"


def blocks(text: str) -> list[str]:
    """The events and comments of a stream: exactly one blank line ends each."""
    assert text.endswith("\n\n")
    parts = text[:-2].split("\n\n")
    assert all(part and not part.startswith("\n") and "\r" not in part for part in parts), text
    return parts


def chunks(text: str) -> list[dict[str, Any]]:
    """The JSON of a stream's events; it must end with [DONE]."""
    datas = [part for part in blocks(text) if not part.startswith(":")]
    assert all(data.startswith("data: ") and "\n" not in data for data in datas)
    assert datas[-1] == f"data: {DONE}"
    return [json.loads(data.removeprefix("data: ")) for data in datas[:-1]]


def texts(events: list[dict[str, Any]]) -> dict[int, str]:
    """The text of each choice of a stream, of a chat or of completions."""
    result: dict[int, str] = {}
    for event in events:
        for choice in event["choices"]:
            part = choice["text"] if "text" in choice else choice["delta"].get("content") or ""
            result[choice["index"]] = result.get(choice["index"], "") + part
    return result
