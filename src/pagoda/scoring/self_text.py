"""Text that a model writes itself, to calibrate it on or to compare copies of it by.

What a model says is what it will be asked to compute, so its own text shows the activations it has in use, in its own
languages and registers, and belongs to nobody else. It continues short openings and answers short questions, sampled
at temperature 1. Languages are those that its tokenizer has words for. The text depends on the model's file, the seed
and the length alone (and, in rare tokens, on the processor's rounding), and is kept in the cache.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pagoda.config import cache_dir
from pagoda.engine.llm import LLM
from pagoda.text.tokenizer import Tokenizer
from pagoda.types import SamplingParams

Document = str | list[dict[str, Any]]
Progress = Callable[[str, int, int | None], None]

NAMES = ("self", "builtin")  # what settings call this text
VERSION = 1  # of the tables below: another one writes other text
CALIBRATION_SEED, HELD_OUT_SEED = 1, 2  # what calibrates is not what measures
DOCUMENT_TOKENS = 512  # of one text at most
SURPLUS = 1.1  # cut into windows, and tokenized again, a text comes out a little shorter
ROUND, LEAST_ROUND = 64, 8  # documents written at once
CHAT_SHARE = 0.5  # of the documents, where the model has a chat template


@dataclass(frozen=True, slots=True)
class Register:
    """One language or kind of text: a line to measure a tokenizer by, beginnings of texts, and questions."""

    probe: str
    openings: tuple[str, ...]
    questions: tuple[str, ...] = ()
    least: float = 2.2  # characters a token, of the probe, where the tokenizer has the language's words


REGISTERS: dict[str, Register] = {
    "English": Register(
        "The committee will meet again next week to discuss the results of the survey.",
        ("The", "In", "It was", "A", "We", "When the", "According to", "I think", "Chapter", "How to", "Once", "By"),
        (
            "Explain how a refrigerator works.",
            "Write a short story about a lost key.",
            "What should I look at when I choose a bicycle?",
            "Give me three tips for learning a language.",
            "Summarize why the sky is blue in two sentences.",
            "Write a polite email that declines an invitation.",
            "What is the difference between weather and climate?",
            "Plan a weekend in a small town by the sea.",
        ),
    ),
    "code": Register(
        "def count(items):\n    return sum(1 for item in items if item is not None)\n",
        (
            "def ",
            "import ",
            "class ",
            "#include <",
            "function ",
            "SELECT ",
            "public class ",
            "fn main() {\n",
            "package main\n",
            "#!/bin/bash\n",
            "<html>\n",
            '{\n  "',
        ),
        (
            "Write a Python function that merges two sorted lists.",
            "Show a SQL query that finds duplicate rows.",
            "Explain what this does: for i in range(0, 10, 2): print(i)",
            "Write a bash script that renames files by date.",
            "Write a class in Java for a bounded queue.",
            "How do I read a CSV file in JavaScript?",
        ),
    ),
    "German": Register(
        "Die Ergebnisse der Untersuchung werden in der nächsten Woche besprochen.",
        ("Die", "Der", "Im", "Es war"),
        ("Erkläre, wie ein Kühlschrank funktioniert.", "Was ist der Unterschied zwischen Wetter und Klima?"),
    ),
    "French": Register(
        "Les résultats de cette étude seront discutés pendant la réunion de la semaine prochaine.",
        ("Les", "Dans", "Le", "Il était"),
        ("Explique comment fonctionne un réfrigérateur.", "Propose un programme pour un week-end à la mer."),
    ),
    "Spanish": Register(
        "Los resultados de la encuesta se discutirán en la reunión de la próxima semana.",
        ("Los", "En", "El", "Cuando"),
        ("Explica cómo funciona una nevera.", "Escribe un cuento corto sobre una llave perdida."),
    ),
    "Portuguese": Register(
        "Os resultados da pesquisa serão discutidos na reunião da próxima semana.", ("Os", "Em", "O", "Quando")
    ),
    "Vietnamese": Register(
        "Kết quả của cuộc khảo sát sẽ được thảo luận trong cuộc họp tuần tới.",
        ("Các", "Trong", "Một"),
        ("Giải thích tủ lạnh hoạt động như thế nào.",),
    ),
    "Russian": Register(
        "Результаты исследования будут обсуждаться на следующей неделе.",
        ("В", "Это", "Когда"),
        ("Объясни, как работает холодильник.",),
    ),
    "Chinese": Register(
        "委员会将在下周再次开会讨论调查的结果。",
        ("在", "我们", "关于"),
        ("请解释冰箱是怎样工作的。", "写一个关于钥匙的小故事。"),
        least=0.9,
    ),
    "Japanese": Register(
        "委員会は来週もう一度集まり、調査の結果について話し合います。",
        ("この", "私は"),
        ("冷蔵庫の仕組みを説明してください。",),
        least=0.9,
    ),
    "Arabic": Register("ستجتمع اللجنة مرة أخرى الأسبوع المقبل لمناقشة نتائج الدراسة.", ("في", "كان")),
}


def probe_text() -> str:
    """A short text in all registers, that every tokenizer cuts into a few hundred tokens at least."""
    lines = [line for register in REGISTERS.values() for line in (register.probe, *register.questions)]
    return "\n".join(lines)


def languages_of(tokenizer: Tokenizer) -> list[str]:
    """The registers whose words the tokenizer has, by characters a token of a line of each; English where none does."""
    known = []
    for name, register in REGISTERS.items():
        ids = tokenizer.encode(register.probe, add_special=False)
        if len(register.probe) / max(1, len(ids)) >= register.least:
            known.append(name)
    return known or ["English"]


def self_documents(
    model: Path, num_tokens: int, seed: int, *, threads: int = 0, progress: Progress = lambda what, done, total: None
) -> list[Document]:
    """Texts and dialogs of at least `num_tokens` tokens that the model at `model` writes, or wrote before.

    Raises what loading the model raises.
    """
    path = cache_dir() / "self-text" / f"{_digest(model)}-{VERSION}-{seed}-{num_tokens}.jsonl"
    if path.exists():
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]  # not at U+2028
    documents = list(_write(model, num_tokens, seed, threads, progress))
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(
        "".join(json.dumps(document, ensure_ascii=False) + "\n" for document in documents), encoding="utf-8"
    )
    part.replace(path)
    return documents


def plain_text(documents: list[Document]) -> str:
    """All of it as one text, dialogs without their markup."""
    return "\n\n".join(
        text if isinstance(text, str) else "\n\n".join(str(message["content"]) for message in text)
        for text in documents
    )


def _write(model: Path, num_tokens: int, seed: int, threads: int, progress: Progress) -> Iterator[Document]:
    wanted, written, number = int(num_tokens * SURPLUS), 0, 0
    progress("writing text", 0, wanted)
    with LLM(str(model), threads=threads, max_num_seqs=ROUND) as llm:
        languages = languages_of(llm.loaded.tokenizer)
        while written < wanted:
            count = max(LEAST_ROUND, min(ROUND, 2 * (wanted - written) // DOCUMENT_TOKENS))  # most texts end early
            chats = llm.loaded.chat_template is not None
            prompts = _prompts(languages, count, chats=chats, seed=seed + number)
            for prompt, text, tokens in _continue(llm, prompts, seed + number):
                written += tokens
                yield prompt + text if isinstance(prompt, str) else [*prompt, {"role": "assistant", "content": text}]
            number += count
            progress("writing text", min(written, wanted), wanted)


def _prompts(languages: list[str], count: int, *, chats: bool, seed: int) -> list[Document]:
    """What one round continues or answers: languages in turn, English and code as often as all others together."""
    rng = random.Random(seed)
    weights = [max(1, len(languages) - 2) if name in ("English", "code") else 1 for name in languages]
    prompts: list[Document] = []
    for register in (REGISTERS[name] for name in rng.choices(languages, weights, k=count)):
        if chats and register.questions and rng.random() < CHAT_SHARE:
            prompts.append([{"role": "user", "content": rng.choice(register.questions)}])
        else:
            prompts.append(rng.choice(register.openings))
    return prompts


def _continue(llm: LLM, prompts: list[Document], seed: int) -> Iterator[tuple[Document, str, int]]:
    """→ each prompt with what the model wrote after it, and its tokens in all."""
    template, tokenizer = llm.loaded.chat_template, llm.loaded.tokenizer
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    dialogs = [prompt for prompt in prompts if not isinstance(prompt, str)]
    listed: list[Document] = [*texts, *dialogs]
    ids = [tokenizer.encode(text) or [tokenizer.eos_id or 0] for text in texts]
    if template is not None:
        ids += [template.render_ids(dialog) for dialog in dialogs]
    room = [min(DOCUMENT_TOKENS, llm.loaded.max_context - len(prompt)) for prompt in ids]
    params = [SamplingParams(max_tokens=n, temperature=1.0, seed=seed + i) for i, n in enumerate(room)]
    for prompt, output in zip(listed, llm.generate(ids, params), strict=True):
        if output.text.strip():
            yield prompt, output.text, len(output.prompt_token_ids) + len(output.token_ids)


def _digest(model: Path) -> str:
    """The hash of what decides what a model says: a GGUF file, or a folder's files."""
    found = hashlib.sha256()
    files = sorted(path for path in model.iterdir() if path.is_file()) if model.is_dir() else [model]
    for path in files:
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                found.update(piece)
    return found.hexdigest()[:32]
