r"""How tools, their calls and their results are written for the model.

Gemma 2 has no format of its own for tools. Ours is text, so that every model can read and write it:

    <tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}</tool_call>

Several calls stand on lines of their own. A result is a part of the user's next turn:

    <tool_result>{"name": "get_weather", "content": "22 degrees"}</tool_result>

The markers are not control tokens: they are encoded as text.
"""

import json
import re
from collections.abc import Sequence
from typing import Any, Literal

CALL_BEGIN, CALL_END = "<tool_call>", "</tool_call>"
RESULT_BEGIN, RESULT_END = "<tool_result>", "</tool_result>"
BETWEEN_CALLS = "\n"
NAME = r"[a-zA-Z0-9_-]{1,128}"

_ARGUMENTS = ', "arguments": '
HEADER = re.compile(rf'\{{"name": "({NAME})"{_ARGUMENTS}')
LONGEST_HEADER = len('{"name": ""' + _ARGUMENTS) + 128


def header_text(name: str) -> str:
    """The beginning of a call, up to its arguments."""
    return f'{{"name": {json.dumps(name, ensure_ascii=False)}{_ARGUMENTS}'


def call_text(name: str, arguments: str) -> str:
    """A call as the model writes it; the arguments are JSON, and kept byte for byte."""
    return f"{CALL_BEGIN}{header_text(name)}{arguments}}}{CALL_END}"


def answer_text(content: str, calls: Sequence[tuple[str, str]]) -> str:
    """An answer with calls as the model writes it.

    Args:
        content: text before the calls.
        calls: name and arguments of each.
    """
    gap = BETWEEN_CALLS if content and calls and not content[-1].isspace() else ""
    return content + gap + BETWEEN_CALLS.join(call_text(*call) for call in calls)


def result_text(name: str, content: str) -> str:
    """The result of a call; whatever is in it stays within its quotes."""
    result = json.dumps({"name": name, "content": content}, ensure_ascii=False)
    return RESULT_BEGIN + result + RESULT_END


def tools_text(
    tools: Sequence[dict[str, Any]], *, must: bool | Literal["json"], parallel: bool
) -> str:
    """What the system message says of tools.

    Args:
        tools: name, description and parameters of each.
        must: whether the answer must be a call; "json": it may be JSON instead.
        parallel: whether it may be several calls.
    """
    example = call_text("NAME", "ARGUMENTS")
    several = " Write several calls on lines of their own." if parallel else ""
    choice = (
        "Answer with a call."
        if must is True
        else "Call a function only if you need it. Otherwise answer "
        + ("in JSON." if must == "json" else "in plain text.")
    )
    listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    return (
        f"You can call these functions:\n{listed}\n\n"
        f"To call a function, write {example}\n"
        f"with its name and with its arguments as a JSON object.{several} {choice} "
        f"The results come in {RESULT_BEGIN}{RESULT_END}."
    )
