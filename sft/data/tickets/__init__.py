"""Tickets: messages to an invented electronics shop, and the strict JSON record that each one stands for.

The record has four fields, each decided by the text alone and null where the text does not say it:

- customer: the name that the writer gives as their own, letter for letter;
- product: what the message is about, one of eight words (a notebook is a laptop, a mobile is a phone);
- issue: battery, screen, sound, connection, power, delivery or refund;
- urgency: high (today, now), normal (in the next days) or low (no hurry).

Rows are made on the spot from a seed. Three parts share no row: `train`; `known`, with names and pairs of product and
phrasing that `train` never shows, in phrasings that it does; and `unseen`, in phrasings that it never shows.
"""

from __future__ import annotations

from sft.data.tickets.compose import PARTS, SYSTEM, Tickets, generate

__all__ = ["PARTS", "SYSTEM", "Tickets", "generate"]
