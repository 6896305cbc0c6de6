"""The model card: README.md beside the weights, with front matter that the hub accepts and a snippet that runs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sft.config.text import fenced, one_line
from sft.run.disk.atomic import replacing
from sft.run.info import TrainingInfo
from sft.run.metrics import Metrics
from sft.safety.secrets import redact

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
_RESULTS = ("steps", "epochs", "train_loss", "eval_loss", "eval_perplexity", "eval_token_accuracy", "trained_tokens")


@dataclass
class Card:
    """The content of a model card.

    Attributes:
        name: the run's name, the card's title.
        info: the trained model, its base and its data.
        metrics: the final figures.
        settings: notable training arguments (learning_rate, …), {} for none.
        hub_id: the base model's id on the hub, if it differs from info.model_path (an embedded or converted copy).
        library: peft for an adapter, transformers for a complete model.
        tags: further tags for the hub.
    """

    name: str
    info: TrainingInfo
    metrics: Metrics
    settings: Mapping[str, Any] = field(default_factory=dict)
    hub_id: str | None = None
    library: str = "peft"
    tags: list[str] = field(default_factory=list)

    def text(self) -> str:
        """The card in Markdown."""
        parts = [self._front_matter(), f"# {_inline(self.name)}", self._summary(), "## Use", self._usage()]
        parts += ["## Data", self._data(), "## Settings", self._settings(), "## Results", self._results()]
        return redact("\n\n".join(part for part in parts if part) + "\n")

    def write(self, directory: Path) -> Path:
        """Write README.md into the directory that holds the weights."""
        path = directory / "README.md"
        with replacing(path) as temporary:
            temporary.write_text(self.text(), encoding="utf-8")
        return path

    @property
    def whole(self) -> bool:
        """Whether the directory has a complete model: from a full fine-tune, or merged."""
        return self.library == "transformers" or self.info.method == "full"

    @property
    def base(self) -> str | None:
        """The base model's hub id, None for a local one: the hub refuses anything else as base_model."""
        candidates = (self.hub_id, self.info.model_path, self.info.model_name)
        return next((name for name in candidates if name and _HUB_ID.match(name) and not Path(name).exists()), None)

    def _front_matter(self) -> str:
        import yaml

        method = {"full": "full-fine-tuning"}.get(self.info.method, self.info.method)
        facts: dict[str, Any] = {"library_name": self.library, "pipeline_tag": "text-generation"}
        if self.base:
            facts["base_model"] = self.base
            facts["base_model_relation"] = "finetune" if self.whole else "adapter"
        facts["tags"] = list(dict.fromkeys(["sft", method, *self.tags]))
        return f"---\n{yaml.safe_dump(facts, sort_keys=False, allow_unicode=True).strip()}\n---"

    def _summary(self) -> str:
        what = "A fine-tuned copy of" if self.whole else "A LoRA adapter for"
        line = f"{what} `{_plain(str(self.base or self.info.model_name or self.info.model_path))}`, made with sft {self.info.sft_version}."
        if self.info.system:
            line += f"\n\nIt was trained with this system prompt:\n\n{fenced(self.info.system)}"
        return line

    def _usage(self) -> str:
        path = self.base or self.info.model_path
        if self.whole:
            load = ['model = AutoModelForCausalLM.from_pretrained("PATH_OF_THIS_DIRECTORY")']
            imports = ["from transformers import AutoModelForCausalLM, AutoTokenizer"]
        else:
            load = [
                f"model = AutoModelForCausalLM.from_pretrained({json.dumps(path)})",
                'model = PeftModel.from_pretrained(model, "PATH_OF_THIS_DIRECTORY")',
            ]
            imports = ["from peft import PeftModel", "from transformers import AutoModelForCausalLM, AutoTokenizer"]
        system = [{"role": "system", "content": self.info.system}] if self.info.system else []
        messages = [*system, {"role": "user", "content": "Hello"}]
        lines = [
            *imports,
            "",
            'tokenizer = AutoTokenizer.from_pretrained("PATH_OF_THIS_DIRECTORY")',
            *load,
            f"messages = {json.dumps(messages, ensure_ascii=False)}",
            'inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)',
            "answer = model.generate(**inputs, max_new_tokens=256)[0, inputs['input_ids'].shape[1]:]",
            "print(tokenizer.decode(answer, skip_special_tokens=True))",
        ]
        return fenced("\n".join(lines), "python")

    def _data(self) -> str:
        sources = self.info.dataset.get("sources")
        if isinstance(sources, Mapping) and sources:
            return "\n".join(f"- `{_plain(str(name))}`: {_inline(facts)}" for name, facts in sources.items())
        return _table(self.info.dataset)

    def _settings(self) -> str:
        wanted = ("r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "use_dora", "init_lora_weights")
        lora = {f"lora.{key}": self.info.lora[key] for key in wanted if key in self.info.lora}
        facts = {"method": self.info.method, "dtype": self.info.dtype, **lora, **self.settings}
        if self.info.template_name:
            facts["chat template"] = self.info.template_name
        return _table(facts)

    def _results(self) -> str:
        found = self.metrics.as_dict()
        names = [*_RESULTS, *(key for key in found if key.startswith("eval_") and key not in _RESULTS)]
        return _table({key: found[key] for key in names if isinstance(found.get(key), int | float)})


def _table(facts: Mapping[str, Any]) -> str:
    rows = [f"| {_inline(key)} | {_inline(value)} |" for key, value in facts.items() if value is not None]
    return "\n".join(["| | |", "|---|---|", *rows]) if rows else "Not recorded."


def _inline(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_inline(item)}" for key, item in value.items() if item is not None)
    if isinstance(value, list | tuple | set):
        return ", ".join(_inline(item) for item in value)
    return _plain(str(value)).replace("|", r"\|")


def _plain(text: str) -> str:
    """Untrusted text on one line that cannot end a code span or contain HTML or invisible characters."""
    return one_line(text).translate({ord("`"): "'", ord("<"): "‹", ord(">"): "›"})
