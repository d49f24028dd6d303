"""Templates run in processes that can be ended: each in its budget of steps, computing, memory, output and waiting.

The class of inputs: templates that repeat (loops in loops, recursive loops, macros, filters), that grow a text (by
concatenation, repetition, padding, the engine's own text generator), that never end, that do all this while they are
compiled, and conversations that are long. Every test lowers the budget, so that what it runs is small.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from pagoda.errors import EngineError
from pagoda.text import sandbox
from pagoda.text.sandbox import Budget, OverdrawnError, Sandbox, TemplateError, TemplateProcess, check, render

SMALL = Budget(steps=50, cpu_s=0.2, memory=64 << 20, chars=2000)
MIB = 1 << 20


def processes() -> list[int]:
    return [process._process.pid for process in sandbox._SHARED._idle]


# A few seconds of computing, in little memory.
SLOW = "{% for i in range(3000) %}{% for j in range(3000) %}{% endfor %}{% endfor %}"
MANY_STEPS = 100_000_000


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """Processes of this test's own."""
    own = Sandbox(1)
    monkeypatch.setattr(sandbox, "_SHARED", own)
    yield own
    own.close()


REPEATING = {
    "a loop": "{% for i in range(1000) %}{% endfor %}",
    "loops in loops": "{% for i in range(20) %}{% for j in range(20) %}{% endfor %}{% endfor %}",
    "a loop with a filter": "{% for i in range(1000) if i %}{% endfor %}",
    "a recursive loop": "{% for i in [1] recursive %}{% if loop.depth < 60 %}{{ loop([1]) }}{% endif %}{% endfor %}",
    "a macro": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "a call block": (
        "{% macro f(n) %}{{ caller() }}{% endmacro %}{% for i in range(150) %}{% call f(1) %}x{% endcall %}{% endfor %}"
    ),
}


@pytest.mark.parametrize("case", REPEATING)
def test_steps_are_counted(case: str) -> None:
    with pytest.raises(OverdrawnError, match="too many steps"):
        render(REPEATING[case], {}, SMALL)
    assert isinstance(render(REPEATING[case], {}, Budget(steps=10_000)), str)


GROWING = {
    "concatenation": "{% set ns = namespace(a='xx') %}{% for i in range(16) %}{% set ns.a = ns.a ~ ns.a %}{% endfor %}",
    "repetition": "{% set a = 'x' * n %}",
    "repetition of a list": "{% set a = [0] * n %}",
    "padding": "{% set a = 'x' | center(n) %}",
    "formatting": "{% set a = '%*d' | format(n, 1) %}",
    "joining": "{% set a = ([c] * 1000) | join(c * 1000) %}",
    "replacing": "{% set a = ('x' * 10000) | replace('x', c * 10000) %}",
}


@pytest.mark.parametrize("case", GROWING)
def test_memory_is_bounded(case: str) -> None:
    """Some 100 MB each, where 1 MiB is allowed."""
    variables = {"n": 100_000_000, "c": "c"}
    source = GROWING[case]
    if case in ("concatenation", "joining"):
        source = source.replace("range(16)", "range(26)").replace("1000", "10000")
    with pytest.raises(OverdrawnError, match="more than 1 MiB of memory"):
        render(source, variables, Budget(memory=1 * MIB, steps=1000))


@pytest.mark.parametrize(
    "source", ["{{ 'x' * 3000 }}", "{% for i in range(150) %}{{ 'x' * 20 }}{% endfor %}", "{{ lipsum() }}"]
)
def test_output_is_bounded(source: str) -> None:
    with pytest.raises(TemplateError, match="longer than 1008 characters"):
        render(source, {}, Budget(chars=1000))  # and 4 for each byte of the input


def test_output_may_grow_with_the_input() -> None:
    text = "x" * 5000
    assert render("{{ a }}{{ a }}", {"a": text}, Budget(chars=0)) == text * 2
    with pytest.raises(TemplateError, match="longer than"):
        render("{{ a }}" * 5, {"a": text}, Budget(chars=0))


def test_steps_may_grow_with_the_input() -> None:
    rows = [1] * 5000
    assert render("{% for i in a %}{% endfor %}", {"a": rows}, Budget(steps=0)) == ""


def test_computing_is_bounded(alone: Sandbox) -> None:
    with pytest.raises(OverdrawnError, match=r"more than 0\.1 s of computing"):
        render(SLOW, {}, Budget(cpu_s=0.1, steps=MANY_STEPS))


def test_compiling_is_bounded_too(alone: Sandbox) -> None:
    source = "{{ 1 }}" * 20_000
    with pytest.raises(OverdrawnError, match=r"more than 0\.05 s of computing"):
        check(source, Budget(cpu_s=0.05))


def test_waiting_is_bounded(alone: Sandbox) -> None:
    with pytest.raises(OverdrawnError, match=r"takes longer than 0\.2 s"):
        render(SLOW, {}, Budget(cpu_s=60, wall_s=0.2, steps=MANY_STEPS))


def test_a_process_that_overdrew_is_replaced(alone: Sandbox) -> None:
    assert render("{{ a }}", {"a": 1}, SMALL) == "1"
    (before,) = processes()
    assert render("{{ a }}", {"a": 2}, SMALL) == "2"
    assert processes() == [before]
    with pytest.raises(OverdrawnError):
        render(REPEATING["a loop"], {}, SMALL)
    (after,) = processes()
    assert after != before
    with pytest.raises(ProcessLookupError):
        os.kill(before, 0)
    assert render("{{ a }}", {"a": 3}, SMALL) == "3"


def test_an_error_of_the_template_replaces_nothing(alone: Sandbox) -> None:
    assert render("x", {}, SMALL) == "x"
    before = processes()
    for source in ("{{ raise_exception('no') }}", "{{ 1 / 0 }}", "{{ a.b.c }}", "{% if %}"):
        with pytest.raises(TemplateError) as caught:
            render(source, {}, SMALL)
        assert not isinstance(caught.value, OverdrawnError)
    assert processes() == before


def test_a_process_that_dies_is_replaced(alone: Sandbox) -> None:
    assert render("x", {}, SMALL) == "x"
    (pid,) = processes()
    os.kill(pid, 9)
    with pytest.raises(OverdrawnError, match="ended with code -9"):
        render("x", {}, SMALL)
    assert render("x", {}, SMALL) == "x"


def test_many_threads_share_few_processes() -> None:
    def one(n: int) -> str:
        if n % 10 == 0:
            with pytest.raises(OverdrawnError):
                render(REPEATING["a loop"], {}, SMALL)
        return render("{{ n }}", {"n": n}, SMALL)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(one, range(60))) == [str(n) for n in range(60)]
    assert len(processes()) <= sandbox.NUM_PROCESSES


def test_other_threads_go_on_while_one_waits(alone: Sandbox) -> None:
    """Waiting holds no lock of the interpreter: this thread counts while the other one waits for its process."""
    failed: list[BaseException] = []

    def wait() -> None:
        try:
            render(SLOW, {}, Budget(cpu_s=0.3, steps=MANY_STEPS))
        except OverdrawnError as error:
            failed.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    count = 0
    while thread.is_alive():
        count += 1
    thread.join()
    assert failed
    assert count > 1000


def test_the_parse_error_names_the_line() -> None:
    with pytest.raises(TemplateError) as caught:
        check("\n{% if %}", SMALL)
    assert caught.value.line == 2


def test_a_message_of_the_template_is_cut() -> None:
    with pytest.raises(TemplateError) as caught:
        render("{{ raise_exception('x' * 5000) }}", {}, SMALL)
    assert str(caught.value) == "x" * 1000


@pytest.mark.parametrize("text", ["é日🦙", "\ud800", "a\0b", ""])
def test_any_text_goes_there_and_back(text: str) -> None:
    assert render("{{ a }}", {"a": text}, SMALL) == text


def test_a_long_conversation() -> None:
    text = "日" * 300_000
    assert render("{{ a }}", {"a": text}, Budget()) == text


class Name(str):
    pass


def test_values_of_other_types_become_plain_ones() -> None:
    variables: Any = {"a": MappingProxyType({"b": (Name("x"), True)}), "c": Name("y")}
    assert render("{{ a }}{{ c }}", variables, SMALL) == "{'b': ['x', True]}y"
    with pytest.raises(TemplateError, match="no data"):
        render("{{ a }}", {"a": object()}, SMALL)


def test_a_fork_starts_processes_of_its_own(alone: Sandbox) -> None:
    assert render("x", {}, SMALL) == "x"
    (process,) = alone._idle
    process._parent -= 1  # as it looks in a fork
    pid = process._process.pid
    assert render("x", {}, SMALL) == "x"
    assert processes() != [pid]
    process._parent += 1
    process.end()


def test_a_process_that_cannot_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonesuch/python")
    with pytest.raises(EngineError, match="nonesuch"):
        TemplateProcess()


def test_processes_end_with_the_program(tmp_path: Path) -> None:
    program = (
        "from pagoda.text import sandbox; print(sandbox.render('{{ 1 }}', {}, sandbox.Budget()), "
        "*[p._process.pid for p in sandbox._SHARED._idle], 'jinja2' in __import__('sys').modules)"
    )
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    rendered, pid, imported = done.stdout.split()
    assert rendered == "1"
    assert imported == "False"  # templates are never even parsed outside of their processes
    assert not Path("/proc", pid).exists()
