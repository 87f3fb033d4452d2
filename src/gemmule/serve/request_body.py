"""Bodies of requests: JSON to a pydantic model, and one clear error for what is wrong."""

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import PydanticCustomError
from starlette.requests import Request

from gemmule.config import nearest
from gemmule.errors import brief
from gemmule.serve.api_errors import ApiError

Model = TypeVar("Model", bound=BaseModel)


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
        for name in cls.refused.keys() & values.keys():
            if values[name] is not None:
                raise PydanticCustomError(
                    "refused",
                    "{field} is not supported: {reason}; leave it out",
                    {"field": name, "reason": cls.refused[name]},
                )
        return {name: value for name, value in values.items() if name not in cls.refused}


async def read_body(request: Request, schema: type[Model]) -> Model:
    """Reads the body of a request.

    Raises:
        ApiError: 400 if it is not UTF-8, not JSON, or not what the schema allows.
    """
    return parse_body(await request.body(), schema)


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
    place = detail["loc"]
    field = str(place[0]) if place else None
    match detail["type"]:
        case "json_invalid":
            return f"the body is not valid JSON: {detail['ctx']['error']}", None
        case "refused":
            inside = ".".join(map(str, place))
            name = detail["ctx"]["field"]
            return (f"{inside}: " if inside else "") + detail["msg"], field or name
        case "extra_forbidden":
            hint = f"; {nearest(str(field), _names(schema))}" if len(place) == 1 else ""
            return f"unknown parameter {_path(place)!r:.200}{hint}", field
        case "missing":
            return f"{_path(place)} is missing", field
    if field is None:
        return f"the body must be a JSON object, got {brief(detail['input'])}", None
    if len({d["loc"][0] for d in details if d["loc"]}) == 1 and len(details) > 1:
        # One field that may have several forms: say what each form would need.
        reasons = dict.fromkeys(_reason(d["msg"]) for d in details)
        return f"{field} is {brief(detail['input'])}: {'; or '.join(reasons)}"[:1000], field
    return f"{_path(place)} is {brief(detail['input'])}: {_reason(detail['msg'])}", field


def _names(schema: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in schema.model_fields.items()]


def _path(place: tuple[int | str, ...]) -> str:
    return ".".join(map(str, place))


def _reason(message: str) -> str:
    for start in ("Input should be ", "Value error, "):
        message = message.removeprefix(start)
    return message if message.startswith("it must") else f"it must be {message}"
