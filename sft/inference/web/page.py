"""The page: its components and their event handlers. Everything typed or generated is shown as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr

from sft.inference.web.handlers import FIELDS, Handlers

TITLE = "sft chat"
_FONT = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica", "Arial", "sans-serif"]
_MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]
CSS = """
.gradio-container { max-width: 1440px !important; margin: 0 auto; padding-top: 8px !important; }
#title { font-size: 20px; font-weight: 600; padding: 0 2px; }
#title span { font-weight: 400; opacity: .6; padding-left: 10px; font-size: 14px; }
#facts, #note { border-width: 0 !important; background: transparent; box-shadow: none; min-width: 0; }
#facts textarea, #note textarea { border: none; box-shadow: none; background: transparent; padding: 0 4px; resize: none;
  font-size: 13px; line-height: 18px; opacity: .8; }
#chat .md, #base .md { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 15px; }
#chat .icon-button, #base .icon-button { display: none; }
#sampling label span, #sampling .head span { font-size: 12.5px; }
#message textarea { font-size: 15px; }
"""
_ONE_AT_A_TIME = {"concurrency_limit": 1, "concurrency_id": "model"}


def build_page(handlers: Handlers, settings: Mapping[str, Any]) -> gr.Blocks:
    """Build the page.

    Args:
        handlers: the event handlers.
        settings: the command's resolved config, for the initial values of the fields.
    """
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        gr.HTML(f"{TITLE}<span>answers are text: nothing in them is run</span>", elem_id="title")
        with gr.Row(equal_height=False):
            with gr.Column(scale=1, min_width=300):
                model, facts, system, compare = _model(handlers)
                sampling = _sampling(settings)
                save, names, reopen = _files(handlers)
            with gr.Column(scale=3, min_width=480):
                chat, base = _conversations()
                note = gr.Textbox(show_label=False, container=False, interactive=False, lines=1, elem_id="note")
                message = gr.Textbox(
                    show_label=False,
                    placeholder="A message; Enter sends it, Shift+Enter makes a new line",
                    lines=1,
                    max_lines=12,
                    autofocus=True,
                    elem_id="message",
                )
                with gr.Row():
                    send = gr.Button("Send", variant="primary", elem_id="send", min_width=80)
                    stop = gr.Button("Stop", variant="stop", elem_id="stop", min_width=80)
                    again = gr.Button("Regenerate", elem_id="again", min_width=80)
                    clear = gr.Button("Clear", elem_id="clear", min_width=80)
        chosen, shown = [model, system, compare, *sampling], [chat, base, note]
        _on_answers(handlers, message, send, again, chosen, shown)
        stop.click(handlers.stop, None, None, queue=False, api_name="stop")
        clear.click(handlers.clear, None, shown, queue=False, api_name="clear")
        save.click(handlers.save, [system, model], [note, names], queue=False, api_name="save")
        reopen.click(handlers.open, names, [chat, base, system, note], queue=False, api_name="open")
        model.input(handlers.pick, model, [facts, system, compare, base, note], queue=False, api_name="pick")
        compare.input(lambda on: gr.update(visible=on), compare, base, queue=False, api_visibility="private")
        page.load(handlers.lists, None, [model, names], queue=False, api_visibility="private")
        page.unload(handlers.leave)
    return page


def _on_answers(handlers: Handlers, message: Any, send: Any, again: Any, chosen: list[Any], shown: list[Any]) -> None:
    """Connect sending and regenerating. The wrappers take the request first, where Gradio finds it by its
    annotation."""

    def sent(request: gr.Request, text: str, *fields: Any) -> Any:
        yield from handlers.send(text, *fields, request=request)

    def repeated(request: gr.Request, *fields: Any) -> Any:
        yield from handlers.regenerate(*fields, request=request)

    for trigger, name in ((send.click, "send"), (message.submit, None)):
        hidden = {} if name else {"api_visibility": "private"}
        trigger(
            sent,
            [message, *chosen],
            [message, *shown],
            api_name=name,
            show_progress="minimal",
            show_progress_on=shown[2],
            **hidden,
            **_ONE_AT_A_TIME,
        )
    again.click(
        repeated,
        chosen,
        shown,
        api_name="regenerate",
        show_progress="minimal",
        show_progress_on=shown[2],
        **_ONE_AT_A_TIME,
    )


def _model(handlers: Handlers) -> tuple[Any, Any, Any, Any]:
    first = handlers.pool.first
    summary = handlers.pool.summary(first)
    # the lists change while the page is open, so the selection is checked by the handlers and not by Gradio
    model = gr.Dropdown(handlers.pool.names, value=first, label="Model", allow_custom_value=True, elem_id="model")
    facts = gr.Textbox(summary.facts, show_label=False, container=False, interactive=False, lines=3, elem_id="facts")
    system = gr.Textbox(summary.system, label="System prompt", lines=3, max_lines=12, elem_id="system")
    compare = gr.Checkbox(False, label="The base answers too", interactive=summary.has_base, elem_id="compare")
    return model, facts, system, compare


def _sampling(settings: Mapping[str, Any]) -> list[Any]:
    """The input fields of `FIELDS`, with the config's values."""
    value = {name: settings[name] for name in FIELDS}
    with gr.Accordion("Sampling", open=True, elem_id="sampling"):
        fields: list[Any] = [
            gr.Slider(0, max(2.0, value["temperature"]), value["temperature"], step=0.05, label="temperature"),
            gr.Slider(0.01, 1.0, value["top_p"], step=0.01, label="top_p"),
        ]
        with gr.Row():
            fields += [
                gr.Number(value["top_k"], label="top_k", precision=0, minimum=0, min_width=90),
                gr.Number(value["repetition_penalty"], label="repetition_penalty", step=0.05, min_width=90),
            ]
        with gr.Row():
            fields += [
                gr.Number(value["max_new_tokens"], label="max_new_tokens", precision=0, minimum=1, min_width=90),
                gr.Number(value["seed"], label="seed", precision=0, min_width=90),
            ]
    return fields


def _files(handlers: Handlers) -> tuple[Any, Any, Any]:
    with gr.Accordion("Conversations", open=True):
        save = gr.Button("Save this conversation", elem_id="save", size="sm")
        names = gr.Dropdown(handlers.saved.names(), value=None, label="Saved", allow_custom_value=True, elem_id="saved")
        reopen = gr.Button("Open", elem_id="open", size="sm")
    return save, names, reopen


def _conversations() -> tuple[Any, Any]:
    """The two chat areas. Markdown and formulas are off and HTML is escaped: answers are shown verbatim.

    Gradio's own buttons are hidden: one copies the escaped text, the other clears only the display.
    """
    settings: dict[str, Any] = {
        "render_markdown": False,
        "sanitize_html": True,
        "latex_delimiters": [],
        "buttons": [],
        "feedback_options": None,
        "height": "62vh",
        "min_height": 320,
        "layout": "bubble",
    }
    with gr.Row():
        chat = gr.Chatbot(label="Model", elem_id="chat", placeholder="", **settings)
        base = gr.Chatbot(label="Base", elem_id="base", visible=False, placeholder="", **settings)
    return chat, base


def theme_options() -> dict[str, Any]:
    """Theme and CSS for `launch`; with system fonts, so that none is fetched."""
    theme = gr.themes.Base(primary_hue="blue", neutral_hue="slate", font=_FONT, font_mono=_MONO, radius_size="md")
    return {"theme": theme, "css": CSS}
