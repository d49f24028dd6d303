"""Content reaches the prompt in whatever shape a template reads it, and whatever shape it came in.

The class of inputs: templates that read a string, a list of parts, either, the first part only, or neither; for all
roles alike or not; that take few kinds of conversations; that know no system prompt. Content is a string, one part,
several parts, or nothing. The right prompt has the words of the message in it: what vLLM (its content format "openai"
or "string") and llama.cpp (its capabilities of templates) find out for the same reason.
"""

from __future__ import annotations

from typing import Any

import pytest

from pagoda.errors import RequestError
from pagoda.text.chat import ChatTemplate
from pagoda.text.content_shape import ContentShape, find_shape
from pagoda.text.tokenizer import load_tokenizer
from tokenizer_files import VocabularyFile, bpe_metadata

TOKENIZER = load_tokenizer(VocabularyFile(bpe_metadata()))

LOOP = "{% for m in messages %}<{{ m.role }}>{% for p in m.content %}[{{ p.text }}]{% endfor %}{% endfor %}"
TYPED = (
    "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] | trim }};"
    "{% endif %}{% endfor %}{% endfor %}"
)
EITHER = (
    "{% for m in messages %}{% if m.content is string %}{{ m.content }}"
    "{% else %}{% for p in m.content %}[{{ p.text }}]{% endfor %}{% endif %}{% endfor %}"
)
STRING = "{% for m in messages %}{{ '<' + m.role + '>' + m.content }}{% endfor %}"
TRIMMED = "{% for m in messages %}{{ m.content | trim }}{% endfor %}"
WRITTEN = "{% for m in messages %}{{ m.content | tojson }}{% endfor %}"
FIRST = "{% for m in messages %}{{ m.content[0].text }}{% endfor %}"
SUBSCRIPT = "{% for m in messages %}{{ m['content'][0]['text'] | trim }}{% endfor %}"
ALTERNATING = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% for p in m.content %}{{ p.text }}{% endfor %}|{% endfor %}"
)
SYSTEM_IS_TEXT = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ m.content + '!' }}"
    "{% else %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}{% endfor %}"
)
NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system prompt') }}{% endif %}"
    "{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}"
)

PROMPTS: dict[str, tuple[str, str, str]] = {  # the template, the prompt of a string, that of two parts
    "loops over parts": (LOOP, "<user>[one]", "<user>[one][two]"),
    "looks at the type": (TYPED, "one;", "one;two;"),
    "reads either": (EITHER, "one", "[one][two]"),
    "reads a string": (STRING, "<user>one", "<user>one\ntwo"),
    "trims a string": (TRIMMED, "one", "one\ntwo"),
    "writes a string as JSON": (WRITTEN, '"one"', '"one\\ntwo"'),
    "reads the first part": (FIRST, "one", "one\ntwo"),
    "reads the first part by subscripts": (SUBSCRIPT, "one", "one\ntwo"),
    "wants roles to alternate": (ALTERNATING, "one|", "onetwo|"),
    "reads system prompts otherwise": (SYSTEM_IS_TEXT, "one", "onetwo"),
    "knows no system prompt": (NO_SYSTEM, "one", "onetwo"),
    "reads nothing": ("x", "x", "x"),
}  # fmt: skip


def render(source: str, *messages: dict[str, Any], **options: Any) -> str:
    return ChatTemplate({"default": source}, TOKENIZER).render(messages, **options)


def parts(*texts: str) -> list[Any]:
    return [{"type": "text", "text": text} for text in texts]


@pytest.mark.parametrize("case", PROMPTS)
def test_content_in_any_shape(case: str) -> None:
    source, of_text, of_parts = PROMPTS[case]
    assert render(source, {"role": "user", "content": "one"}) == of_text
    assert render(source, {"role": "user", "content": parts("one", "two")}) == of_parts
    assert "one" in render(source, {"role": "user", "content": parts("one")}) or case == "reads nothing"
    assert render(source, {"role": "user", "content": ["one", "two"]}) == of_parts


def test_each_role_is_read_as_the_template_reads_it() -> None:
    talk = [
        {"role": "system", "content": parts("be", "brief")},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "developer", "content": "three"},
    ]
    assert render(SYSTEM_IS_TEXT, *talk) == "be\nbrief!onetwothree"


def test_answers_are_read_in_conversations_that_begin_with_a_question() -> None:
    talk = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
    assert render(ALTERNATING, *talk) == "one|two|"


def test_results_of_tools() -> None:
    source = (
        "{% for m in messages %}{% if m.role == 'tool' %}{{ m.content.split(',') | join('-') }}"
        "{% elif m.tool_calls %}{{ m.tool_calls[0].function.name }}"
        "{% else %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}{% endfor %}"
    )
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    talk = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": parts("1,2"), "tool_call_id": "1"},
    ]
    assert render(source, *talk) == "onef1-2"


def test_tools_may_have_a_template_of_another_shape() -> None:
    template = ChatTemplate({"default": STRING, "tool_use": LOOP}, TOKENIZER)
    message = {"role": "user", "content": "one"}
    assert template.render([message]) == "<user>one"
    assert template.render([message], tools=[{"name": "f"}]) == "<user>[one]"


@pytest.mark.parametrize("source", [LOOP, STRING, EITHER, TYPED])
def test_what_is_missing_is_empty(source: str) -> None:
    for message in ({"role": "user"}, {"role": "user", "content": None}, {"role": "user", "content": ""}):
        assert render(source, message).strip("<user>[];") == ""


@pytest.mark.parametrize("source", [LOOP, STRING, EITHER, FIRST])
def test_a_message_is_gone_on_with_in_any_shape(source: str) -> None:
    message = {"role": "user", "content": "one"}
    prompt = render(source + "<end>", message, continue_final_message=True)
    assert prompt.endswith("one")


def test_a_refusal_of_the_template_stays_one() -> None:
    with pytest.raises(RequestError, match="no system prompt"):
        render(NO_SYSTEM, {"role": "system", "content": "x"})


def test_shapes() -> None:
    text, either, listed, first = (
        ContentShape(), ContentShape(parts=True), ContentShape(text=False, parts=True),
        ContentShape(text=False, one_part=True),
    )  # fmt: skip
    assert [shape.of("a") for shape in (text, either, listed, first)] == ["a", "a", parts("a"), parts("a")]
    assert [shape.of(["a", "b"]) for shape in (text, either, listed, first)] == [
        "a\nb", parts("a", "b"), parts("a", "b"), parts("a\nb"),
    ]  # fmt: skip


def test_a_template_that_refuses_all_gets_strings() -> None:
    assert find_shape("user", lambda messages: None) == ContentShape()
    assert find_shape("tool", lambda messages: None) == ContentShape()


CALLS: dict[str, tuple[str, str]] = {  # how a template writes arguments, and the prompt
    "as JSON of the object": ("{{ c.function.arguments | tojson }}", '{"a": "é"}'),
    "key by key": ("{% for k, v in c.function.arguments.items() %}{{ k }}={{ v }};{% endfor %}", "a=é;"),
    "as the string that came": ("{{ 'x' + c.function.arguments }}", 'x{"a": "é"}'),
    "without a look at what it is": ("{{ c.function.arguments }}", '{"a": "é"}'),
    "either": (
        "{% if c.function.arguments is string %}{{ c.function.arguments }}{% else %}"
        "{{ c.function.arguments | tojson }}{% endif %}",
        '{"a": "é"}',
    ),
}


@pytest.mark.parametrize("reads", ["m.content", "m.content[0].text"])
@pytest.mark.parametrize("case", CALLS)
@pytest.mark.parametrize("arguments", ['{"a": "é"}', {"a": "é"}], ids=["string", "object"])
def test_arguments_of_calls_in_any_shape(case: str, reads: str, arguments: Any) -> None:
    written, expected = CALLS[case]
    source = (
        "{% for m in messages %}{% if m.tool_calls %}{% for c in m.tool_calls %}" + written + "{% endfor %}"
        "{% else %}{{ " + reads + " + '' }}{% endif %}{% endfor %}"
    )
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    talk = [{"role": "user", "content": "one|"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    assert render(source, *talk) == "one|" + expected
