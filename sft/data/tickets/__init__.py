"""Tickets: messages to a fictional electronics shop, each with a strict JSON record of its content.

The record has four fields, each determined by the text alone and null where the text does not say it:

- customer: the name that the writer gives as their own, verbatim;
- product: what the message is about, one of eight words (a notebook is a laptop, a mobile is a phone);
- issue: battery, screen, sound, connection, power, delivery or refund;
- urgency: high (today, now), normal (in the next days) or low (no hurry).

Rows are generated from a seed. The three parts share no row: `train`; `known`, with names and pairs of product and
phrasing that are not in `train`, but phrasings that are; and `unseen`, with phrasings that are not in `train`.
"""

from __future__ import annotations

from sft.data.tickets.compose import PARTS, SYSTEM, Tickets, generate

__all__ = ["PARTS", "SYSTEM", "Tickets", "generate"]
