"""The application: all routes, how errors are answered, and what runs beside the requests."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from typing import Any, Final, Literal

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from wan_s2v import __version__
from wan_s2v.server.access import Owner
from wan_s2v.server.documents import problems
from wan_s2v.server.pages import add_pages
from wan_s2v.server.problems import STATUS, Problem
from wan_s2v.server.schemas import Health, ModelBody, ModelLimits, StyleBody, StyleList
from wan_s2v.server.service import Service
from wan_s2v.server.tokens import COOKIE, COOKIE_S
from wan_s2v.server.uploads import BodyLimit
from wan_s2v.server.videos import video_routes
from wan_s2v.styles import STYLES

_TIDY_S: Final = 10.0
_HEADERS: Final = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}


def create_app(service: Service, is_stopping: Callable[[], bool] = lambda: False) -> FastAPI:
    """The application of a service, whose processes live as long as it does.

    Args:
        is_stopping: whether the server is about to end.
    """

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        service.supervisor.start()
        tidying = asyncio.create_task(_tidy(service))
        yield
        tidying.cancel()
        with suppress(asyncio.CancelledError):
            await tidying
        await service.supervisor.stop()
        service.close()

    app = FastAPI(
        title="wan_s2v",
        version=__version__,
        description="A portrait and a voice become a video.",
        docs_url=None,  # these pages would load scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.tokens = service.tokens
    app.add_middleware(BodyLimit, limits=service.settings.limits)
    app.add_middleware(_SafeHeaders)
    _answer_problems(app, service)
    app.include_router(video_routes(service, is_stopping))
    _add_facts(app, service)
    add_pages(app)
    return app


async def _tidy(service: Service) -> None:
    while True:
        await run_in_threadpool(service.housekeeper.tidy)
        await asyncio.sleep(_TIDY_S)


def _answer_problems(app: FastAPI, service: Service) -> None:
    def answer(problem: Problem, headers: dict[str, str] | None = None) -> JSONResponse:
        service.metrics.refused.labels(problem.kind).inc()
        extra = {"WWW-Authenticate": "Bearer"} if problem.kind == "unauthorized" else {}
        return JSONResponse(problem.content, problem.status, extra | (headers or {}))

    @app.exception_handler(Problem)
    async def refused(_request: Request, problem: Problem) -> JSONResponse:
        return answer(problem)

    @app.exception_handler(RequestValidationError)
    async def not_valid(_request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        name, value = first["loc"][-1], str(first.get("input"))[:64]
        return answer(Problem("invalid", f"{name}={value!r} is not accepted: {first['msg']}. See /openapi.json."))

    @app.exception_handler(HTTPException)
    async def not_routed(request: Request, error: HTTPException) -> JSONResponse:
        kind = next((name for name, code in STATUS.items() if code == error.status_code), "bad_request")
        message = f"{request.method} {request.url.path[:200]}: {error.detail}. See /openapi.json."
        response = answer(Problem(kind, message), dict(error.headers or {}))
        if error.status_code == 405:
            response.headers["Allow"] = ", ".join(_allowed(app, request))
        response.status_code = error.status_code
        return response

    @app.exception_handler(sqlite3.OperationalError)
    async def not_written(_request: Request, error: sqlite3.OperationalError) -> JSONResponse:
        return answer(Problem("storage_full", f"The queue cannot be written ({error}). Try again later."))


def _allowed(app: FastAPI, request: Request) -> list[str]:
    """The methods of a path; each has a route of its own, which knows nothing of the others."""
    documented: dict[str, dict[str, Any]] = app.openapi()["paths"]
    matching = [methods for path, methods in documented.items() if compile_path(path)[0].match(request.url.path)]
    return sorted({method.upper() for methods in matching for method in methods})


def _add_facts(app: FastAPI, service: Service) -> None:
    facts, limits = service.facts, asdict(service.settings.limits)

    @app.get("/v1/styles", responses=problems())
    async def list_styles(_owner: Owner) -> StyleList:
        """Looks that may be added to a prompt by name."""
        return StyleList(styles=[StyleBody(**asdict(style)) for style in STYLES])

    @app.get("/v1/model", responses=problems())
    async def show_model(request: Request, response: Response, owner: Owner) -> ModelBody:
        """The model, where it runs, and what it may be asked.

        The answer to a token carries a cookie that opens what is only read, for video elements, which cannot send one.
        """
        if "authorization" in request.headers:
            _give_cookie(response, service.tokens.cookie(owner), is_safe=request.url.scheme == "https")
        bounds = ModelLimits(**{name: limits[name] for name in ModelLimits.model_fields})
        shown: dict[str, Any] = {
            name: facts[name] for name in ("name", "device", "dtype", "presets", "defaults", "voices")
        }
        return ModelBody(**shown, limits=bounds, allows_urls=service.settings.allow_urls)

    @app.get("/health", responses={503: {"model": Health, "description": "No video can be made now."}})
    async def show_health(response: Response) -> Health:
        """Whether videos can be made; needs no token."""
        workers = service.supervisor.workers
        ready, restarts = sum(worker.is_ready for worker in workers), sum(worker.restarts for worker in workers)
        response.status_code = 200 if ready else 503
        return Health(
            status=_state(ready, len(workers), restarts), version=__version__, workers=len(workers), workers_ready=ready
        )

    @app.get("/metrics", response_class=Response, responses=problems() | {200: {"content": {"text/plain": {}}}})
    def show_metrics(_owner: Owner) -> Response:
        """Prometheus metrics."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _state(ready: int, workers: int, restarts: int) -> Literal["ok", "starting", "degraded"]:
    if ready == workers:
        return "ok"
    return "degraded" if restarts else "starting"


def _give_cookie(response: Response, cookie: str, *, is_safe: bool) -> None:
    response.set_cookie(COOKIE, cookie, max_age=COOKIE_S, path="/v1", secure=is_safe, httponly=True, samesite="strict")


class _SafeHeaders:
    """Keeps browsers from guessing types and from telling where they were; answers of the API are not stored."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self._app(scope, receive, with_headers if scope["type"] == "http" else send)
