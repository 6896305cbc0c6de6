"""The trainable parts of a model: which modules an adapter covers, in which layers, and how many parameters."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from sft.model.facts import count_parameters

# Parts of a multimodal model that text never reaches.
NOT_TEXT = (
    r".*(vision_tower|vision_model|visual|image_newline|audio_tower|audio_encoder|multi_modal_projector|mm_projector"
    r"|embed_vision|embed_audio).*"
)
_LINEAR = ("Linear", "Conv1D", "Linear4bit", "Linear8bitLt")
_LAYER = re.compile(r"\.(?:layers|h|blocks|block|layer)\.(\d+)\.")


@dataclass
class Coverage:
    """The trainable parts of a model.

    Attributes:
        modules: name of a module -> number of places where it has an adapter; empty for full fine-tuning.
        layers: layer -> adapted modules in it, for every layer of the model.
        uncovered: linear modules and fused weights without one, by name -> count.
        trainable: trainable parameters.
        total: parameters of base and adapter together, tied ones once.
        rows: trained embedding rows of new tokens.
        rank: of the adapter; None for full fine-tuning.
    """

    modules: dict[str, int] = field(default_factory=dict)
    layers: dict[int, int] = field(default_factory=dict)
    uncovered: dict[str, int] = field(default_factory=dict)
    trainable: int = 0
    total: int = 0
    rows: int = 0
    rank: int | None = None

    @property
    def share(self) -> float:
        """Trainable share of all parameters, 0 to 1."""
        return self.trainable / self.total if self.total else 0.0

    def line(self) -> str:
        """One line for the log."""
        counts = f"{self.trainable:,} of {self.total:,} parameters train ({self.share:.2%})"
        if self.rank is None:
            return f"full fine-tuning: {counts}"
        where = ", ".join(f"{name} x{count}" for name, count in self.modules.items())
        bare = [str(layer) for layer, count in self.layers.items() if count == 0]
        uneven = len({count for count in self.layers.values() if count}) > 1
        text = f"LoRA r={self.rank} covers {where} in {len(self.layers) - len(bare)} of {len(self.layers)} layers"
        text += f" (none in layer {', '.join(bare)})" if bare and len(bare) < len(self.layers) else ""
        text += " (not the same in each)" if uneven else ""
        text += f"; left out: {', '.join(self.uncovered)}" if self.uncovered else ""
        text += f"; {self.rows} new embedding rows" if self.rows else ""
        return f"{text}; {counts}"


def coverage_of(model: Any) -> Coverage:
    """The trainable parts of a model, adapted or not."""
    found = Coverage(trainable=count_parameters(model, trainable_only=True), total=count_parameters(model))
    config = getattr(model, "peft_config", {}).get("default")
    if config is None:
        return found
    found.rank = config.r
    base = model.base_model.model
    adapted = {name: _label(name, module) for name, module in base.named_modules() if _has_adapter(module)}
    found.modules = dict(sorted(Counter(adapted.values()).items()))
    found.layers = dict.fromkeys(_layers(base), 0)
    for name in adapted:
        layer = _layer(name)
        if layer is not None:
            found.layers[layer] += 1
    found.uncovered = dict(sorted(Counter(_last(name) for name in _uncovered(base)).items()))
    indices = config.trainable_token_indices or {}
    found.rows = len(next(iter(indices.values()), [])) if isinstance(indices, dict) else len(indices)
    return found


def adaptable_modules(model: Any) -> Iterator[tuple[str, Any]]:
    """The linear layers that text passes through, without the output layer."""
    output = model.get_output_embeddings()
    for name, module in model.named_modules():
        if type(module).__name__ in _LINEAR and module is not output and not re.fullmatch(NOT_TEXT, name):
            yield name, module


def candidates(model: Any) -> list[str]:
    """Names that `lora.target_modules` may hold for this model."""
    return sorted({_last(name) for name, _ in adaptable_modules(model)})


def _uncovered(base: Any) -> Iterator[str]:
    """Linear layers without adapter, and weights of more than two dimensions (fused experts) without one."""
    for name, module in base.named_modules():
        inside = ".lora_" in name or ".base_layer" in name or "modules_to_save" in name or "original_module" in name
        bare = type(module).__name__ in _LINEAR and not inside and not _has_adapter(module)
        if bare and not re.fullmatch(NOT_TEXT, name):
            yield name
    wrapped = {getattr(module, "parameter_name", None) for module in base.modules()}
    for name, parameter in base.named_parameters():
        fused = (
            parameter.dim() > 2 and not parameter.requires_grad and ".lora_" not in name and _last(name) not in wrapped
        )
        if fused and not re.fullmatch(NOT_TEXT, name):
            yield name


def _has_adapter(module: Any) -> bool:
    held = getattr(module, "lora_A", None)
    embedded = getattr(module, "lora_embedding_A", None)
    return bool(held) or bool(embedded)


def _layers(base: Any) -> list[int]:
    names = (name for name, _ in base.named_modules() if not re.fullmatch(NOT_TEXT, name))
    return sorted({layer for name in names if (layer := _layer(f"{name}.")) is not None})


def _layer(name: str) -> int | None:
    found = _LAYER.search(f".{name}")
    return int(found.group(1)) if found else None


def _label(name: str, module: Any) -> str:
    """The name of an adapted module, or of its parameter if only one is adapted."""
    return getattr(module, "parameter_name", None) or _last(name)


def _last(name: str) -> str:
    return name.rpartition(".")[2]
