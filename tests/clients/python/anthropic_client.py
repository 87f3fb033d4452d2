"""anthropic for Python."""

import anthropic
from anthropic import Anthropic
from checking import MODEL, SCHEMA, URL, right, run

client = Anthropic(base_url=URL, api_key="none", max_retries=0)
MESSAGES = [{"role": "user", "content": "Say something."}]
TOOL = {"name": "paint", "description": "Paints.", "input_schema": SCHEMA}


def message() -> None:
    answer = client.messages.create(
        model=MODEL, max_tokens=8, messages=MESSAGES, system="Be short.", stop_sequences=["###"],
        extra_body={"temperature": 0.5, "top_k": 20},
    )  # fmt: skip
    assert answer.role == "assistant"
    assert answer.stop_reason in ("end_turn", "max_tokens")
    assert answer.usage.output_tokens >= 1


def stream() -> None:
    request = {
        "model": MODEL, "max_tokens": 8, "messages": MESSAGES, "extra_body": {"temperature": 0},
    }  # fmt: skip
    with client.messages.stream(**request) as events:
        text = "".join(events.text_stream)
        final = events.get_final_message()
    whole = client.messages.create(**request)
    assert text == "".join(b.text for b in final.content)
    assert text == "".join(b.text for b in whole.content)
    assert final.usage.output_tokens == whole.usage.output_tokens


def tools() -> None:
    answer = client.messages.create(
        model=MODEL, max_tokens=400, messages=MESSAGES, tools=[TOOL],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
    )  # fmt: skip
    assert answer.stop_reason == "tool_use"
    call = next(b for b in answer.content if b.type == "tool_use")
    assert call.name == "paint"
    right(call.input)
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "done"}
    back = client.messages.create(
        model=MODEL, max_tokens=4, tools=[TOOL], tool_choice={"type": "none"},
        messages=[
            *MESSAGES,
            {"role": "assistant", "content": [call]},
            {"role": "user", "content": [result]},
        ],
    )  # fmt: skip
    assert back.role == "assistant"


def tools_stream() -> None:
    with client.messages.stream(
        model=MODEL, max_tokens=400, messages=MESSAGES, tools=[TOOL],
        tool_choice={"type": "tool", "name": "paint"},
    ) as events:  # fmt: skip
        final = events.get_final_message()
    right(next(b for b in final.content if b.type == "tool_use").input)


def count_tokens() -> None:
    counted = client.messages.count_tokens(model=MODEL, messages=MESSAGES)
    answer = client.messages.create(model=MODEL, max_tokens=1, messages=MESSAGES)
    usage = answer.usage
    assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)


def errors() -> None:
    try:
        client.messages.create(model="nothing", max_tokens=8, messages=MESSAGES)
    except anthropic.NotFoundError as e:
        assert e.body["error"]["type"] == "not_found_error", e.body
    else:
        raise AssertionError("no error for a model that is not there")


run("anthropic", {
    "message": message, "stream": stream, "tools": tools, "tools stream": tools_stream,
    "count tokens": count_tokens, "errors": errors,
})  # fmt: skip
