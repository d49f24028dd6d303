"""Texts that tokenizers get wrong: many scripts, emoji, code, runs of spaces, odd line ends, broken Unicode.

Everything is drawn from a seeded generator. Characters are those assigned since Unicode 3.2 and a list of emoji, so
that libraries with tables of different age agree on what is a letter.
"""

from __future__ import annotations

import random
import unicodedata

# First and last character of the blocks that letters are drawn from.
SCRIPTS = {
    "latin": (0x41, 0x17F), "greek": (0x386, 0x3CE), "cyrillic": (0x400, 0x45F), "hebrew": (0x5D0, 0x5EA),
    "arabic": (0x621, 0x669), "devanagari": (0x901, 0x96F), "thai": (0xE01, 0xE59), "tibetan": (0xF00, 0xF69),
    "georgian": (0x10A0, 0x10F6), "hangul": (0xAC00, 0xD7A3), "hiragana": (0x3041, 0x3094),
    "katakana": (0x30A1, 0x30FA), "han": (0x4E00, 0x9FA5), "han_ext_b": (0x20000, 0x2A6D6),
    "gothic": (0x10330, 0x1034A), "math": (0x1D400, 0x1D7FF), "full_width": (0xFF01, 0xFF5E),
    "marks": (0x300, 0x34F), "punctuation": (0x2010, 0x2057), "arrows": (0x2190, 0x23CE), "numbers": (0x2153, 0x2183),
}  # fmt: skip
EMOJI = ["😀", "🤦🏼‍♂️", "👩‍👩‍👧‍👦", "🏳️‍🌈", "🇫🇷", "👍🏽", "☠️", "1️⃣", "❤️‍🔥", "\U0001f9d1\u200d\U0001f4bb", "🚀" * 7]
SPACES = [
    *[" ", "  ", " " * 7, " " * 33, "\t", "\t\t ", "\n", "\n\n", "\r\n", " \n ", "\n \t\n", "\r"],
    *["\u00a0", "\u3000", "\u2003", "\x85", "\u2028", "\x0b\x0c", "\x1c", "\u200b", "\ufeff"],
]
WORDS = [
    *["the", "don't", "I'LL", "we've", "'tis", "It'S", "'sup", "they'RE", "o'clock", "banana", "aaa"],
    *["naïve", "ﬁne", "ǅungla", "İstanbul", "ſtraße", "e\u0301clair", "supercalifragilistic"],
    *["snake_case", "camelCase", "HTTPServer2"],
]
NUMBERS = [
    *["0", "42", "1234", "1,234,567.89", "3.14159265358979", "1e-10", "0xDEADBEEF"],
    *["٣٤٥", "१२३४", "Ⅷ", "½", "²³", "①②", "１２３"],
]
SYMBOLS = [
    *["!", "?!", "...", "-->", "==", "=======", "__init__", "#", "$^`", "<|>", "{{}}", "://"],
    *["«»", "—", "、。", "'", '"\'"', "▁", "▁▁"],
]
CODE = [
    "def f(x):\n    return x + 1\n",
    "for (int i = 0; i < n; ++i) {\n\t\ta[i] *= 2;\n\t}\n",
    '{"key": [1, 2.5e3, null], "s": "\\u00e9"}',
    "SELECT * FROM t WHERE a <> 'b';  -- note\r\n",
    "<p class='x'>&nbsp;</p>\n\n\n",
    "```python\nprint('hi')\n```",
]
CONTROL = ["\x00", "\x01\x02", "\x1b[0m", "\x7f", "\u202e", "\ufffd", "\ue000", "\ufffe"]
BROKEN = ["\ud800", "\udc00", "a\udfffb", "\ud83d\ude00", "\udc80\udcff"]
MARKERS = ["<s>", "</s>", "<unk>", "<|im_end|>", "<|endoftext|>", "<0x0A>", "<|im_start|>user\n"]


def _letters(rng: random.Random) -> str:
    first, last = SCRIPTS[rng.choice(list(SCRIPTS))]
    drawn = [chr(rng.randint(first, last)) for _ in range(rng.randint(1, 12))]
    return "".join(char for char in drawn if unicodedata.ucd_3_2_0.category(char) != "Cn")


def _bytes(rng: random.Random) -> str:
    """Random bytes, read as UTF-8 with what is invalid replaced."""
    return bytes(rng.randrange(256) for _ in range(rng.randint(1, 8))).decode("utf-8", "replace")


def _assigned(text: str) -> bool:
    """Whether every character was assigned in Unicode 3.2, or is one of the emoji listed here."""
    return all(unicodedata.ucd_3_2_0.category(char) != "Cn" for char in text)


def texts(count: int, seed: int = 0) -> list[str]:
    """`count` texts; the first are every listed one by itself."""
    rng = random.Random(seed)
    lists = [EMOJI, SPACES, WORDS, NUMBERS, SYMBOLS, CODE, CONTROL, BROKEN, MARKERS]
    found = ["", *(text for texts in lists for text in texts)]
    while len(found) < count:
        parts = []
        for _ in range(rng.randint(1, 14)):
            kind = rng.randrange(len(lists) + 4)
            part = rng.choice(lists[kind]) if kind < len(lists) else _letters(rng)
            if rng.random() < 0.05:
                part = _bytes(rng)
            parts.append(part if part in EMOJI or _assigned(part) else "?")
            if rng.random() < 0.5:
                parts.append(" ")
        found.append("".join(parts))
    return found[:count]
