"""Searches that must see writes which other clients made, and what they say of those that they do not see."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from harness.cluster import UpProcess

from kvshard import Client, InvalidArgument, Unavailable
from kvshard.cli import main
from kvshard.scatter.min_versions import MinVersions
from kvshard.sync import Client as SyncClient
from kvshard.v1 import kv_pb2, kv_pb2_grpc, search_pb2, search_pb2_grpc

SCHEMA = {"title": "text", "body": "text", "tag": "keyword", "n": "integer"}


@pytest.fixture
async def kv(shared_cluster: UpProcess) -> AsyncIterator[Client[str]]:
    async with Client(shared_cluster.address, timeout=20.0) as client:
        yield client


async def test_a_token_of_one_client_makes_another_see_its_writes_at_any_replica(
    kv: Client[str], shared_cluster: UpProcess
) -> None:
    docs = kv.collection("tokens")
    await docs.create(schema=SCHEMA)
    assert docs.watermark() == b""
    async with Client(shared_cluster.address, timeout=20.0) as other:
        found: Any = other.collection("tokens")
        for round_ in range(4):
            await docs.put_many({f"{round_}-{n}": {"body": f"fresh round{round_}"} for n in range(20)})
            await docs.put(f"{round_}-x", {"body": f"fresh round{round_}"})
            token = docs.watermark()
            # Each of many answers may come from another replica.
            pages = await asyncio.gather(
                *(
                    found.search(f"round{round_}", min_versions=token, replica_choice=choice)
                    for choice in ("random", "random", "primary", "adaptive")
                )
            )
            assert [page.total for page in pages] == [21] * 4
        await docs.delete("0-x")
        assert (await found.search("round0", min_versions=docs.watermark())).total == 20
        await other.collection("tokens").put("y", {"body": "fresh round0"})
        both = [docs.watermark(), other.collection("tokens").watermark()]
        assert (await docs.search("round0", min_versions=both)).total == 21
    assert kv.collection("tokens").watermark() == docs.watermark(), "it is of the client, not of the handle"


async def test_tokens_of_the_sync_client(shared_cluster: UpProcess) -> None:
    def work() -> tuple[int, bytes]:
        with SyncClient(shared_cluster.address, timeout=20.0) as kv:
            docs = kv.collection("sync-tokens")
            docs.create(schema=SCHEMA)
            docs.put("a", {"body": "fresh"}, refresh="wait")
            docs.put("b", {"body": "fresh"})
            return docs.search("fresh", min_versions=docs.watermark()).total, docs.watermark()

    total, token = await asyncio.to_thread(work)
    assert total == 2
    assert MinVersions.decode(token)


async def test_tokens_without_the_client(kv: Client[str], shared_cluster: UpProcess) -> None:
    """Any gRPC client has them: of each write its answer's, and several in one search."""
    await kv.collection("raw-tokens").create(schema=SCHEMA)
    document = b'{"body": "fresh"}'
    async with grpc.aio.insecure_channel(shared_cluster.address) as channel:
        keys, searches = kv_pb2_grpc.KVStub(channel), search_pb2_grpc.SearchStub(channel)
        tokens = [
            (await keys.Put(kv_pb2.PutRequest(collection="raw-tokens", key=b"a", value=document))).written,
            (await keys.Put(kv_pb2.PutRequest(collection="raw-tokens", key=b"b", value=document, refresh=True))).written,
            (
                await keys.BatchWrite(
                    kv_pb2.BatchWriteRequest(collection="raw-tokens", keys=[b"c", b"d"], values=[document, document])
                )
            ).written,
            (await keys.Delete(kv_pb2.DeleteRequest(collection="raw-tokens", key=b"b"))).written,
        ]
        assert all(tokens)
        request = search_pb2.SearchRequest(collection="raw-tokens", query="fresh", min_versions=tokens)
        assert sorted(hit.key for hit in (await searches.Search(request)).hits) == [b"a", b"c", b"d"]
        assert (await keys.Put(kv_pb2.PutRequest(key=b"plain", value=b"x"))).written == b"", "nothing can search it"
        with pytest.raises(grpc.aio.AioRpcError, match="next_refresh") as refused:
            await keys.Put(kv_pb2.PutRequest(collection="raw-tokens", key=b"a", value=document, next_refresh=True))
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_tokens_of_the_command_line(
    kv: Client[str], shared_cluster: UpProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    await kv.collection("cli-tokens").create(schema=SCHEMA)

    def run(*words: str) -> dict[str, Any]:
        assert main([*words, "--json", "--router", shared_cluster.address]) == 0
        return json.loads(capsys.readouterr().out)  # type: ignore[no-any-return]

    tokens = []
    for number in range(3):
        told = await asyncio.to_thread(run, "put", f"k{number}", '{"body": "fresh"}', "--collection", "cli-tokens")
        tokens += ["--min-versions", told["written"]]
    page = await asyncio.to_thread(run, "search", "cli-tokens", "fresh", *tokens)
    assert page["total"] == 3
    await asyncio.to_thread(run, "put", "k3", '{"body": "fresh"}', "--collection", "cli-tokens", "--wait")
    told = await asyncio.to_thread(run, "delete", "k0", "--collection", "cli-tokens", "--wait")
    assert told["existed"]
    assert (await asyncio.to_thread(run, "search", "cli-tokens", "fresh"))["total"] == 3
    assert "written" not in await asyncio.to_thread(run, "put", "plain", "x")


async def test_what_is_no_token_and_what_is_of_another_cluster_is_refused(kv: Client[str]) -> None:
    docs = kv.collection("no-tokens")
    await docs.create(schema=SCHEMA)
    for token in (b"garbage", MinVersions({0: 1}).encode()[:-1]):
        with pytest.raises(InvalidArgument) as refused:
            await docs.search("*", min_versions=[b"", token])
        assert refused.value.details.field == "min_versions[0]"
    with pytest.raises(InvalidArgument, match="no shard 4711") as refused:
        await docs.search("*", min_versions=MinVersions({4711: 1}).encode())
    assert refused.value.details.field == "min_versions"
    with pytest.raises(InvalidArgument, match="several: bytes, not str"):
        await docs.search("*", min_versions="token")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match='False, True or "wait"'):
        await docs.put("k", {"body": "x"}, refresh="soon")  # type: ignore[arg-type]


async def test_a_write_that_nobody_made_ends_with_the_deadline_and_names_its_shard(kv: Client[str]) -> None:
    docs = kv.collection("future")
    await docs.create(schema=SCHEMA)
    future = MinVersions({3: 10**9}).encode()
    assert (await docs.search("*")).complete, "the indexes are there"
    with pytest.raises(Unavailable) as late:
        await docs.search("*", min_versions=future, timeout=0.8)
    assert 3 in late.value.details.shards
    page = await docs.search("*", min_versions=future, timeout=0.8, on_shortfall="partial")
    assert 3 in [failed.shard for failed in page.coverage.failed]


async def test_an_answer_states_how_fresh_it_is(kv: Client[str]) -> None:
    docs = kv.collection("stated")
    await docs.create(schema=SCHEMA)
    await docs.put("k", {"body": "fresh"}, refresh=True)
    # This refresh was the last one: the next in turn is up to half a second away.
    await docs.put("k", {"body": "newer"})
    page = await docs.search("newer", replica_choice="primary")
    if page.total == 0:
        assert page.unseen_age_ms is not None
        assert 1 <= page.unseen_age_ms < 20_000
    page = await docs.search("newer", min_versions=docs.watermark())
    assert page.total == 1
    for _ in range(200):
        page = await docs.search("newer")
        if page.unseen_age_ms == 0:
            break
        await asyncio.sleep(0.05)
    assert page.unseen_age_ms == 0, "when nothing is written all is shown, at every replica"


async def test_a_write_that_waits_for_the_refresh_in_turn_is_seen(kv: Client[str]) -> None:
    docs = kv.collection("in-turn")
    await docs.create(schema=SCHEMA)
    for n in range(3):
        await docs.put(f"k{n}", {"body": "fresh"}, refresh="wait")
        assert (await docs.search("fresh")).total == n + 1
    await docs.put_many({"a": {"body": "fresh"}, "b": {"body": "fresh"}}, refresh="wait")
    assert await docs.delete("k0", refresh="wait")
    assert (await docs.search("fresh")).total == 4
