"""Streams of questions replayed, by hand-made truths, and the logs that they come from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cache_parts import WordEmbedder
from pagoda.cache.evidence import EDGES, Region
from pagoda.cache.policy import Policy
from pagoda.cache.question_log import Logged, QuestionLog, is_question_log, read_question_log
from pagoda.cache.replay import candidates, replay_at, stream_of, truth_of
from pagoda.cache.rules import Rules
from pagoda.errors import ConfigError
from pagoda.types import FloatArray


class SameWords:
    """A verifier for which questions of the same words, in any order, are the same."""

    regions = tuple(Region(1000, 0 if edge > 0 else 1000) for edge in (-9.0, *EDGES))

    def log_odds(self, text: str, vector: FloatArray, others: list[str], vectors: FloatArray) -> FloatArray:
        def words(one: str) -> list[str]:
            return sorted(one.lower().strip("?").split())

        return np.array([9.0 if words(text) == words(other) else -9.0 for other in others], np.float32)


LINES = [
    Logged("What is rust?", "Iron oxide."),
    Logged("what is RUST", "Oxide of iron, they say."),  # the same words
    Logged("Is what rust?", "Iron oxide."),  # other words, the same answer
    Logged("What rust is?", "A river in Burgenland"),  # looks alike, and is another question
    Logged("Who wrote Faust?", "Goethe."),
    Logged("What is rust?", "Iron oxide.", partition="another"),
    Logged("Where is my order?", "Here."),
]


def test_candidates_are_the_nearest_before() -> None:
    embedder = WordEmbedder()
    found = candidates(stream_of(LINES, embedder), SameWords(), truth_of(LINES, embedder))  # type: ignore[arg-type]
    assert (found.num_same_words, found.num_repeats, found.num_known) == (1, 1, 2)
    cosine, verifier = found.curves
    assert verifier.found_at(0.5) == 1.0
    assert verifier.wrong.tolist() == [0.5]
    assert cosine.hits.tolist() == [1.0]


def test_a_stream_is_replayed_as_a_server_would() -> None:
    embedder = WordEmbedder()
    stream, truth = stream_of(LINES, embedder), truth_of(LINES, embedder)
    settings = (embedder, SameWords(), Policy(Rules()), truth)
    strict = replay_at(stream, *settings, 0.0, shadow=0.0)  # type: ignore[arg-type]
    assert (strict.hits, strict.by_meaning, strict.bypassed) == (1, 0, 1)
    loose = replay_at(stream, *settings, 0.5, shadow=1.0)  # type: ignore[arg-type]
    assert (loose.hits, loose.by_meaning, loose.wrong_by_meaning, loose.checks) == (3, 2, 1, 2)
    assert loose.wrong == 1


def test_groups_tell_the_truth_where_they_are_given() -> None:
    lines = [Logged("a", "x", group="1"), Logged("b", "x", group="2"), Logged("c", "y", group="1")]
    truth = truth_of(lines, WordEmbedder())
    assert (truth(0, 1), truth(0, 2)) == (False, True)


def test_a_log_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = QuestionLog(path)
    log.write(LINES[0])
    log.write(LINES[5])
    log.close()
    one, other = read_question_log(path)
    assert (one.question, one.answer) == ("What is rust?", "Iron oxide.")
    assert one.partition != other.partition
    assert is_question_log(path)


def test_a_full_disk_loses_lines_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    log = QuestionLog(Path("/dev/full"))
    log.write(LINES[0])
    log.close()
    assert "a question was not logged" in caplog.text


def test_chats_are_questions_after_their_earlier_turns(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    turns = '{"role": "system", "content": "Be kind."}, '
    path.write_text(
        f'{{"messages": [{turns}{{"role": "user", "content": "q"}}], "answer": "a"}}\n'
        '{"messages": [{"role": "user", "content": "q"}], "answer": "a", "group": 7}\n'
    )
    one, other = read_question_log(path)
    assert (one.question, other.question, other.group) == ("q", "q", "7")
    assert one.partition != other.partition


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"question": "q"}', "line 1"),
        ('{"question": "q", "answer": "a"}\n{"question": 1, "answer": "a"}', "line 2"),
        ('{"messages": [], "answer": "a"}', "line 1"),
        ("{", "line 1: not JSON"),
        ("", "no question"),
    ],
)
def test_logs_that_are_none_are_refused(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigError, match=why):
        read_question_log(path)
