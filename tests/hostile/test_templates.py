"""Attacks through a chat template: escaping the sandbox, endless loops, exhausting memory. Each ends within seconds."""

from __future__ import annotations

import string
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft.config.errors import UserError
from sft.safety import limits
from sft.safety.limits import EndlessTemplate
from sft.template.bind import bind
from sft.template.rendering.render import RenderError, render
from sft.template.spec import Template

MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
ENDLESS = "the chat template does not terminate: it has run for"
TOO_LARGE = "the chat template produces more text than any conversation has, and was stopped"
NESTED = "the chat template nests lists without end, and was stopped"
UNSAFE = "of 'str' object is unsafe"
NOT_JINJA = "the chat template is not valid Jinja: nested too deeply"
LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}"
GROWN = "{% set ns = namespace(x='xx') %}{% for i in range(60) %}"
LIST = "{% set ns = namespace(x=[]) %}{% for i in range(60) %}"
LONG = "{% set a = 'a' * 1000000 %}"
NOTHING = "(nothing)"

# What is tried: (the template, what is told; NOTHING where the attribute is not there and the text is empty)
ATTACKS: dict[str, tuple[str, str]] = {
    "loops in loops": (LOOP + "{% endfor %}{% endfor %}", ENDLESS),
    "loops with a condition that never holds": (
        "{% for i in range(99999) if i %}{% for j in range(99999) if j < 0 %}{% endfor %}{% endfor %}",
        ENDLESS,
    ),
    "loops that write": (LOOP + "x" * 1000 + "{% endfor %}{% endfor %}", ENDLESS),
    "a macro that calls itself twice": (
        "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        ENDLESS,
    ),
    "a slow filter in a loop": ("{% for i in range(99999) %}{{ range(99999)|sort|length }}{% endfor %}", ENDLESS),
    "a macro without end": ("{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}", "RecursionError"),
    "a block that holds itself": ("{% block a %}{{ self.a() }}{{ self.a() }}{% endblock %}", "RecursionError"),
    "a loop that calls itself": ("{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}", "RecursionError"),
    "`range(10**12)`": ("{% for i in range(10**12) %}x{% endfor %}", "Range too big"),
    "a text times 10,000,000,000": ("{{ 'x' * 10**10 }}", TOO_LARGE),
    "a list times 10,000,000,000": ("{{ [0] * 10**10 }}", TOO_LARGE),
    "a text doubled 60 times with `+`": (GROWN + "{% set ns.x = ns.x + ns.x %}{% endfor %}", TOO_LARGE),
    "a text doubled 60 times with `~`": (GROWN + "{% set ns.x = ns.x ~ ns.x %}{% endfor %}", TOO_LARGE),
    "a text doubled 60 times by blocks": (
        GROWN + "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}{% endfor %}",
        TOO_LARGE,
    ),
    "a text doubled 60 times by a macro": (
        "{% macro f(x) %}{{ x }}{{ x }}{% endmacro %}" + GROWN + "{% set ns.x = f(ns.x) %}{% endfor %}",
        TOO_LARGE,
    ),
    "a large text written often": (LONG + "{% for i in range(99999) %}{{ a }}{% endfor %}", TOO_LARGE),
    "a power of powers": ("{% set n = 99999 %}{{ n ** n ** n }}", "a number with so many digits"),
    "`center` to 10,000,000,000": ("{{ 'x'|center(10**10) }}", "may not ask for such a size"),
    "`ljust` to 10,000,000,000": ("{{ 'x'.ljust(10**10) }}", TOO_LARGE),
    "a width in `format`": ("{{ '{:>9999999999}'.format('x') }}", "may not format to such a width"),
    "a width in `%`": ("{{ '%9999999999d' % 1 }}", "may not format to such a width"),
    "a width that is an argument": ("{{ '{:{w}}'.format('x', w=9999999999) }}", "may not format to such a width"),
    "`replace` of each letter by a million": (LONG + "{{ a|replace('a', a) }}", TOO_LARGE),
    "`join` by a million letters": (LONG + "{{ range(99999)|join(a) }}", TOO_LARGE),
    "`indent` by a million": ("{{ ('\n' * 1000000)|indent(10**6) }}", "may not ask for such a size"),
    "bytes beyond memory": ("{{ (5).to_bytes(10**10, 'big') }}", TOO_LARGE),
    "bytes beyond memory, by name": ("{{ (5).to_bytes(length=10**10, byteorder='big')|length }}", TOO_LARGE),
    "lists of lists of lists": (LIST + "{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}", NESTED),
    "objects of objects in `tojson`": (
        LIST + "{% set ns.x = {'a': ns.x, 'b': ns.x} %}{% endfor %}{{ ns.x|tojson }}",
        NESTED,
    ),
    "`batch` of a billion": ("{{ 'a'|batch(10**9, 'x')|list }}", "may not ask for such a size"),
    "filler text without end": ("{{ lipsum(n=10**9) }}", "'lipsum' is undefined"),
    "20,000 brackets in an expression": ("{{ " + "(" * 20_000 + "1" + ")" * 20_000 + " }}", NOT_JINJA),
    "5,000 blocks in each other": ("{% if 1 %}" * 5000 + "{% endif %}" * 5000, NOT_JINJA),
    "a template of 2 MiB": ("x" * (2 << 20), "the chat template has 2,097,152 characters, more than 1,048,576"),
    "`__class__` of a text": ("{{ ''.__class__.__mro__ }}", UNSAFE),
    "`__class__` through `format`": ("{{ '{0.__class__.__mro__}'.format('') }}", UNSAFE),
    "`__class__` through `map`": ("{{ ['']|map(attribute='__class__')|list }}", UNSAFE),
    "`__class__` through the filter `attr`": ("{{ ''|attr('__class__') }}", NOTHING),
    "the globals of a function": ("{{ raise_exception.__globals__ }}", NOTHING),
    "`os` by way of a global": (
        "{{ cycler.__init__.__globals__.os.system('touch owned') }}",
        "access to attribute '__init__' of 'type' object is unsafe",
    ),
    "the template's own internals": ("{{ self.__init__.__globals__ }}", "object is unsafe"),
    "the namespace's internals": ("{% set ns = namespace(__class__=1) %}", "may not set the attribute '__class__'"),
    "a message that is changed": ("{{ messages[0].update(content='x') }}", "access to attribute 'update'"),
    "a message that is added": ("{{ messages.append(1) }}", "access to attribute 'append'"),
    "a file that is included": ("{% include '/etc/passwd' %}", "no loader for this environment"),
    "a module that is imported": ("{% import 'os' as os %}", "no loader for this environment"),
}


def rendered(text: str) -> str:
    """What is told, or the text that the template gives."""
    try:
        return render(text, MESSAGES, {}) or NOTHING
    except (RenderError, UserError) as error:
        return str(error)


@pytest.mark.parametrize("name", ATTACKS)
def test_each_hostile_template_ends_with_its_reason(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    text, reason = ATTACKS[name]
    if reason == ENDLESS:
        monkeypatch.setattr(limits, "SECONDS", 0.3)
    begun = time.thread_time()
    assert reason in rendered(text)
    assert time.thread_time() - begun < 5
    assert not (tmp_path / "owned").exists()


def test_an_endless_template_ends_the_command_and_is_not_skipped(monkeypatch, tiny_tokenizer):
    monkeypatch.setattr(limits, "SECONDS", 0.2)
    for text, name in ((LOOP + "{% endfor %}{% endfor %}", "own"), (LOOP + "{% endfor %}{% endfor %}", "file")):
        tiny_tokenizer.chat_template = text
        template = Template(name="auto") if name == "own" else Template(name="file", text=text)
        with pytest.raises(EndlessTemplate, match=r"does not terminate: .* was stopped\n  -> template=chatml"):
            bind(template, tiny_tokenizer, sample=[{"messages": MESSAGES}])


def test_each_rendering_has_its_own_budget():
    for _ in range(30):
        assert render("{% for i in range(20000) %}{% endfor %}x", MESSAGES, {}) == "x"


def test_large_conversations_are_rendered_completely():
    text = "{% for m in messages %}{{ '<' + m.role + '>' ~ m.content|trim + '\n' }}{% endfor %}"
    many = [{"role": "user", "content": "word " * 2000}] * 1000
    assert render(text, many, {}) == ("<user>" + ("word " * 2000).strip() + "\n") * 1000


@settings(max_examples=150, deadline=None)
@given(
    st.text(st.characters(codec="utf-8"), max_size=60),
    st.text(string.ascii_letters + "{}%#-_.'\"|()[]<> \n", max_size=60),
)
def test_contents_are_never_executed(user, assistant):
    text = "{% for m in messages %}[{{ m.role }}]{{ m['content'] }}{% endfor %}"
    messages = [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    assert render(text, messages, {}) == f"[user]{user}[assistant]{assistant}"


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["{{", "}}", "{%", "%}", "for", "in", "x", "messages", "endfor", "if", "endif", "+", "~",
                                 "*", "'a'", "9**9", "|join", "|list", "[", "]", "(", ")", ".x", "__class__", "{#", " "]),
                max_size=14))  # fmt: skip
def test_any_template_renders_or_says_why(parts):
    try:
        assert isinstance(render(" ".join(parts), MESSAGES, {}), str)
    except (RenderError, UserError) as error:
        assert "chat template" in str(error)
