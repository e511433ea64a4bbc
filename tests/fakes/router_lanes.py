"""The lanes of a `FakeRouter`: each frame stands for calls of its unary methods, so that tests see the same either way."""

import queue
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc

from kvshard.errors import Internal, KvShardError, Unimplemented, record_of
from kvshard.lane_messages import KeysRead, KeysReadReply, KeysWrite, KeysWriteReply
from kvshard.rpc.codec import CANCEL, LANE_MARK, READ_KEYS, WRITE_KEYS, decode, encode, encode_error
from kvshard.rpc.status import failure_of_key
from kvshard.v1 import kv_pb2, lane_pb2, lane_pb2_grpc, types_pb2


class CallFailed(Exception):
    """What a call of a unary method came to: a kvshard error, or a failure of gRPC itself."""

    def __init__(self, error: KvShardError | grpc.StatusCode) -> None:
        super().__init__(repr(error))
        self.error = error


class FrameContext:
    """What a unary method sees of a frame."""

    def __init__(self, is_active) -> None:
        self.is_active = is_active

    def fail(self, error: KvShardError | grpc.StatusCode) -> None:
        raise CallFailed(error)


class FakeLanes(lane_pb2_grpc.LanesServicer):
    """kv: the unary service. A failure of gRPC itself breaks the lane."""

    def __init__(self, router, kv) -> None:
        self._router = router
        self._kv = kv

    def Lane(self, request_iterator, context):
        context.send_initial_metadata((LANE_MARK,))
        outbox: queue.SimpleQueue = queue.SimpleQueue()
        cancelled: set[int] = set()
        pool = ThreadPoolExecutor(8)

        def serve(frame) -> None:
            context_of_frame = FrameContext(lambda: frame.id not in cancelled and context.is_active())
            try:
                outbox.put(lane_pb2.ResponseFrame(id=frame.id, payload=self._answer(frame, context_of_frame)))
            except CallFailed as failed:
                outbox.put(_error_frame(frame, failed.error))
            except KvShardError as error:
                outbox.put(_error_frame(frame, error))
            except Exception as defect:
                outbox.put(_error_frame(frame, Internal(repr(defect))))

        def read() -> None:
            try:
                for message in request_iterator:
                    self._router.messages.append([frame.id for frame in message.frames])
                    for frame in message.frames:
                        if frame.method == CANCEL:
                            cancelled.add(frame.id)
                        else:
                            pool.submit(serve, frame)
            except Exception:  # The client has gone.
                pass
            finally:
                outbox.put(None)

        reader = threading.Thread(target=read)
        reader.start()
        try:
            while (item := outbox.get()) is not None:
                if isinstance(item, grpc.StatusCode):
                    context.abort(item, "as gRPC itself would say it")
                yield lane_pb2.LaneResponse(frames=[item])
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _answer(self, frame, context) -> bytes:
        if frame.method == READ_KEYS.number:
            request = decode(KeysRead, frame.payload)
            self._router.frames.append(request)
            return encode(self._read_alone(request, context) if request.is_each_alone else self._read(request, context))
        if frame.method == WRITE_KEYS.number:
            request = decode(KeysWrite, frame.payload)
            self._router.frames.append(request)
            return encode(self._write_alone(request, context) if request.is_each_alone else self._write(request, context))
        raise Unimplemented(f"no method {frame.method}")

    def _read(self, request, context) -> KeysReadReply:
        options = types_pb2.ReadOptions.FromString(request.options)
        found = self._kv.BatchGet(
            kv_pb2.BatchGetRequest(collection=request.collection, keys=request.keys, options=options), context
        )
        values = [value if version else None for value, version in zip(found.values, found.versions, strict=True)]
        versions, expires_at_ms = list(found.versions), list(found.expires_at_ms)
        for column in ("values", "versions", "expires_at_ms"):
            found.ClearField(column)
        return KeysReadReply(values, versions, expires_at_ms, found.SerializeToString())

    def _read_alone(self, request, context) -> KeysReadReply:
        options = types_pb2.ReadOptions.FromString(request.options)

        def get(key):
            message = kv_pb2.GetRequest(collection=request.collection, key=key, options=options)
            return _outcome(lambda: self._kv.Get(message, context))

        with ThreadPoolExecutor(min(8, len(request.keys))) as pool:
            outcomes = list(pool.map(get, request.keys))
        rest = kv_pb2.BatchGetResponse(failures=_failures(outcomes))
        rows = [outcome if isinstance(outcome, kv_pb2.GetResponse) else kv_pb2.GetResponse() for outcome in outcomes]
        for row in rows:
            if row.HasField("timing"):
                rest.timing.CopyFrom(row.timing)
            if row.HasField("state"):
                rest.states.append(row.state)
        expires_at_ms = [row.item.expires_at_ms for row in rows]
        return KeysReadReply(
            [row.item.value if row.HasField("item") else None for row in rows],
            [row.item.version for row in rows],
            expires_at_ms if any(expires_at_ms) else [],
            rest.SerializeToString(),
        )

    def _write(self, request, context) -> KeysWriteReply:
        deletes = [value is None for value in request.values]
        written = self._kv.BatchWrite(
            kv_pb2.BatchWriteRequest(
                collection=request.collection,
                keys=request.keys,
                values=[value or b"" for value in request.values],
                deletes=deletes if any(deletes) else None,
                ttl_ms=request.ttl_ms,
                conditions=[_condition(condition) for condition in request.conditions],
                refresh=request.refresh,
                request_id=types_pb2.RequestId.FromString(request.request_id),
            ),
            context,
        )
        versions, existed = list(written.versions), list(written.existed)
        written.ClearField("versions")
        written.ClearField("existed")
        return KeysWriteReply(versions, existed, written.SerializeToString())

    def _write_alone(self, request, context) -> KeysWriteReply:
        id = types_pb2.RequestId.FromString(request.request_id)
        outcomes = []
        for index, (key, value) in enumerate(zip(request.keys, request.values, strict=True)):
            condition = _condition(request.conditions[index]) if request.conditions else None
            kind = kv_pb2.DeleteRequest if value is None else kv_pb2.PutRequest
            message = kind(collection=request.collection, key=key, condition=condition, refresh=request.refresh, request_id=id)
            if value is not None:
                message.value = value
                message.ttl_ms = request.ttl_ms[index] if request.ttl_ms else 0
            call = self._kv.Delete if value is None else self._kv.Put
            outcomes.append(_outcome(lambda call=call, message=message: call(message, context)))
        watermarks = next((each.watermarks for each in outcomes if getattr(each, "watermarks", b"")), b"")
        rest = kv_pb2.BatchWriteResponse(failures=_failures(outcomes), watermarks=watermarks)
        return KeysWriteReply(
            [getattr(each, "version", 0) for each in outcomes],
            [getattr(each, "existed", False) for each in outcomes],
            rest.SerializeToString(),
        )


def _outcome(call):
    """The answer of a call, or its own error. A failure of gRPC itself hits the whole frame."""
    try:
        return call()
    except CallFailed as failed:
        if isinstance(failed.error, KvShardError):
            return failed.error
        raise


def _failures(outcomes) -> list[types_pb2.KeyFailure]:
    if len(outcomes) == 1 and isinstance(outcomes[0], KvShardError):
        raise outcomes[0]
    return [
        types_pb2.KeyFailure(index=index, failure=failure_of_key(record_of(outcome)))
        for index, outcome in enumerate(outcomes)
        if isinstance(outcome, KvShardError)
    ]


def _condition(condition: int | None) -> types_pb2.WriteCondition:
    if condition is None:
        return types_pb2.WriteCondition()
    return types_pb2.WriteCondition(if_version=condition) if condition else types_pb2.WriteCondition(if_absent=True)


def _error_frame(frame, error: KvShardError | grpc.StatusCode):
    if isinstance(error, grpc.StatusCode):
        return error
    return lane_pb2.ResponseFrame(id=frame.id, is_error=True, payload=encode_error(error))
