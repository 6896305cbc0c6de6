"""Typos such as hurried customers make."""

from __future__ import annotations

from random import Random


def misspell(rng: Random, sentence: str) -> str:
    """Return the sentence with one typo in one of its longer lower-case words: a letter lost, doubled or swapped.

    First letters stay, and so do capitalised words: names are copied letter for letter. A sentence that has no word of
    five letters is returned as it is.
    """
    words = sentence.split(" ")
    candidates = [i for i, word in enumerate(words) if len(word) >= 5 and word.isalpha() and word.islower()]
    if not candidates:
        return sentence
    i = rng.choice(candidates)
    word = words[i]
    at = rng.randrange(1, len(word) - 1)
    slip = rng.choice(("lose", "double", "swap"))
    if slip == "lose":
        words[i] = word[:at] + word[at + 1 :]
    elif slip == "swap" and word[at] != word[at + 1]:
        words[i] = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    else:
        words[i] = word[:at] + word[at] + word[at:]
    return " ".join(words)
