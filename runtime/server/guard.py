"""What stands before every request: who asks, from where, how much is sent, and a line in the log."""

from __future__ import annotations

import ipaddress
import logging
import re
import secrets
import time
from collections.abc import Collection

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import Cancelled, Refused
from .answers import error_answer
from .limits import Keys
from .logs import request_id
from .service import Service

log = logging.getLogger("tortoise_rt.server")
OPEN = ("/", "/healthz", "/readyz", "/openapi.json")  #: paths that need no key
WITH_FILES = ("/v1/audio/voices", "/v1/jobs")  #: paths whose bodies may be large
BODY_SECONDS = 60.0  #: in which a body must have come
STALL_SECONDS = 60.0  #: in which a client must take what is sent
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")  #: others are counted as one
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Guard:
    """An ASGI application before another. ``hosts``: names by which the server may be called, None for any; ``local``: only
    from this machine."""

    def __init__(
        self,
        app: ASGIApp,
        service: Service,
        keys: Keys,
        origins: Collection[str],
        hosts: Collection[str] | None,
        local: bool,
    ) -> None:
        self._app, self._service, self._keys = app, service, keys
        self._origins, self._hosts, self._local = origins, hosts, local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        began, headers = time.monotonic(), Headers(scope=scope)
        given = headers.get("x-request-id", "")
        number = given if _ID.fullmatch(given) else secrets.token_hex(8)
        state = scope.setdefault("state", {})
        state |= {"request_id": number, "log": {}, "who": None}
        request_id.set(number)
        status, method = 0, scope.get("method", "WEBSOCKET")
        method = method if method in (*METHODS, "WEBSOCKET") else "OTHER"

        async def tell(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = number
            elif message["type"] == "websocket.accept":
                status = 101
            try:
                with anyio.fail_after(STALL_SECONDS):
                    await send(message)
            except TimeoutError:
                raise ConnectionAbortedError("the client takes nothing any more") from None

        try:
            state["who"] = self._admit(scope, headers)
        except Refused as refused:
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008, "reason": str(refused)[:120]})
                status = refused.status
            else:
                await error_answer(refused)(scope, receive, tell)
        else:
            most = self._service.limits.body_bytes
            if scope["path"].startswith(WITH_FILES):
                most = self._service.limits.upload_bytes
            inside = _bounded(headers, receive, most) if scope["type"] == "http" else receive
            try:
                await self._app(scope, inside, tell)
            except ConnectionAbortedError:
                state["log"]["outcome"] = "stalled"
            except Exception as error:  # what no handler knows
                if status:
                    log.exception("a request failed while it was answered")
                else:
                    await error_answer(error)(scope, receive, tell)
        finally:
            self._service.metrics.requests.labels(method, str(status)).inc()
            if scope["path"] not in ("/healthz", "/readyz", "/metrics"):
                facts = {
                    "who": state["who"],
                    "method": method,
                    "path": scope["path"][:200],
                    "status": status,
                    "seconds": round(time.monotonic() - began, 3),
                    **state["log"],
                }
                log.info("request", extra={"facts": facts})

    def _admit(self, scope: Scope, headers: Headers) -> str | None:
        """-> who asks; None where that is still to be said. Raises Refused."""
        client = scope.get("client")
        if self._local and not (client and is_loopback(client[0])):
            raise Refused(
                "without keys this server is for its own machine alone: give it keys (--api-keys)", 403
            )
        host = headers.get("host", "")
        if self._hosts is not None and _name(host) not in self._hosts:
            raise Refused(
                f"this server is not called {_name(host)[:80]!r}: use the address that it listens on", 403
            )
        # A page of another site could have a browser ask on behalf of whoever looks at it.
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host and origin not in self._origins:
            raise Refused(
                f"pages of {origin[:80]!r} may not use this server: allow them (--allow-origin)", 403
            )
        if not self._keys or scope["path"] in OPEN:
            return client[0] if client else "local"
        kind, _, key = headers.get("authorization", "").partition(" ")
        if scope["type"] == "websocket" and not kind:
            return None  # browsers send no headers with one: the first message has the key
        return known(self._keys, key.strip() if kind.lower() == "bearer" else "")


def known(keys: Keys, key: str) -> str:
    """Whose key it is; raises Refused for none."""
    who = keys.name_of(key)
    if who is None:
        raise Refused("a key is needed, and this is none: send the header Authorization: Bearer KEY", 401)
    return who


def _name(host: str) -> str:
    """Of a Host header, without its port."""
    name = host.rpartition(":")[0] if re.search(r":\d+$", host) else host
    return name.strip("[]").lower()


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _bounded(headers: Headers, receive: Receive, most: int) -> Receive:
    """``receive`` that raises Refused for a body of more than ``most`` bytes, or one that does not come."""
    read, complete, deadline = 0, False, time.monotonic() + BODY_SECONDS

    async def bounded() -> Message:
        nonlocal read, complete
        if complete:
            return await receive()
        told = headers.get("content-length", "0")
        if told.isdecimal() and int(told[:20]) > most:
            raise Refused(f"the body has {told[:20]} bytes; the limit is {most}", 413)
        try:
            with anyio.fail_after(max(0.0, deadline - time.monotonic())):
                message = await receive()
        except TimeoutError:
            raise Refused(f"the body was not there within {BODY_SECONDS:g} s", 408) from None
        if message["type"] == "http.disconnect":
            raise Cancelled("the client has gone before its request was there")
        read += len(message.get("body", b""))
        complete = not message.get("more_body", False)
        if read > most:
            raise Refused(f"the body has more than {most} bytes, the limit", 413)
        return message

    return bounded
