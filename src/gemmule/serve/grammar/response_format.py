"""What clients ask of an answer's form: OpenAI's `response_format`, vLLM's `structured_outputs`."""

from typing import Annotated, Any, Literal

from pydantic import Field

from gemmule.errors import ConfigError
from gemmule.serve.grammar.spec import GrammarSpec
from gemmule.serve.request_body import ApiModel, Items


class TextFormat(ApiModel):
    """Any text."""

    type: Literal["text"]

    def spec(self) -> GrammarSpec | None:
        """What the answer must match."""
        return None


class JsonObjectFormat(ApiModel):
    """A JSON object; with `schema`, as llama.cpp has it, one that the schema describes."""

    type: Literal["json_object"]
    json_schema_: dict[str, Any] | None = Field(None, alias="schema")

    def spec(self) -> GrammarSpec | None:
        """What the answer must match."""
        if self.json_schema_ is None:
            return GrammarSpec.json_object()
        return GrammarSpec.json_schema(self.json_schema_)


class JsonSchema(ApiModel):
    """A named schema."""

    name: str | None = Field(None, max_length=64, description="Accepted and not used")
    description: str | None = Field(None, description="Accepted and not used")
    json_schema_: dict[str, Any] | bool = Field(alias="schema")
    strict: bool | None = Field(None, description="The answer follows the schema in any case")


class JsonSchemaFormat(ApiModel):
    """JSON that a schema describes."""

    type: Literal["json_schema"]
    json_schema: JsonSchema

    def spec(self) -> GrammarSpec | None:
        """What the answer must match."""
        return GrammarSpec.json_schema(self.json_schema.json_schema_)


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")
]


class StructuredOutputs(ApiModel):
    """vLLM's `structured_outputs`: one of its fields."""

    json_: dict[str, Any] | bool | str | None = Field(
        None, alias="json", description="JSON schema, or its text"
    )
    regex: str | None = Field(None, description="Regular expression of the whole answer")
    grammar: str | None = Field(None, description="Grammar in Lark's or llama.cpp's syntax")
    choice: Items[str] | None = Field(None, description="The texts that the answer can be")

    def spec(self) -> GrammarSpec:
        """What the answer must match.

        Raises:
            ConfigError: if not exactly one field is set, or it cannot be used.
        """
        fields = {"json": self.json_, "regex": self.regex, "grammar": self.grammar,
                  "choice": self.choice}  # fmt: skip
        given = [name for name, value in fields.items() if value is not None]
        if len(given) != 1:
            raise ConfigError(
                f"structured_outputs has {' and '.join(given) or 'nothing'}: give one of "
                f"{', '.join(fields)}"
            )
        if self.json_ is not None:
            return GrammarSpec.json_schema(self.json_)
        if self.choice is not None:
            return GrammarSpec.choice(self.choice)
        if self.regex is not None:
            return GrammarSpec("regex", self.regex)
        return GrammarSpec("grammar", str(self.grammar))


def asked_spec(
    response_format: TextFormat | JsonObjectFormat | JsonSchemaFormat | None,
    structured_outputs: StructuredOutputs | None,
    json_schema: dict[str, Any] | None = None,
    grammar: str | None = None,
) -> GrammarSpec | None:
    """What an answer must match by one of the fields; None: any text will do.

    Args:
        response_format: OpenAI's field.
        structured_outputs: vLLM's field.
        json_schema: llama.cpp's field.
        grammar: llama.cpp's field.

    Raises:
        ConfigError: if several fields say something, or it cannot be used.
    """
    specs = {
        "response_format": response_format.spec() if response_format else None,
        "structured_outputs": structured_outputs.spec() if structured_outputs else None,
        "json_schema": None if json_schema is None else GrammarSpec.json_schema(json_schema),
        "grammar": None if grammar is None else GrammarSpec("grammar", grammar),
    }
    given = [name for name, spec in specs.items() if spec is not None]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} all say what the answer must be: give one")
    return specs[given[0]] if given else None
