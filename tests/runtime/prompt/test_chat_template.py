"""Places of chat templates, and what templates can and cannot do."""

from __future__ import annotations

import json
from datetime import datetime

import jinja2
import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from lvlm_runtime.errors import LvlmError
from lvlm_runtime.prompt.chat_template import compile_template, find_template, parse_object

MESSAGES = [{"role": "user", "content": [{"type": "text", "text": "<é> & 'two'"}]}]

TEMPLATES = [
    "{{ messages | tojson }}",
    "{{ messages | tojson(ensure_ascii=true, indent=2, sort_keys=true) }}",
    "{% for i in [1, 2] %}{{ i }}{% break %}{% endfor %}",
    "{% generation %}a{{ messages[0].role }}{% endgeneration %}b",
    "{% set n = namespace(a=1) %}{% set n.a = n.a + 1 %}{{ n.a }}",
    "{% set n = namespace(self=1) %}{{ n.self }}",
    "{{ dict(a=1).a }}{{ dict.fromkeys('b') }}{{ dict.fromkeys('b', 2) }}",
    "  {% if add_generation_prompt %}  \n  trimmed\n  {% endif %}\n  ",
    "{{ messages[0].content | selectattr('type', 'equalto', 'text') | map(attribute='text') "
    "| join }}{{ tools }}{{ documents }}{{ missing }}",
]


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_renders_as_in_transformers(template: str) -> None:
    theirs, _ = render_jinja_template(
        [MESSAGES], chat_template=template, add_generation_prompt=True
    )
    ours = compile_template(template).render(
        messages=MESSAGES, tools=None, documents=None, add_generation_prompt=True
    )
    assert [ours] == theirs


def test_a_template_knows_the_day() -> None:
    assert compile_template("{{ strftime_now('%Y') }}").render() == datetime.now().strftime("%Y")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('one user only') }}", "one user only"),
        ("{{ ''.__class__.__mro__ }}", "access to attribute '__class__'"),
        ("{{ messages.append(1) }}", "append"),
        ("{{ messages[5].content }}", "has no element 5"),
        ("{% set n = namespace(_a=1) %}", "a namespace may not hold '_a'"),
        ("{% set n = namespace() %}{% set n._a = 1 %}", "a namespace may not hold '_a'"),
        ("{{ dict.__init__ }}{{ dict.mro() }}", "has no attribute 'mro'|access to attribute"),
    ],
)
def test_what_a_template_may_not_do(template: str, message: str) -> None:
    with pytest.raises(jinja2.TemplateError, match=message):
        compile_template(template).render(messages=MESSAGES)


def test_a_template_that_is_not_valid_is_refused() -> None:
    with pytest.raises(LvlmError, match=r"chat template is not valid: .*Unexpected end"):
        compile_template("{% for m in messages %}")


def test_the_order_of_places() -> None:
    files = {
        "chat_template.json": json.dumps({"chat_template": "old"}).encode(),
        "chat_template.jinja": b"jinja",
    }
    tokenizer = {"chat_template": "tokenizer"}
    assert find_template(files, tokenizer, {"chat_template": "processor"}, "") == "processor"
    assert find_template(files, tokenizer, {}, "") == "old"
    del files["chat_template.json"]
    assert find_template(files, tokenizer, {}, "") == "jinja"
    assert find_template({}, tokenizer, {}, "") == "tokenizer"


def test_of_several_templates_the_default_is_taken() -> None:
    several = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "y"}]
    assert find_template({}, {"chat_template": several}, {}, "") == "y"
    assert find_template({}, {}, {"chat_template": {"default": "z"}}, "") == "z"


@pytest.mark.parametrize("template", [None, {"rag": "x"}, [{"name": "rag", "template": "x"}]])
def test_no_template_is_refused(template: object) -> None:
    with pytest.raises(LvlmError, match=r"no chat template in model: .*add chat_template\.jinja"):
        find_template({}, {"chat_template": template}, {}, "model")


@pytest.mark.parametrize("entry", ["x", None, 5, {"template": "x"}, {"name": [], "template": "x"}])
def test_a_list_of_something_else_is_refused(entry: object) -> None:
    with pytest.raises(LvlmError, match=r"chat_template in model lists .*, objects with name and"):
        find_template({}, {}, {"chat_template": [entry]}, "model")


def test_of_an_entry_that_stands_twice_the_last_counts() -> None:
    assert parse_object(b'{"a": 1, "a": 2}', "a.json") == {"a": 2} == json.loads('{"a": 1, "a": 2}')


def test_a_template_that_is_no_text_is_named() -> None:
    with pytest.raises(LvlmError, match=r"model/chat_template\.jinja is not UTF-8 text \("):
        find_template({"chat_template.jinja": b"\xff"}, {}, {}, "model")


def test_a_file_that_is_not_json_is_named() -> None:
    with pytest.raises(LvlmError, match=r"a\.json is damaged: it is no JSON \("):
        parse_object(b"{", "a.json")
    with pytest.raises(LvlmError, match=r"a\.json is damaged: it is no JSON \("):
        parse_object(b"[" * 100_000, "a.json")
    with pytest.raises(LvlmError, match=r"a\.json holds no JSON object"):
        parse_object(b"[]", "a.json")
