"""The server's routes."""

from __future__ import annotations

import sys
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_address
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from pipelines.serving import answers, pages
from pipelines.serving.answers import INVOCATION, ONE_IMAGE, REFUSALS, SOME_IMAGES, Health, Prediction
from pipelines.serving.batching import Batcher
from pipelines.serving.bodies import check_count, content_type, images_in, read_body
from pipelines.serving.champion import Champion
from pipelines.serving.guard import Guard
from pipelines.serving.invocations import images_of_invocation, predictions
from pipelines.serving.limits import Gate, Limits, RefusedError
from pipelines.serving.metrics import Measured, Metrics
from pipelines.serving.reading import Reader

_RETRY = "1"  # seconds
_ABOUT = "Which labels an image carries: a probability of every class, and whether it reaches the class's threshold."


class NoParameters(BaseModel, extra="forbid"):
    """Of an address: what follows its `?` would change nothing, without a word."""


class OfClass(BaseModel, extra="forbid"):
    """Of an address that asks about a class."""

    class_name: str


def create_app(champion: Champion, limits: Limits, host: str = "127.0.0.1") -> FastAPI:
    """The application; whoever runs it ends it through its lifespan.

    Args:
        champion: the model.
        limits: of requests.
        host: on which it listens. On the loopback interface it answers to this machine's names only, so that no page
            of another site can ask it through a name of its own.
    """
    metrics, gate = Metrics(), Gate(limits.queue, limits.memory)
    batcher = Batcher(limits.batch, limits.wait, metrics.batch.observe)
    reader = Reader(batcher, limits.pixels)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        reader.close()
        batcher.close()

    app = FastAPI(title="cprfl serve", description=_ABOUT, version=champion.served.version, docs_url=None,
                  redoc_url=None, lifespan=lifespan)  # fmt: skip
    if is_loopback(host):
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=["localhost", "127.0.0.1", "[::1]", host])
    app.add_middleware(Guard, same_origin=is_loopback(host))
    app.add_middleware(Measured, metrics=metrics)
    _add_errors(app)
    _add_views(app, champion, metrics, gate)
    _add_scoring(app, champion, limits, gate, reader)
    return app


def is_loopback(host: str) -> bool:
    """Whether only this machine can ask there."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _add_views(app: FastAPI, champion: Champion, metrics: Metrics, gate: Gate) -> None:
    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> Response:
        return pages.answer(pages.DROP)

    @app.get("/docs", response_class=HTMLResponse, include_in_schema=False)
    async def docs() -> Response:
        return pages.answer(pages.DOCS)

    @app.get("/health", summary="Which model answers")
    async def health() -> Health:
        return answers.health(champion.served, champion.problem)

    @app.get("/metrics", summary="Counters for Prometheus", response_class=Response)
    async def counters() -> Response:
        served = champion.served
        text = metrics.text(served.name, served.version, gate.inside)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_scoring(app: FastAPI, champion: Champion, limits: Limits, gate: Gate, reader: Reader) -> None:
    @app.post("/predict", summary="Score images", responses=REFUSALS, openapi_extra=SOME_IMAGES)
    async def predict(request: Request, _: Annotated[NoParameters, Query()]) -> Prediction:
        """Send an image as it is, several as files of a form, or base64 of them in JSON."""
        with gate.entered(1), gate.holding() as hold:
            images, served = await images_in(request, limits, hold), champion.served
            with gate.entered(len(images) - 1):
                return answers.prediction(served, await reader.probabilities(served.predictor, images))

    @app.post("/attention", summary="Where the model looks", responses=REFUSALS, openapi_extra=ONE_IMAGE,
              response_class=Response)  # fmt: skip
    async def attention(request: Request, asked: Annotated[OfClass, Query()]) -> Response:
        """The image as JPEG, with the cells coloured by which the model decides about a class."""
        with gate.entered(1), gate.holding() as hold:
            images, served = await images_in(request, limits, hold), champion.served
            drawn = await reader.looks(served.predictor, images[0], asked.class_name)
            return Response(drawn, media_type="image/jpeg")

    @app.post("/invocations", summary="Score images, as MLflow does", responses=REFUSALS, openapi_extra=INVOCATION)
    async def invocations(request: Request, _: Annotated[NoParameters, Query()]) -> dict[str, Any]:
        """MLflow's protocol: a table with a column named image, of base64, in JSON or CSV; probabilities come back."""
        with gate.entered(1), gate.holding() as hold:
            body, served = await read_body(request, limits, hold), champion.served
            images = check_count(images_of_invocation(content_type(request), body, limits), limits)
            with gate.entered(len(images) - 1):
                probability_NC = await reader.probabilities(served.predictor, images)
                return predictions(probability_NC, served.predictor.class_names)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(RefusedError)
    async def refused(_: Request, error: RefusedError) -> JSONResponse:
        headers = {"Retry-After": _RETRY} if error.status == 503 else {}
        return JSONResponse({"error": str(error)}, error.status, headers)

    @app.exception_handler(HTTPException)
    async def other(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        unknown = {"extra_forbidden": "no such parameter; /docs names what there is"}
        reasons = [f"{each['loc'][-1]}: {unknown.get(each['type'], each['msg'])}" for each in error.errors()]
        return JSONResponse({"error": "; ".join(reasons)}, 422)

    @app.exception_handler(Exception)
    async def ours(_: Request, error: Exception) -> JSONResponse:
        traceback.print_exception(error, file=sys.stderr)
        return JSONResponse({"error": "a mistake of the server's, not of this request; its log says more"}, 500)
