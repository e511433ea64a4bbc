import pytest

from leaf.operations import DropCollection, WriteOperation, keys_of, size_of


@pytest.mark.parametrize(
    ("payload", "keys", "size"),
    [
        (WriteOperation(4, [b"a", b"bc", b"a"], [b"123", None, b""]), ((4, b"a"), (4, b"bc"), (4, b"a")), 7),
        (WriteOperation(4, [], []), (), 0),
        (DropCollection(4), None, 0),
        (None, (), 0),
    ],
)
def test_the_keys_and_the_size_follow_from_the_payload(payload, keys, size) -> None:
    assert keys_of(payload) == keys
    assert size_of(payload) == size
