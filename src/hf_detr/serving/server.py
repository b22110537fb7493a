"""The page and the endpoint as one application, and the process that answers until it is stopped."""

import signal
import socket
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI
from gradio import mount_gradio_app
from starlette.routing import Mount

from .api import create_api
from .detector import Detector, Thresholds
from .page import CSS, THEME, create_page

_PATIENCE_S = 30  # for answers under way when the server is stopped


def create_app(detector: Detector, threshold: float | None = None) -> FastAPI:
    """The page at / and `POST /detect`. Both begin with this threshold for all classes; without, with those that the
    processor has saved, and 0.5 for other classes."""
    saved = getattr(detector.processor, "class_thresholds", None) or {}
    by_class: Thresholds = saved if threshold is None else {}
    threshold = 0.5 if threshold is None else threshold
    api = create_api(detector, {label: by_class.get(label, threshold) for label in detector.id2label})
    return mount_gradio_app(
        api,
        create_page(detector, threshold, by_class),
        path="/",
        footer_links=[],
        run_history=False,
        max_file_size=detector.limits.image_bytes,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        pwa=False,
        theme=THEME,
        css=CSS,
    )


def listen(host: str, port: int) -> socket.socket:
    """A socket that is bound; port 0 is any that is free. ValueError where that cannot be."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"--host {host} --port {port}: {reason}; name another, or port 0 for a free one.") from error


def run_server(app: FastAPI, opened: socket.socket, ready: Callable[[], None]) -> None:
    """Answers until SIGINT or SIGTERM; then takes no more, finishes what is under way, and returns. `ready` is called
    when it answers. RuntimeError where it cannot begin to."""
    server, asked = _Server(app, ready), []

    def stop(number: int, _: object) -> None:
        asked.append(number)
        server.should_exit = True

    # while it runs uvicorn catches them itself, and raises them again at its end
    before = {one: signal.signal(one, stop) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.run([opened])
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
    if not (server.started or asked):
        raise RuntimeError("the server did not start; its log says why.")


class _Server(uvicorn.Server):
    def __init__(self, app: FastAPI, ready: Callable[[], None]):
        super().__init__(
            uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=_PATIENCE_S)
        )
        self._app, self._ready = app, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for route in self._app.routes:
            if isinstance(route, Mount) and hasattr(route.app, "stop_event"):
                route.app.stop_event.set()  # else each open page holds a connection for as long as it is open
        await super().shutdown(sockets)
