"""How one request is sent: through a Serve handle or over HTTP; `send(payload)` raises where it fails."""

import asyncio
from collections.abc import Awaitable
from typing import Any, Protocol

HTTP_KEYS = {"method", "path", "json", "body", "headers"}


def is_http(payload: Any) -> bool:
    """Whether a payload describes an HTTP request: `{"method", "path", "json" | "body", "headers"}`."""
    return isinstance(payload, dict) and "method" in payload and "path" in payload and set(payload) <= HTTP_KEYS


class Client(Protocol):
    """Sends requests to one application."""

    def send(self, payload: Any) -> Awaitable[Any]:
        """Sends one request; the awaitable raises if it fails, and cancelling it gives the request up."""
        ...

    async def close(self) -> None:
        """Frees connections."""
        ...


class HandleClient:
    """Through a Serve handle: no proxy, no serialisation to text."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def send(self, payload: Any) -> Any:
        """See `Client`."""
        response = self._handle.remote() if payload is None else self._handle.remote(payload)
        try:
            return await response
        except asyncio.CancelledError:
            response.cancel()
            raise

    async def close(self) -> None:
        """See `Client`."""


class HttpError(Exception):
    """A status of 400 or more."""


class HttpClient:
    """Over HTTP, for applications with an ingress. As many connections as there are requests in flight."""

    def __init__(self, root_url: str) -> None:
        import aiohttp  # not needed, and not quick to import, where handles are used

        self._root_url = root_url.rstrip("/")
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))

    async def send(self, payload: Any) -> Any:
        """See `Client`."""
        url = self._root_url + "/" + str(payload["path"]).lstrip("/")
        async with self._session.request(
            str(payload["method"]),
            url,
            json=payload.get("json"),
            data=payload.get("body"),
            headers=payload.get("headers"),
        ) as response:
            body = await response.read()
            if response.status >= 400:
                raise HttpError(f"HTTP {response.status}: {body[:200].decode(errors='replace')}")
            return body

    async def close(self) -> None:
        """See `Client`."""
        await self._session.close()
