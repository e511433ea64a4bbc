"""How many letters it takes to make one word of another.

Pure: imports only the standard library.
"""


def is_within(one: str, other: str, edits: int) -> bool:
    """Whether so many letters changed, left out, put in, or swapped with their neighbour make one word of the other."""
    return distance_within(one, other, edits) is not None


def distance_within(one: str, other: str, edits: int) -> int | None:
    """How many letters that takes; None when it takes more than `edits`. No letter is touched twice.

    Takes time in proportion to the length times the edits, and stops as soon as it is known.
    """
    if abs(len(one) - len(other)) > edits:
        return None
    if one == other:
        return 0
    if edits == 0:
        return None
    far = edits + 1
    before: list[int] = []
    row = [min(at, far) for at in range(len(other) + 1)]
    for at, char in enumerate(one, 1):
        first, last = max(1, at - edits), min(len(other), at + edits)
        following = [far] * (len(other) + 1)
        following[0] = min(at, far)
        for to in range(first, last + 1):
            cost = min(row[to - 1] + (char != other[to - 1]), row[to] + 1, following[to - 1] + 1)
            if at > 1 and to > 1 and char == other[to - 2] and one[at - 2] == other[to - 1]:
                cost = min(cost, before[to - 2] + 1)
            following[to] = min(cost, far)
        if min(following) > edits:
            return None
        before, row = row, following
    return row[len(other)] if row[len(other)] <= edits else None
