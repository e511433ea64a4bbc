"""Queries that people might ask of a corpus: one to four of its own words, common, middling and rare ones mixed."""

import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

WORD: Final = re.compile(r"[a-z0-9]{2,40}")
"""What both sides' analyzer keeps whole: no word that falls apart into a phrase, none that is too long for the index."""

COMMON_SHARE: Final = 0.01
"""Of the documents: a word in more of them is a common one."""

RARE_DOCUMENTS: Final = 5
"""A word in so few documents, or fewer, is a rare one: in an index of several shards most shards have never seen it."""

CLASS_WEIGHTS: Final = (0.4, 0.45, 0.15)
"""How often a word of a query is a common, a middling, a rare one."""

WORDS_MAX: Final = 4


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Words by how many documents have them, each class in alphabetical order."""

    common: Sequence[str]
    middling: Sequence[str]
    rare: Sequence[str]


def vocabulary(texts: Iterable[str]) -> Vocabulary:
    """The words of these texts by class. A class may be empty."""
    documents = 0
    counts: Counter[str] = Counter()
    for text in texts:
        documents += 1
        counts.update(set(WORD.findall(text.lower())))
    common = max(RARE_DOCUMENTS, int(documents * COMMON_SHARE))
    return Vocabulary(
        common=sorted(word for word, count in counts.items() if count > common),
        middling=sorted(word for word, count in counts.items() if RARE_DOCUMENTS < count <= common),
        rare=sorted(word for word, count in counts.items() if count <= RARE_DOCUMENTS),
    )


def sample_queries(words: Vocabulary, count: int, seed: int) -> list[str]:
    """Different queries, each of 1 to 4 different words. Raises ValueError when the vocabulary has too few words for them."""
    rng = random.Random(seed)
    classes = [(words.common, CLASS_WEIGHTS[0]), (words.middling, CLASS_WEIGHTS[1]), (words.rare, CLASS_WEIGHTS[2])]
    present = [(each, weight) for each, weight in classes if each]
    if sum(len(each) for each, _ in present) < max(count, WORDS_MAX):
        raise ValueError(f"{count} queries take at least as many words")
    queries: dict[str, None] = {}
    while len(queries) < count:
        length = rng.randint(1, WORDS_MAX)
        drawn = rng.choices([each for each, _ in present], [weight for _, weight in present], k=length)
        queries[" ".join(dict.fromkeys(rng.choice(each) for each in drawn))] = None
    return list(queries)
