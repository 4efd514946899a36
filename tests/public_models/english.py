"""Sentences and words of real English that every Python brings: its own manual."""

from __future__ import annotations

import re
from collections import Counter
from pydoc_data.topics import topics


def sentences(count: int) -> list[str]:
    """Return the first of 6 to 25 words each, none twice."""
    text = " ".join(topics[name] for name in sorted(topics))
    found = re.findall(r"[A-Z][a-z][^.:*|\\]{30,160}\.", text)
    plain = (" ".join(each.split()) for each in found)
    return [each for each in dict.fromkeys(plain) if 6 <= len(each.split()) <= 25][:count]


def words(count: int) -> list[str]:
    """Return the commonest of 3 to 9 small letters, the commonest first."""
    text = " ".join(topics[name] for name in sorted(topics))
    counted = Counter(re.findall(r"\b[a-z]{3,9}\b", text))
    return sorted(counted, key=lambda word: (-counted[word], word))[:count]
