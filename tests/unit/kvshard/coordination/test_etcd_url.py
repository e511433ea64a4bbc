"""Which URLs name an etcd cluster, and what they say."""

import pytest

from kvshard.clock import SystemClock
from kvshard.coordination.connect import connect
from kvshard.coordination.etcd_url import EtcdOptions, parse_etcd_url
from kvshard.errors import InvalidArgument


def test_endpoints_and_prefix() -> None:
    assert parse_etcd_url("etcd://a:2379") == EtcdOptions(("a:2379",), "kvshard/")
    assert parse_etcd_url("etcd://a:1,10.0.0.1:2,[::1]:3/") == EtcdOptions(("a:1", "10.0.0.1:2", "[::1]:3"), "kvshard/")
    assert parse_etcd_url("etcd://a:1/teams/blue/").prefix == "teams/blue/"


def test_options() -> None:
    options = parse_etcd_url("etcd://a:1?cacert=/ca.pem&cert=/c.pem&key=/k.pem&user=me&password=a%26b")
    assert options.is_encrypted
    assert (options.cacert, options.cert, options.key, options.user, options.password) == (
        "/ca.pem",
        "/c.pem",
        "/k.pem",
        "me",
        "a&b",
    )
    assert "a&b" not in repr(options)
    assert not parse_etcd_url("etcd://a:1?user=me&password-file=/p").is_encrypted


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("etcd://", "is not host:port"),
        ("etcd://a", "is not host:port"),
        ("etcd://a:1,", "is not host:port"),
        ("etcd://:1", "is not host:port"),
        ("etcd://a:0", "is not host:port"),
        ("etcd://a:65536", "is not host:port"),
        ("etcd://me:secret@a:1", "a user goes into"),
        (f"etcd://{','.join(['a:1'] * 17)}", "at most 16"),
        ("etcd://a:1?tls=yes", "unknown option 'tls'"),
        ("etcd://a:1?cacert=", "not be empty"),
        ("etcd://a:1?cacert=x&cacert=y", "given once"),
        ("etcd://a:1?cert=x", "cert and key go together"),
        ("etcd://a:1?user=me", "user goes together"),
        ("etcd://a:1?password=secret", "user goes together"),
        ("etcd://a:1?user=me&password=secret&password-file=f", "either"),
    ],
)
def test_wrong_urls_say_why(url: str, why: str) -> None:
    with pytest.raises(InvalidArgument, match=why) as caught:
        connect(url, SystemClock())
    assert caught.value.details.field == "coordinator"
    assert "secret" not in str(caught.value)
