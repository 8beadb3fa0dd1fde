"""What the server says of itself: OpenAPI, and the same to be read. Needs the extra ``[serve]``.

The page to read is of this package, so that it needs nothing from elsewhere, and no script.
"""

from __future__ import annotations

from html import escape
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from latent_prm import wire

JSON, BYTES, LINES = "application/json", "application/octet-stream", "application/x-ndjson"
_REFERENCE = "#/components/schemas/{model}"


def body(model: type[BaseModel], *others: str) -> dict[str, Any]:
    """What a route says of a body that it reads itself: JSON like the model, or bytes of these other types."""
    content: dict[str, Any] = {JSON: {"schema": {"$ref": _REFERENCE.format(model=model.__name__)}}}
    content |= {other: {"schema": {"type": "string", "format": "binary"}} for other in others}
    return {"requestBody": {"required": True, "content": content}}


def schema(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI of an application, with the bodies that its routes read themselves, and its token."""
    found = app.openapi()
    parts = found.setdefault("components", {})
    schemas = parts.setdefault("schemas", {})
    for model in (wire.ScoreBody, wire.SolveBody):
        own = model.model_json_schema(ref_template=_REFERENCE)
        schemas |= own.pop("$defs", {}) | {model.__name__: own}
    parts["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    found["security"] = [{"token": []}]
    found["paths"]["/health"]["get"]["security"] = []
    return found


def page(app: FastAPI) -> str:
    """The routes as HTML: what each does, and what it takes."""
    said = schema(app)
    rows = [
        f"<h2><code>{escape(method.upper())} {escape(path)}</code></h2><p>{escape(route.get('summary', ''))}</p>"
        + _fields(said, route)
        for path, methods in said["paths"].items()
        for method, route in methods.items()
    ]
    title = f"{escape(said['info']['title'])} {escape(said['info']['version'])}"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f'<link rel="stylesheet" href="/page/page.css"><main><h1>{title}</h1>'
        f"<p>{escape(said['info'].get('description', ''))}</p>{''.join(rows)}</main></html>"
    )


def _fields(said: dict[str, Any], route: dict[str, Any]) -> str:
    content = route.get("requestBody", {}).get("content", {})
    if JSON not in content:
        return ""
    fields = said["components"]["schemas"][content[JSON]["schema"]["$ref"].rpartition("/")[2]]["properties"]
    items = "".join(f"<li><code>{escape(name)}</code></li>" for name in fields)
    return f"<p>Takes {escape(' or '.join(content))}:</p><ul>{items}</ul>"
