"""The page over HTTP, by Starlette and uvicorn: it reads no file that a request names."""

import importlib.resources
import socket

from hamgan.serving import controls, studio

_PARTS = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
# Nothing from elsewhere is loaded, and no other page may show or read this one.
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_EVERYWHERE = ("", "0.0.0.0", "::")


def check():
    """ValueError unless the extra `web` is installed."""
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"The page needs the extra web ({error}): pip install 'hamgan[web]'."
        ) from None


def application(drawn, *, hosts=("localhost", "127.0.0.1")):
    """The application.

    Args:
      drawn: the `studio.Studio`.
      hosts: names by which a browser may ask for it; ['*']: any. Another site whose name is made
        to mean this machine can't read it then.

    Returns:
      A `starlette.applications.Starlette`.
    """
    from starlette import applications, middleware, responses, routing
    from starlette.middleware import trustedhost

    def part(path):
        name, kind = _PARTS[path]
        # Read once, by names that stand here: no part of a URL is ever a path.
        body = importlib.resources.files(__package__).joinpath(name).read_bytes()
        return routing.Route(
            path, lambda request: responses.Response(body, media_type=kind, headers=_HEADERS)
        )

    def picture(path, read, draw):
        def answer(request):  # not async: Starlette runs it in a thread
            asked = read(request.query_params.multi_items(), drawn.offer)
            return responses.Response(draw(asked), media_type="image/png", headers=_HEADERS)

        return routing.Route(path, answer)

    def failed(status):
        def answer(request, error):
            known = isinstance(error, controls.Refused | studio.Busy)
            words = str(error) if known else "The picture couldn't be drawn: see the server's log."
            return responses.JSONResponse({"error": words}, status, headers=_HEADERS)

        return answer

    def about(request):
        return responses.JSONResponse(_about(drawn), headers=_HEADERS)

    return applications.Starlette(
        routes=[
            *(part(path) for path in _PARTS),
            routing.Route("/about", about),
            picture("/image", controls.images, lambda asked: studio.row(drawn.images(asked))),
            picture("/way", controls.way, lambda asked: studio.row(drawn.way(asked))),
            picture("/ham", controls.ham, drawn.ham),
        ],
        middleware=[
            middleware.Middleware(
                trustedhost.TrustedHostMiddleware, allowed_hosts=[*hosts], www_redirect=False
            )
        ],
        exception_handlers={
            controls.Refused: failed(400),
            studio.Busy: failed(503),
            Exception: failed(500),
        },
    )


def _about(drawn):
    """What the page builds its controls of."""
    return {
        **drawn.about,
        "classes": drawn.offer.names,
        "weights": drawn.offer.weights,
        "batch_norms": controls.BATCH_NORMS,
        "networks": drawn.offer.networks,
    }


def listen(host, port):
    """A socket that waits for browsers.

    Args:
      host: name or address.
      port: 0: any that is free.

    Raises:
      ValueError: there can't be one.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise ValueError(
            f"The page can't be served at {host}, port {port} ({error}): choose another --port "
            "(0: any that is free), or --host."
        ) from None


def address(host, sock):
    """What to open in a browser."""
    name = "localhost" if host in _EVERYWHERE else f"[{host}]" if ":" in host else host
    return f"http://{name}:{sock.getsockname()[1]}/"


def serve(drawn, host, sock):
    """Serves the page until it is interrupted."""
    import uvicorn

    hosts = ["*"] if host in _EVERYWHERE or ":" in host else [host, "localhost", "127.0.0.1"]
    config = uvicorn.Config(
        application(drawn, hosts=hosts), log_level="warning", server_header=False
    )
    try:
        uvicorn.Server(config).run(sockets=[sock])
    except KeyboardInterrupt:
        pass
