"""What a chat template can make the process do: bounded, and as transformers renders what is real."""

from __future__ import annotations

import ast
import resource
import time
from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers.utils.chat_template_utils import render_jinja_template

import tiny
from lvlm_runtime.errors import LvlmError
from lvlm_runtime.prompt import work
from lvlm_runtime.prompt.chat_template import compile_template
from lvlm_runtime.prompt.encoder import PromptEncoder

DOUBLE = "{% set n = namespace(x=BEGIN) %}{% for i in range(99) %}{% set n.x = STEP %}{% endfor %}"


def doubled(begin: str, step: str) -> str:
    """A value that a template doubles 99 times."""
    return DOUBLE.replace("BEGIN", begin).replace("STEP", step)


HOSTILE = {
    # Loops.
    "loop_in_loops": "{% for a in range(99999) %}" * 4 + "{% endfor %}" * 4,
    "loop_that_writes": "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
    "loop_of_long_texts": "{% for a in range(99999) %}" + "x" * 99_999 + "{% endfor %}",
    "loop_that_keeps": "{% set k %}{% for a in range(99999) %}"
    + "x" * 99_999
    + "{% endfor %}{% endset %}",
    "loop_that_filters": "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}",
    "loop_in_itself": "{% for a in [1, 2, 3] recursive %}{{ loop([1, 2, 3]) }}{% endfor %}",
    "macro_in_itself": "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
    "range_too_long": "{% for a in range(10 ** 9) %}{% endfor %}",
    "maps_of_maps": "{{ range(99999) | map('center', 99999) | list }}",
    # Texts.
    "times": "{{ 'x' * 10 ** 9 }}",
    "times_from_the_left": "{{ (10 ** 9) * 'x' }}",
    "times_a_list": "{{ [1] * 10 ** 9 }}",
    "many_times": "{% set n = namespace(x='x') %}{% for i in range(9) %}{% set n.x = n.x * 99 %}{% endfor %}",
    "one_text_in_many": "{{ ['x' * 999999] * 99999 }}",
    "plus": doubled("'x'", "n.x + n.x"),
    "plus_lists": doubled("[1]", "n.x + n.x"),
    "tilde": doubled("'x'", "n.x ~ n.x"),
    "tilde_of_lists": doubled("[1]", "[n.x ~ n.x]"),
    "set_block": "{% set n = namespace(x='x') %}{% for i in range(99) %}{% set n.x %}{{ n.x }}{{ n.x }}"
    "{% endset %}{% endfor %}",
    "nested_lists": doubled("[]", "[n.x, n.x]") + "{{ n.x }}",
    "nested_dicts": doubled("{}", "{'a': n.x, 'b': n.x}") + "{{ n.x == n.x }}",
    "nested_tuples": "{% set n = namespace(x=1) %}{% for i in range(99999) %}{% set n.x = (n.x,) %}{% endfor %}"
    "{{ {n.x: 1} }}",
    "a_namespace_of_itself": "{% set n = namespace() %}{% set n.x = n %}{{ n }}",
    "center": "{{ 'x' | center(10 ** 9) }}",
    "center_method": "{{ 'x'.center(10 ** 9) }}",
    "ljust": "{{ 'x'.ljust(10 ** 9) }}",
    "zfill": "{{ 'x'.zfill(10 ** 9) }}",
    "expandtabs": "{{ ('\t' * 99999).expandtabs(99999) }}",
    "expandtabs_by_name": "{{ '\t'.expandtabs(tabsize=10 ** 9) }}",
    "replace": "{{ ('x' * 99999) | replace('x', 'y' * 99999) }}",
    "replace_method": "{{ ('x' * 99999).replace('x', 'y' * 99999) }}",
    "replace_nothing": "{{ ('x' * 99999).replace('', 'y' * 99999) }}",
    "join": "{{ range(99999) | join('x' * 99999) }}",
    "join_by_name": "{{ range(99999) | join(d='x' * 99999) }}",
    "join_method": "{{ ('x' * 99999).join('y' * 99999) }}",
    "translate": "{{ ('x' * 99999).translate({120: 'y' * 99999}) }}",
    "indent": "{{ ('\n' * 99999) | indent(99999) }}",
    "indent_by_text": "{{ ('\n' * 99999) | indent('x' * 99999) }}",
    "wordwrap": "{{ ('x ' * 99999) | wordwrap(1, wrapstring='y' * 99999) }}",
    "urlize": "{{ ('http://a.b ' * 9999) | urlize(target='x' * 99999) }}",
    "batch": "{{ [1] | batch(10 ** 9, 'x') | list }}",
    "slice": "{{ [1] | slice(10 ** 9) | list }}",
    "percent": "{{ '%1000000000d' % 1 }}",
    "percent_of_a_value": "{{ '%*d' % (10 ** 9, 1) }}",
    "percent_many": "{{ ('%(a)s' * 99999) % {'a': 'x' * 99999} }}",
    "format_filter": "{{ '%1000000000d' | format(1) }}",
    "format": "{{ '{:1000000000d}'.format(1) }}",
    "format_of_a_value": "{{ '{:{}}'.format(1, 10 ** 9) }}",
    "format_many": "{{ ('{0}' * 99999).format('x' * 99999) }}",
    "format_map": "{{ ('{a}' * 99999).format_map({'a': 'x' * 99999}) }}",
    "tojson": "{{ ([1] * 99999) | tojson(indent=99999) }}",
    "tojson_separators": "{{ ([1] * 99999) | tojson(separators=('x' * 99999, ':')) }}",
    "bytes_of_a_number": "{{ (1).to_bytes(10 ** 9, 'big') }}",
    "filler": "{{ lipsum(10 ** 9) }}",
    # Numbers.
    "power": "{{ 10 ** (10 ** 9) }}",
    "power_of_powers": doubled("3", "n.x * n.x"),
    "round": "{{ 1 | round(10 ** 9) }}",
    "sum_of_lists": "{{ ([[1]] * 99999) | sum(start=[]) }}",
    # Sources.
    "long_source": "{# x #}" * 99_999,
    "parentheses": "{{ " + "(" * 9999 + "1" + ")" * 9999 + " }}",
    "negations": "{{ " + "not " * 9999 + "1 }}",
    "lists": "{{ " + "[" * 9999 + "]" * 9999 + " }}",
    "ifs": "{% if a %}" * 999 + "{% endif %}" * 999,
    "sums": "{{ " + "1 + " * 5_999 + "1 }}",
    "attributes": "{{ a" + ".b" * 5_999 + " }}",
}


# What Python or jinja2 refuse by themselves.
OTHER = {
    "range_too_long": OverflowError,
    **dict.fromkeys(("macro_in_itself", "loop_in_itself"), RecursionError),
    **dict.fromkeys(("long_source", "parentheses", "negations", "lists"), LvlmError),
    **dict.fromkeys(("ifs", "sums", "attributes"), LvlmError),
}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lower limits, so that the test is short."""
    monkeypatch.setattr(work, "MAX_SECONDS", 0.2)
    monkeypatch.setattr(work, "MAX_VALUE", 500_000)
    monkeypatch.setattr(work, "MAX_WORK", 1_000_000)


def peak_bytes() -> int:
    """Most memory that the process ever had."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", HOSTILE)
def test_a_template_cannot_take_time_or_memory_without_end(name: str) -> None:
    before, start = peak_bytes(), time.thread_time()
    with pytest.raises(OTHER.get(name, work.TooMuchWorkError), match=r"."):
        compile_template(HOSTILE[name]).render(messages=[])
    assert time.thread_time() - start < 2
    assert peak_bytes() - before < 300e6


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ 'x' * 10 ** 7 }}", "makes a value of more than 4000000 characters"),
        (
            "{% for a in range(9999) %}" + "x" * 999 + "{% endfor %}",
            "makes a chat of more than 4000000",
        ),
        (
            "{% for a in range(999) %}{{ ('y' * 99999) | length }}{% endfor %}",
            "more than 64000000 steps",
        ),
        ("{{ 'x'.center(999999) }}", "pads to 100000 characters or more"),
        ("{{ '%999999d' % 1 }}", "formats to 100000 characters or more"),
        ("{{ 9 ** 99999 }}", "numbers of more than 100000 bits"),
        ("{{ '\t'.expandtabs(tabsize=9) }}", "expandtabs is given arguments by name"),
        ("{{ [] | sum(start=[]) }}", "sums up lists"),
        ("{{ lipsum(99) }}", "more than 1000 words of filler text"),
        (doubled("[]", "[n.x]") * 3, "puts more than 200 lists into one another"),
    ],
)
def test_what_was_too_much_is_said(template: str, message: str) -> None:
    with pytest.raises(work.TooMuchWorkError, match=message):
        compile_template(template.replace("namespace(x=[])", "namespace(x=n.x)")).render(
            n={"x": []}
        )


def test_time_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "MAX_SECONDS", 0.2)
    with pytest.raises(work.TooMuchWorkError, match=r"it takes more than 0\.2 s"):
        compile_template(HOSTILE["loop_in_loops"]).render()


def test_a_long_source_is_one_line() -> None:
    with pytest.raises(LvlmError, match="is not valid: it has more than 262144 characters; check"):
        compile_template(HOSTILE["long_source"])


def test_a_hostile_template_is_one_line_when_it_is_opened(tmp_path: Path) -> None:
    tiny.write_tokenizer(tmp_path)
    source = tiny.LLAVA_TEMPLATE + "{% for a in messages %}{{ 'x' * 10 ** 9 }}{% endfor %}"
    (tmp_path / "chat_template.jinja").write_text(source)
    with pytest.raises(LvlmError, match=r"it makes a value of more than 4000000 characters"):
        PromptEncoder.open(tmp_path)


TOOLS = """
{%- macro show(args, deep=1) -%}
  {%- for k, v in args | items -%}
    {{- '\\n' ~ ('  ' * deep) ~ k ~ '=' ~ (v | tojson if v is mapping else v | string) -}}
  {%- endfor -%}
{%- endmacro -%}
{{- bos_token }}
{%- if messages[0]['role'] == 'system' -%}
  {%- set system = messages[0]['content'] | trim -%}{%- set rest = messages[1:] -%}
{%- else -%}{%- set system = '' -%}{%- set rest = messages -%}{%- endif -%}
{%- set ns = namespace(users=0, said='', list=[]) -%}
{%- for message in rest -%}
  {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
    {{ raise_exception('roles must alternate') }}
  {%- endif -%}
  {%- set ns.list = ns.list + [message.role] -%}
  {%- if message.content is string -%}
    {%- set parts = message.content.split('</think>') -%}{%- set text = parts[-1].strip() -%}
  {%- else -%}
    {%- set text = message.content | selectattr('type', 'equalto', 'text') | map(attribute='text') | join('\\n') -%}
  {%- endif -%}
  <|{{ message.role.upper().ljust(6) }}|>{{ "%-4s%s" % (loop.index, text) }}{{ '{:>5}'.format(text[:3]) }}
  {{- text | replace('\\n', ' ') | indent(2) }}{{ [text] | tojson(indent=1) }}{{ show({'a': 1, 'b': {'c': text}}) }}
  {%- for word in text.split(' ') if word != 'it' -%}{{ word | capitalize }}{% if not loop.last %},{% endif %}{% endfor %}
  {%- set ns.said = ns.said ~ text -%}
  {%- if loop.last %}{{ ns.said | length }}{{ ns.list | batch(2) | list }}{{ (3.14159 | round(2), 7 // 2, 7 % 4, 2 ** 8, -3) }}{% endif -%}
{%- endfor -%}
{%- macro box(a) -%}[{{ caller(a) }}]{%- endmacro -%}{%- call(x) box('in') %}{{ x }}{% endcall -%}
{%- filter upper %}{{ system }}{% endfilter -%}
{{ ('<b>' | safe).format('x') }}{{ 'a\\tb'.expandtabs(4) }}{{ ', '.join(['a', 'b']) }}{{ 'ab' | list | sort | reverse | join }}
{%- if add_generation_prompt %}<|assistant|>{% endif -%}
"""
CHATS: list[list[dict[str, Any]]] = [
    [
        {"role": "system", "content": " Be kind. "},
        {"role": "user", "content": "What is\nit? é" * 40},
        {"role": "assistant", "content": "<think>a cat</think> A cat."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "And that?"}]},
    ],
    [{"role": "user", "content": [{"type": "text", "text": "x y it " * 9000}]}],
]


@pytest.mark.parametrize("chat", [0, 1])
@pytest.mark.parametrize("source", [TOOLS, tiny.LLAVA_TEMPLATE])
def test_real_constructions_render_as_in_transformers(source: str, chat: int) -> None:
    asked = CHATS[chat] if source is TOOLS else CHATS[1]
    theirs, _ = render_jinja_template(
        [asked], chat_template=source, add_generation_prompt=True, bos_token="<s>"
    )
    ours = compile_template(source).render(
        messages=asked, tools=None, documents=None, add_generation_prompt=True, bos_token="<s>"
    )
    assert [ours] == theirs


@pytest.mark.parametrize(
    "module",
    [
        "llama4.processing_llama4",
        "smolvlm.processing_smolvlm",
        "qwen2_audio.processing_qwen2_audio",
    ],
)
def test_templates_that_transformers_holds_render_as_there(module: str) -> None:
    path = Path(transformers.__file__).parent / "models" / f"{module.replace('.', '/')}.py"
    texts = [
        node.value
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    [source] = [text for text in texts if "{%" in text and "messages" in text and len(text) > 400]
    for chat in CHATS:
        given = {"add_generation_prompt": True, "bos_token": "<s>", "eos_token": "</s>"}
        theirs = said(
            lambda: render_jinja_template([chat], chat_template=source, **given)[0][0]  # noqa: B023
        )
        template = compile_template(source)
        ours = said(
            lambda: template.render(messages=chat, tools=None, documents=None, **given)  # noqa: B023
        )
        assert ours == theirs


def said(render: Any) -> str:
    """What a template gives, or refuses with."""
    try:
        text: str = render()
        return text
    except Exception as error:
        return str(error)
