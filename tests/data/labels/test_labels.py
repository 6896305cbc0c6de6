"""From conversations to input_ids and labels."""

from __future__ import annotations

import pickle

import pytest

from sft.config.errors import UserError
from sft.data.documents import IGNORE
from sft.data.labels.encoder import Encoder
from sft.template.bind import bind
from sft.template.spec import Template

IM = ("<|im_start|>", "<|im_end|>")


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


@pytest.fixture(scope="module")
def tok(tokenizer):
    return tokenizer(IM, eos="<|im_end|>")


@pytest.fixture(scope="module")
def encoder(tok):
    """Builds an encoder for ChatML."""

    def of(**options):
        return Encoder(bind(Template(name="chatml"), tok), tok, **options)

    return of


def one(encoder, conversation):
    (encoded,) = encoder.encode([conversation])
    assert encoded["problem"] is None, encoded["problem"]
    (row,) = encoded["rows"]
    return row


def decoded(tok, row):
    return tok.decode([label for label in row["labels"] if label != IGNORE])


def test_ids_are_the_texts_and_labels_are_ids_or_ignored(encoder, tok, conversations):
    for name, conversation in conversations.items():
        row = one(encoder(), conversation)
        assert row["input_ids"] == tok(row["text"], add_special_tokens=False)["input_ids"], name
        pairs = zip(row["input_ids"], row["labels"], strict=True)
        assert all(label in (IGNORE, token) for token, label in pairs)
        assert decoded(tok, row) == "".join(row["trained_text"])


def test_the_answers_and_their_stop_tokens_are_trained(encoder, tok, conversations):
    row = one(encoder(), conversations["multi"])
    assert row["trained_text"] == ["It is four.<|im_end|>", "No, less.\n\nSee.<|im_end|>"]
    stop = tok.convert_tokens_to_ids("<|im_end|>")
    # the padding token is the stop token; those of user turns and the newline after it are not trained
    assert tok.pad_token_id == stop
    assert [label for label in row["labels"]].count(stop) == 2 and row["input_ids"].count(stop) == 4
    assert row["labels"][-1] == IGNORE


def test_several_conversations_keep_their_order(encoder, conversations):
    shapes = ["plain", "multi", "system"]
    bad = {"messages": [user("x")]}
    encoded = encoder().encode([conversations["plain"], bad, conversations["multi"], bad, conversations["system"]])
    assert [entry["problem"] for entry in encoded] == [None, *["no assistant turn is trained", None] * 2]
    alone = [one(encoder(), conversations[shape]) for shape in shapes]
    assert [entry["rows"][0] for entry in encoded if entry["rows"]] == alone
    assert encoder().encode([]) == []


def test_train_on(encoder, tok, conversations):
    assert one(encoder(train_on="last"), conversations["multi"])["trained_text"] == ["No, less.\n\nSee.<|im_end|>"]
    everything = one(encoder(train_on="all"), conversations["multi"])
    assert everything["labels"] == everything["input_ids"]
    assert everything["trained_text"] == [everything["text"]]


def test_switched_off_messages_are_not_trained(encoder, tok):
    off = {"messages": [user("1"), assistant("a", train=False), user("2"), assistant("b", weight=1)]}
    assert one(encoder(), off)["trained_text"] == ["b<|im_end|>"]
    row = one(encoder(train_on="all"), off)
    assert "a<|im_end|>" not in row["trained_text"][0] and len(row["trained_text"]) == 2
    assert decoded(tok, row) == "".join(row["trained_text"])
    assert "".join(row["trained_text"]) == row["text"].replace("assistant\na<|im_end|>", "assistant\n", 1)


def test_raw_text_is_trained_whole_and_closed(tokenizer):
    tok = tokenizer(IM, adds_bos=True)
    encoder = Encoder(bind(Template(name="chatml"), tok), tok)
    row = one(encoder, {"text": "Once upon a time"})
    assert row["text"] == "<s>Once upon a time</s>" and row["labels"] == row["input_ids"]
    assert row["input_ids"][0] == tok.bos_token_id and row["input_ids"][-1] == tok.eos_token_id
    assert one(encoder, {"text": "<s>It<|im_end|>\n"})["text"] == "<s>It<|im_end|>\n"
    assert encoder.encode([{"text": " \n"}])[0]["problem"] == "the text is empty"


def test_invalid_unicode_affects_only_its_row(encoder, conversations):
    bad = {"messages": [user("x \ud83d"), assistant("y")]}
    first, second, third = encoder().encode([bad, conversations["plain"], {"text": "\udc00"}])
    assert "surrogate" in first["problem"] and "surrogate" in third["problem"] and second["problem"] is None


def test_a_malformed_conversation_affects_only_its_row(encoder, conversations):
    odd = [
        {"messages": [{"role": "user", "content": 7}, assistant("x")]},
        {"messages": [{"content": "no role"}, assistant("x")]},
        {"messages": [user("a"), assistant(["x"])]},
        {"messages": None},
        {"text": None},
        {},
    ]
    *broken, fine = encoder().encode([*odd, conversations["plain"]])
    assert all(entry["problem"].startswith("the conversation is malformed: ") for entry in broken), broken
    assert fine["problem"] is None


def test_a_token_partly_in_the_prompt_is_not_trained(tokenizer):
    tok = tokenizer(IM, eos="<|im_end|>")
    encoder = Encoder(bind(Template(name="chatml"), tok), tok)
    row = one(encoder, {"messages": [user("a"), assistant("\n\nb")]})
    spans = encoder.render({"messages": [user("a"), assistant("\n\nb")]})[0].spans
    start = spans[0][0]
    offsets = encoder.tokenize([row["text"]])[0].offsets
    straddling = [at for at, (begin, end) in enumerate(offsets) if begin < start < end]
    assert all(row["labels"][at] == IGNORE for at in straddling)
    assert row["trained_text"][0].endswith("b<|im_end|>")
    assert decoded(tok, row) == "".join(row["trained_text"])


def test_characters_that_span_several_tokens(encoder, tok):
    row = one(encoder(), {"messages": [user("😀"), assistant("😀日本語é́")]})
    assert row["trained_text"] == ["😀日本語é́<|im_end|>"] and decoded(tok, row) == "😀日本語é́<|im_end|>"


def test_offsets_that_exclude_leading_spaces(tokenizer):
    from tokenizers import processors

    tok = tokenizer(IM, eos="<|im_end|>")
    tok.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    encoder = Encoder(bind(Template(name="instruct"), tok), tok)
    row = one(encoder, {"messages": [user("a b"), assistant("one two\n\nthree  ")]})
    assert row["trained_text"] == [" one two\n\nthree  <|im_end|>"] and decoded(tok, row) == row["trained_text"][0]


def test_a_tokenizers_saved_truncation_and_padding_are_ignored(tok, encoder, conversations):
    before = one(encoder(), conversations["multi"])
    tok.backend_tokenizer.enable_truncation(5)
    tok.backend_tokenizer.enable_padding(length=99)
    assert one(encoder(), conversations["multi"]) == before


def test_an_encoder_can_be_pickled(encoder, conversations):
    made = encoder()
    copy = pickle.loads(pickle.dumps(made))
    assert copy.encode([conversations["multi"]]) == made.encode([conversations["multi"]])
    assert copy.fingerprint == made.fingerprint


def test_the_fingerprint_covers_everything_labels_depend_on(tok, tokenizer, encoder):
    other = tokenizer((*IM, "<x>"), eos="<|im_end|>")
    prints = [
        encoder().fingerprint,
        encoder(train_on="last").fingerprint,
        encoder(history="allow").fingerprint,
        encoder(masking="response_template", response_template="a").fingerprint,
        encoder(masking="response_template", response_template="b").fingerprint,
        Encoder(bind(Template(name="chatml", system="x"), tok), tok).fingerprint,
        Encoder(bind(Template(name="chatml", kwargs={"a": 1}), tok), tok).fingerprint,
        Encoder(bind(Template(name="zephyr"), tok), tok).fingerprint,
        Encoder(bind(Template(name="chatml"), other), other).fingerprint,
    ]
    assert len(set(prints)) == len(prints)
    assert encoder().fingerprint == prints[0] and len(prints[0]) == 32
    tok.backend_tokenizer.enable_truncation(5)
    assert encoder().fingerprint == prints[0]


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"train_on": "users"}, "dataset.train_on"),
        ({"masking": "none"}, "dataset.masking"),
        ({"history": "forget"}, "dataset.history"),
        ({"masking": "response_template"}, "dataset.response_template"),
        ({"response_template": "x"}, "masking does not look for it"),
    ],
)
def test_invalid_options_are_refused(encoder, options, where):
    with pytest.raises(UserError, match=where):
        encoder(**options)


def test_a_slow_tokenizer_is_refused(tok):
    class Slow:
        is_fast = False

    with pytest.raises(UserError, match="offsets"):
        Encoder(bind(Template(name="chatml"), tok), Slow())


def sentencepiece_like(kind):
    """A tokenizer of the kind that SentencePiece models are converted to."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [
        "▁It",
        "▁is",
        "▁four",
        "It",
        "▁",
        "▁no",
        "no",
        "I",
        "t",
        "i",
        "s",
        "n",
        "o",
        "f",
        "u",
        "r",
        ".",
        ":",
        "U",
        "e",
    ]
    tokens = ["<unk>", "<s>", "</s>", *[f"<0x{byte:02X}>" for byte in range(256)], *words]
    core = Tokenizer(
        models.BPE({token: at for at, token in enumerate(tokens)}, [], unk_token="<unk>", byte_fallback=True)
    )
    if kind == "normalizer":
        core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    core.add_special_tokens([AddedToken(token, normalized=False) for token in ("<unk>", "<s>", "</s>")])
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("kind", ["normalizer", "metaspace"])
@pytest.mark.parametrize(
    ("name", "answers"),
    [
        ("llama2", [" It is four 😀. </s>", " no </s>"]),
        ("mistral", [" It is four 😀.</s>", " no</s>"]),
        ("zephyr", ["It is four 😀.</s>", "no</s>"]),
        ("instruct", [" It is four 😀.</s>", " no</s>"]),
    ],
)
def test_tokenizers_that_came_from_sentencepiece(kind, name, answers):
    tok = sentencepiece_like(kind)
    encoder = Encoder(bind(Template(name=name), tok), tok)
    row = one(encoder, {"messages": [user("It is"), assistant("It is four 😀."), user("no"), assistant("no")]})
    assert row["trained_text"] == answers
    trained = [label for label in row["labels"] if label != IGNORE]
    assert trained.count(tok.eos_token_id) == 2 and trained[-1] == tok.eos_token_id
