"""langchain-openai."""

from checking import MODEL, SCHEMA, URL, right, run
from langchain_openai import ChatOpenAI

llm = ChatOpenAI(
    base_url=f"{URL}/v1", api_key="none", model=MODEL, max_tokens=400, seed=1, temperature=1,
    stream_usage=True, max_retries=0,
)  # fmt: skip
PAINT = {"title": "paint", "description": "Paints.", **SCHEMA}


def invoke() -> None:
    message = llm.invoke([("system", "Be short."), ("human", "Say something.")])
    assert message.usage_metadata["output_tokens"] >= 1
    assert message.response_metadata["finish_reason"] in ("stop", "length")


def stream_usage() -> None:
    whole = None
    for chunk in llm.stream("Say something."):
        whole = chunk if whole is None else whole + chunk
    assert whole.usage_metadata["output_tokens"] >= 1
    assert whole.usage_metadata == llm.invoke("Say something.").usage_metadata | {
        "input_token_details": whole.usage_metadata["input_token_details"]
    }


def structured_output() -> None:
    for method in ("json_schema", "function_calling"):
        right(llm.with_structured_output(PAINT, method=method).invoke("Paint it."))


def bind_tools() -> None:
    message = llm.bind_tools([PAINT], tool_choice="paint").invoke("Paint it.")
    assert message.tool_calls[0]["name"] == "paint"
    right(message.tool_calls[0]["args"])
    whole = None
    for chunk in llm.bind_tools([PAINT], tool_choice="any").stream("Paint it."):
        whole = chunk if whole is None else whole + chunk
    right(whole.tool_calls[0]["args"])


def batch() -> None:
    messages = llm.bind(max_tokens=4).batch(["One", "Two", "Three"])
    assert len(messages) == 3


run("langchain-openai", {
    "invoke": invoke, "stream usage": stream_usage, "structured output": structured_output,
    "bind_tools": bind_tools, "batch": batch,
})  # fmt: skip
