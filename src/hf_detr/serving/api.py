"""`POST /detect`: images in a form, detections as JSON, described at /openapi.json."""

import asyncio
from typing import Annotated, Any

from fastapi import FastAPI, File, Form, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hf_detr import __version__

from .detector import Detector, Thresholds
from .limits import MIB, Refused


class Row(BaseModel):
    """One object, as COCO's results have it."""

    category_id: int
    category: str
    bbox: Annotated[list[float], Field(description="left, top, width, height in pixels of the upright image")]
    score: Annotated[float, Field(description="probability of the class, 0 to 1")]
    segmentation: Annotated[
        dict[str, Any] | None, Field(description="of a model with masks: COCO's compressed run-length encoding")
    ] = None
    id: Annotated[int | None, Field(description="of a panoptic model: the segment's number in this image")] = None
    area: Annotated[int | None, Field(description="of a panoptic model: the segment's pixels")] = None


class ImageResult(BaseModel):
    """The objects of one image, the surest first."""

    file_name: str
    width: Annotated[int, Field(description="pixels of the upright image")]
    height: int
    detections: list[Row]


class Result(BaseModel):
    """The images in the order in which they were sent."""

    model: str
    images: list[ImageResult]


class Problem(BaseModel):
    """Why there is no result."""

    detail: Annotated[str, Field(description="a sentence")]


_PROBLEMS = {
    413: "more bytes, pixels or images than the server takes",
    422: "no image, a damaged one, or a wrong value",
    500: "the model failed",
    503: "the queue is full; try again in a moment",
}


def create_api(detector: Detector, thresholds: Thresholds) -> FastAPI:
    """The application without a page. `thresholds`: those of requests that name none."""
    limits = detector.limits
    app = FastAPI(
        title=f"Object detection with {detector.name}",
        description=(
            f"At most {limits.images} images a request, each of at most {limits.image_bytes / MIB:g} MiB and "
            f"{limits.image_px / 1e6:g} million pixels."
        ),
        version=__version__,
        docs_url=None,  # its page would fetch scripts from elsewhere
        redoc_url=None,
    )
    app.add_middleware(BodyLimit, limit_bytes=limits.body_bytes)

    @app.post(
        "/detect",
        response_model_exclude_none=True,
        responses={status: {"model": Problem, "description": text} for status, text in _PROBLEMS.items()},
    )
    async def detect(
        image: Annotated[list[UploadFile], File(description="one image file, or several parts of this name")],
        threshold: Annotated[
            float | None,
            Form(ge=0, le=1, description="keep what scores above it; without, what the server was started with"),
        ] = None,
    ) -> Result:
        """The objects in one or several images."""
        own = thresholds if threshold is None else dict.fromkeys(detector.id2label, threshold)
        futures = detector.submit([(file.file, file.filename or "image") for file in image], own)
        # all are waited for, since their files are closed afterwards
        results = await asyncio.gather(*map(asyncio.wrap_future, futures), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        images = [
            ImageResult(file_name=one.name, width=one.width, height=one.height, detections=one.rows) for one in results
        ]
        return Result(model=detector.name, images=images)

    @app.exception_handler(Refused)
    async def refuse(_: Request, error: Refused) -> JSONResponse:
        headers = {"Retry-After": "1"} if error.status == 503 else None
        return JSONResponse({"detail": str(error)}, error.status, headers)

    @app.exception_handler(RequestValidationError)
    async def refuse_value(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][1:]) or "request"
        return JSONResponse({"detail": f"{place}: {first['msg']}."}, 422)

    return app


class BodyLimit:
    """Ends a request whose body is longer than the limit, however it is sent, before it is kept."""

    def __init__(self, app: ASGIApp, limit_bytes: int):
        self.app, self.limit_bytes = app, limit_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        detail = f"The request is too long; at most {self.limit_bytes / MIB:g} MiB are taken, send less at a time."
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self.limit_bytes:
            return await JSONResponse({"detail": detail}, 413)(scope, receive, send)
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.limit_bytes:
                raise HTTPException(413, detail)
            return message

        await self.app(scope, counted, send)
