"""What is never kept, what not for long, and what is the same question in other clothes, in three languages."""

from __future__ import annotations

import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagoda.cache.normalize import is_comparable, normal_form
from pagoda.cache.policy import CacheOptions, Policy, options_of, partition_of, sampling_class
from pagoda.cache.rules import DAY, HOUR, RULES, Rules, parse_rules
from pagoda.errors import ConfigError, RequestError

NEVER = [
    ("Show my account balance", "own things"),
    ("Did they ship our last order?", "own things"),
    ("When is my wife's birthday?", "own facts"),
    ("Where's our meeting?", "own facts"),
    ("Wie alt ist mein Sohn?", "own facts"),
    ("Kam meine Bestellung an?", "own things, German"),
    ("Wie lautet die Nummer unseres Kontos?", "own things, German"),
    ("How much do I owe?", "own state"),
    ("Bin ich versichert?", "own state"),
    ("Write to jane.doe@example.com", "email address"),
    ("Is 4111 1111 1111 1111 valid?", "long number"),
    ("Call +49 30 1234567", "phone number"),
    ("Ruf 030 1234567 an", "phone number"),
    ("Überweise auf DE89 3704 0044 0532 0130 00", "long number"),
    ("My name is Ada. Who am I?", "introduction"),
    ("Ich heiße Ada.", "introduction"),
    ("What happened today in Berlin?", "now"),
    ("What happened 3 days ago?", "now"),
    ("What's the time?", "now"),
    ("Was läuft heute im Kino?", "now, German"),
    ("Was geschah vor zwei Tagen?", "now, German"),
    ("What is the latest iPhone?", "news"),
    ("Was ist das neueste iPhone?", "news"),
    ("What is the weather in Paris?", "weather"),
    ("Wie wird das Wetter in Paris?", "weather"),
    ("What is the price of gold?", "price"),
    ("Was kostet Gold?", "price"),
    ("Who is winning?", "scores"),
    ("Restaurants near me", "where I am"),
    ("Apotheken in meiner Nähe", "where I am"),
    ("Give me a random number", "anew"),
    ("Noch einen Witz", "anew"),
    ("As I said, what is it?", "earlier talk"),
    ("Email của tôi là gì?", "own things, Vietnamese"),
    ("Đơn hàng mới của em đâu?", "own things, Vietnamese"),
    ("Sếp của tôi là ai?", "own things, Vietnamese"),
    ("Tôi tên là Lan.", "own state, Vietnamese"),
    ("Giá vàng hôm nay", "now, Vietnamese"),
    ("Bây giờ là mấy giờ?", "now, Vietnamese"),
    ("Giá vàng bao nhiêu?", "market, Vietnamese"),
    ("Tỷ giá USD?", "market, Vietnamese"),
    ("Thời tiết Hà Nội", "news, Vietnamese"),
    ("iPhone mới nhất là gì?", "news, Vietnamese"),
    ("Quán phở gần đây?", "news, Vietnamese"),
    ("Hiệu thuốc quanh đây", "where I am, Vietnamese"),
    ("Cho một số ngẫu nhiên", "anew, Vietnamese"),
    ("Bạn vừa nói gì?", "earlier talk, Vietnamese"),
    (unicodedata.normalize("NFD", "Giá vàng hôm nay"), "now, Vietnamese"),
    (unicodedata.normalize("NFD", "Wie wird das Wetter für Köln übermorgen?"), "now, German"),
]
KEPT = [
    "What is rust?", "How do I earn money online?", "How can I recover my deleted files?",
    "Was ist Rost?", "Wie funktioniert ein Motor?",
    "How do transformers work?", "Who wrote Faust?", "What is a stock option?", "Can I mine gold?",
    "Why did the Roman Empire fall in 476?", "What is 123456 * 7?", "Was bedeutet Kontext?",
    "Thủ đô của Pháp là gì?", "Rust là gì?", "Làm thế nào để nấu phở?", "Vì sao bầu trời màu xanh?",
    "Viết hàm Python sắp xếp một danh sách", "Giải thích PagedAttention", "Vàng có ký hiệu hóa học là gì?",
    "Làm sao để đổi mật khẩu Gmail?", "Giá trị của pi là gì?", "Đánh giá của bạn về Rust?",
    "Đánh giá vàng bạc thế nào?",
]  # fmt: skip


@pytest.mark.parametrize(("text", "name"), NEVER)
def test_what_is_never_kept(text: str, name: str) -> None:
    ruling = Rules().ruling([text], DAY)
    assert ruling.ttl == 0
    assert ruling.rule is not None
    assert ruling.rule.name == name


@pytest.mark.parametrize("text", KEPT)
def test_what_is_kept_a_day(text: str) -> None:
    assert Rules().ruling([text], DAY).ttl == DAY


@pytest.mark.parametrize(
    ("text", "ttl"),
    [
        ("Who is the president of France?", HOUR),
        ("Wer ist die Bundeskanzlerin?", HOUR),
        ("Ai là thủ tướng Đức?", HOUR),
        ("Thủ tướng Đức là ai?", HOUR),
        ("Dân số Hà Nội?", 6 * HOUR),
        ("Which version of Python has match?", 6 * HOUR),
        ("How many people live in Rome?", 6 * HOUR),
        ("What changed in 2025?", 6 * HOUR),
    ],
)
def test_what_ages_is_kept_for_less(text: str, ttl: float) -> None:
    assert Rules().ruling([text], DAY).ttl == ttl
    assert Rules().ruling([text], 60).ttl == 60


def test_every_turn_of_the_user_counts() -> None:
    assert Rules().ruling(["What is my account balance?", "And in euros?"], DAY).ttl == 0


def test_every_rule_has_a_reason_and_a_name_of_its_own() -> None:
    assert len({rule.name for rule in RULES}) == len(RULES)
    assert all(rule.reason for rule in RULES)


@pytest.mark.parametrize(
    "piece",
    ["a", "a.", "1 ", "how much is ", "my x ", "nearest ", "@a", "+1", "\n", "aa11 ", "tôi có bị ", "ceo ", "đơn x "],
)
def test_rules_take_a_bounded_time(piece: str) -> None:
    """Texts of 20,000 characters that make patterns try again and again."""
    text = piece * (20_000 // len(piece))
    start = time.process_time()
    Rules().ruling([text], DAY)
    assert time.process_time() - start < 5


def test_rules_of_the_operator_come_first() -> None:
    rules = Rules(parse_rules(["apollo=\\bproject (apollo|zeus)\\b"], ["docs=600=\\bmanual\\b"]))
    assert rules.ruling(["What is Project Zeus?"], DAY).ttl == 0
    assert rules.ruling(["Where is the manual?"], DAY).ttl == 600


@pytest.mark.parametrize(
    ("never", "shorter", "why"),
    [(["x"], [], "NAME=PATTERN"), (["x=("], [], "no pattern"), ([], ["a=b=c"], "SECONDS"), ([], ["a=0=c"], "SECONDS")],
)
def test_rules_that_are_none_are_refused(never: list[str], shorter: list[str], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        parse_rules(never, shorter)


@pytest.mark.parametrize(
    "text",
    [
        "what is rust", "What is rust?", "  WHAT   IS RUST ?!", "Please, what is rust?", "What is rust, please?",
        "Could you please tell me what is rust?", "Can you explain to me what is rust?", "Hi! What is rust?",
        "Hello there, what is rust? Thanks in advance!", "Tell me what is rust.", "\u201cWhat is rust?\u201d",
        "What is rust…",
        "Hi, could you tell me what is rust? Thank you so much", "what is ｒｕｓｔ", "I'd like to know what is rust",
    ],
)  # fmt: skip
def test_trivial_repeats_have_one_form(text: str) -> None:
    assert normal_form(text) == "what is rust"


@pytest.mark.parametrize(
    "text", ["Was ist Rost?", "Hallo, was ist Rost, bitte?", "Könntest du mir bitte sagen, was ist Rost? Vielen Dank!"]
)
def test_trivial_repeats_in_german(text: str) -> None:
    assert normal_form(text) == "was ist rost"


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("What is C++?", "What is C?"), ("What is C#?", "What is C?"), ("Is 1.5 > 15?", "Is 15 > 15?"),
        ("What is -5?", "What is 5?"), ("10:30", "1030"), ("a/b", "a b"), ("50%", "50"), ("not bad", "bad"),
        ("What is .NET?", "What is net?"), ("Is 2 < 3?", "Is 2 > 3?"), ("$5", "€5"),
    ],
)  # fmt: skip
def test_signs_that_carry_meaning_stay(a: str, b: str) -> None:
    assert normal_form(a) != normal_form(b)


def test_code_and_long_texts_are_their_own_form() -> None:
    for text in ("```x```\nWhat is it?", "if x:\n    Return", "a " * 1500):
        assert not is_comparable(text)
        assert normal_form(text) == text


@given(st.text(max_size=200))
def test_forms_are_stable(text: str) -> None:
    form = normal_form(text)
    if is_comparable(text):
        assert normal_form(f"  {text} ") == form


def test_what_a_request_asks_only_shortens() -> None:
    policy = Policy(Rules(), DAY, {"docs": 600.0})
    assert policy.lifetime(["What is rust?"], CacheOptions()) == (DAY, "")
    assert policy.lifetime(["What is rust?"], CacheOptions(ttl=60)) == (60, "")
    assert policy.lifetime(["What is rust?"], CacheOptions(ttl=2 * DAY)) == (2 * DAY, "")
    assert policy.lifetime(["What is rust?"], CacheOptions(tags=("docs",))) == (600, "tag docs")
    assert policy.lifetime(["What is rust?"], CacheOptions(ttl=DAY, tags=("docs",))) == (600, "tag docs")
    assert policy.lifetime(["Who is the pope?"], CacheOptions(ttl=DAY)) == (HOUR, "offices")
    assert policy.lifetime(["What is my name?"], CacheOptions(ttl=DAY)) == (0, "own facts")


def test_headers() -> None:
    assert options_of("refresh, ttl=60, tag=a, tag=b, tag=a") == CacheOptions("refresh", 60.0, ("a", "b"))
    assert options_of("read").reads
    assert not options_of("read").writes
    assert not options_of("write").reads
    assert not options_of("off").writes
    for wrong in ("sometimes", "ttl=-1", "ttl=x", "ttl=0", "tag=", "ttl=99999999999999999999"):
        with pytest.raises(RequestError):
            options_of(wrong)


def test_partitions_differ_in_every_part() -> None:
    parts = {"tenant": "a", "before": "x", "after": "y"}
    seen = {partition_of(parts | {name: parts[name] + "z"}) for name in parts} | {partition_of(parts)}
    assert len(seen) == 4
    assert partition_of({"a": "bc", "d": ""}) != partition_of({"a": "b", "cd": ""})
    assert [sampling_class(t) for t in (0.0, 0.3, 0.5, 0.7, 1.0)] == ["greedy", "low", "low", "high", "high"]
