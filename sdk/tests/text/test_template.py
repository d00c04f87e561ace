from __future__ import annotations

import threading
from enum import StrEnum
from time import thread_time
from typing import Any

import pytest
from anyengine.errors import InvalidConfig, InvalidRequest
from anyengine.text import budget
from anyengine.text.template import compile_template

CHATML = """\
{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}\
{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

LLAMA_2 = """\
{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}\
{% set system_message = '<<SYS>>\n' + messages[0]['content'] | trim + '\n<</SYS>>\n\n' %}\
{% else %}{% set loop_messages = messages %}{% set system_message = '' %}{% endif %}
{% for message in loop_messages %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {% endif %}
    {% if loop.index0 == 0 %}{% set content = system_message + message['content'] %}
    {% else %}{% set content = message['content'] %}{% endif %}
    {% if message['role'] == 'user' %}
        {{ bos_token + '[INST] ' + content | trim + ' [/INST]' }}
    {% elif message['role'] == 'assistant' %}
        {% generation %}{{ ' ' + content | trim + ' ' + eos_token }}{% endgeneration %}
    {% endif %}
{% endfor %}"""

LLAMA_3 = """\
{{- bos_token }}
{%- macro header(role) %}{{ '<|start_header_id|>' ~ role ~ '<|end_header_id|>\n\n' }}{% endmacro %}
{%- set ns = namespace(count=0, names=[]) %}
{%- if not date_string is defined %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- if tools is not none %}
    {{- header('system') ~ 'Today is ' ~ date_string ~ '\n' }}
    {%- for tool in tools %}{{- tool | tojson(indent=4) ~ '\n' }}{%- endfor %}
    {{- '<|eot_id|>' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'skip' %}{%- continue %}{%- endif %}
    {%- set ns.count = ns.count + 1 %}{%- set ns.names = ns.names + [message.role] %}
    {{- header(message.role) }}
    {%- if message.content is string %}{{- message.content | trim }}
    {%- else %}{%- for part in message.content %}{{- part.text }}{%- endfor %}{%- endif %}
    {%- if message.tool_calls is defined %}
        {%- for call in message.tool_calls %}
            {{- '{"name": "%s", ' % call.function.name + '"parameters": ' + call.function.arguments | tojson + '}' }}
        {%- endfor %}
    {%- endif %}
    {{- '<|eot_id|>' }}
{%- endfor %}
{{- ns.count }} {{ ns.names | join(', ') }} {{ ns.names | unique | map('upper') | list }} {{ {'a': (1, 2)} }}
{%- if add_generation_prompt %}{{- header('assistant') }}{%- endif %}"""

TEMPLATES = {"chatml": CHATML, "llama-2": LLAMA_2, "llama-3": LLAMA_3}
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
USER = {"role": "user", "content": "  Hi there, naïve 木 <b>&'\" \n"}
CONVERSATIONS = [
    [USER],
    [{"role": "system", "content": "Be brief. "}, USER],
    [USER, {"role": "assistant", "content": " Hello!\n "}, USER],
    [USER, {"role": "assistant", "content": "Sure"}],
]
TOOLS = [{"type": "function", "function": {"name": "f", "description": "ü", "parameters": {"a": [1, 2.5, None]}}}]


def render(source: str, messages: Any = (USER,), **kwargs: Any) -> str:
    return compile_template(source).render(messages, **kwargs)


@pytest.mark.oracle
@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("messages", CONVERSATIONS)
@pytest.mark.parametrize("mode", ["prompt", "closed", "continued", "tools"])
def test_the_text_is_that_of_transformers(name: str, messages: list[dict[str, Any]], mode: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    options: dict[str, Any] = {
        "prompt": {"add_generation_prompt": True},
        "closed": {"add_generation_prompt": False},
        "continued": {"add_generation_prompt": False, "continue_final_message": True},
        "tools": {"add_generation_prompt": True, "tools": TOOLS},
    }[mode]
    variables = {"date_string": "today"}
    (expected,), _ = render_jinja_template([messages], chat_template=TEMPLATES[name], **options, **SPECIAL, **variables)
    assert render(TEMPLATES[name], messages, **options, special_tokens=SPECIAL, kwargs=variables) == expected


def test_chatml_without_an_oracle() -> None:
    assert render(CHATML, [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]) == (
        "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n"
    )


def test_what_the_template_raises_is_the_messages_fault() -> None:
    with pytest.raises(InvalidRequest, match="roles must alternate") as caught:
        render(LLAMA_2, [USER, USER], special_tokens=SPECIAL)
    assert caught.value.field == "messages"


def test_parts_are_joined_for_a_template_that_takes_text() -> None:
    parts = {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
    assert render("{{ messages[0].content }}", [parts]) == "a\nb"
    assert render("{% for part in messages[0]['content'] %}[{{ part.text }}]{% endfor %}", [parts]) == "[a][b]"


def test_the_last_message_can_be_continued_whether_or_not_the_template_strips() -> None:
    messages = [USER, {"role": "assistant", "content": "Once upon "}]
    options = {"add_generation_prompt": False, "continue_final_message": True}
    assert render(CHATML, messages, **options).endswith("<|im_start|>assistant\nOnce upon ")
    assert render(LLAMA_3, messages, **options, special_tokens=SPECIAL).endswith("\n\nOnce upon")
    with pytest.raises(InvalidRequest, match="leaves out") as caught:
        render("{{ messages[0].role }}", messages, **options)
    assert caught.value.field == "continue_final_message"
    with pytest.raises(InvalidRequest, match="add_generation_prompt=False"):
        render(CHATML, messages, continue_final_message=True)


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        ([], "messages"),
        ("hello", "messages"),
        ({"role": "user", "content": "x"}, "messages"),
        ([USER, "hello"], "messages[1]"),
        ([{"content": "x"}], "messages[0].role"),
        ([{"role": 3, "content": "x"}], "messages[0].role"),
        ([USER, {"role": "user"}], "messages[1].content"),
        ([{"role": "user", "content": 7}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "messages[0].content[0].type"),
        ([{"role": "user", "content": ["x"]}], "messages[0].content[0].type"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
        ([{"role": "user", "content": "x", "extra": object()}], "messages[0].extra"),
        ([{"role": "user", "content": "x", "extra": {"a": [1, {2}]}}], "messages[0].extra.a[1]"),
        ([{"role": "user", "content": "x", 3: 4}], "messages[0]"),
    ],
)
def test_messages_are_checked_with_the_place_of_the_mistake(messages: Any, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        render(CHATML, messages)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("messages", []),
        ("tools", []),
        ("tokenize", True),
        ("chat_template", "x"),
        ("add_generation_prompt", True),
        ("bos_token", "x"),
        ("image_token", "x"),
        ("raise_exception", "x"),
        ("__class__", "x"),
        ("not a name", "x"),
        ("function", print),
        ("object", object()),
    ],
)
def test_unsafe_template_variables_are_refused(name: str, value: object) -> None:
    with pytest.raises(InvalidRequest) as caught:
        render(CHATML, kwargs={name: value}, special_tokens={"image_token": "<image>"})
    assert caught.value.field == f"chat_template_kwargs.{name}"


def test_the_template_sees_plain_values_only() -> None:
    class Role(StrEnum):
        USER = "user"

        def leak(self) -> str:
            return "leaked"

    assert render("{{ messages[0].role }}{{ messages[0].role.leak }}", [{"role": Role.USER, "content": ""}]) == "user"


@pytest.mark.parametrize(
    "source", ["{% if %}", "{{ x", "{% for x in y %}", "{{ 'a' | nosuch }}", "{{ 'a'|random }}", "(" * 600_000]
)
def test_a_template_that_is_not_jinja_is_refused(source: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        compile_template(source)
    assert caught.value.field == "chat_template"


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__ }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''['__class__'] }}",
        "{{ (''|attr('__class__')).x }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ namespace.__globals__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ joiner.__init__.__globals__.os }}",
        "{{ self.__init__.__globals__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({}) }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{{ '%s'.format.__globals__ }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ dict(__class__=1) and namespace(__class__=1) }}",
        "{{ 'a'.encode().hex() }}",
        "{{ (1).to_bytes(8) }}",
    ],
)
def test_a_template_cannot_reach_python(source: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        render(source)
    assert caught.value.field == "chat_template"


@pytest.mark.parametrize(
    "source", ["{{ lipsum() }}", "{% include 'x' %}", "{{ none.x.y }}", "{{ 1 / 0 }}", "{{ [] + 1 }}"]
)
def test_what_a_template_does_wrong_is_a_typed_error(source: str) -> None:
    with pytest.raises(InvalidRequest):
        render(source)


LOOP = "{% for i in range(100000) %}"
DOUBLE = "{% set ns = namespace(x='a') %}{% for i in range(60) %}"
ATTACKS = {
    "nested loops": LOOP * 3 + "{% endfor %}" * 3,
    "nested loops with output": LOOP * 2 + "x{{ i }}" + "{% endfor %}" * 2,
    "constant output": LOOP * 2 + "x" * 1000 + "{% endfor %}" * 2,
    "filtered loop": LOOP + "{% for j in range(100000) if false %}{% endfor %}{% endfor %}",
    "recursive loop": "{% for i in range(9) recursive %}{{ loop(range(9)) }}{% endfor %}",
    "endless recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "branching recursion": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
    "recursive block": "{% block a %}{{ self.a() }}{{ self.a() }}{% endblock %}",
    "repeated text": "{{ 'a' * 10 ** 9 }}",
    "repeated text, reversed": "{% set n = 10 ** 9 %}{{ n * 'a' }}",
    "repeated list": "{{ ([0] * 10 ** 9) | length }}",
    "power": "{{ 2 ** (10 ** 9) }}",
    "towers": "{{ 9 ** (9 ** (9 ** 9)) }}",
    "squares": "{% set ns = namespace(x=3) %}" + LOOP + "{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "doubled by +": DOUBLE + "{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "doubled by ~": DOUBLE + "{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "doubled by %": DOUBLE + "{% set ns.x = '%s%s' % (ns.x, ns.x) %}{% endfor %}",
    "doubled by format": DOUBLE + "{% set ns.x = '{0}{0}'.format(ns.x) %}{% endfor %}",
    "doubled by the format filter": DOUBLE + "{% set ns.x = '%s%s'|format(ns.x, ns.x) %}{% endfor %}",
    "doubled by join": DOUBLE + "{% set ns.x = [ns.x, ns.x] | join %}{% endfor %}",
    "doubled by replace": DOUBLE + "{% set ns.x = ns.x.replace('a', 'aa') %}{% endfor %}",
    "doubled by the replace filter": DOUBLE + "{% set ns.x = ns.x|replace('a', 'aa') %}{% endfor %}",
    "doubled by a set block": DOUBLE + "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}{% endfor %}",
    "doubled by escaping": DOUBLE + "{% set ns.x = ('&' ~ ns.x)|forceescape|forceescape|string ~ ns.x %}{% endfor %}",
    "doubled lists": DOUBLE + "{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "doubled tuples": DOUBLE + "{% set ns.x = (ns.x, ns.x) %}{% endfor %}{{ {ns.x: 1} }}",
    "doubled mappings": DOUBLE + "{% set ns.x = {'a': ns.x, 'b': ns.x} %}{% endfor %}{{ ns.x | tojson }}",
    "doubled by dict()": DOUBLE + "{% set ns.x = dict(a=ns.x, b=ns.x) %}{% endfor %}{{ ns.x }}",
    "deep list": "{% set ns = namespace(x=[]) %}" + LOOP + "{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}",
    "kept slices": "{% set ns = namespace(x=[]) %}{% set y = 'a' * 3000000 %}"
    + LOOP
    + "{% set ns.x = ns.x + [y[1:]] %}{% endfor %}",
    "wide by %": "{{ '%1000000000d' % 1 }}",
    "wide by % *": "{{ '%*d' % (1000000000, 1) }}",
    "wide by format": "{{ '{:1000000000}'.format(1) }}",
    "wide by nested format": "{{ '{:{}}'.format(1, 1000000000) }}",
    "wide by format_map": "{{ '{a:1000000000}'.format_map({'a': 1}) }}",
    "wide by the format filter": "{{ '%1000000000d'|format(1) }}",
    "center": "{{ 'a'.center(1000000000) }}",
    "center filter": "{{ 'a'|center(1000000000) }}",
    "ljust": "{{ 'a'.ljust(1000000000) }}",
    "zfill by keyword": "{{ 'a'.zfill(1000000000) }}",
    "expandtabs": "{{ '\t'.expandtabs(1000000000) }}",
    "indent": "{{ 'a'|indent(1000000000, true) }}",
    "tojson indent": "{{ [1]|tojson(indent=1000000000) }}",
    "round": "{{ 1.5|round(1000000000) }}",
    "round with a method": "{{ 1.5|round(1000000000, 'floor') }}",
    "slice": "{{ [1]|slice(1000000000)|list }}",
    "batch": "{{ [1]|batch(1000000000, 'x')|list }}",
    "join of many": "{{ range(100000)|join('a' * 100000) }}",
    "join method": "{{ ('a' * 100000).join(range(100000)|map('string')) }}",
    "sum of lists": "{{ ([[1]] * 300000)|sum(start=[]) }}",
    "mapped filter": "{{ range(100000)|map('center', 100000)|list }}",
    "rejecting test": LOOP + "{{ range(100000)|select('gt', 100000)|list }}{% endfor %}",
    "date": "{{ strftime_now('%1000000000d') }}",
    "chained generators": "{{ range(100000)|map('list')|list }}{% set r = range(100000) %}"
    + LOOP
    + "{{ r|list|length }}{% endfor %}",
}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_ends_in_a_typed_error_soon(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "SECONDS", 0.25)
    threads = threading.active_count()
    start = thread_time()
    with pytest.raises(InvalidRequest) as caught:
        render(ATTACKS[name])
    assert caught.value.field in {"chat_template", "messages"}
    assert thread_time() - start < 1.25
    assert threading.active_count() == threads


def test_a_long_conversation_is_within_the_budget() -> None:
    turns = [{"role": "user", "content": "a" * 2000}, {"role": "assistant", "content": "b" * 2000}] * 1000
    assert len(render(LLAMA_3, turns, special_tokens=SPECIAL)) > 4_000_000


def test_the_real_budget_is_about_two_seconds() -> None:
    start = thread_time()
    with pytest.raises(InvalidRequest, match=r"takes more than (1000000 steps|2 seconds)"):
        render(ATTACKS["nested loops"])
    assert thread_time() - start < 3


def test_a_refused_template_leaves_the_next_rendering_its_own_budget() -> None:
    with pytest.raises(InvalidRequest):
        render(ATTACKS["doubled by +"])
    assert render("{{ messages | length }}") == "1"
