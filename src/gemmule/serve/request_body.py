"""Bodies of requests: JSON to a pydantic model, and one clear error for what is wrong."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError
from starlette.requests import Request

from gemmule.config import nearest
from gemmule.serve.api_errors import ApiError
from gemmule.serve.off_loop import off_loop

T = TypeVar("T")
Model = TypeVar("Model", bound=BaseModel)
MAX_ITEMS = 10_000  # more than a context has room for
_MAX_FIELDS = 200
_MAX_PAIRS = 16  # of metadata, as in OpenAI's API
_LONGEST = 1000  # characters of a message
_JSON_WORDS = {
    "True": "true",
    "False": "false",
    "None": "null",
}  # pydantic's, as clients write them


def _check_pairs(value: Any) -> Any:
    if isinstance(value, dict) and len(value) > _MAX_PAIRS:
        raise PydanticCustomError(
            "pairs", "it must have at most {most} pairs", {"most": _MAX_PAIRS}
        )
    return value


# Pydantic keeps an error for each thing that is wrong: all those of a body of 8 MiB would take
# gigabytes and minutes. Lists end with the first one, and objects are small.
Items = Annotated[list[T], Field(max_length=MAX_ITEMS, fail_fast=True)]
Metadata = Annotated[dict[str, str], BeforeValidator(_check_pairs)]


def not_supported(field: str, reason: str) -> PydanticCustomError:
    """The error for what a protocol has and this server does not.

    Args:
        field: name of the field, or what else it is.
        reason: why not.
    """
    message = "{field} is not supported: {reason}; leave it out"
    return PydanticCustomError("refused", message, {"field": field, "reason": reason})


class ApiModel(BaseModel):
    """Base of the schemas of requests: unknown fields are refused, and types are not converted.

    Attributes:
        refused: fields that the protocol has and this server does not, each with the reason. null
            means in all of them that the client does not use it.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())
    refused: ClassVar[Mapping[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        if len(values) > _MAX_FIELDS:
            message = "there are {count} fields in an object; at most {most} are allowed"
            raise PydanticCustomError(
                "fields", message, {"count": len(values), "most": _MAX_FIELDS}
            )
        for name in cls.refused.keys() & values.keys():
            if values[name] is not None:
                raise not_supported(name, cls.refused[name])
        return {name: value for name, value in values.items() if name not in cls.refused}


async def read_body(request: Request, schema: type[Model]) -> Model:
    """Reads the body of a request.

    Raises:
        ApiError: 400 if it is not UTF-8, not JSON, or not what the schema allows.
    """
    body = await request.body()
    return await off_loop(len(body), lambda: parse_body(body, schema))


def parse_body(body: bytes, schema: type[Model]) -> Model:
    """Does the same with bytes that have been read."""
    try:
        return schema.model_validate_json(body)
    except ValidationError as e:
        message, field = _explained(e, schema)
        raise ApiError(400, message, param=field) from None


def _explained(error: ValidationError, schema: type[BaseModel]) -> tuple[str, str | None]:
    """The message for the first thing that is wrong, and the field of the body that it is in."""
    details = error.errors(include_url=False)
    detail = details[0]
    place, message = detail["loc"], detail["msg"]
    path = ".".join(map(str, place))
    field = str(place[0]) if place else None
    match detail["type"]:
        case "json_invalid":
            message = f"the body is not valid JSON: {detail['ctx']['error']}"
        case "fields":
            pass
        case "refused":
            message = f"{path}: {message}" if path else message
            field = field or detail["ctx"]["field"]
        case "extra_forbidden":
            hint = f"; {nearest(path, _names(schema))}" if len(place) == 1 else ""
            message = f"unknown parameter {path!r:.200}{hint}"
        case "missing":
            message = f"{path} is missing"
        case _ if field is None:
            message = f"the body must be a JSON object, got {_shown(detail['input'])}"
        case _ if len({d["loc"][:1] for d in details}) == 1 < len(details):
            # A field that may have several forms: what each would need.
            reasons = dict.fromkeys(_reason(d["msg"]) for d in details)
            message = f"{field} is {_shown(detail['input'])}: {'; or '.join(reasons)}"
        case _:
            message = f"{path} is {_shown(detail['input'])}: {_reason(message)}"
    return message[:_LONGEST], field


def _names(schema: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in schema.model_fields.items()]


def _reason(message: str) -> str:
    """Pydantic's message as the end of a sentence."""
    for start in ("Input should be ", "Value should be "):
        if message.startswith(start):
            allowed = message.removeprefix(start)
            return f"it must be {_JSON_WORDS.get(allowed, allowed)}"
    return message[0].lower() + message[1:]


def _shown(value: Any) -> str:
    """A value as JSON, cut."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
