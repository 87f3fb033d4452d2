"""Tools that a model may call, and the grammar of answers with calls."""

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from gemmule.errors import ConfigError
from gemmule.serve.grammar.spec import GrammarSpec, lark_literal, schema_text
from gemmule.serve.grammar.tool_format import (
    BETWEEN_CALLS,
    CALL_BEGIN,
    CALL_END,
    NAME,
    header_text,
    tools_text,
)
from gemmule.serve.request_body import ApiModel

MAX_TOOLS = 128

ToolName = Annotated[str, Field(pattern=f"^{NAME}$")]


class FunctionDefinition(ApiModel):
    """A function that can be called."""

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="JSON schema of the arguments")
    strict: bool | None = Field(None, description="Arguments always follow the schema")

    def described(self) -> dict[str, Any]:
        """What the model is told of it."""
        about = {} if self.description is None else {"description": self.description}
        return {"name": self.name, **about, "parameters": self.parameters or {}}

    def schema_text(self) -> str:
        """The JSON schema of its arguments, which are an object.

        Arguments that the schema does not name are allowed only if it says so: a function would
        refuse them.

        Raises:
            ConfigError: if it is not a schema of an object.
        """
        name = f"the schema of tool {self.name}"
        schema = {"type": "object", **(self.parameters or {"properties": {}})}
        if schema["type"] != "object":
            raise ConfigError(
                f'{name} has the type {json.dumps(schema["type"])}: arguments are an "object"'
            )
        if _lists_all(schema):
            schema.setdefault("additionalProperties", False)
        return schema_text(schema, name)


def _lists_all(schema: dict[str, Any]) -> bool:
    """Whether all properties that a schema of an object asks for are in its `properties`."""
    known, needed = schema.get("properties"), schema.get("required", [])
    if not isinstance(known, dict) or not isinstance(needed, list):
        return False
    if schema.keys() & {"$ref", "allOf", "anyOf", "oneOf"}:
        return False
    return all(isinstance(name, str) and name in known for name in needed)


class Tool(ApiModel):
    """A tool; only functions are."""

    type: Literal["function"]
    function: FunctionDefinition


class FunctionName(ApiModel):
    """Names a function."""

    name: str


class NamedTool(ApiModel):
    """This tool must be called."""

    type: Literal["function"]
    function: FunctionName


ToolChoice = Literal["none", "auto", "required"] | NamedTool
"""Which tools may or must be called, as OpenAI's chat completions have it."""


class ToolUse:
    """The tools of a request and how they may be used.

    Attributes:
        must: whether the answer must be a call.
        parallel: whether it may be several calls.
    """

    def __init__(
        self,
        tools: Sequence[FunctionDefinition],
        choice: Literal["auto", "required"] | FunctionName = "auto",
        parallel: bool = True,
    ) -> None:
        """Checks the tools.

        Args:
            tools: the functions that the model is told of.
            choice: whether one must be called, or which.
            parallel: whether an answer may have several calls.

        Raises:
            ConfigError: for too many tools, two of one name, or a choice that is not among them.
        """
        names = [tool.name for tool in tools]
        if len(names) > MAX_TOOLS:
            raise ConfigError(f"there are {len(names)} tools; at most {MAX_TOOLS} are allowed")
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ConfigError(f"two tools have the name {twice}: give each its own")
        self._tools = self._callable = [*tools]
        if isinstance(choice, FunctionName):
            self._callable = [tool for tool in tools if tool.name == choice.name]
            if not self._callable:
                raise ConfigError(
                    f"tool_choice names {choice.name!r:.80}, which is not among the tools: "
                    f"{', '.join(names) or 'there are none'}"
                )
        elif not tools:
            raise ConfigError(f"tool_choice is {choice}, but there are no tools: give some")
        self.must = choice != "auto"
        self.parallel = parallel and not isinstance(choice, FunctionName)

    def instructions(self, *, json_otherwise: bool = False) -> str:
        """What the system message says of them.

        Args:
            json_otherwise: an answer that is not a call is JSON.
        """
        must: bool | Literal["json"] = True if self.must else "json" if json_otherwise else False
        described = [tool.described() for tool in self._tools]
        return tools_text(described, must=must, parallel=self.parallel)

    def spec(self, otherwise: GrammarSpec | None = None) -> GrammarSpec:
        """The grammar of answers.

        An answer is text, or text and then calls. Text cannot contain the marker that a call begins
        with, so that what follows the marker is always a call.

        Args:
            otherwise: what an answer without calls must match: a JSON schema; None: any text.

        Raises:
            ConfigError: if a schema cannot be used.
        """
        begin, between = lark_literal(CALL_BEGIN), lark_literal(BETWEEN_CALLS)
        more = f"({between} {begin} call)*" if self.parallel else ""
        rules = []
        if self.must:
            rules += [f"start: {begin} call {more}"]
        elif otherwise is not None:
            rules += [f"start: other | {begin} call {more}", f"other: %json {otherwise.source}"]
        else:
            rules += [f"start: TEXT | before call {more}", "TEXT: /(?s:.*)/",
                      f"before[suffix={begin}]: /(?s:.*)/"]  # fmt: skip
        calls = [f"call_{n}" for n in range(len(self._callable))]
        rules += [f"call: ({' | '.join(calls)}) {lark_literal('}' + CALL_END)}"]
        for call, tool in zip(calls, self._callable, strict=True):
            header = lark_literal(header_text(tool.name))
            rules += [f"{call}: {header} %json {tool.schema_text()}"]
        return GrammarSpec("lark", "\n".join(rules))


def chosen_tools(
    tools: Sequence[Tool] | None, choice: ToolChoice | None, parallel: bool | None
) -> ToolUse | None:
    """The tools of OpenAI's fields `tools`, `tool_choice` and `parallel_tool_calls`.

    The result and the errors are those of `chosen_functions`.
    """
    functions = [tool.function for tool in tools or ()]
    picked = choice.function if isinstance(choice, NamedTool) else choice
    return chosen_functions(functions, picked, parallel)


def chosen_functions(
    functions: Sequence[FunctionDefinition],
    choice: Literal["none", "auto", "required"] | FunctionName | None,
    parallel: bool | None,
) -> ToolUse | None:
    """The functions of a request; None if none may be called.

    Args:
        functions: those that there are.
        choice: which may or must be called; None: "auto" if there are any.
        parallel: whether an answer may have several calls; None: it may.

    Raises:
        ConfigError: as ToolUse.
    """
    if choice == "none" or (choice is None and not functions):
        return None
    return ToolUse(functions, choice or "auto", parallel is not False)
