"""Realistic rows, from public bug reports: what is trained, or why they are refused, and what is noted."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sft.data.formats import RowError, recognise
from sft.data.labels.encoder import Encoder
from sft.data.report.notes import collected
from sft.data.source import Source
from sft.template.bind import bind
from sft.template.candidates import packaged_templates
from sft.template.families import by_template
from sft.template.spec import Template

STOP = "<|im_end|>"
WEATHER = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
CALLED = '<tool_call>\n{"name": "f", "arguments": {"c": 1}}\n</tool_call>'
CALLED_TOO = '<tool_call>\n{"name": "f", "arguments": {"c": 2}}\n</tool_call>'
KEYS, COLUMNS, MERGED = "unread_message_keys", "unread_columns", "merged_messages"


def u(text: Any, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": text, **more}


def a(text: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def chat(*messages: Any, **columns: Any) -> dict[str, Any]:
    return {"messages": list(messages), **columns}


def call(arguments: Any, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "arguments": arguments}, **more}


# {name: (row, trained contents in order, notes)}; reports are named as repository#number
READ: dict[str, tuple[dict[str, Any], list[str], list[tuple[str, str]]]] = {
    # Marks: "not this turn". verl#5316, verl#5472, ms-swift#6304, ms-swift#9029, ms-swift#9263, axolotl#1756
    "trainable": (chat(u("q"), a("bad", trainable=False), u("r"), a("good", trainable=True)), ["good"], []),
    "training": (chat(u("q"), a("bad", training=False), u("r"), a("good")), ["good"], []),
    "loss": (chat(u("q"), a("bad", loss=False), u("r"), a("good", loss=True), channel="x"), ["good"], [(COLUMNS, "channel")]),
    "loss_mask": (chat(u("q", loss_mask=0), a("bad", loss_mask=0), u("r"), a("good", loss_mask=1)), ["good"], []),
    "loss_weight": (chat(u("q"), a("bad", loss_weight=0.0), u("r"), a("good", loss_weight=1.0)), ["good"], []),
    "loss_scale": (chat(u("q"), a("bad", loss_scale=0), u("r"), a("good")), ["good"], []),
    "a mark on a call": (
        chat(u("q"), {"role": "tool_call", "content": '{"name": "f", "arguments": {}}', "loss": False}, {"role": "tool", "content": "1"}, a("ok")),
        ["ok"],
        [],
    ),
    "a mark in ShareGPT": (
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "bad", "loss": False}, {"from": "human", "value": "r"}, {"from": "gpt", "value": "good"}]},
        ["good"],
        [],
    ),
    "a mark in a completion": ({"prompt": [u("q")], "completion": [a("bad", train=False), u("r"), a("good")]}, ["good"], []),
    "marks that agree": (chat(u("q"), a("bad", train=False, weight=0, loss=False), u("r"), a("good")), ["good"], []),
    "a mark on a question": (chat(u("q", train=True), a("good")), ["good"], [("unfollowed_marks", "train of a user message")]),
    # LlamaFactory#9630: one value for each message
    "loss_mask of a row": (chat(u("q"), a("bad"), u("r"), a("good"), loss_mask=[0, 0, 0, 1]), ["good"], []),
    "loss that is a figure": (chat(u("q"), a("good"), loss=1.25), ["good"], [(COLUMNS, "loss")]),
    # XTuner#408: pairs of input and output, with a mark
    "XTuner's pairs": (
        {"conversation": [{"system": "s", "input": "q", "output": "bad", "output_with_loss": False}, {"input": "r", "output": "good"}]},
        ["good"],
        [],
    ),
    # Unread keys. open-instruct#1333, minimind#737
    "an unread key": (chat(u("q", id=1), a("good", sparkle="x", empty=None)), ["good"], [(KEYS, "id"), (KEYS, "sparkle")]),
    "tools on the system message": (
        chat({"role": "system", "content": "s", "tools": json.dumps([WEATHER])}, u("q"), a("", tool_calls=[call({"c": 1})])),
        [CALLED],
        [],
    ),
    "functions on the system message": (
        chat({"role": "system", "content": "s", "functions": [WEATHER["function"]]}, u("q"), a("ok")), ["ok"], []
    ),
    "minimind's null keys": (
        {"conversations": [u("q", reasoning_content="", tools=None, tool_calls=None), a("ok", reasoning_content="hm", tools=None, tool_calls=None)]},
        ["<think>\nhm\n</think>\n\nok"],
        [],
    ),
    # prime-rl#3494, prime-rl#885
    "tool_defs": (chat(u("q"), a("ok"), tool_defs=json.dumps([WEATHER])), ["ok"], []),
    "functions": (chat(u("q"), a("ok"), functions=[WEATHER["function"]]), ["ok"], []),
    # LlamaFactory#9772, of Olmo 3: calls as JSON text, results by the environment
    "function_calls": (
        chat(u("q"), a(None, function_calls='[{"name": "f", "arguments": {"c": 1}}]'), {"role": "environment", "content": "1"}, a("ok")),
        [CALLED, "ok"],
        [],
    ),
    "a call with its result": (
        chat(u("q"), a(None, tool_calls=[{**call({"c": 1}), "result": "1", "index": 0}])),
        [CALLED],
        [(KEYS, "tool_calls[].result"), (KEYS, "tool_calls[].index")],
    ),
    "a tool on its message": (
        chat(u("q"), {"role": "assistant", "name": "bot", "tool": "f", "parameters": {"c": 1}}, {"role": "tool", "content": "1"}, a("ok")),
        [CALLED, "ok"],
        [(KEYS, "name")],
    ),
    # Reasoning. fw-ai/cookbook#378
    "thinking": (chat(u("q"), a("ok", thinking="hm")), ["<think>\nhm\n</think>\n\nok"], []),
    "reasoning twice alike": (chat(u("q"), a("ok", thinking="hm", reasoning_content="hm")), ["<think>\nhm\n</think>\n\nok"], []),
    "reasoning as parts": (
        chat(u("q"), a("ok", reasoning_content=[{"type": "text", "text": "hm"}])), ["<think>\nhm\n</think>\n\nok"], []
    ),
    "reasoning_details": (
        chat(u("q"), a("ok", reasoning_details=[{"type": "reasoning.text", "text": "hm"}])), ["<think>\nhm\n</think>\n\nok"], []
    ),
    "reasoning_details beside": (
        chat(u("q"), a("ok", reasoning="hm", reasoning_details=[{"type": "reasoning.encrypted", "data": "x"}])),
        ["<think>\nhm\n</think>\n\nok"],
        [(KEYS, "reasoning_details")],
    ),
    # Turns. ms-swift#4835, ms-swift#9427, LlamaFactory#10178
    "calls in a row": (
        chat(u("q"), *[{"role": "tool_call", "content": json.dumps({"name": "f", "arguments": {"c": c}})} for c in (1, 2)], {"role": "tool_response", "content": "a"}, {"role": "tool_response", "content": "b"}, a("ok")),
        [f"{CALLED}\n{CALLED_TOO}", "ok"],
        [(MERGED, "calls of one turn")],
    ),
    "a text and its call": (
        chat(u("q"), a("Look."), {"role": "tool_call", "content": '{"name": "f", "arguments": {"c": 1}}'}, {"role": "tool", "content": "1"}, a("ok")),
        [f"Look.\n{CALLED}", "ok"],
        [(MERGED, "calls of one turn")],
    ),
    "OpenAI's calls in two messages": (
        chat(u("q"), a(None, tool_calls=[call({"c": 1}, id="x")]), a(None, tool_calls=[call({"c": 2}, id="y")]), {"role": "tool", "tool_call_id": "x", "content": "1"}, {"role": "tool", "tool_call_id": "y", "content": "2"}, a("ok")),
        [f"{CALLED}\n{CALLED_TOO}", "ok"],
        [(MERGED, "calls of one turn")],
    ),
    "a call on its message": (
        chat(u("q"), {"role": "tool_call", "name": "f", "arguments": {"c": 1}}, {"role": "tool", "content": "1"}, a("ok")),
        [CALLED, "ok"],
        [],
    ),
    "arguments as the content": (
        chat(u("q"), {"role": "tool_call", "name": "f", "content": '{"c": 1}'}, {"role": "tool", "content": "1"}, a("ok")),
        [CALLED, "ok"],
        [],
    ),
    # transformers#32213, transformers#33198: a prompt that begins the answer
    "a prefilled answer": (
        {"prompt": [u("q"), a("The answer is")], "completion": " 42. "},
        [" 42. "],
        [(MERGED, "an answer that the prompt begins")],
    ),
    "a prefilled answer in messages": (
        {"prompt": [u("q"), a("The answer")], "completion": [a(" is it."), u("r"), a("ok")]},
        [" is it.", "ok"],
        [(MERGED, "an answer that the prompt begins")],
    ),
    # Parts under other keys, as LLaMA-Factory's and Anthropic's
    "parts with value": (
        chat(u([{"type": "text", "value": "q"}]), a([{"type": "reasoning", "value": "hm"}, {"type": "text", "value": "ok"}], loss_weight=1.0)),
        ["<think>\nhm\n</think>\n\nok"],
        [],
    ),
    "thinking as a part": (
        chat(u("q"), a([{"type": "thinking", "thinking": "hm", "signature": "x"}, {"type": "text", "text": "ok"}])),
        ["<think>\nhm\n</think>\n\nok"],
        [(KEYS, "content[].signature")],
    ),
    # Results. sglang#22595, uzu#795
    "a result in text parts": (
        chat(u("q"), a(None, tool_calls=[call("{}")]), {"role": "tool", "content": [{"type": "text", "text": "1"}]}, a("ok")),
        ['<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>', "ok"],
        [],
    ),
    "a result of objects with a type": (
        chat(u("q"), a(None, tool_calls=[call("{}")]), {"role": "tool", "content": [{"type": "house", "id": 1}, {"type": "text"}]}, a("ok")),
        ['<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>', "ok"],
        [],
    ),
    "tool_name of an answer that is empty": (chat(u("q"), a("ok", tool_name="")), ["ok"], []),
    # Arguments encoded twice, as in a file of OpenAI's cookbook; oumi#2599, huf#676
    "arguments encoded twice": (
        chat(u("q"), a(None, tool_calls=[call(json.dumps(json.dumps({"c": 1})))])), [CALLED], [("decoded_arguments", "f")]
    ),
    # Columns
    "history before a response": ({"query": "q", "response": "ok", "history": [["A", "B"]]}, ["B", "ok"], []),
    "history before a completion": ({"prompt": "q", "completion": "ok", "history": [["A", "B"]]}, ["B", "ok"], []),
    "history in messages": ({"prompt": "q", "completion": "ok", "history": [u("A"), a("B", loss=False)]}, ["ok"], []),
    "input and output": ({"input": "q", "output": "ok"}, ["ok"], []),
    "an empty instruction": ({"instruction": "", "input": "q", "output": "ok", "id": 7}, ["ok"], [(COLUMNS, "id")]),
    "a null instruction": ({"instruction": None, "input": "q", "output": "ok"}, ["ok"], []),
    # ms-swift's own ShareGPT files
    "two questions": ({"question": "q", "query": "r", "answer": "ok"}, ["ok"], [(COLUMNS, "query")]),
    "pairs of a human and an assistant": (
        {"system": "s", "conversation": [{"human": "q", "assistant": "A"}, {"human": "r", "assistant": "B", "id": 2}]},
        ["A", "B"],
        [(KEYS, "id")],
    ),
    "a wanted answer": ({"prompt": "q", "completion": "ok", "label": True}, ["ok"], []),
    "a class that is not a mark": ({"prompt": "q", "completion": "ok", "label": 0}, ["ok"], [(COLUMNS, "label")]),
    # NeMo Gym#672, axolotl#2658
    "variables that say nothing": (chat(u("q"), a("ok"), chat_template_kwargs={"enable_thinking": None}), ["ok"], []),
}  # fmt: skip

# {name: (row, reason)}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "marks that differ": (chat(u("q"), a("x", loss=True, trainable=False)), "loss and trainable contradict each other in message 2"),
    "half a weight": (chat(u("q"), a("x", loss_weight=0.5)), "loss_weight is not 0 or 1 but 0.5 in message 2"),
    "a mark that is a word": (chat(u("q"), a("x", loss="maybe")), "loss is not true or false but 'maybe' in message 2"),
    "a part of a turn (axolotl#1756)": (
        chat(u("q"), a("x y", train_detail=[{"begin_offset": 0, "end_offset": 1, "train": False}])),
        "a part of a turn is marked by train_detail in message 2",
    ),
    "a row left out": (chat(u("q"), a("x"), loss=False), "left out by its mark: loss"),
    "a row of weight 0": ({"prompt": "q", "completion": "x", "weight": 0.0}, "left out by its mark: weight"),
    "marks that do not fit (LlamaFactory#9630)": (
        chat(u("q"), a("x"), loss_mask=[1]), "loss_mask does not fit the messages: 1 values, 2 messages"
    ),
    "reasoning that is an object": (chat(u("q"), a("x", reasoning_content={"a": 1})), "reasoning_content of message 2 is an object"),
    "reasoning twice (fw-ai/cookbook#378)": (
        chat(u("q"), a("x", reasoning_content="a", thinking="b")), "reasoning_content and thinking of message 2 differ"
    ),
    "reasoning after the text": (
        chat(u("q"), a([{"type": "text", "text": "x"}, {"type": "thinking", "thinking": "y"}])), "reasoning after the text"
    ),
    "reasoning that is encrypted": (
        chat(u("q"), a("x", reasoning_details=[{"type": "reasoning.encrypted", "data": "y"}])), "reasoning_details is not text"
    ),
    "reasoning of a user": (chat(u("q", reasoning_content="hm"), a("x")), "reasoning_content in a user message: message 1"),
    "calls of a user": (chat(u("q", tool_calls=[call("{}")]), a("x")), "tool_calls in a user message: message 1"),
    "calls as Python (open-instruct#1333)": (
        chat(u("q"), a(None, function_calls="f(c=1)"), {"role": "environment", "content": "1"}, a("ok")),
        "not JSON: the function_calls of message 2, 'f(c=1)'",
    ),
    "two different tool lists": (
        chat({"role": "system", "content": "s", "tools": [WEATHER]}, u("q"), a("x"), tools=[{"name": "g"}]),
        "contradicting tools: column 'tools' and tools of message 1 differ",
    ),
    "a refusal": (chat(u("q"), a(None, refusal="No.")), "refusal is not read in message 2"),
    "two contents": (chat(u("q"), {**a("x"), "value": "y"}), "content and value of message 2 differ"),
    "two answers (open-instruct#1800, unsloth#334)": (
        chat(u("q"), a("x"), a("y")), "two assistant messages in a row: messages 2 and 3; dataset.consecutive=merge"
    ),
    "an answer after its call": (
        chat(u("q"), a(None, tool_calls=[call("{}")]), a("y")), "after a call without its result: messages 2 and 3"
    ),
    "a turn left out in part": (
        chat(u("q"), a("Look."), {"role": "tool_call", "content": '{"name": "f"}', "loss": False}, {"role": "tool", "content": "1"}, a("ok")),
        "a turn is left out in part: messages 2 and 3",
    ),
    "two questions at the end (smol-course#260)": (chat(u("q"), a("x"), u("r"), u("s")), "no answer at the end"),
    "alternatives (cdQA#348)": (
        {"question": "who", "answer": ["Denver Broncos", "Broncos"]},
        "a list of texts where one answer belongs: column 'answer' has 2; columns: {answer: answer.0} takes the first",
    ),
    "alternative outputs": ({"instruction": "q", "output": ["x", "y"]}, "column 'output' has 2; columns: {output: output.0}"),
    "alternative contents": (chat(u("q"), a(["x", "y"])), "a list of texts where one belongs: the content of message 2 has 2"),
    "alternative questions": ({"prompt": ["q", "r"], "completion": "x"}, "a list of texts where one belongs: the column 'prompt'"),
    "a part without its text": (
        chat(u("q"), a([{"type": "text", "words": "x"}])), "a part of the content of message 2 has no text; its keys are type, words"
    ),
    "a picture in a result": (
        chat(u("q"), a(None, tool_calls=[call("{}")]), {"role": "tool", "content": [{"type": "image", "source": {}}]}, a("ok")),
        "a part of type 'image' in a tool's result",
    ),
    "an unwanted answer (trl#1116)": ({"prompt": "q", "completion": "x", "label": False}, "label is false"),
    "an unwanted answer of a table": ({"prompt": "q", "completion": "x", "label": "False"}, "label is false"),
    "arguments of no object": (chat(u("q"), a(None, tool_calls=[call('"[1]"')])), "arguments are not an object but a list"),
    "variables that are not an object": (chat(u("q"), a("x"), chat_template_kwargs=[1]), "chat_template_kwargs is not an object but a list"),
    "unread variables (NeMo Gym#672)": (
        chat(u("q"), a("x"), chat_template_kwargs={"python_tools": ["f"]}),
        "chat_template_kwargs sets python_tools, which the chat template does not read",
    ),
    "history of triples": ({"query": "q", "response": "x", "history": [["a", "b", "c"]]}, "history is not pairs"),
    "reasoning in a prefilled answer": (
        {"prompt": [u("q"), a("x", reasoning_content="hm")], "completion": "y"}, "reasoning in an answer that the prompt begins"
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def encoder(tokenizer):
    tok = tokenizer(("<|im_start|>", STOP), eos=STOP)
    return Encoder(bind(Template(name="chatml"), tok), tok)


def read(row: dict[str, Any], encoder: Encoder, **options: Any) -> tuple[list[str] | str, list[tuple[str, str]]]:
    """What is trained of a row, or why it is refused, and the notes on it."""
    converter = recognise(Source(path="x.jsonl"), [row], "dataset.sources.local", **options)
    with collected() as notes:
        try:
            conversation = converter.to_conversation(row)
        except RowError as error:
            return error.reason, notes
    (encoded,) = encoder.encode([conversation])
    if encoded["problem"] is not None:
        return encoded["problem"], notes
    encoder.check([conversation])
    return [text for made in encoded["rows"] for text in made["trained_text"]], notes


@pytest.mark.parametrize("name", READ)
def test_marked_turns_are_trained(name: str, encoder: Encoder) -> None:
    row, trained, notes = READ[name]
    assert read(row, encoder) == ([text + STOP for text in trained], notes)


@pytest.mark.parametrize(
    "name", ["tools on the system message", "functions on the system message", "tool_defs", "functions"]
)
def test_tools_are_read_from_every_position(name: str, encoder: Encoder) -> None:
    row, _, _ = READ[name]
    conversation = recognise(Source(path="x.jsonl"), [row], "w").to_conversation(row)
    assert conversation["tools"] == [WEATHER] and not any("tools" in message for message in conversation["messages"])
    assert '"name": "f"' in encoder.bound.render(conversation)


@pytest.mark.parametrize("name", REFUSED)
def test_content_that_cannot_be_represented_is_refused(name: str, encoder: Encoder) -> None:
    row, reason = REFUSED[name]
    found, _ = read(row, encoder)
    assert isinstance(found, str) and reason in found


def test_rows_skipped_by_a_mark_are_not_broken() -> None:
    row = {"prompt": "q", "completion": "x", "train": False}
    with pytest.raises(RowError) as caught:
        recognise(Source(path="x.jsonl"), [row], "w").to_conversation(row)
    assert caught.value.broken is False


# {name: (messages, trained contents)} with dataset.consecutive=merge
MERGED_ROWS: dict[str, tuple[list[dict[str, Any]], list[str]]] = {
    "two texts": ([u("q"), a("x"), a("y")], ["x\ny"]),
    "three texts": ([u("q"), a("x"), a("y"), a("z"), u("r"), a("ok")], ["x\ny\nz", "ok"]),
    "a text and a call": ([u("q"), a("x"), a("y", tool_calls=[call({"c": 1})])], [f"x\ny\n{CALLED}"]),
    "the first left out": ([u("q"), a("x", train=False), a("y")], ["y"]),
    "both left out": ([u("q"), a("x", loss=0), a("y", loss=0), u("r"), a("ok")], ["ok"]),
    "reasoning before both": ([u("q"), a("x", reasoning_content="hm"), a("y")], ["<think>\nhm\n</think>\n\nx\ny"]),
}  # fmt: skip


@pytest.mark.parametrize("name", MERGED_ROWS)
def test_consecutive_messages_are_merged_on_request(name: str, encoder: Encoder) -> None:
    messages, trained = MERGED_ROWS[name]
    found, notes = read(chat(*messages), encoder, consecutive="merge")
    assert found == [text + STOP for text in trained]
    assert set(notes) == {(MERGED, "assistant messages in a row")}


def test_a_turn_with_an_untrained_end_is_refused_even_with_merge(encoder: Encoder) -> None:
    found, _ = read(chat(u("q"), a("x"), a("y", train=False)), encoder, consecutive="merge")
    assert found == "a turn is left out in part: messages 2 and 3 are one turn, marked differently"


def test_a_column_path_selects_one_alternative(encoder: Encoder) -> None:
    row = {"question": "who", "answer": ["Denver Broncos", "Broncos"]}
    source = Source(path="x.jsonl", columns={"answer": "answer.0"})
    assert recognise(source, [row], "w").to_conversation(row)["messages"][-1] == a("Denver Broncos")


def test_a_row_sets_variables_of_the_template(tokenizer) -> None:
    text = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    text += "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    text = "{% if mood is defined %}Be {{ mood }}.\n{% endif %}" + text
    tok = tokenizer(("<|im_start|>", STOP), eos=STOP, template=text)
    own = Encoder(bind(Template(), tok), tok)
    rows = [
        {"prompt": "q", "completion": "x", "chat_template_kwargs": kwargs}
        for kwargs in ({"mood": "kind"}, '{"mood": ""}')
    ]
    converter = recognise(Source(path="x.jsonl"), rows, "w")
    conversations = [converter.to_conversation(row) for row in rows]
    own.check(conversations)
    texts = [encoded["rows"][0]["text"] for encoded in own.encode(conversations)]
    assert texts[0] == "Be kind.\n" + texts[1] and texts[1].startswith("<|im_start|>user")


def test_a_prefill_ending_inside_a_token_is_refused(tokenizer) -> None:
    tok = tokenizer(("<|im_start|>", STOP), eos=STOP)
    own = Encoder(bind(Template(name="chatml"), tok), tok)
    found, _ = read({"prompt": [u("q"), a("The quick br")], "completion": "own fox"}, own)
    assert isinstance(found, str) and "ends inside a token of the answer: message 2" in found


@pytest.fixture(scope="module", params=packaged_templates())
def family_encoder(request: pytest.FixtureRequest, tokenizer) -> Encoder:
    family = by_template(request.param)
    tokens = (*family.control_tokens, *family.stop_tokens) if family else ()
    tok = tokenizer(tokens, eos=family.stop_tokens[0] if family else "</s>")
    return Encoder(bind(Template(name=request.param), tok), tok)


def test_a_prefilled_answer_is_one_turn_in_every_family(family_encoder: Encoder) -> None:
    row = {"prompt": [u("q"), a("The answer")], "completion": " is it."}
    (piece,), _ = read(row, family_encoder)
    assert piece.startswith(" is it.") and piece.endswith(tuple(family_encoder.bound.stop_tokens))
    every = Encoder(family_encoder.bound, family_encoder.tokenizer, train_on="all")
    trained, _ = read(row, every)
    assert "The answer" not in "".join(trained) and " is it." in trained[-1]


def test_two_answers_have_one_policy_in_every_family(family_encoder: Encoder) -> None:
    row = chat(u("q"), a("It is."), a("Be brief."))
    refused, _ = read(row, family_encoder)
    assert isinstance(refused, str) and refused.startswith("two assistant messages in a row: messages 2 and 3")
    (piece,), _ = read(row, family_encoder, consecutive="merge")
    assert "It is.\nBe brief." in piece
