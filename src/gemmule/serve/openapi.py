"""/openapi.json: all routes, out of the pydantic models that their handlers use (OpenAPI 3.1)."""

import json
import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import Response

from gemmule import __version__
from gemmule.serve.route import ApiRoute

_REF = "#/components/schemas/{model}"


class ErrorDetails(BaseModel):
    """What went wrong, in OpenAI's form."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """Answer of a request that failed."""

    error: ErrorDetails


class MessageErrorDetails(BaseModel):
    """What went wrong, in Anthropic's form."""

    type: str
    message: str


class MessageErrorAnswer(BaseModel):
    """Answer of a request that failed, in Anthropic's form."""

    type: Literal["error"]
    error: MessageErrorDetails


_ERRORS: dict[str, type[BaseModel]] = {"openai": ErrorAnswer, "anthropic": MessageErrorAnswer}
# What any request may get.
_ALWAYS = (400, 401, 403, 421, 431, 500, 503)
_WITH_BODY = (404, 408, 413, 415, 429, 504)


def route(others: Sequence[ApiRoute], *, keys: bool) -> ApiRoute:
    """The route of the description itself, which lists the others.

    Args:
        others: all other routes.
        keys: whether they need a key.
    """
    cached: list[bytes] = []

    async def openapi(request: Request) -> Response:
        if not cached:
            cached.append(json.dumps(describe([*others, own], keys=keys)).encode())
        return Response(cached[0], media_type="application/json")

    own = ApiRoute(method="GET", path="/openapi.json", handler=openapi, summary="This description")
    return own


def describe(routes: Sequence[ApiRoute], *, keys: bool) -> dict[str, Any]:
    """The description of an API.

    Args:
        routes: all its routes.
        keys: whether they need a key.
    """
    requests = {route.body for route in routes if route.body}
    answers = {model for route in routes for model in (route.answer, route.event) if model}
    answers |= {_ERRORS[route.errors] for route in routes}
    wanted: list[tuple[type[BaseModel], Literal["validation", "serialization"]]] = [
        *((model, "validation") for model in sorted(requests, key=_name)),
        *((model, "serialization") for model in sorted(answers, key=_name)),
    ]
    schemas, definitions = models_json_schema(wanted, ref_template=_REF)
    paths: dict[str, Any] = {}
    for route in routes:
        for path in route.paths:
            shown = re.sub(r"\{(\w+):\w+\}", r"{\1}", path)
            operation = _operation(route, shown, schemas, keys=keys)
            paths.setdefault(shown, {})[route.method.lower()] = operation
    schemes = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "gemmule",
            "version": __version__,
            "description": "Gemma 2 models with the APIs of OpenAI and Anthropic.",
        },
        "paths": paths,
        "components": {
            "schemas": definitions.get("$defs", {}),
            **({"securitySchemes": schemes} if keys else {}),
        },
    }


def _operation(
    route: ApiRoute, path: str, schemas: dict[Any, dict[str, Any]], *, keys: bool
) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if route.answer is not None:
        content[route.media_type] = {"schema": schemas[route.answer, "serialization"]}
    else:
        kind = "object" if route.media_type == "application/json" else "string"
        content[route.media_type] = {"schema": {"type": kind}}
    if route.event is not None:
        # OpenAPI 3.1 does not know streams; tools take the schema for that of each event.
        text = {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": schemas[route.event, "serialization"],
        }
        data = {"anyOf": [text, {"const": "[DONE]"}]}
        content["text/event-stream"] = {
            "schema": {
                "type": "object",
                "description": "A server-sent event, if the request says stream: true.",
                "properties": {"event": {"type": "string"}, "data": data},
                "required": ["data"],
            }
        }
    error = {"application/json": {"schema": schemas[_ERRORS[route.errors], "serialization"]}}
    names = re.findall(r"\{(\w+)\}", path)
    statuses = {
        *_ALWAYS,
        *(_WITH_BODY if route.method == "POST" else ()),
        *([404] if names else []),
    }
    operation: dict[str, Any] = {
        "operationId": route.method.lower() + re.sub(r"\W+", "_", path).rstrip("_"),
        "summary": route.summary,
        "responses": {
            "200": {"description": "The answer", "content": content},
            **{
                str(status): {"description": HTTPStatus(status).phrase, "content": error}
                for status in sorted(statuses)
            },
        },
    }
    if names:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in names
        ]
    if route.body is not None:
        schema = schemas[route.body, "validation"]
        operation["requestBody"] = {
            "required": True, "content": {"application/json": {"schema": schema}}
        }  # fmt: skip
    if keys and not route.open:
        operation["security"] = [{"bearer": []}, {"x-api-key": []}]
    return operation


def _name(model: type[BaseModel]) -> str:
    return f"{model.__module__}.{model.__qualname__}"
