"""Chat templates: what published ones expect is there, what they refuse is a request error."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from pagoda.errors import FormatError, RequestError, UnsupportedError
from pagoda.models.registry import fallback_template
from pagoda.text import sandbox
from pagoda.text.chat import ChatTemplate, load_chat_template
from pagoda.text.sandbox import Budget
from pagoda.text.tokenizer import Tokenizer, load_tokenizer
from tokenizer_files import CONTROL, VocabularyFile, bpe_metadata, spm_metadata

KEY = "tokenizer.ggml."
HELLO = [{"role": "user", "content": "Hello"}]
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi"},
    {"role": "user", "content": "Bye"},
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(VocabularyFile(bpe_metadata()))


def render(source: str, messages: list[dict[str, Any]], **options: Any) -> str:
    tokenizer = load_tokenizer(VocabularyFile(bpe_metadata()))
    return ChatTemplate({"default": source}, tokenizer).render(messages, **options)


def test_variables_that_templates_expect() -> None:
    source = (
        "{{ bos_token }}|{{ eos_token }}|{{ add_generation_prompt }}|{{ tools }}|{{ documents }}|{{ enable_thinking }}"
    )
    assert render(source, HELLO, enable_thinking=False) == "<|im_start|>|<|im_end|>|True|None|None|False"
    assert render("{{ nonesuch }}{% if nonesuch is defined %}x{% endif %}", HELLO) == ""
    assert (
        render("{{ tools[0].name }}{{ documents[0].title }}", HELLO, tools=[{"name": "a"}], documents=[{"title": "b"}])
        == "ab"
    )


def test_functions_that_templates_expect() -> None:
    assert render("{{ strftime_now('%Y') }}", HELLO) in {str(datetime.now().year), str(datetime.now().year + 1)}
    assert render("{{ {'ä': '<b>'} | tojson }}", HELLO) == '{"ä": "<b>"}'
    assert render("{{ {'b': 1, 'a': 2} | tojson(indent=1, sort_keys=True) }}", HELLO) == '{\n "a": 2,\n "b": 1\n}'
    with pytest.raises(RequestError, match="roles must alternate") as caught:
        render("{{ raise_exception('roles must alternate') }}", HELLO)
    assert caught.value.param == "messages"


def test_syntax_that_templates_expect() -> None:
    loop = (
        "{% for m in messages %}{% if m.content == 'Hi' %}{% break %}{% endif %}"
        "{% generation %}{{ m.content }};{% endgeneration %}{% endfor %}"
    )
    assert render(loop, TALK) == "Be brief.;Hello;"
    lines = "{% if true %}\n    {% set x = 1 %}\nkept\n{% endif %}\n"
    assert render(lines, HELLO) == "kept\n"  # trim_blocks and lstrip_blocks
    assert (
        render(
            "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", TALK
        )
        == "4"
    )


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0].content + 3 }}",
        "{{ messages.nonesuch.deeper }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.__class__.__base__.__subclasses__() }}",
        "{{ cycler.__init__.__globals__ }}",
        "{% include 'x' %}",
        "{{ 'a' ** 2 }}",
    ],
)
def test_a_template_can_do_no_harm(source: str) -> None:
    with pytest.raises(RequestError, match="chat template refuses"):
        render(source, HELLO)


def test_ordinary_products_are_allowed() -> None:
    assert render("{{ '-' * 3 }}{{ 3 * '-' }}{{ 6 * 7 }}{{ 2 ** 10 }}{{ 1.5 * 2 }}", HELLO) == "------4210243.0"


def test_what_a_template_may_take_is_bounded(tokenizer: Tokenizer) -> None:
    template = ChatTemplate({"default": "{% for i in range(9) %}{{ i }}{% endfor %}"}, tokenizer, Budget(steps=-500))
    with pytest.raises(RequestError, match="refuses this: it takes too many steps") as caught:
        template.render(HELLO)
    assert caught.value.param == "messages"


def test_output_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "MAX_CHARS", 10)
    assert render("{{ messages[0].content }}", HELLO) == "Hello"
    with pytest.raises(RequestError, match="longer than 10"):
        render("{{ messages[0].content }}", [{"role": "user", "content": "x" * 11}])


def test_a_template_that_does_not_parse_names_the_line(tokenizer: Tokenizer) -> None:
    with pytest.raises(UnsupportedError, match="line 2"):
        ChatTemplate({"default": "\n{% if %}"}, tokenizer)


def test_parts_are_joined_for_templates_that_read_text() -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    assert render("{{ messages[0].content }}", parts) == "a\nb"
    assert render("{{ 'x' + messages[0]['content'] }}", parts) == "xa\nb"


def test_parts_stay_for_templates_that_read_parts() -> None:
    source = (
        "{% for m in messages %}{% if m.content is string %}{{ m.content }}"
        "{% else %}{% for p in m.content %}[{{ p.text }}]{% endfor %}{% endif %}{% endfor %}"
    )
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    assert render(source, parts) == "[a][b]"
    assert render(source, HELLO) == "Hello"


def test_parts_that_are_not_text_are_refused() -> None:
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
    with pytest.raises(RequestError, match="image_url"):
        render("{{ messages[0].content }}", image)
    with pytest.raises(RequestError, match="int"):
        render("{{ messages[0].content }}", [{"role": "user", "content": [3]}])


def test_missing_content_is_empty_and_messages_are_not_changed() -> None:
    message = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"function": {"name": "f", "arguments": '{"a": 1}'}}],
    }
    before = json.dumps(message)
    source = "{{ messages[0].content }}{{ messages[0].tool_calls[0].function.arguments | tojson }}"
    assert render(source, [message]) == '{"a": 1}'
    assert json.dumps(message) == before
    assert render("{{ messages[0].content }}", [{"role": "assistant"}]) == ""


@pytest.mark.parametrize("arguments", ["{broken", "[1]", ""])
def test_arguments_that_are_not_an_object_stay_text(arguments: str) -> None:
    message = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}
    assert render("{{ messages[0].tool_calls[0].function.arguments }}", [message]) == arguments


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content | trim + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_generation_prompt_is_optional() -> None:
    assert render(CHATML, HELLO) == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert render(CHATML, HELLO, add_generation_prompt=False) == "<|im_start|>user\nHello<|im_end|>\n"


def test_the_last_message_can_be_continued() -> None:
    begun = [*HELLO, {"role": "assistant", "content": "Hello, I "}]
    expected = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nHello, I "
    assert render(CHATML, begun, continue_final_message=True) == expected
    empty = [*HELLO, {"role": "assistant", "content": ""}]
    assert render(CHATML, empty, continue_final_message=True) == expected.removesuffix("Hello, I ")


def test_what_cannot_be_continued_is_refused() -> None:
    for source, messages in ((CHATML, []), ("nothing of it", HELLO)):
        with pytest.raises(RequestError) as caught:
            render(source, messages, continue_final_message=True)
        assert caught.value.param == "continue_final_message"


def test_parts_can_be_continued() -> None:
    source = "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}<end>{% endfor %}"
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}]}]
    assert render(source, parts, continue_final_message=True) == "a"


def test_tools_choose_their_own_template(tokenizer: Tokenizer) -> None:
    template = ChatTemplate({"default": "plain", "tool_use": "with tools"}, tokenizer)
    assert template.render(HELLO) == template.render(HELLO, tools=[]) == "plain"
    assert template.render(HELLO, tools=[{"name": "f"}]) == "with tools"


def test_control_tokens_of_the_template_become_tokens(tokenizer: Tokenizer) -> None:
    ids = ChatTemplate({"default": CHATML}, tokenizer).render_ids(HELLO)
    assert ids.count(tokenizer.bos_id) == 2  # <|im_start|>
    assert ids.count(tokenizer.eos_id) == 1
    assert tokenizer.decode(ids, skip_special=False) == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("source", ["{{ bos_token }}x", "x"])
def test_bos_stands_once(source: str) -> None:
    tokenizer = load_tokenizer(VocabularyFile(spm_metadata()))
    ids = ChatTemplate({"default": source}, tokenizer).render_ids(HELLO)
    assert ids[0] == tokenizer.bos_id
    assert ids.count(tokenizer.bos_id) == 1


def gguf(architecture: str, *control: str, **metadata: Any) -> ChatTemplate:
    """A model with some control tokens; `metadata` keys stand under `tokenizer.`."""
    base = bpe_metadata()
    rows = zip(base[KEY + "tokens"], base[KEY + "token_type"], strict=True)
    tokens, types = zip(*[(token, kind) for token, kind in rows if kind != CONTROL], strict=True)
    size = len(tokens)
    names = ["<s>", "</s>", *control]
    changes = {KEY + "tokens": [*tokens, *names], KEY + "token_type": [*types, *[CONTROL] * len(names)]}
    changes |= {KEY + "bos_token_id": size, KEY + "eos_token_id": size + 1}
    changes |= {f"tokenizer.{key}": value for key, value in metadata.items()}
    checkpoint = VocabularyFile({**base, **changes}, architecture=architecture)
    return load_chat_template(checkpoint, load_tokenizer(checkpoint), fallback_template(checkpoint))


def test_gguf_templates_by_name() -> None:
    template = gguf("llama", chat_template="d", **{"chat_template.tool_use": "t"}, chat_templates=["tool_use"])
    assert template.render(HELLO) == "d"
    assert template.render(HELLO, tools=[{}]) == "t"


BUILT_IN = {
    ("qwen2", "<|im_start|>"): (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
        "<|im_start|>assistant\nHi<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"
    ),
    ("llama", "<|start_header_id|>"): (
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    ("llama", "<x>"): (
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHello [/INST] Hi </s><s>[INST] Bye [/INST]"
    ),
    ("phi3", "<|end|>"): (
        "<|system|>\nBe brief.<|end|>\n<|user|>\nHello<|end|>\n<|assistant|>\nHi<|end|>\n"
        "<|user|>\nBye<|end|>\n<|assistant|>\n"
    ),
    ("phi3", "<|im_sep|>"): (
        "<|im_start|>system<|im_sep|>Be brief.<|im_end|><|im_start|>user<|im_sep|>Hello<|im_end|>"
        "<|im_start|>assistant<|im_sep|>Hi<|im_end|><|im_start|>user<|im_sep|>Bye<|im_end|>"
        "<|im_start|>assistant<|im_sep|>"
    ),
    ("gemma3", "<start_of_turn>"): (
        "<s><start_of_turn>user\nBe brief.\n\nHello<end_of_turn>\n<start_of_turn>model\nHi<end_of_turn>\n"
        "<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("model", "expected"), BUILT_IN.items(), ids=[f"{a} {t}" for a, t in BUILT_IN])
def test_models_without_a_template_get_one(model: tuple[str, str], expected: str) -> None:
    assert gguf(*model).render(TALK) == expected


def test_llama2_refuses_roles_it_does_not_know() -> None:
    with pytest.raises(RequestError, match="tool"):
        gguf("llama").render([{"role": "tool", "content": "x"}])


def test_a_model_for_which_none_is_known_says_so() -> None:
    with pytest.raises(UnsupportedError, match="falcon"):
        gguf("falcon")


def folder(path: Path, **files: Any) -> ChatTemplate:
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    tokenizer = load_tokenizer(VocabularyFile(bpe_metadata()))
    checkpoint = VocabularyFile({}, kind="safetensors", path=path, architecture="qwen2")
    return load_chat_template(checkpoint, tokenizer)


def test_templates_of_a_folder(tmp_path: Path) -> None:
    assert folder(tmp_path).render(HELLO).startswith("<|im_start|>user")  # none: by the tokens that it knows
    assert folder(tmp_path, tokenizer_config={"chat_template": "config"}).render(HELLO) == "config"
    assert folder(tmp_path, chat_template={"chat_template": "json"}).render(HELLO) == "json"
    (tmp_path / "chat_template.jinja").write_text("jinja")
    assert folder(tmp_path).render(HELLO) == "jinja"


def test_named_templates_of_a_folder(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]
    template = folder(tmp_path, tokenizer_config={"chat_template": named})
    assert template.render(HELLO) == "d"
    assert template.render(HELLO, tools=[{}]) == "t"


def test_named_templates_in_files_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("d")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("t")
    template = folder(tmp_path)
    assert template.render(HELLO) == "d"
    assert template.render(HELLO, tools=[{}]) == "t"


def test_an_ordinary_bos_is_spelled_as_text() -> None:
    metadata = bpe_metadata()
    the = metadata[KEY + "tokens"].index("Ġthe")
    tokenizer = load_tokenizer(VocabularyFile(metadata | {KEY + "bos_token_id": the}))
    assert ChatTemplate({"default": "{{ bos_token }}"}, tokenizer).render(HELLO) == " the"


@pytest.mark.parametrize("value", [3, [{"name": "default"}], ["x"]])
def test_a_folder_with_an_odd_template_is_a_format_error(tmp_path: Path, value: Any) -> None:
    with pytest.raises(FormatError, match="chat_template"):
        folder(tmp_path, tokenizer_config={"chat_template": value})
