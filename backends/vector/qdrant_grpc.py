"""Qdrant over gRPC: a search and a write, which are most of what a store does.

The messages are the part of Qdrant's own that these two calls need, with the
numbers of its `points.proto`. Its Python client has them all, and costs every
worker 50 MB, a second to import and 0.2 ms a call.
"""

import asyncio
import base64
from importlib import import_module
from pathlib import Path
from typing import Any

from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from backends.vector.base import Vector
from backends.vector.qdrant_rest import Point, Unreachable, closed, failure, missing, no_access, unreadable
from models.errors import BackendError, ConfigError

_SECONDS = 5.0  # a backstop: whoever calls has a deadline of its own
_PROBE_SECONDS = 1.0
_OPTIONS = [
    ("grpc.max_receive_message_length", -1),  # the default of 4 MB is less than a few large payloads
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
    # By default a server that was away for a while is not asked again for minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # A server that went without a word is noticed.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 2_000),
]
# Each field's number and type; `*` is a list of them. `bytes` stand in for packed floats and for ASCII strings, and a
# list of pairs for a map: on the wire they are the same.
_MESSAGES = {
    "PointId": {"uuid": (2, "string")},
    "Values": {"values": (1, "*Value")},
    "Value": {"number": (2, "double"), "text": (4, "bytes"), "list": (7, "Values")},
    "Pair": {"key": (1, "string"), "value": (2, "Value")},
    "Match": {"keyword": (1, "string")},
    "Range": {"gt": (2, "double")},
    "Field": {"key": (1, "string"), "match": (2, "Match"), "range": (3, "Range")},
    "Condition": {"field": (1, "Field")},
    "Filter": {"must": (2, "*Condition")},
    "Dense": {"data": (1, "bytes")},
    "Nearest": {"dense": (2, "Dense")},
    "Query": {"nearest": (1, "Nearest")},
    "Params": {"hnsw_ef": (1, "uint64")},
    "Fields": {"fields": (1, "*string")},
    "WithPayload": {"include": (2, "Fields")},
    "QueryPoints": {
        "collection": (1, "string"),
        "query": (3, "Query"),
        "filter": (5, "Filter"),
        "params": (6, "Params"),
        "limit": (8, "uint64"),
        "with_payload": (11, "WithPayload"),
    },
    "Scored": {"payload": (2, "*Pair"), "score": (3, "float")},
    "QueryResponse": {"result": (1, "*Scored")},
    "DenseOfVector": {"dense": (101, "Dense")},
    "Vectors": {"vector": (1, "DenseOfVector")},
    "PointStruct": {"id": (1, "PointId"), "payload": (3, "*Pair"), "vectors": (4, "Vectors")},
    "UpsertPoints": {"collection": (1, "string"), "wait": (2, "bool"), "points": (3, "*PointStruct")},
}


def _message_classes() -> dict[str, Any]:
    # The older syntax: it keeps zeros that were set.
    file = FileDescriptorProto(name="keepgate/qdrant.proto", package="keepgate.qdrant", syntax="proto2")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            label = FieldDescriptorProto.LABEL_REPEATED if kind[0] == "*" else FieldDescriptorProto.LABEL_OPTIONAL
            kind = kind.lstrip("*")
            if kind in _MESSAGES:
                message.field.add(name=field, number=number, label=label, type_name=f".keepgate.qdrant.{kind}")
            else:
                scalar = getattr(FieldDescriptorProto, f"TYPE_{kind.upper()}")
                message.field.add(name=field, number=number, label=label, type=scalar)
    pool = DescriptorPool()
    pool.Add(file)
    return {name: GetMessageClass(pool.FindMessageTypeByName(f"keepgate.qdrant.{name}")) for name in _MESSAGES}


_classes = _message_classes()
_QueryPoints, _QueryResponse, _UpsertPoints = (
    _classes[name] for name in ("QueryPoints", "QueryResponse", "UpsertPoints")
)


class Grpc:
    """One connection for all, at most `calls` at a time. Nothing is retried.

    A call goes on when its caller leaves: the server takes a row of calls that
    are broken off for an attack, and closes the connection on everybody.
    Raises `BackendError`; `ModuleNotFoundError` without grpcio.
    """

    def __init__(self, target: str, *, api_key: str | None, tls: bool, ca_file: Path | None, calls: int) -> None:
        """`target` is host:port. Connects when it is first used, within a running event loop."""
        self._grpc: Any = import_module("grpc")
        self._aio: Any = import_module("grpc.aio")
        self._target = target
        self._metadata = () if api_key is None else (("api-key", api_key),)
        self._credentials = self._grpc.ssl_channel_credentials(_roots(ca_file)) if tls else None
        self._channel: Any = None
        self._free = asyncio.Semaphore(calls)
        self._calls: set[asyncio.Task[bytes]] = set()

    async def probe(self) -> None:
        """Raises `Unreachable` if no Qdrant answers here."""
        await self._call("/qdrant.Qdrant/HealthCheck", b"", within=_PROBE_SECONDS)

    async def query(
        self, collection: str, vector: Vector, *, space: str, now: float, limit: int, ef: int
    ) -> list[tuple[float, bytes]]:
        """Cosine and `entry` of those of `space` that expire after `now`, most similar first."""
        request = _QueryPoints(
            collection=collection,
            query={"nearest": {"dense": {"data": vector.astype("<f4").tobytes()}}},
            filter={
                "must": [
                    {"field": {"key": "space", "match": {"keyword": space}}},
                    {"field": {"key": "expires", "range": {"gt": now}}},
                ]
            },
            params={"hnsw_ef": ef},
            limit=limit,
            with_payload={"include": {"fields": ["entry"]}},
        )
        answer = await self._call("/qdrant.Points/Query", request.SerializeToString())
        try:
            found = _QueryResponse.FromString(answer).result
            return [(scored.score, base64.b64decode(scored.payload[0].value.text)) for scored in found]
        except (DecodeError, IndexError, ValueError) as error:
            raise unreadable() from error

    async def upsert(self, collection: str, point: Point) -> None:
        payload = [
            {"key": "space", "value": {"text": point.space.encode()}},
            {"key": "path", "value": {"list": {"values": [{"text": step.encode()} for step in point.path]}}},
            {"key": "expires", "value": {"number": point.expires}},
            {"key": "entry", "value": {"text": base64.b64encode(point.entry)}},
        ]
        vectors = {"vector": {"dense": {"data": point.vector.astype("<f4").tobytes()}}}
        request = _UpsertPoints(
            collection=collection,
            wait=True,
            points=[{"id": {"uuid": point.point_id}, "payload": payload, "vectors": vectors}],
        )
        await self._call("/qdrant.Points/Upsert", request.SerializeToString())

    async def close(self) -> None:
        if self._channel is not None:
            await self._channel.close()
            await asyncio.gather(*self._calls, return_exceptions=True)

    async def _call(self, method: str, request: bytes, *, within: float = _SECONDS) -> bytes:
        await self._free.acquire()
        call = asyncio.create_task(self._answer(method, request, within))
        self._calls.add(call)
        call.add_done_callback(self._ended)
        try:
            return await asyncio.shield(call)
        except asyncio.CancelledError:
            if call.cancelled():  # the channel was closed; if the caller was cancelled too, it will find out
                raise closed() from None
            raise

    async def _answer(self, method: str, request: bytes, within: float) -> bytes:
        try:
            answer: bytes = await self._open().unary_unary(method)(request, timeout=within, metadata=self._metadata)
        except self._aio.AioRpcError as error:
            raise self._failure(error) from error
        except self._aio.UsageError as error:
            raise closed() from error
        return answer

    def _ended(self, call: asyncio.Task[bytes]) -> None:
        self._calls.discard(call)
        self._free.release()
        if not call.cancelled():
            call.exception()  # the caller has been told, if it still was there

    def _open(self) -> Any:
        if self._channel is None:
            self._channel = (
                self._aio.insecure_channel(self._target, options=_OPTIONS)
                if self._credentials is None
                else self._aio.secure_channel(self._target, self._credentials, options=_OPTIONS)
            )
        return self._channel

    def _failure(self, error: Any) -> BackendError:
        code = error.code()
        match code.name:
            case "NOT_FOUND":
                return missing()
            case "UNAUTHENTICATED" | "PERMISSION_DENIED":
                return no_access()
            case "UNAVAILABLE" | "DEADLINE_EXCEEDED" | "UNIMPLEMENTED":
                return Unreachable(f"Qdrant cannot be reached over gRPC: {code.name}")
        return failure(code.name, error.details() or "", full=True)


def _roots(ca_file: Path | None) -> bytes | None:
    try:
        return None if ca_file is None else ca_file.read_bytes()
    except OSError as error:
        raise ConfigError(f"qdrant.ca_file: {ca_file} cannot be used: {error}") from error
