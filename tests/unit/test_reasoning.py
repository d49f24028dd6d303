"""Thinking and answers told apart, however the text is cut; which template and which prompt mean what."""

from __future__ import annotations

import random

import pytest

from pagoda.text.reasoning import FORMATS, ReasoningFormat, ReasoningParser, reasoning_of

THINK = FORMATS["think"]


def divided(row: ReasoningFormat, text: str, *, opened: bool = False) -> tuple[str, str]:
    """(thinking, answer) of a text, the same however it is cut."""
    found = set()
    for seed in range(6):
        rng = random.Random(seed)
        parser = ReasoningParser(row, opened=opened)
        parts = []
        at = 0
        while at < len(text):
            size = rng.choice([1, 2, 3, 10]) if seed else len(text)
            parts.append(parser.push(text[at : at + size]))
            at += size
        parts.append(parser.finish())
        found.add(("".join(thought for thought, _ in parts), "".join(answer for _, answer in parts)))
    (one,) = found
    return one


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>\nWell, 1 < 2.\n\nSo.\n</think>\n\nYes.\n", ("Well, 1 < 2.\n\nSo.", "Yes.\n")),
        ("\n <think>a</think>b", ("a", "b")),
        ("<think>\n\n</think>\n\nAt once.", ("", "At once.")),
        ("No thinking. <think>x</think>", ("", "No thinking. <think>x</think>")),
        (" < b", ("", " < b")),
        ("<thi", ("", "<thi")),
        ("<think>a</think>b</think><think>c", ("a", "b</think><think>c")),
        ("<think>cut </thi", ("cut </thi", "")),
        ("<think>cut \n", ("cut", "")),
        ("<think>a</think>\n\n", ("a", "")),
        ("", ("", "")),
    ],
)
def test_a_model_that_opens_its_thinking(text: str, expected: tuple[str, str]) -> None:
    assert divided(THINK, text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hm.\n</think>\n\nYes.", ("Hm.", "Yes.")),
        ("\nHm", ("Hm", "")),
        ("</think>Yes", ("", "Yes")),
    ],
)
def test_a_prompt_that_has_opened_it(text: str, expected: tuple[str, str]) -> None:
    assert divided(THINK, text, opened=True) == expected


@pytest.mark.parametrize("name", FORMATS)
def test_every_row_reads_what_it_marks(name: str) -> None:
    row = FORMATS[name]
    assert divided(row, f"{row.open}a thought{row.close}{row.after}an answer") == ("a thought", "an answer")
    assert reasoning_of(f"{{{{ '{row.open}' + message.reasoning_content + '{row.close}' }}}}") is row


def test_a_template_without_marks_has_no_thinking() -> None:
    assert reasoning_of("{{ message.content }}") is None
    assert reasoning_of("{{ '<|user|>' + message.content + '<|end|>' }}") is None  # Phi's end of a turn


def test_what_a_prompt_says_of_the_thinking() -> None:
    assert THINK.is_open("<|im_start|>assistant\n<think>\n")
    assert not THINK.is_open("<think>\nearlier\n</think>\n<|im_start|>assistant\n")
    assert not THINK.is_open("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert not THINK.is_open("What is <think>?<|im_end|>\n<|im_start|>assistant\n")
    assert THINK.is_open("<|im_start|>assistant\n<think>\nI was", within=True)
    assert not THINK.is_open("<|im_start|>assistant\n<think>\nI was</think>So", within=True)
    assert THINK.is_closed("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert not THINK.is_closed("<think>\nearlier\n</think>\nYes<|im_end|><|im_start|>assistant\n")


def test_thinking_says_whether_it_goes_on() -> None:
    parser = ReasoningParser(THINK, opened=False)
    assert not parser.thinking
    parser.push("<think>a")
    assert parser.thinking
    parser.push("</think>")
    assert not parser.thinking
