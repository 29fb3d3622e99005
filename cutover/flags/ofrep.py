"""OFREP, the OpenFeature Remote Evaluation Protocol, over the flags in memory: for services in every language.

https://github.com/open-feature/protocol, service/openapi.yaml, the core: one flag, and all flags with an ETag.
Needs the extra `flags-server`. Starlette and uvicorn serve it: both are pure Python, and what they stand on
(anyio, h11) is here with httpx already; aiohttp would bring a client of its own and six compiled packages.
"""

import hashlib
import json
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cutover.flags.follower import Flag, Follower

#: Bytes of a request's body that are read: an evaluation context, which nothing here depends on.
MAX_BODY = 256 * 1024
PREFIX = "/ofrep/v1/evaluate/flags"

Handler = Callable[[Request], Awaitable[Response]]


class _BadRequest(Exception):
    """The body is not what the protocol asks for; code and text for the caller."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


def application(follower: Follower, *, token: str = "") -> Starlette:
    """The ASGI application. With a token, requests need it as `Authorization: Bearer` or `X-API-Key`; health does not.

    The context of a request is checked for its form and not kept, logged or looked at: no flag depends on it.
    """

    async def one(request: Request) -> Response:
        key = request.path_params["key"]
        try:
            await _context(request)
        except _BadRequest as error:
            return JSONResponse({"key": key, "errorCode": error.code, "errorDetails": str(error)}, 400)
        flag = follower.flags.get(key)
        if flag is None:
            text = f"{follower.migration} has no flag {key!r}"
            return JSONResponse({"key": key, "errorCode": "FLAG_NOT_FOUND", "errorDetails": text}, 404)
        return JSONResponse(_evaluated(flag, follower.stale))

    async def bulk(request: Request) -> Response:
        try:
            await _context(request)
        except _BadRequest as error:
            return JSONResponse({"errorCode": error.code, "errorDetails": str(error)}, 400)
        body = {"flags": [_evaluated(flag, follower.stale) for flag in follower.flags.values()]}
        etag = f'"{hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:32]}"'
        if _matches(request.headers.getlist("if-none-match"), etag):
            return Response(status_code=304, headers={"ETag": etag})
        return JSONResponse(body, headers={"ETag": etag})

    async def health(request: Request) -> Response:
        """200 with stale flags too: the last values are better than none, and a restart would lose them."""
        state = "stale" if follower.stale else "ready"
        return JSONResponse({"status": state, "migration": follower.migration, "flags": len(follower.flags)})

    return Starlette(
        routes=[
            Route(PREFIX, _guarded(bulk, token), methods=["POST"]),
            Route(PREFIX + "/{key}", _guarded(one, token), methods=["POST"]),
            Route("/healthz", health, methods=["GET"]),
        ],
        exception_handlers={HTTPException: _refused, Exception: _broken},
    )


def _evaluated(flag: Flag, stale: bool) -> dict[str, Any]:
    return {
        "key": flag.name,
        "value": flag.value,
        "reason": "STALE" if stale else "STATIC",
        "variant": flag.variant,
        "metadata": flag.metadata,
    }


def _guarded(handler: Handler, token: str) -> Handler:
    """The protocol names both headers; 401 has no body there."""

    async def guarded(request: Request) -> Response:
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        given = bearer.strip() if scheme.lower() == "bearer" else request.headers.get("x-api-key", "")
        if token and not secrets.compare_digest(given.encode(), token.encode()):
            return Response(status_code=401, headers={"WWW-Authenticate": "Bearer"})
        return await handler(request)

    return guarded


async def _context(request: Request) -> None:
    """Reads the body and checks its form; an empty one is a request without a context. Raises _BadRequest."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise HTTPException(413, f"the body is longer than {MAX_BODY} bytes")
    if not body.strip():
        return
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise _BadRequest("PARSE_ERROR", "the body is not JSON") from None
    if not isinstance(document, dict):
        raise _BadRequest("PARSE_ERROR", 'the body is not a JSON object: {"context": {…}}')
    if not isinstance(document.get("context") or {}, dict):
        raise _BadRequest("INVALID_CONTEXT", "context is not a JSON object")


def _matches(headers: list[str], etag: str) -> bool:
    """If-None-Match as RFC 9110, section 13.1.2: a list, compared weakly, or `*`."""
    given = [one.strip().removeprefix("W/") for header in headers for one in header.split(",")]
    return "*" in given or etag in given


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"errorDetails": error.detail}, error.status_code, headers=dict(error.headers or {}))


async def _broken(request: Request, error: Exception) -> Response:
    # the error's text could hold anything
    return JSONResponse({"errorDetails": f"a mistake in cutover itself: {type(error).__name__}"}, 500)
