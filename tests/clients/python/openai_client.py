"""openai for Python."""

import json

import openai
from checking import MODEL, SCHEMA, URL, right, run
from openai import OpenAI

client = OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0)
MESSAGES = [{"role": "user", "content": "Say something."}]
TOOL = {"type": "function", "function": {"name": "paint", "parameters": SCHEMA}}


def models() -> None:
    assert MODEL in [m.id for m in client.models.list()]
    assert client.models.retrieve(MODEL).id == MODEL


def chat() -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=8, seed=1, temperature=1, n=2,
        logprobs=True, top_logprobs=2,
    )  # fmt: skip
    assert [c.index for c in answer.choices] == [0, 1]
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.choices[0].message.role == "assistant"
    assert answer.usage.completion_tokens >= 2
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details.cached_tokens >= 0
    assert all(len(t.top_logprobs) == 2 for t in answer.choices[0].logprobs.content)


def chat_stream() -> None:
    request = {"model": MODEL, "messages": MESSAGES, "max_tokens": 12, "seed": 3}
    whole = client.chat.completions.create(**request)
    chunks = [*client.chat.completions.create(**request, stream=True)]
    assert all(len(c.choices) == 1 for c in chunks)
    text = "".join(c.choices[0].delta.content or "" for c in chunks)
    assert text == whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    options = {"include_usage": True}
    *_, last = client.chat.completions.create(**request, stream=True, stream_options=options)
    assert last.choices == []
    assert last.usage.completion_tokens == whole.usage.completion_tokens


def stream_helper() -> None:
    with client.chat.completions.stream(
        model=MODEL, messages=MESSAGES, max_completion_tokens=8
    ) as stream:
        kinds = [event.type for event in stream]
    assert kinds[0] == "chunk"
    assert "content.delta" in kinds


def structured() -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=400,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "paint", "schema": SCHEMA, "strict": True},
        },
    )  # fmt: skip
    right(json.loads(answer.choices[0].message.content))


def tools() -> None:
    for choice in ("required", {"type": "function", "function": {"name": "paint"}}):
        answer = client.chat.completions.create(
            model=MODEL, messages=MESSAGES, max_tokens=400, tools=[TOOL], tool_choice=choice,
            parallel_tool_calls=False,
        )  # fmt: skip
        assert answer.choices[0].finish_reason == "tool_calls"
        (call,) = answer.choices[0].message.tool_calls[:1]
        assert call.function.name == "paint"
        right(json.loads(call.function.arguments))
        back = client.chat.completions.create(
            model=MODEL, max_tokens=4,
            messages=[
                *MESSAGES, answer.choices[0].message,
                *({"role": "tool", "tool_call_id": c.id, "content": "done"}
                  for c in answer.choices[0].message.tool_calls),
            ],
        )  # fmt: skip
        assert back.choices[0].message.role == "assistant"


def tools_stream() -> None:
    name, arguments = "", ""
    for chunk in client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=400, tools=[TOOL], tool_choice="required",
        stream=True, parallel_tool_calls=False,
    ):  # fmt: skip
        for call in chunk.choices[0].delta.tool_calls or []:
            assert call.index == 0
            name += call.function.name or ""
            arguments += call.function.arguments or ""
    assert name == "paint"
    right(json.loads(arguments))


def completions() -> None:
    answer = client.completions.create(
        model=MODEL, prompt=["One", "Two"], max_tokens=3, echo=True, logprobs=1
    )
    assert [c.index for c in answer.choices] == [0, 1]
    assert answer.choices[0].text.startswith("One")
    assert answer.choices[0].logprobs.token_logprobs[0] is None
    request = {"model": MODEL, "prompt": "One", "max_tokens": 3, "seed": 2}
    text = "".join(c.choices[0].text for c in client.completions.create(**request, stream=True))
    assert text == client.completions.create(**request).choices[0].text


def responses() -> None:
    answer = client.responses.create(model=MODEL, input="Say something.", max_output_tokens=16)
    assert answer.status in ("completed", "incomplete")
    assert answer.usage.output_tokens >= 1
    kinds = [
        event.type
        for event in client.responses.create(
            model=MODEL, input="Say something.", max_output_tokens=16, stream=True
        )
    ]
    assert kinds[0] == "response.created"
    assert kinds[-1] in ("response.completed", "response.incomplete")


def errors() -> None:
    for wanted, request in (
        (openai.NotFoundError, {"model": "nothing"}),
        (openai.BadRequestError, {"messages": []}),
        (openai.BadRequestError, {"extra_body": {"no_such_field": 1}}),
    ):
        try:
            client.chat.completions.create(**{"model": MODEL, "messages": MESSAGES, **request})
        except wanted as e:
            assert e.body["message"], e.body
        else:
            raise AssertionError(f"no error for {request}")


run("openai", {
    "models": models, "chat": chat, "chat stream": chat_stream, "stream helper": stream_helper,
    "structured output": structured, "tools": tools, "tools stream": tools_stream,
    "completions": completions, "responses": responses, "errors": errors,
})  # fmt: skip
