"""The physical limit: a `grpc.aio` server that answers each unary call with the bytes it got."""

import grpc
import uvloop

METHOD = "/kvshard.benchmarks.Echo/Echo"


async def _echo(request: bytes, context: object) -> bytes:
    return request


class _Handler(grpc.GenericRpcHandler):
    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[bytes, bytes] | None":
        if handler_call_details.method != METHOD:
            return None
        return grpc.unary_unary_rpc_method_handler(_echo)


async def serve() -> None:
    """Serve on an ephemeral loopback port, printed as `ready: host:port`, until terminated."""
    server = grpc.aio.server(handlers=(_Handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"ready: 127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(serve())
