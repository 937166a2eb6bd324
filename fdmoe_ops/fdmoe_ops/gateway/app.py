"""What the gateway answers at which path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from prometheus_client.exposition import choose_encoder
from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send

from fdmoe_ops.gateway import called, protocol
from fdmoe_ops.gateway.infer import Infer
from fdmoe_ops.gateway.link import Links
from fdmoe_ops.gateway.metrics import Metrics
from fdmoe_ops.gateway.refusal import Refusal
from fdmoe_ops.gateway.reply import Reply, refused, send_reply

_TEXT = [(b"content-type", b"text/plain; charset=utf-8")]
_JSON = [(b"content-type", b"application/json")]


class Get:
    """An ASGI endpoint that answers from what the process knows."""

    def __init__(self, answer: Callable[[Scope], Reply]) -> None:
        self._answer = answer

    async def __call__(self, scope: Scope, _receive: Receive, send: Send) -> None:
        try:
            if scope["method"] not in ("GET", "HEAD"):
                raise Refusal(405, f"the method is {scope['method']}; GET is allowed", headers=((b"allow", b"GET"),))
            reply = self._answer(scope)
        except Refusal as refusal:
            reply = _turned_away(refusal, scope)
        await send_reply(send, reply)


def build(infer: Infer, links: Links, metrics: Metrics, version: str) -> Router:
    """A plain router: Starlette's application would put two layers of middleware around every request."""

    def ready(_scope: Scope) -> Reply:
        return _probe(links.ready and not infer.draining, "draining" if infer.draining else "no worker is active")

    def model_ready(scope: Scope) -> Reply:
        layer = infer.layer(scope["path_params"]["name"])
        reason = "draining" if infer.draining else f"no worker is active for {layer.name}"
        return _probe(links.ready and not infer.draining, reason)

    def models(_scope: Scope) -> Reply:
        # the protocol has no list; this is the form of KServe's V1
        return _json({"models": infer.layers()})

    def model(scope: Scope) -> Reply:
        return _json(protocol.model_metadata(infer.layer(scope["path_params"]["name"])))

    def scrape(scope: Scope) -> Reply:
        accept = dict(scope["headers"]).get(b"accept", b"").decode("latin-1")
        try:
            encode, content_type = choose_encoder(accept)
        except (TypeError, ValueError) as error:  # it compares version numbers
            raise Refusal(406, f"Accept is {accept[:64]!r}; a version in it is digits with dots") from error
        return Reply(200, [(b"content-type", content_type.encode())], encode(metrics.registry))

    return Router(
        [
            Route("/v2/models/{name:path}/infer", infer),
            Route("/v2/models/{name:path}/ready", Get(model_ready)),
            Route("/v2/models/{name:path}", Get(model)),
            Route("/v2/models", Get(models)),
            Route("/v2/health/live", Get(lambda _: _probe(True, ""))),
            Route("/v2/health/ready", Get(ready)),
            Route("/v2", Get(lambda _: _json(protocol.server_metadata(version)))),
            Route("/livez", Get(lambda _: _probe(True, ""))),
            Route("/readyz", Get(ready)),
            Route("/startupz", Get(lambda _: _probe(links.started, "no worker has been ready yet"))),
            Route("/metrics", Get(scrape)),
        ],
        redirect_slashes=False,
        default=_unknown,
    )


async def _unknown(scope: Scope, _receive: Receive, send: Send) -> None:
    places = "/v2, /v2/health, /v2/models, /v2/models/LAYER, /startupz, /livez, /readyz and /metrics"
    await send_reply(send, _turned_away(Refusal(404, f"nothing is at {scope['path']}; there are {places}"), scope))


def _turned_away(refusal: Refusal, scope: Scope) -> Reply:
    """Whoever meant to send an inference request, and missed its address, finds the answer by its name, too."""
    reply = refused(refusal)
    reply.headers.append((called.HEADER, called.from_headers(scope["headers"]).id.encode("ascii")))
    return reply


def _probe(ok: bool, reason: str) -> Reply:
    return Reply(200, _TEXT, b"ok\n") if ok else Reply(503, _TEXT, f"{reason}\n".encode())


def _json(document: dict[str, Any]) -> Reply:
    return Reply(200, _JSON, msgspec.json.encode(document))
