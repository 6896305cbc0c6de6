"""Labels against those of TRL's training templates: equal for every token of equal text, or different by a documented
policy.

The documented table of policies is compared with the differences found here.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sft.data.documents import IGNORE
from sft.data.labels.encoder import Encoder
from sft.template.bind import bind
from sft.template.families import detect
from sft.template.spec import Template

DOCS = Path(__file__).resolve().parents[3] / "docs"
CONTROL = re.compile(
    r"<\|[^|<>\s]{1,40}\|>|<｜[^｜<>\s]{1,40}｜>|<\|[a-z_]+>|<[a-z_]+\|>|<\|\"\|>"
    r"|</?(?:think|tool_call|tool_response|start_of_turn|end_of_turn|eos|bos|sop|end_of_utterance|BOS_TOKEN)>|\[gMASK\]"
)
# model_type, name for detection, end-of-sentence token, BOS token; by the start of a template's name
FACTS = {
    "cohere": ("cohere", "", "<|END_OF_TURN_TOKEN|>", "<BOS_TOKEN>"),
    "deepseek": ("deepseek_v3", "", "<｜end▁of▁sentence｜>", "<｜begin▁of▁sentence｜>"),
    "diffusion_gemma": ("gemma4", "", "<turn|>", "<bos>"),
    "gemma": ("gemma3", "", "<end_of_turn>", "<bos>"),
    "gemma4": ("gemma4", "", "<turn|>", "<bos>"),
    "glm": ("glm4_moe", "", "<|endoftext|>", None),
    "gptoss": ("gpt_oss", "", "<|return|>", "<|startoftext|>"),
    "idefics3": ("idefics3", "", "<end_of_utterance>", None),
    "lfm2": ("lfm2", "", "<|im_end|>", "<|startoftext|>"),
    "llama3": ("llama", "llama-3.1", "<|eot_id|>", "<|begin_of_text|>"),
    "llava": ("llava_next", "", "</s>", "<s>"),
    "muse": ("muse_glimmer", "", "<|eot|>", "<|begin|>"),
    "nemotron": ("nemotron_h", "", "<|im_end|>", None),
    "phi": ("phi3", "", "<|endoftext|>", None),
    "qwen2": ("qwen2", "", "<|im_end|>", None),
    "qwen3": ("qwen3", "", "<|im_end|>", None),
    "smolvlm": ("smolvlm", "", "<end_of_utterance>", None),
}
SHAPES = ("plain", "multi", "repeated", "system", "tools")


def facts(name):
    return FACTS[max((key for key in FACTS if name.startswith(key)), key=len)]


def made(name, text, texts, tokenizer):
    """A tokenizer with the control tokens of a template and of its training variant."""
    _, _, eos, bos = facts(name)
    tokens = sorted(set(CONTROL.findall(text + texts.get(f"{name}_training", ""))) | {"<|endoftext|>"})
    return tokenizer(tokens, eos=eos, bos=bos, template=text)


def trl_mask(tok, bound, training, conversation):
    """input_ids and the assistant mask as TRL makes them, with the run's variables and parts where they are wanted."""
    messages = conversation["messages"]
    if bound.style.parts:
        messages = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]
    out = tok.apply_chat_template(
        messages,
        tools=conversation.get("tools"),
        chat_template=training,
        return_assistant_tokens_mask=True,
        return_dict=True,
        **bound.kwargs,
    )
    return out["input_ids"], [bool(mask) for mask in out["assistant_masks"]]


def policies(tok, row, ids, mask, stops):
    """Which policies explain where a row's labels differ from TRL's; raises AssertionError where none does."""
    ours = [label != IGNORE for label in row["labels"]]
    found = set()
    ends = {at for at in range(len(ids)) if ours[at] and (at + 1 == len(ids) or not ours[at + 1])}
    for at, (mine, theirs) in enumerate(zip(ours, mask, strict=True)):
        if mine == theirs:
            continue
        text = tok.decode([ids[at]])
        before = max((end for end in ends if end < at), default=None)
        if mine and text == "<|tool_response>":
            found.add("call")
        elif mine and "<|turn>model\n".startswith("<|turn>" + tok.decode(ids[: at + 1]).rpartition("<|turn>")[2]):
            found.add("left-out header")
        elif (
            not mine
            and before is not None
            and all(mask[before : at + 1])
            and not tok.decode(ids[before + 1 : at + 1]).strip()
        ):
            found.add("newline")
        elif not mine and text == "<|endoftext|>" and before is not None and tok.decode([ids[before]]) == "<|end|>":
            found.add("end token")
        elif not mine and _leads_to(ours, mask, at):
            found.add("header")
        elif not mine and _in_another_row(ours, mask, at):
            found.add("own row")
        else:
            raise AssertionError(f"token {at} {text!r} is {'trained' if mine else 'not trained'} without a reason")
    assert all(ids[end] in stops for end in ends)
    return found


def _leads_to(ours, mask, at):
    """Whether from this token on TRL's mask goes on without a gap to a token that is trained here too."""
    while at < len(mask) and mask[at] and not ours[at]:
        at += 1
    return at < len(mask) and mask[at] and ours[at]


def _in_another_row(ours, mask, at):
    """Whether no token of TRL's stretch around this one is trained in this row."""
    first = last = at
    while first > 0 and mask[first - 1]:
        first -= 1
    while last + 1 < len(mask) and mask[last + 1]:
        last += 1
    return not any(ours[first : last + 1])


def outcome(name, tok, training, conversation):
    """What the table says of one template and one conversation."""
    model_type, label, _, _ = facts(name)
    bound = bind(Template(), tok, detect(model_type, label), [conversation])
    if bound.name != "own":
        return "–"
    encoder = Encoder(bound, tok)
    assert encoder.check([conversation])["found_one_way_only"] == 0
    if training is None:
        return "2"
    ids, mask = trl_mask(tok, bound, training, conversation)
    rows = {history: encoded(bound, tok, conversation, history) for history in ("expand", "allow")}
    stops = encoder.gate.stop_ids
    (allowed,) = rows["allow"]
    if allowed["input_ids"] != ids and not any(row["input_ids"] == ids for row in rows["expand"]):
        return "text"
    found = set()
    if allowed["input_ids"] == ids:
        found |= policies(tok, allowed, ids, mask, stops)
    if any(row["input_ids"] != ids for row in rows["expand"]):
        found.add("own row")
    for row in rows["expand"]:
        if row["input_ids"] == ids:
            found |= policies(tok, row, ids, mask, stops)
    return ", ".join(sorted(found)) or "="


def encoded(bound, tok, conversation, history):
    (one,) = Encoder(bound, tok, history=history).encode([conversation])
    assert one["problem"] is None
    return one["rows"]


def table(trl_templates, conversations, tokenizer):
    """{template: [what is found for each shape]}, training variants under their own names."""
    found = {}
    for name, text in trl_templates.items():
        family = name.removesuffix("_training")
        marked = text if re.search(r"{%-? generation", text) else None
        training = trl_templates.get(f"{family}_training", marked)
        tok = made(family, text, trl_templates, tokenizer)
        found[name] = [outcome(family, tok, training, conversations[shape]) for shape in SHAPES]
    return found


@pytest.fixture(scope="module")
def found(trl_templates, conversations, tokenizer):
    return table(trl_templates, conversations, tokenizer)


def test_every_label_difference_has_a_reason(found):
    assert len({name.removesuffix("_training") for name in found}) >= 38
    known = {"=", "–", "2", "text", "newline", "header", "end token", "own row", "call", "left-out header"}
    assert {policy for row in found.values() for cell in row for policy in cell.split(", ")} <= known
    for name, row in found.items():
        assert "–" not in row[:3], name  # plain chats are rendered by the family's own template, all of them


def test_the_text_of_training_templates_is_always_the_same(found):
    changed = {name for name, row in found.items() if name.endswith("_training") and "text" in row}
    assert changed == set()


def test_the_documented_table_equals_the_measured_one(found):
    pages = [path.read_text(encoding="utf-8") for path in (DOCS / "data.md", DOCS / "_labels.md") if path.exists()]
    page = next(page for page in pages if "| template | plain | multi |" in page)
    rows = [line.strip("|").split("|") for line in page.splitlines() if line.startswith("| `")]
    documented = {row[0].strip().strip("`"): [cell.strip() for cell in row[1:]] for row in rows}
    own = {name: row for name, row in found.items() if not name.endswith("_training")}
    assert {name: row for name, row in documented.items() if name in own} == own
