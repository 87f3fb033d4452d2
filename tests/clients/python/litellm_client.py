"""litellm, as a proxy's library uses an OpenAI-compatible server."""

import json
import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it would be fetched

import litellm
from checking import MODEL, SCHEMA, URL, right, run

litellm.suppress_debug_info = True
COMMON = {
    "model": f"openai/{MODEL}", "api_base": f"{URL}/v1", "api_key": "none", "num_retries": 0,
    "messages": [{"role": "user", "content": "Say something."}], "seed": 1,
}  # fmt: skip
TOOL = {"type": "function", "function": {"name": "paint", "parameters": SCHEMA}}


def completion() -> None:
    answer = litellm.completion(**COMMON, max_tokens=8)
    assert answer.usage.completion_tokens >= 1
    assert answer.choices[0].finish_reason in ("stop", "length")


def stream() -> None:
    whole = litellm.completion(**COMMON, max_tokens=8)
    chunks = [
        *litellm.completion(
            **COMMON, max_tokens=8, stream=True, stream_options={"include_usage": True}
        )
    ]
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == (whole.choices[0].message.content or "")
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def tools() -> None:
    answer = litellm.completion(**COMMON, max_tokens=400, tools=[TOOL], tool_choice="required")
    right(json.loads(answer.choices[0].message.tool_calls[0].function.arguments))


def structured_output() -> None:
    answer = litellm.completion(
        **COMMON, max_tokens=400,
        response_format={"type": "json_schema", "json_schema": {"name": "paint", "schema": SCHEMA}},
    )  # fmt: skip
    right(json.loads(answer.choices[0].message.content))


def text_completion() -> None:
    request = {key: COMMON[key] for key in ("api_base", "api_key", "seed")}
    answer = litellm.text_completion(
        model=f"text-completion-openai/{MODEL}", prompt="One", max_tokens=4, **request
    )
    assert answer.usage.completion_tokens >= 1


def errors() -> None:
    try:
        litellm.completion(**{**COMMON, "model": "openai/nothing"})
    except litellm.NotFoundError:
        return
    raise AssertionError("no error for a model that is not there")


run("litellm", {
    "completion": completion, "stream": stream, "tools": tools,
    "structured output": structured_output, "text completion": text_completion, "errors": errors,
})  # fmt: skip
