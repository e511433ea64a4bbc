"""The benchmark of the router's own path: what it measures is really answered."""

from benchmarks.router_path import VALUE, RouterParts, arms_of
from kvshard.lane_messages import KeysReadReply, KeysWriteReply
from kvshard.rpc.codec import decode


async def test_every_kind_of_request_is_answered_whole():
    router = RouterParts()
    for name, (arm, keys) in arms_of(router).items():
        for _ in range(2):
            reply = await arm()
        if name.startswith("unary"):
            assert reply.item.value == VALUE
        elif name.startswith("write"):
            assert decode(KeysWriteReply, reply).existed == [True] * keys
        else:
            assert decode(KeysReadReply, reply).values == [VALUE] * keys
    await router.scatter.close()
