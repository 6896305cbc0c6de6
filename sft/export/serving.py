"""How a merged model is served elsewhere: an Ollama Modelfile, and notes for vLLM and llama.cpp."""

from __future__ import annotations

from sft.run.info import TrainingInfo
from sft.template.bound import BoundTemplate
from sft.template.ollama import find_pieces


def modelfile(info: TrainingInfo, bound: BoundTemplate) -> str:
    """An Ollama Modelfile: the weights beside it, chat template, stop tokens, system prompt, greedy decoding."""
    lines = ["# ollama create NAME -f Modelfile", "FROM ."]
    pieces = find_pieces(bound.render, bound.bos)
    if pieces is None or '"""' in pieces.go():
        lines.append(
            "# The chat template is too complex to convert to Go's notation; write TEMPLATE after chat_template.jinja."
        )
    else:
        lines.append(f'TEMPLATE """{pieces.go()}"""')
    if info.system and '"""' not in info.system:
        lines.append(f'SYSTEM """{info.system}"""')
    lines += [f"PARAMETER stop {_quoted(stop)}" for stop in info.stop_tokens]
    return "\n".join([*lines, "PARAMETER temperature 0", ""])


def serving_notes(info: TrainingInfo) -> str:
    """SERVING.md."""
    system = (
        f"Every conversation in training began with this system message; send it too:\n\n{_indented(info.system)}"
        if info.system
        else "The rows of the training did not share a system message; send none, or the one of your rows."
    )
    stops = ", ".join(f"`{stop}`" for stop in info.stop_tokens) or "the tokenizer's end token"
    return f"""# Serving

{system}

An answer ends with {stops}. Decode greedily, as in generation_config.json (`do_sample: false`), unless you want
sampling; chat_template.jinja is the one used in training.

## vLLM

    vllm serve . --override-generation-config '{{"temperature": 0}}'

It reads chat template and stop tokens from here, but not `do_sample`: without the flag, or temperature 0 in each
request, it samples.

## llama.cpp

    python convert_hf_to_gguf.py . --outfile model.gguf
    llama-server -m model.gguf --jinja --temp 0

`--jinja` uses the chat template that the conversion copies into the file.

## Ollama

    ollama create NAME -f Modelfile
    ollama run NAME

Ollama reads safetensors of the architectures that it knows; for others convert with llama.cpp first and write
`FROM ./model.gguf` into the Modelfile.
"""


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
