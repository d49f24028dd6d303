"""Files of prompts into files of answers, over the real application with a fake engine."""

import asyncio
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from fake_engine import FakeEngine, FakeLoaded, expected_text
from pagoda.cli import generate as module
from pagoda.cli.batch_file import Task, read_tasks, repair
from pagoda.cli.endpoint import NO_LIMIT, LocalEndpoint
from pagoda.cli.generate import Run
from pagoda.cli.main import app
from pagoda.client import HttpError
from pagoda.config import ServerSettings
from pagoda.errors import ConfigError, EngineError, OutputError
from pagoda.server.app import create_app

Record = dict[str, Any]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeEngine]:
    """What `generate` asks instead of a loaded model."""
    loaded = FakeLoaded()
    endpoint = LocalEndpoint(create_app(loaded, ServerSettings(max_queue_requests=NO_LIMIT)))

    @contextmanager
    def endpoints(*_: object) -> Iterator[Any]:
        yield lambda: endpoint

    monkeypatch.setattr(module, "open_endpoints", endpoints)
    yield loaded.engine
    loaded.close()


def write(path: Path, *records: Record | str) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records))
    return path


def read(path: Path) -> list[Record]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def by_id(path: Path) -> dict[str | int, Record]:
    records = read(path)
    indexed = {record.get("custom_id", record.get("id")): record for record in records}
    assert len(indexed) == len(records)
    return indexed


def generate(source: Path, output: Path, *flags: str) -> Result:
    return CliRunner().invoke(app, ["generate", str(source), "-o", str(output), *flags])


@pytest.mark.usefixtures("engine")
def test_prompts_and_messages(tmp_path: Path) -> None:
    source = write(
        tmp_path / "in",
        {"id": "a", "prompt": "hello", "max_tokens": 3},
        "",
        {"prompt": "world"},
        {"id": 7, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5},
        {"id": "two", "prompt": "xyz", "max_tokens": 2, "n": 2},
    )
    result = generate(source, tmp_path / "out", "--max-tokens", "4")
    assert result.exit_code == 0, result.output
    answers = by_id(tmp_path / "out")
    usage = {"prompt_tokens": 6, "completion_tokens": 3}
    assert answers["a"] == {"id": "a", "text": "he", "finish_reason": "length", "usage": usage}
    assert answers[3]["text"] == expected_text("world", 4)  # goes by its line
    assert answers[7]["text"] == "user:"
    assert [choice["text"] for choice in answers["two"]["choices"]] == ["x", "xy"]
    assert "4 answered, 16 tokens" in result.output


@pytest.mark.usefixtures("engine")
def test_openai_batch_lines(tmp_path: Path) -> None:
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
    good = {"custom_id": "c1", "method": "POST", "url": "/v1/chat/completions", "body": body}
    bad = good | {"custom_id": "c2", "body": body | {"temperature": -1}}
    source = write(tmp_path / "in", good, bad, good | {"custom_id": "c3", "url": "/v1/embeddings"})
    result = generate(source, tmp_path / "out")
    assert result.exit_code == 1
    assert re.search(r"^'c2' failed: .*temperature", result.output, re.MULTILINE)
    assert "'c3' failed: line 3: POST /v1/embeddings cannot be done" in result.output
    answers = by_id(tmp_path / "out")
    assert answers["c1"]["error"] is None
    assert answers["c1"]["response"]["status_code"] == 200
    assert answers["c1"]["response"]["body"]["choices"][0]["message"]["content"] == "user:"
    assert answers["c2"]["response"]["status_code"] == 400
    assert answers["c2"]["response"]["body"]["error"]["param"] == "temperature"
    assert "/v1/embeddings cannot be done" in answers["c3"]["response"]["body"]["error"]["message"]


@pytest.mark.usefixtures("engine")
def test_of_many_failures_the_first_are_shown(tmp_path: Path) -> None:
    result = generate(write(tmp_path / "in", *["[1]"] * 7), tmp_path / "out")
    assert len([line for line in result.output.splitlines() if " failed: line " in line]) == 5
    assert f"2 more failed; {tmp_path / 'out'} says why" in result.output


@pytest.mark.usefixtures("engine")
def test_bad_lines_become_error_records(tmp_path: Path) -> None:
    source = write(
        tmp_path / "in",
        '{"id": "torn", "prompt": ',
        "[1]",
        {"id": "neither"},
        {"id": "both", "prompt": "a", "messages": []},
        {"id": "ok", "prompt": "a"},
        {"id": "ok", "prompt": "b"},
        {"id": [1], "prompt": "b"},
        {"id": "unknown", "prompt": "b", "tempreature": 1},
        {"id": "streamed", "prompt": "b", "stream": True},
        {"id": "long", "prompt": "b" * 600},
    )
    result = generate(source, tmp_path / "out")
    assert result.exit_code == 1
    assert "1 answered, 256 tokens" in result.output
    assert "9 failed" in result.output
    answers = by_id(tmp_path / "out")
    errors = {id_: record["error"]["message"] for id_, record in answers.items() if "error" in record}
    assert "text" in answers["ok"]
    assert "line 1: " in errors["line-1"]
    assert errors["line-2"] == "line 2: is not a JSON object"
    assert errors["neither"] == errors["both"].replace("line 4", "line 3")
    assert errors["line-6"] == "line 6: the id 'ok' stands in line 5 too"
    assert "neither text nor a whole number" in errors["line-7"]
    assert "tempreature" in errors["unknown"]
    assert "stream has no meaning" in errors["streamed"]
    assert answers["long"]["error"]["code"] == "context_length_exceeded"


def test_goes_on_where_it_was_and_repairs_a_torn_line(tmp_path: Path, engine: FakeEngine) -> None:
    source = write(tmp_path / "in", *({"id": i, "prompt": f"p{i}", "max_tokens": 2} for i in range(5)))
    whole = [{"id": i, "text": "kept"} for i in (0, 3)]
    output = tmp_path / "out"
    output.write_text("".join(json.dumps(r) + "\n" for r in whole) + '{"id": 4, "te')
    result = generate(source, output)
    assert result.exit_code == 0, result.output
    answers = by_id(output)
    assert set(answers) == {0, 1, 2, 3, 4}
    assert [answers[i]["text"] for i in (0, 3)] == ["kept", "kept"]
    assert "3 answered" in result.output
    assert "2 were there already" in result.output
    before, steps = output.read_bytes(), engine.num_steps
    assert generate(source, output).exit_code == 0
    assert (output.read_bytes(), engine.num_steps) == (before, steps)


@pytest.mark.usefixtures("engine")
def test_order_is_kept_when_asked_for(tmp_path: Path) -> None:
    lengths = [40, 1, 20, 3, 30, 2, 10, 1, 5, 25]
    source = write(tmp_path / "in", *({"id": i, "prompt": "abc", "max_tokens": n} for i, n in enumerate(lengths)))
    assert generate(source, tmp_path / "out", "--ordered", "--concurrency", "4").exit_code == 0
    assert [record["id"] for record in read(tmp_path / "out")] == list(range(10))
    assert generate(source, tmp_path / "unordered", "--concurrency", "4").exit_code == 0
    assert [record["id"] for record in read(tmp_path / "unordered")] != list(range(10))
    assert by_id(tmp_path / "unordered") == by_id(tmp_path / "out")


def test_refuses_what_it_would_destroy(tmp_path: Path) -> None:
    source = write(tmp_path / "in", {"prompt": "a"})
    assert isinstance(generate(source, source).exception, ConfigError)
    other = tmp_path / "other"
    other.write_text("Dear diary\n")
    with pytest.raises(ConfigError, match="line 1 was not written by"):
        repair(other)
    assert other.read_text() == "Dear diary\n"
    assert isinstance(generate(tmp_path / "missing", tmp_path / "out").exception, ConfigError)


class Recording:
    """An endpoint that says how many ask at once, what they asked, and fails when told."""

    def __init__(self, failures: Iterator[Exception] | None = None) -> None:
        self.failures = failures or iter(())
        self.now = self.most = 0
        self.bodies: list[Record] = []

    async def post(self, path: str, body: bytes) -> bytes:
        self.now += 1
        self.most = max(self.most, self.now)
        self.bodies.append(json.loads(body))
        try:
            await asyncio.sleep(0.001)
            for failure in self.failures:
                raise failure
        finally:
            self.now -= 1
        usage = {"prompt_tokens": 1, "completion_tokens": 1}
        return json.dumps({"choices": [{"text": "t", "finish_reason": "stop"}], "usage": usage}).encode()

    def events(self, path: str, body: bytes) -> Any:
        raise NotImplementedError

    def close(self) -> None:
        pass


def tasks(count: int) -> Iterator[Task]:
    return (Task(i, "/v1/completions", {"prompt": "x"}, False) for i in range(count))


async def collect(run: Run, count: int) -> list[Record]:
    return [record async for record in run.records(tasks(count))]


@pytest.mark.parametrize("ordered", [False, True])
def test_no_more_than_the_concurrency_is_in_flight(ordered: bool) -> None:
    endpoint = Recording()
    records = asyncio.run(collect(Run(lambda: endpoint, "m", 3, ordered), 20))
    assert len(records) == 20
    assert endpoint.most == 3
    assert {body["model"] for body in endpoint.bodies} == {"m"}


def test_the_same_seed_asks_the_same() -> None:
    def seeds(seed: int) -> list[int]:
        endpoint = Recording()
        asyncio.run(collect(Run(lambda: endpoint, None, 1, True, seed), 3))
        return [body["seed"] for body in endpoint.bodies]

    assert seeds(0) == seeds(0)
    assert len({*seeds(0), *seeds(1)}) == 6


def test_a_full_queue_is_waited_for_and_a_dead_server_ends_the_run() -> None:
    full = HttpError("429: full", 429, b"", retry_after=0.001)
    endpoint = Recording(iter([full, full]))
    assert len(asyncio.run(collect(Run(lambda: endpoint, None, 1, False), 2))) == 2
    dead = Recording(iter([HttpError("503: stopped", 503)]))
    with pytest.raises(EngineError, match="stopped at 0: 503: stopped; the same command goes on from there"):
        asyncio.run(collect(Run(lambda: dead, None, 2, False), 9))


@given(
    st.lists(st.binary(max_size=30) | st.from_type(dict[str, int | str | None]).map(lambda d: json.dumps(d).encode()))
)
def test_no_line_breaks_the_reader(lines: list[bytes]) -> None:
    import io

    ids = [task.id for task in read_tasks(io.BytesIO(b"\n".join(lines)), {})]
    assert len(ids) <= sum(1 for _ in io.BytesIO(b"\n".join(lines)))


@pytest.mark.usefixtures("engine")
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    source = write(tmp_path / "in", {"id": "a", "prompt": "hello"}, {"id": "b", "prompt": "hello"})
    result = generate(source, Path("/dev/full"))
    assert isinstance(result.exception, OutputError)
    assert "cannot write /dev/full: No space left on device" in str(result.exception)
    assert "the same command goes on" in str(result.exception)


@pytest.mark.usefixtures("engine")
def test_a_disk_that_fills_up_leaves_what_a_next_run_completes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "in", *({"id": i, "prompt": "hello", "max_tokens": 2} for i in range(5)))
    real, written = module._write, []

    def write_two_and_a_half(out: Any, line: bytes) -> None:
        written.append(line)
        if len(written) > 2:
            real(out, line[:10])
            raise OutputError("No space left on device")
        real(out, line)

    monkeypatch.setattr(module, "_write", write_two_and_a_half)
    assert isinstance(generate(source, tmp_path / "out").exception, OutputError)
    monkeypatch.setattr(module, "_write", real)
    assert generate(source, tmp_path / "out").exit_code == 0
    assert by_id(tmp_path / "out").keys() == set(range(5))


@pytest.mark.usefixtures("engine")
def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    """RFC 8259, section 8.1: a reader may. Editors on Windows write it."""
    (tmp_path / "in").write_bytes(b'\xef\xbb\xbf{"id": "a", "prompt": "hello"}\n')
    assert generate(tmp_path / "in", tmp_path / "out").exit_code == 0
    assert by_id(tmp_path / "out").keys() == {"a"}


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_another_encoding_is_named(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "in").write_text('{"id": "a", "prompt": "hello"}\n', encoding=encoding)
    result = generate(tmp_path / "in", tmp_path / "out")
    assert isinstance(result.exception, ConfigError)
    assert f"mark of {encoding.upper()}" in str(result.exception)


@pytest.mark.usefixtures("engine")
def test_a_line_in_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes('{"id": "a", "prompt": "né"}\n{"id": "b", "prompt": "n"}\n'.encode("latin-1"))
    assert generate(tmp_path / "in", tmp_path / "out").exit_code == 1
    answers = by_id(tmp_path / "out")
    assert "0xe9 at 24" in answers["line-1"]["error"]["message"]
    assert "text" in answers["b"]
