"""Routes, and who may take them."""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Middleware

from exporter.config.web import WebConfig
from exporter.core.cap import Override
from exporter.page import CONTENT_TYPE
from exporter.web import landing, snapshot_json
from exporter.web.auth import BasicAuth
from exporter.web.board import Board

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_LARGEST_BODY_BYTES: Final = 2**20
_OPEN: Final = ("/-/healthy", "/-/ready")  # a kubelet has no password, and they tell nothing
_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}


@dataclass(slots=True)
class Guard:
    """Who may ask. While `broken`, a web config is named and none could be used yet: only the health routes answer."""

    config: WebConfig = field(default_factory=WebConfig)
    auth: BasicAuth | None = None
    broken: bool = False

    def adopt(self, config: WebConfig) -> None:
        """Put another web config in force."""
        self.config, self.broken = config, False
        self.auth = BasicAuth(config.basic_auth_users) if config.basic_auth_users else None


def make_app(
    board: Board,
    guard: Guard,
    desks: Iterable[web.RouteDef],
    overrides: Callable[[], Mapping[str, Override]],
    reload: Callable[[], Awaitable[list[str]]],
) -> web.Application:
    """Make the application.

    `desks` are the routes that change something; `overrides` are those of budgets in force; `reload` returns why the
    config could not be reloaded, nothing when it was.
    """

    async def metrics(request: web.Request) -> web.Response:
        page = board.page()
        headers = {"Content-Type": CONTENT_TYPE, "Vary": "Accept-Encoding"}
        if _takes_gzip(request.headers.get("Accept-Encoding", "")):
            return web.Response(body=page.compressed, headers={**headers, "Content-Encoding": "gzip"})
        return web.Response(body=page.body, headers=headers)

    async def healthy(_: web.Request) -> web.Response:
        return (
            web.Response(text="healthy\n")
            if board.is_alive()
            else web.Response(status=503, text="the beat has stopped\n")
        )

    async def ready(_: web.Request) -> web.Response:
        return web.Response(text="ready\n")

    async def reloaded(_: web.Request) -> web.Response:
        problems = await reload()
        return (
            web.Response(status=500, text="\n".join(problems) + "\n") if problems else web.Response(text="reloaded\n")
        )

    async def snapshot(_: web.Request) -> web.Response:
        return web.Response(body=snapshot_json.encode(board.snapshot, overrides()), content_type="application/json")

    async def home(_: web.Request) -> web.Response:
        text = landing.render(board.snapshot, overrides(), board.stands_seconds())
        headers = {"Content-Security-Policy": landing.POLICY, "Cache-Control": "no-store"}
        return web.Response(text=text, content_type="text/html", headers=headers)

    app = web.Application(middlewares=[_guarded(guard)], client_max_size=_LARGEST_BODY_BYTES)
    app.add_routes(
        [
            web.get("/", home),
            web.get("/metrics", metrics),
            web.get("/-/healthy", healthy),
            web.get("/-/ready", ready),
            web.post("/-/reload", reloaded),
            web.put("/-/reload", reloaded),
            web.get("/v1/snapshot", snapshot),
            *desks,
        ]
    )
    return app


def _takes_gzip(accepted: str) -> bool:
    for choice in accepted.lower().split(","):
        name, _, weight = choice.replace(" ", "").partition(";q=")
        if name == "gzip":
            return weight.strip("0.") != "" or not weight
    return False


def _guarded(guard: Guard) -> Middleware:
    async def refusal(request: web.Request) -> web.Response | None:
        if request.path in _OPEN:
            return None
        if guard.config.tls_server_config is not None and not request.secure:
            return web.Response(status=403, text="this connection began without TLS\n")
        if guard.broken:
            return web.Response(status=503, text="the web config cannot be used; see the log\n")
        if guard.auth is not None and not await guard.auth.allows(request.headers.get("Authorization")):
            return web.Response(status=401, text="unauthorized\n", headers={"WWW-Authenticate": "Basic"})
        return None

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            response = await refusal(request) or await handler(request)
        except web.HTTPException as error:
            _add_headers(error, guard.config)
            raise
        _add_headers(response, guard.config)
        return response

    return check


def _add_headers(response: web.StreamResponse, config: WebConfig) -> None:
    """Add ours, but for those that the handler has set; the web config's go before both."""
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)
    response.headers.update(config.http_server_config.headers)
