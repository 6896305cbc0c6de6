"""Checks of a tokenizer."""

from __future__ import annotations

import pytest

from sft.config.errors import UserError
from sft.template.tokens import adds_bos, check_sentencepiece, check_tokenizer, is_single, sentencepiece_ids


def varint(value: int) -> bytes:
    out = b""
    value &= (1 << 64) - 1
    while value >= 0x80:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def model(**ids: int) -> bytes:
    numbers = {"unk": 40, "bos": 41, "eos": 42, "pad": 43}
    piece = field(1, b"<unk>") + varint(2 << 3 | 5) + b"\x00\x00\x80\x3f" + field(3, 2)
    return field(1, piece) + field(
        2, field(3, 2) + b"".join(field(numbers[role], value) for role, value in ids.items())
    )


def test_the_ids_of_a_sentencepiece_model(tmp_path):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(model(pad=0, unk=1, bos=2, eos=3))
    assert sentencepiece_ids(path) == {"pad": 0, "unk": 1, "bos": 2, "eos": 3}
    check_sentencepiece(path, {"pad": 0, "unk": 1, "bos": 2, "eos": 3})
    path.write_bytes(model(pad=-1))
    assert sentencepiece_ids(path) == {"unk": 0, "bos": 1, "eos": 2, "pad": -1}
    with pytest.raises(UserError, match="pad is -1, expected 0; unk is 0, expected 1"):
        check_sentencepiece(path, {"pad": 0, "unk": 1})


@pytest.mark.parametrize("content", [b"", b"not a model at all", b"\xff" * 30, model(unk=1)[:-1], b'{"json": 1}'])
def test_a_file_that_is_not_a_sentencepiece_model(tmp_path, content):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(content)
    with pytest.raises(UserError, match="not a SentencePiece model"):
        sentencepiece_ids(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        sentencepiece_ids(tmp_path / "none")


def test_a_tokenizer_that_fits(tokenizer):
    tok = tokenizer(("<|im_end|>", "<|im_start|>"), eos="<|im_end|>")
    assert check_tokenizer(tok, stop_tokens=["<|im_end|>"], chat_tokens=["<|im_start|>"], embeddings=len(tok)) == []
    assert is_single(tok, "<|im_end|>") and not is_single(tok, "<|im_ended|>")


def test_a_tokenizer_that_does_not_fit(tokenizer):
    with pytest.raises(UserError, match="no end-of-sentence token"):
        check_tokenizer(tokenizer(eos=None))
    tok = tokenizer()
    with pytest.raises(UserError, match=f"ids up to {len(tok) - 1}, the model's embedding has {len(tok) - 1} rows"):
        check_tokenizer(tok, embeddings=len(tok) - 1)
    with pytest.raises(UserError, match=r"the stop token <.im_end.> is not a single token but"):
        check_tokenizer(tok, stop_tokens=["<|im_end|>"])
    assert "<|im_start|> is not a single token" in check_tokenizer(tok, chat_tokens=["<|im_start|>"])[0]
    with pytest.raises(UserError, match=r"pad has id .*, expected 0"):
        check_tokenizer(tok, expected_ids={"pad": 0})
    assert check_tokenizer(tok, expected_ids={"eos": tok.eos_token_id}) == []


def test_an_end_of_sentence_token_that_ends_no_turn_is_warned_about(tokenizer):
    tok = tokenizer(("<|im_end|>",))
    (warning,) = check_tokenizer(tok, stop_tokens=["<|im_end|>"])
    assert warning == "turns end with <|im_end|>, the end-of-sentence token is </s>"


def test_whether_a_tokenizer_adds_bos(tokenizer):
    assert adds_bos(tokenizer(adds_bos=True))
    assert not adds_bos(tokenizer())
    assert not adds_bos(tokenizer(bos=None))
