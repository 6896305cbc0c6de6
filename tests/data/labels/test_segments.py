"""Texts tokenized in segments have the same tokens and offsets as texts tokenized at once."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from sft.data.labels.segments import Segments, cutting_tokens

STOP, OPEN = "<|end|>", "<|start|>"
CORPUS = ["the end of the start", "one two three, four! <|en", "  spaces\n\nand\tlines 12 345", "é ü 日本語 🙂"]


def build(pre_tokenizer=None, normalizer=None, special=(STOP, OPEN), prefix=False, trim=True) -> Tokenizer:
    """A small byte-level BPE tokenizer."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizer or pre_tokenizers.ByteLevel(add_prefix_space=False)
    if normalizer is not None:
        made.normalizer = normalizer
    made.post_processor = processors.ByteLevel(trim_offsets=trim, add_prefix_space=prefix)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        CORPUS * 3, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    made.add_special_tokens(list(special))
    return made


split = pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
)
PLAIN = [build(), build(split, normalizers.NFC(), trim=False, prefix=True)]
PIECES = st.sampled_from(
    [
        STOP,
        OPEN,
        "<|en",
        "d|>",
        "<",
        "\n",
        " ",
        "  ",
        "the end",
        "é",
        "e\u0301",
        "🙂",
        "日本",
        " 12",
        "x",
        "\t",
        "<|end|",
    ]
)
TEXTS = st.lists(st.lists(st.one_of(PIECES, PIECES, st.text(max_size=4)), max_size=12).map("".join), max_size=12)


@given(st.lists(TEXTS, min_size=1, max_size=3), st.sampled_from(PLAIN))
def test_tokens_of_segments_equal_those_of_whole_texts(batches, tokenizer):
    segments = Segments(tokenizer, [STOP])
    assert segments.stops == (STOP,)
    for texts in batches:
        whole = tokenizer.encode_batch(texts, add_special_tokens=False)
        for text, one, other in zip(texts, segments.encode(texts), whole, strict=True):
            assert one.ids == other.ids and one.offsets == other.offsets and len(one) == len(other)
            places = range(-1, len(text) + 2)
            assert [one.char_to_token(at) for at in places if at >= 0] == [
                other.char_to_token(at) for at in places if at >= 0
            ]
            tokens = range(len(other) + 1)
            assert [one.token_to_chars(at) for at in tokens] == [other.token_to_chars(at) for at in tokens]
    assert segments.stops == (STOP,)


class Counting:
    """A tokenizer that counts the texts it is given."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer, self.texts = tokenizer, []

    def __getattr__(self, name: str):
        return getattr(self.tokenizer, name)

    def encode_batch(self, texts, **options):
        self.texts += texts
        return self.tokenizer.encode_batch(texts, **options)


def test_a_segment_shared_by_rows_is_tokenized_once():
    counting = Counting(PLAIN[0])
    segments = Segments(counting, [STOP])
    system = f"{OPEN}the end of the start{STOP}"
    rows = [[f"{system}\none {i}{STOP}two {j}" for i in range(5)] for j in range(3)]
    segments.encode(rows[0])  # compares both ways once
    counting.texts.clear()
    for row in rows[1:]:
        segments.encode(row)
    assert counting.texts.count(system) == 1  # once more in the second batch, kept for the third
    assert segments._kept_tokens < 100


def test_pickling_drops_the_memoized_tokens():
    segments = Segments(PLAIN[0], [STOP])
    for _ in range(3):
        segments.encode([f"one{STOP}two"])
    copy = pickle.loads(pickle.dumps(segments))
    assert copy.stops == (STOP,) and not copy._kept and segments._kept
    assert copy.encode([f"one{STOP}two"])[0].ids == PLAIN[0].encode(f"one{STOP}two", add_special_tokens=False).ids


@pytest.mark.parametrize(
    "tokenizer",
    [
        build(pre_tokenizers.Metaspace(prepend_scheme="first")),
        build(pre_tokenizers.ByteLevel(add_prefix_space=True)),
        build(normalizer=normalizers.Prepend("_")),
        build(normalizer=normalizers.Sequence([normalizers.NFC(), normalizers.Strip()])),
        build(special=[AddedToken(STOP, rstrip=True, special=True)]),
        build(special=[AddedToken(STOP, lstrip=True, special=True)]),
        build(special=[AddedToken(STOP, single_word=True, special=True)]),
        build(special=[STOP, f"{STOP}!"]),
        build(special=[STOP, "x<|"]),
        build(special=[OPEN]),
        build(prefix=True),
    ],
)
def test_unsupported_tokenizers_get_whole_texts(tokenizer):
    assert cutting_tokens(tokenizer, [STOP]) == ()
    texts = [f"one {STOP}  two{STOP}", f"{STOP}x{STOP}!"]
    whole = tokenizer.encode_batch(texts, add_special_tokens=False)
    assert [each.ids for each in Segments(tokenizer, [STOP]).encode(texts)] == [each.ids for each in whole]


def test_a_difference_on_the_first_texts_disables_segmentation():
    tokenizer = build(pre_tokenizers.Metaspace(prepend_scheme="first"))
    segments = Segments(tokenizer, [STOP])
    segments.stops = (STOP,)  # as if the tokenizer's steps had not said so
    for _ in range(2):
        (one,) = segments.encode([f"one{STOP}two"])
        assert one.ids == tokenizer.encode(f"one{STOP}two", add_special_tokens=False).ids
    assert segments.stops == ()
