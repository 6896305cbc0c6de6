"""Answers of a model to many prompts, in padded batches of similar length."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sft.config.errors import UserError
from sft.evaluation.eval_mode import eval_mode, ready_to_generate
from sft.evaluation.sampling import Sampling


@dataclass(frozen=True)
class Answer:
    """One generated answer.

    Args:
        text: without the stop token and other special tokens.
        tokens: how many were generated, the stop token included.
        stopped: whether the model ended it; false where `max_new_tokens` did.
    """

    text: str
    tokens: int
    stopped: bool


@dataclass(frozen=True)
class Stops:
    """What ends an answer: single tokens, and texts of several tokens."""

    ids: tuple[int, ...]
    texts: tuple[str, ...]


def generate_answers(
    model: Any, tokenizer: Any, prompts: Sequence[str] | Sequence[list[int]], **settings: Any
) -> list[str]:
    """Return the text of each prompt's answer; the arguments are those of `answer_prompts`."""
    return [answer.text for answer in answer_prompts(model, tokenizer, prompts, **settings)]


def answer_prompts(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str] | Sequence[list[int]],
    *,
    stop_tokens: Iterable[str] = (),
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
    streamer: Any = None,
    **sampling: Any,
) -> list[Answer]:
    """Answer prompts, the longest first; model, tokenizer and random states are unchanged afterwards.

    Args:
        model: a causal language model of transformers, with or without an adapter of PEFT.
        tokenizer: its tokenizer; padding is done here, on the left, whatever side it pads on.
        prompts: rendered texts, tokenized as they are (a BOS token is part of the text), or token ids.
        stop_tokens: texts that end an answer, in addition to the tokenizer's and the model's own end tokens.
        batch_size: prompts answered together.
        progress: called with the number of prompts answered and the number of all, after each batch.
        streamer: of transformers, receives each token of the answer as it is generated; for a single prompt.
        **sampling: the fields of `sft.evaluation.sampling.Sampling`.

    Returns:
        One answer per prompt, in the prompts' order.

    Raises:
        UserError: a prompt that leaves no room within the model's positions, or an empty one.
    """
    import torch

    drawn = Sampling(**sampling)
    ids = prompt_ids(tokenizer, prompts)
    stops = find_stops(tokenizer, stop_tokens, model)
    answers: list[Answer | None] = [None] * len(ids)
    with eval_mode(model), ready_to_generate(model) as inner:
        room = _check_room(inner.config, ids)
        torch.manual_seed(drawn.seed)
        done = 0
        for batch in by_length([len(prompt) for prompt in ids], batch_size):
            left = room - max(len(ids[i]) for i in batch) if room else None
            config = _generation_config(drawn, stops, pad_id(tokenizer, stops), left)
            made = _generate(inner, tokenizer, [ids[i] for i in batch], config, streamer)
            for i, new in zip(batch, made, strict=True):
                answers[i] = read_answer(tokenizer, new, stops, config.pad_token_id)
            done += len(batch)
            if progress:
                progress(done, len(ids))
    return [answer for answer in answers if answer is not None]


def prompt_ids(tokenizer: Any, prompts: Sequence[str] | Sequence[list[int]]) -> list[list[int]]:
    """Tokenize rendered prompts as training does, adding no special token; token ids pass through.

    Raises:
        UserError: a prompt without tokens, which a model cannot continue.
    """
    ids = [
        tokenizer(prompt, add_special_tokens=False)["input_ids"] if isinstance(prompt, str) else list(prompt)
        for prompt in prompts
    ]
    for i, prompt in enumerate(ids):
        if not prompt:
            raise UserError("the prompt is empty", where=f"prompt {i + 1}", remedy="give it a text")
    return ids


def by_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Yield the indices of `lengths` in batches, the longest first: little padding, and most memory is used at the
    start."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def find_stops(tokenizer: Any, stop_tokens: Iterable[str], model: Any = None) -> Stops:
    """Find what ends an answer: the given texts, the tokenizer's end token and those of the model's generation config."""
    ids: list[int | None] = []
    texts: list[str] = []
    for text in dict.fromkeys(stop_tokens):
        token = tokenizer.convert_tokens_to_ids(text)
        known = token is not None and tokenizer.convert_ids_to_tokens(token) == text
        ids.append(token) if known else texts.append(text)
    ids.append(tokenizer.eos_token_id)
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids.extend(own if isinstance(own, list | tuple) else [own])
    return Stops(tuple(dict.fromkeys(i for i in ids if i is not None)), tuple(texts))


def pad_id(tokenizer: Any, stops: Stops) -> int:
    """The padding id; padding is masked, but a repetition penalty sees it, so it is not a stop token where possible."""
    candidates = [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id, tokenizer.eos_token_id]
    known = [int(candidate) for candidate in candidates if candidate is not None] or [0]
    return next((candidate for candidate in known if candidate not in stops.ids), known[0])


def read_answer(tokenizer: Any, new: Sequence[int], stops: Stops, padding: int | None = None) -> Answer:
    """Cut generated tokens at the first stop and decode the rest; `padding` may follow the stop."""
    end = next((i for i, token in enumerate(new) if token in stops.ids), None)
    kept = list(new[:end])
    while stops.texts and kept and kept[-1] == padding:
        kept.pop()
    text = tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    places = [place for stop in stops.texts if (place := text.find(stop)) >= 0]
    text = text[: min(places)] if places else text
    return Answer(text.strip(), len(kept) + (end is not None), end is not None or bool(places))


def _generation_config(drawn: Sampling, stops: Stops, padding: int, room: int | None) -> Any:
    """transformers' settings of one batch; answers end where the model's positions do (`room` tokens from here)."""
    from transformers import GenerationConfig

    sampled = {"do_sample": True, "temperature": drawn.temperature, "top_p": drawn.top_p, "top_k": drawn.top_k}
    return GenerationConfig(
        max_new_tokens=drawn.max_new_tokens if room is None else min(drawn.max_new_tokens, room),
        use_cache=True,
        repetition_penalty=drawn.repetition_penalty,
        eos_token_id=list(stops.ids) or None,
        stop_strings=list(stops.texts) or None,
        pad_token_id=padding,
        **(sampled if drawn.temperature > 0 else {"do_sample": False}),
    )


def _generate(
    inner: Any, tokenizer: Any, prompts: list[list[int]], config: Any, streamer: Any = None
) -> list[list[int]]:
    """Generate from one batch; returns the new tokens of each prompt, padded as `generate` leaves them."""
    import torch

    longest = max(map(len, prompts))
    input_ids = torch.full((len(prompts), longest), config.pad_token_id, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    for row, prompt in enumerate(prompts):
        input_ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        attention_mask[row, longest - len(prompt) :] = 1
    device = inner.get_input_embeddings().weight.device
    made = inner.generate(
        input_ids=input_ids.to(device),
        attention_mask=attention_mask.to(device),
        generation_config=config,
        tokenizer=tokenizer if config.stop_strings else None,
        streamer=streamer,
    )
    return made[:, longest:].tolist()


def _check_room(config: Any, prompts: Sequence[list[int]]) -> int | None:
    """The number of positions the model has, None where it does not say.

    Raises:
        UserError: a prompt leaves no room for an answer.
    """
    room = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    for i, prompt in enumerate(prompts):
        if room and len(prompt) >= room:
            what = f"{len(prompt)} tokens leave no room for an answer in the model's {room} positions"
            raise UserError(what, where=f"prompt {i + 1}", remedy="shorten it or leave it out")
    return room
