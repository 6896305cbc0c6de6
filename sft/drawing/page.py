"""A page of HTML that stands alone: no scripts, nothing loaded from elsewhere."""

from __future__ import annotations

import html


def page(title: str, style: str, body: str) -> str:
    """The text of a page with its title as the heading.

    Args:
        title: any text; it is escaped.
        style: CSS.
        body: HTML below the heading; what comes from elsewhere is escaped in it already.
    """
    name = html.escape(title)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{name}</title>\n'
        f"<style>{style}</style></head>\n<body><h1>{name}</h1>\n{body}</body></html>\n"
    )
