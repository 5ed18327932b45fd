"""Chat templates are code of strangers: what real ones need works, the rest ends in a typed error, soon."""

from __future__ import annotations

import json
import subprocess
import sys
from types import MappingProxyType
from typing import Any

import pytest

from dsv3c.runtime import errors
from dsv3c.runtime.text.chat_template import ChatTemplate
from dsv3c.runtime.text.template_process import TemplateProcess

PROCESS = TemplateProcess()  # starts when it is first asked
MESSAGES = [{"role": "system", "content": "Be <brief>."}, {"role": "user", "content": "Hi\n"}]


def render(source: str, messages: Any = MESSAGES, **variables: Any) -> str:
    return ChatTemplate(source, PROCESS).render(messages, variables)


def test_a_template_like_those_of_the_field() -> None:
    source = """{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}
{% set ns = namespace(system='', first=true) %}
{%- for message in messages -%}
    {%- if message['role'] == 'system' -%}{% set ns.system = ns.system + message['content'] %}{%- endif -%}
{%- endfor -%}
{{ bos_token }}{{ ns.system }}
{%- for message in messages -%}
    {%- if message.role == 'user' -%}{% set ns.first = false %}
    {{- '<｜User｜>' + message['content'] | trim }}{%- endif -%}
    {%- if loop.last and add_generation_prompt -%}{{ '<｜Assistant｜>' ~ '<think>' }}{%- endif -%}
{%- endfor -%}"""
    found = render(source, bos_token="<s>", add_generation_prompt=True)
    assert found == "<s>Be <brief>.<｜User｜>Hi<｜Assistant｜><think>"


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ messages[1] | tojson }}", '{"role": "user", "content": "Hi\\n"}'),
        ("{{ {'b': 'é', 'a': 1} | tojson(indent=1) }}", '{\n "b": "é",\n "a": 1\n}'),
        ("{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}{% endfor %}", "user"),
        ("{% for m in messages %}{{ m.role }}{% break %}{% endfor %}", "system"),
        ("{{ messages[1].content.strip().replace('H', 'J') }}", "Ji"),
        ("{{ '%s-%05d' % ('a', 7) }}", "a-00007"),
        ("{{ messages | map(attribute='role') | join(', ') }}", "system, user"),
        ("{{ messages[-1:][0]['content'].split('</think>')[-1] | trim }}", "Hi"),
        ("{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ loop.last }} {% endfor %}", "1/2False 2/2True "),
        ("{% macro f(n) %}{% if n %}{{ n }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(3) }}", "321"),
        ("{% for x in [[1, [2]]] recursive %}{{ x if x is number else loop(x) }}{% endfor %}", "12"),
        ("{{ range(3) | list }}{{ 2 ** 10 }}{{ 'ab' * 3 }}", "[0, 1, 2]1024ababab"),
        ("{{ missing }}{{ messages[0].missing is defined }}", "False"),
        ("{{ strftime_now('%Y') | length }}", "4"),
        ("{{ [1, 2] | tojson(indent=2) }}", "[\n  1,\n  2\n]"),
        ("{{ {'b': 1, 'a': 'é'} | tojson(ensure_ascii=true, separators=(',', ':'), sort_keys=true) }}",
         '{"a":"\\u00e9","b":1}'),
        ("{% for m in messages %}{% generation %}{{ m.role }}{% endgeneration %};{% endfor %}", "system;user;"),
        ("{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}", "21"),
        ("{% for m in messages %}{% generation %}{{ loop.index }}{% endgeneration %}{% endfor %}", "12"),
        ("{%- generation -%}  a  {%- endgeneration -%}  b", "ab"),
    ],
)  # fmt: skip
def test_what_templates_use(source: str, text: str) -> None:
    assert render(source) == text


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% set r = range(99999) %}{% for a in r %}{% for b in r %}{% endfor %}{% endfor %}",
        "{% set r = range(99999) | list %}{% for a in r if r[a + 1] == 'x' %}{% else %}{% endfor %}" * 300,
        "{% for a in range(99999) %}{{ 'x' * 100000 }}{% endfor %}",
        "{% set r = range(99999) %}{% for a in r recursive %}{% for b in r recursive %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) recursive %}{{ loop(range(99999)) }}{% endfor %}",
        "{{ 'x' * 10 ** 9 }}",
        "{{ 10 ** 9 * 'x' }}",
        "{{ ['x'] * 10 ** 9 }}",
        "{{ 9 ** 999999999 }}",
        "{{ 'x' | center(10 ** 9) }}",
        "{{ 'x'.ljust(1000000000) }}",
        "{{ 'x'.zfill(1000000000) }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '%*d' % (1000000000, 1) }}",
        "{{ '%1000000000d' | format(1) }}",
        "{{ '{:>1000000000}'.format(1) }}",
        "{{ 'x' | indent(1000000000, true) }}",
        "{{ {'a': 1} | tojson(indent=1000000000) }}",
        "{{ ('x' * 9999).replace('x', 'y' * 9999) }}",
        "{{ ('x' * 9999) | replace('x', 'y' * 9999) }}",
        "{{ ('x' * 9999).join(['a'] * 9999) }}",
        "{{ (['a'] * 9999) | join('x' * 9999) }}",
        "{% set ns = namespace(s='x') %}{% for i in range(64) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s }}",
        "{% set ns = namespace(s='x') %}{% for i in range(64) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
        "{% set ns = namespace(s=[1]) %}{% for i in range(64) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{% set ns = namespace(n=9) %}{% for i in range(64) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
        "{% macro f(n) %}{{ f(n + 1) }}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
        "{{ [1] | slice(1000000000) | list | length }}",
        "{{ [1] | batch(1000000000, 1) | list | length }}",
        "{% set a = 'x' * 16000000 %}{{ ([a] * 400) | join | length }}",
        "{% set a = ['x'] * 10 %}" + "{% set a = [a] * 10 %}" * 9 + "{{ a | string | length }}",
        "{% set ns = namespace(a=[]) %}{% for i in range(64) %}{% set ns.a = [ns.a, ns.a] %}{% endfor %}"
        "{{ ns.a == [ns.a[0], ns.a[0] | list] }}{{ ns.a | tojson | length }}",
        "{{ ([[1] * 100000] * 10000) | sum(start=[]) | length }}",
        "{{ 5 in [1] | slice(1000000000) }}",
        "{{ 10 | round(-1000000000) }}",
        "{{ ('www.a.com ' * 3000000) | urlize | length }}",
        "{{ 1 }}" * 140_000,
        "{{ dict(a=range(99999) | list) | xmlattr * 900000 }}",
        "{% set a = cycler(*range(99999)) %}{% for i in range(99999) %}{% for j in range(9) %}{{ a.next() }}"
        "{{ joiner(a.current ~ 'x' * 9999)() }}{% endfor %}{% endfor %}",
    ],
    ids=lambda source: source[:70],
)
def test_costly_templates_end_soon(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsv3c.runtime.text.chat_template.SECONDS", 0.1)
    with pytest.raises((errors.TemplateTooCostly, errors.TemplateFailed)):
        render(source)
    assert render("{{ messages[0].role }}") == "system"


LARGE = (
    "{{ 'x' * 10 ** 9 }}",
    "{{ [1] | slice(1000000000) | list | length }}",
    "{{ ([1] * 100000) | string * 900000 }}",
)
PEAK = """
import resource, sys
from dsv3c.runtime.text.chat_template import ChatTemplate
from dsv3c.runtime.errors import TemplateFailed, TemplateTooCostly
for source in sys.argv[1:]:
    try:
        ChatTemplate(source).render([{"role": "user", "content": "Hi"}], {})
    except (TemplateFailed, TemplateTooCostly):
        print("refused")
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def test_costly_templates_take_little_memory() -> None:
    """In a process of its own, whose only children are those that render."""
    done = subprocess.run([sys.executable, "-c", PEAK, *LARGE], capture_output=True, text=True, check=True)
    *refused, peak = done.stdout.split()
    assert refused == ["refused"] * len(LARGE)
    assert int(peak) < 256 << 10  # kB


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__ }}{{ messages.__class__.__name__ }}",
        "{{ cycler.__init__.__globals__ }}{{ cycler.__init__.__globals__.os }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'x'}) }}",
        "{{ self._TemplateReference__context.environment }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{{ lipsum() }}",
    ],
)
def test_the_sandbox_holds(source: str) -> None:
    with pytest.raises(errors.TemplateFailed):
        render(source)


@pytest.mark.parametrize(
    "source", ["{% for %}", "{{", "{% endfor %}", "{{ x | no_such_filter }}", "(" * 3 + "{{ " + "(" * 5000]
)
def test_no_template_at_all(source: str) -> None:
    with pytest.raises(errors.TemplateFailed):
        render(source)


def test_the_template_refuses() -> None:
    with pytest.raises(errors.TemplateFailed, match="roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")


def test_messages_stay_as_they_were() -> None:
    messages = [{"role": "user", "content": "a"}]
    render("{% set messages = messages[1:] %}", messages)
    assert messages == [{"role": "user", "content": "a"}]


@pytest.mark.parametrize("messages", [None, [], "hi", {}, ["hi"], [{}], [{"role": 1}], [{"content": "x"}]], ids=str)
def test_messages_invalid(messages: Any) -> None:
    with pytest.raises(errors.MessagesInvalid):
        render("x", messages)


def test_what_messages_hold_arrives_as_it_is() -> None:
    content = [{"type": "text", "text": "ü\ud800\0"}, {"n": 1.5, "none": None, "big": 10**40, "yes": True}]
    found = render("{{ messages[0].content | tojson(ensure_ascii=true) }}", [{"role": "user", "content": content}])
    assert json.loads(found) == content
    assert render("{{ messages[0].content }}", [MappingProxyType({"role": "user", "content": "\ud800"})]) == "\ud800"


def test_what_json_cannot_hold_is_refused() -> None:
    for value in (object(), {1j: 2}, print, b"x"):
        with pytest.raises(errors.MessagesInvalid, match="no JSON"):
            render("x", [{"role": "user", "content": value}])
        with pytest.raises(errors.MessagesInvalid, match="no JSON"):
            render("x", tools=[value])
