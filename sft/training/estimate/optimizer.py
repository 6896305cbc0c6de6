"""Bytes of an optimizer's states, and the temporary memory of its step."""

from __future__ import annotations

from collections.abc import Iterable

from sft.model.footprint import Parameter

SMALLEST_8BIT = 4096  # bitsandbytes keeps 32-bit states of smaller parameters
BLOCK_8BIT = 256  # bitsandbytes: states that share a scale
LEVELS = 256 * 4  # bytes of the 8-bit quantization map; one signed and one unsigned for all parameters
_COUNTER = 4  # torch's optimizers count each parameter's steps in a tensor


def state_bytes(optim: str, parameters: Iterable[Parameter]) -> int:
    """Bytes of all states of the transformers optimizer of this name; paged states are in the process's memory.

    An unknown optimizer counts as AdamW.
    """
    name, parameters = str(optim), list(parameters)
    moments = 1 if any(word in name for word in ("lion", "rmsprop", "adagrad")) else 2
    if name == "sgd":
        return 0
    if name == "adafactor":
        return sum(p.copies * (_factored(p) + _COUNTER) for p in parameters)  # plus the root mean square of each
    if "8bit" in name:
        tables = LEVELS * moments if any(_in_8bit(p) for p in parameters) else 0
        return tables + sum(p.copies * moments * _state_8bit(p) for p in parameters)
    if any(word in name for word in ("32bit", "paged", "bnb", "lion")):  # bitsandbytes': always fp32
        return sum(p.copies * moments * 4 * p.numel for p in parameters)
    return sum(p.copies * (moments * p.itemsize * p.numel + _COUNTER) for p in parameters)


def step_bytes(optim: str, parameters: Iterable[Parameter], device: str) -> int:
    """The most bytes that a step takes besides gradients and states."""
    name, parameters = str(optim), list(parameters)
    largest = max((p.numel * max(4, p.itemsize) for p in parameters), default=0)
    if "fused" in name or name == "sgd":
        return 0
    if name == "adafactor":
        return 3 * largest  # squared gradient, update and their product, one parameter at a time
    if "8bit" in name or "paged" in name or "lion" in name or "bnb" in name:
        return 0 if device == "cuda" else 6 * largest  # on the CPU the states are upcast, one parameter at a time
    if device == "cuda":  # torch's optimizers process all parameters at once there
        return sum(p.copies * p.numel * p.itemsize for p in parameters)
    return 2 * largest


def _in_8bit(p: Parameter) -> bool:
    return p.numel >= SMALLEST_8BIT and not p.embedding


def _state_8bit(p: Parameter) -> int:
    return p.numel + 4 * -(-p.numel // BLOCK_8BIT) if _in_8bit(p) else 4 * p.numel


def _factored(p: Parameter) -> int:
    """Rows and columns of a matrix's squared gradients; all of a vector's (https://arxiv.org/abs/1804.04235)."""
    if len(p.shape) < 2:
        return 4 * p.numel
    return 4 * (p.numel // p.shape[-1] + p.numel // p.shape[-2])
