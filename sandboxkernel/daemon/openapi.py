"""The API's own description, generated from the routes and the models. Pure."""

from __future__ import annotations

import functools
import re
from typing import Any

import msgspec

from sandboxkernel import __version__
from sandboxkernel.daemon.routes import ROUTES, Route
from sandboxkernel.errors import ERRORS_BY_CODE

__all__ = ["document"]

_REF_TEMPLATE = "#/components/schemas/{name}"


@functools.cache
def document() -> dict[str, Any]:
    """OpenAPI 3.1 for every route."""
    models = sorted(_models(), key=lambda model: model.__name__)
    schemas, components = msgspec.json.schema_components(models, ref_template=_REF_TEMPLATE)
    names = {model: schema for model, schema in zip(models, schemas, strict=True)}
    paths: dict[str, Any] = {}
    for route in ROUTES:
        paths[route.path] = {method: _operation(route, method, names) for method in route.replies}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "sandboxkernel",
            "version": __version__,
            "description": "Served on a unix socket; the caller is known by SO_PEERCRED.",
            "license": {"name": "BSD-3-Clause"},
        },
        "paths": paths,
        "components": {"schemas": components | {"Problem": _problem()}},
    }


def _models() -> set[type[msgspec.Struct]]:
    found: set[type[msgspec.Struct]] = set()
    for route in ROUTES:
        for kind in [*route.bodies.values(), *(reply for _, reply in route.replies.values())]:
            for model in kind if isinstance(kind, list) else [kind]:
                if isinstance(model, type) and issubclass(model, msgspec.Struct):
                    found.add(model)
    return found


def _operation(route: Route, method: str, names: dict[type, dict[str, Any]]) -> dict[str, Any]:
    status, reply = route.replies[method]
    function = getattr(route.handler, method)
    operation: dict[str, Any] = {
        "operationId": f"{method}{route.handler.__name__.removesuffix('Handler')}",
        "summary": (function.__doc__ or "").strip().rstrip("."),
        "description": (route.handler.__doc__ or "").strip(),
        "responses": {
            str(status): _response(reply, names),
            "default": {
                "description": "A problem document (RFC 9457)",
                "content": {
                    "application/problem+json": {
                        "schema": {"$ref": _REF_TEMPLATE.format(name="Problem")}
                    }
                },
            },
        },
    }
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"{(\w+)}", route.path)
    ]
    if method == next(iter(route.replies)):
        parameters += [
            {"name": name, "in": "query", "required": False, "schema": {"type": "string"}}
            for name in route.query
        ]
    if parameters:
        operation["parameters"] = parameters
    if method in route.bodies:
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": names[route.bodies[method]]}},
        }
    return operation


def _response(reply: Any, names: dict[type, dict[str, Any]]) -> dict[str, Any]:
    if reply is None:
        return {"description": "Done"}
    if reply is bytes or reply is str:
        kind = "application/octet-stream" if reply is bytes else "text/plain"
        return {"description": "Text", "content": {kind: {"schema": {"type": "string"}}}}
    if isinstance(reply, list):
        schema: dict[str, Any] = {"anyOf": [names[model] for model in reply]}
        return {
            "description": "One JSON value a line (NDJSON)",
            "content": {"application/x-ndjson": {"schema": schema}},
        }
    schema = {"type": "object"} if reply is dict else names[reply]
    return {"description": "OK", "content": {"application/json": {"schema": schema}}}


def _problem() -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["type", "title", "status", "detail", "code"],
        "properties": {
            "type": {"type": "string"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "code": {"type": "string", "enum": sorted(ERRORS_BY_CODE)},
            "hint": {"type": "string"},
            "instance": {"type": "string"},
        },
    }
