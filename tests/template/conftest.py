"""A small byte-level tokenizer that knows a template's control tokens, and TRL's templates to compare with."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

CORPUS = ["The quick brown fox says: user, assistant, system, tool, name, arguments.\n\n It is four. Be brief.\n"] * 8
CONTROL = re.compile(
    r"<\|[^|<>\s]{1,40}\|>|<｜[^｜<>\s]{1,40}｜>|<\|[a-z_]+>|<[a-z_]+\|>|<\|\"\|>"
    r"|</?(?:think|tool_call|tool_response|start_of_turn|end_of_turn|eos|bos|sop|end_of_utterance|BOS_TOKEN)>"
    r"|\[gMASK\]|</?s>"
)


@cache
def _trained() -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator(CORPUS, trainer)
    return core.to_str()


def build(tokens=(), eos: str | None = "</s>", bos: str | None = "<s>", adds_bos: bool = False, template=None):
    """A tokenizer with these control tokens; see the fixture `tokenizer`."""
    from tokenizers import AddedToken, Tokenizer, processors
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer.from_str(_trained())
    names = list(dict.fromkeys([*tokens, *[token for token in (bos, eos) if token]]))
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in names])
    if adds_bos:
        core.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, core.token_to_id(bos))]
        )
    built = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=eos, bos_token=bos, pad_token=eos)
    built.chat_template = template
    return built


@pytest.fixture(scope="session")
def tokenizer():
    """A function that builds a tokenizer: tokens, eos, bos, adds_bos, template."""
    return build


@pytest.fixture(scope="session")
def trl_templates() -> dict[str, str]:
    """TRL's chat templates by name, its training variants under `<name>_training`."""
    import trl

    folder = Path(trl.__file__).parent / "chat_templates"
    return {path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.jinja"))}


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str, **more) -> dict:
    return {"role": "assistant", "content": text, **more}


CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris", "days": 2}}}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "where"}}},
        },
    }
]


@pytest.fixture(scope="session")
def conversations() -> dict[str, dict]:
    """One conversation of each shape."""
    system = {"role": "system", "content": "Be brief."}
    result = {"role": "tool", "name": "weather", "content": "sunny"}
    ask, four = user("What is it?"), assistant("It is four.")
    return {
        "plain": {"messages": [ask, four]},
        "multi": {"messages": [ask, four, user("And more?"), assistant("No, less.\n\nSee.")]},
        "repeated": {"messages": [user("again"), assistant("again"), user("again"), assistant("again")]},
        "system": {"messages": [system, ask, four]},
        "tools": {"messages": [ask, assistant("", tool_calls=[CALL]), result, four], "tools": TOOLS},
        "reasoning": {"messages": [ask, assistant("It is four.", reasoning_content="I count.")]},
    }
