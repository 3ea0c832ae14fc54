"""The application: which path leads where, and errors in the form of OpenAI's API."""

from __future__ import annotations

import re
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ree.lm.serve.generation import generate
from ree.lm.serve.guard import ENTRY, App, Guard
from ree.lm.serve.metrics import CONTENT_TYPE
from ree.lm.serve.refusal import ApiError
from ree.lm.serve.service import Service
from ree.lm.serve.store import ID_CHARACTERS_MAX

_RECEIPT_ID = re.compile(rf"[A-Za-z0-9_-]{{1,{ID_CHARACTERS_MAX}}}")


def make(service: Service, hosts: frozenset[str] | None = None, key: str | None = None) -> App:
    """The ASGI application of a service. hosts, key: see `Guard`."""
    routes = [
        _route("/v1/completions", "POST", "completions", _completions),
        _route("/v1/chat/completions", "POST", "chat_completions", _chat),
        _route("/v1/models", "GET", "models", _models),
        _route("/v1/models/{name:path}", "GET", "models", _one_model),
        _route("/v1/receipts/{id}", "GET", "receipts", _receipt),
        _route("/health", "GET", "health", _health),
        _route("/metrics", "GET", "metrics", _metrics),
    ]
    handlers: dict[Any, Any] = {ApiError: _api_error, HTTPException: _http_error, Exception: _bug}
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.router.redirect_slashes = False
    app.state.service = service
    return Guard(app, service.log, service.metrics, hosts, key)


def _route(path: str, method: str, name: str, handler: Any) -> Route:
    """A route whose requests are logged and counted under `name`."""

    async def handle(request: Request) -> Response:
        request.scope[ENTRY].endpoint = name
        return await handler(request)

    return Route(path, handle, methods=[method], name=name)


def _service(request: Request) -> Service:
    found: Service = request.app.state.service
    return found


async def _completions(request: Request) -> Response:
    return await generate(request, "completion")


async def _chat(request: Request) -> Response:
    return await generate(request, "chat")


async def _models(request: Request) -> Response:
    return JSONResponse({"object": "list", "data": [_model(_service(request))]})


async def _one_model(request: Request) -> Response:
    _service(request).known(request.path_params["name"])
    return JSONResponse(_model(_service(request)))


def _model(service: Service) -> dict[str, Any]:
    model = service.model
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "ree",
        "ree_context": model.engine.context,
        "ree_ids": dict(model.ids),
    }


async def _receipt(request: Request) -> Response:
    id = request.path_params["id"]
    found = await _service(request).kept(id) if _RECEIPT_ID.fullmatch(id) else None
    if found is None:
        raise ApiError(404, "there is no such receipt, or not any more", code="receipt_not_found")
    return Response(found, media_type="application/json")


async def _health(request: Request) -> Response:
    service, batch = _service(request), _service(request).batch
    state = "draining" if batch.draining else "ok" if batch.healthy else "unhealthy"
    status = 200 if state == "ok" else 503
    return JSONResponse({"status": state, "running": batch.running, "waiting": service.waiting}, status)


async def _metrics(request: Request) -> Response:
    service = _service(request)
    text = service.metrics.text(service.waiting, service.batch.running)
    return Response(text, headers={"content-type": CONTENT_TYPE})


# -- errors ------------------------------------------------------------------------------------------


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body(), error.status, error.headers)


async def _http_error(request: Request, error: Exception) -> Response:
    """What starlette itself refuses: paths and methods."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        message, code = "this method is not possible here", "method_not_allowed"
    else:
        message, code = "there is nothing at this path", "not_found"
    found = ApiError(error.status_code, message, code=code, headers=dict(error.headers or {}))
    return JSONResponse(found.body(), found.status, found.headers)


async def _bug(request: Request, error: Exception) -> Response:
    return JSONResponse(ApiError(500, "something failed that never should").body(), 500)
