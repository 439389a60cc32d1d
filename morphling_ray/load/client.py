"""How one request is sent: through a Serve handle, over HTTP or by gRPC; `send(payload)` raises where it fails."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from typing import Any, Protocol

from morphling_ray.load.requests import is_call

GRPC = "grpc://"
BUSY = {429, 503}


class Client(Protocol):
    """Sends requests to one application."""

    def send(self, payload: Any) -> Awaitable[Any]:
        """Sends one request; the awaitable raises if it fails, and cancelling it gives the request up."""
        ...

    def stream(self, payload: Any) -> AsyncIterator[int]:
        """Sends one request whose answer is streamed, and yields how many tokens each piece of it holds."""
        ...

    async def close(self) -> None:
        """Frees connections."""
        ...


class HandleClient:
    """Through a Serve handle: no proxy, no serialisation to text."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._methods: dict[tuple[str, str, bool], Any] = {}

    def _remote(self, payload: Any, *, stream: bool) -> Any:
        argument = [] if payload is None else [payload]
        called: dict[str, Any] = payload if is_call(payload) else {"call": "__call__", "args": argument}
        key = called["call"], called.get("multiplexed_model_id", ""), stream
        if key not in self._methods:
            options = dict(zip(("method_name", "multiplexed_model_id", "stream"), key))
            self._methods[key] = self._handle.options(**options)
        return self._methods[key].remote(*called.get("args", ()), **called.get("kwargs", {}))

    async def send(self, payload: Any) -> Any:
        """See `Client`."""
        response = self._remote(payload, stream=False)
        try:
            return await response
        except asyncio.CancelledError:
            response.cancel()
            raise

    async def stream(self, payload: Any) -> AsyncIterator[int]:
        """See `Client`: each item that the application yields is a token."""
        response = self._remote(payload, stream=True)
        try:
            async for _ in response:
                yield 1
        except asyncio.CancelledError:
            response.cancel()
            raise

    async def close(self) -> None:
        """See `Client`."""


class HttpError(Exception):
    """A status of 400 or more.

    Args:
        status: It.
        body: What came with it, or the beginning of that.
    """

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"HTTP {status}: {body[:200].decode(errors='replace')}")
        self.status = status


def turned_away(error: BaseException) -> bool:
    """Whether the application takes no more requests at the moment, but may take one that comes later.

    Serve says so where `max_queued_requests` is reached: by its own error, as HTTP 503 or as gRPC's RESOURCE_EXHAUSTED.
    Web applications say 429.
    """
    if isinstance(error, HttpError):
        return error.status in BUSY
    if callable(code := getattr(error, "code", None)):
        return getattr(code(), "name", "") == "RESOURCE_EXHAUSTED"
    return type(cause(error)).__name__ == "BackPressureError"


def cause(error: BaseException) -> BaseException:
    """What a replica raised, where that is what the error tells of; else the error itself."""
    return getattr(error, "cause", None) or error.__cause__ or error


class HttpClient:
    """Over HTTP, for applications with an ingress. As many connections as there are requests in flight."""

    def __init__(self, root_url: str) -> None:
        import aiohttp  # not needed, and not quick to import, where handles are used

        self._root_url = root_url.rstrip("/")
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))

    async def send(self, payload: Any) -> Any:
        """See `Client`."""
        async with self._request(payload) as response:
            await self._check(response)
            return await response.read()

    def _request(self, payload: Any) -> Any:
        return self._session.request(
            str(payload["method"]),
            self._root_url + "/" + str(payload["path"]).lstrip("/"),
            json=payload.get("json"),
            data=payload.get("body"),
            headers=payload.get("headers"),
        )

    @staticmethod
    async def _check(response: Any) -> None:
        if response.status >= 400:
            raise HttpError(response.status, await response.read())

    async def stream(self, payload: Any) -> AsyncIterator[int]:
        """See `Client`: each line that is not empty is a token, so that pieces which travel together count as many."""
        async with self._request(payload) as response:
            await self._check(response)
            async for piece in response.content.iter_any():
                yield max(1, sum(bool(line.strip()) for line in piece.splitlines()))

    async def close(self) -> None:
        """See `Client`."""
        await self._session.close()


class GrpcClient:
    """By gRPC, through Serve's gRPC proxy: unary calls, on one connection as gRPC clients have it.

    Args:
        target: `host:port`.
        app_name: The Serve application that the proxy shall pass calls on to.
    """

    def __init__(self, target: str, app_name: str) -> None:
        import grpc  # see HttpClient

        unlimited = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        self._channel = grpc.aio.insecure_channel(target, options=unlimited)
        self._metadata = (("application", app_name),)
        self._calls: dict[str, Any] = {}

    async def send(self, payload: Any) -> Any:
        """See `Client`. The answer stays in its serialised form."""
        method, message = payload["method"], payload["message"]
        if method not in self._calls:
            serialise = type(message).SerializeToString
            self._calls[method] = self._channel.unary_unary(method, request_serializer=serialise)
        return await self._calls[method](message, metadata=self._metadata)

    def stream(self, payload: Any) -> AsyncIterator[int]:
        """See `Client`."""
        raise NotImplementedError("streams go through a Serve handle or HTTP")

    async def close(self) -> None:
        """See `Client`."""
        await self._channel.close()


def connect(app_name: str, root_url: str | None) -> Client:
    """The client of an application; call it inside an event loop.

    Args:
        app_name: Its name in Serve.
        root_url: `http://host:port/prefix` or `grpc://host:port` of Serve's proxy; None: through the Serve handle.
    """
    if root_url is None:
        from ray import serve

        return HandleClient(serve.get_app_handle(app_name))
    if root_url.startswith(GRPC):
        return GrpcClient(root_url.removeprefix(GRPC), app_name)
    return HttpClient(root_url)
