"""What is never kept, and what not for long: a table of rules, each with its reason. English, German and Vietnamese.

A rule looks at what the user said, in small letters and with single spaces, accents as part of their letters (NFC). The
first rule that fits decides; those that forbid stand before those that shorten. `pagoda.toml` adds rules of the
operator's before all of these:

    [cache]
    never = ["internal-project=\\\\bproject (apollo|zeus)\\\\b"]
    shorter = ["releases=3600=\\\\b(release|version)\\\\b"]
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from pagoda.errors import ConfigError

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0


@dataclass(frozen=True, slots=True)
class Rule:
    """`ttl`: seconds that an answer to what fits `pattern` is kept; 0: it is not."""

    name: str
    pattern: str
    reason: str
    ttl: float = 0.0


_OWNED = (
    "account|order|orders|subscription|invoice|bill|balance|password|passwords|address|salary|contract|payment|delivery|"
    "parcel|package|booking|reservation|appointment|ticket|profile|name|username|login|card|bank|doctor|diagnosis|"
    "medication|prescription|results|insurance|policy|tax|taxes|visa|passport"
)
_OWNED_DE = (
    "konto|kontos|bestellung|abo|abonnement|rechnung|guthaben|kontostand|passwort|adresse|telefonnummer|gehalt|vertrag|"
    "zahlung|lieferung|paket|buchung|reservierung|termin|ticket|profil|name|karte|kreditkarte|bank|arzt|diagnose|rezept|"
    "befund|versicherung|police|steuer|steuern|antrag|ausweis"
)
_I_VI = "tôi|tui|mình|tớ|em|con|chúng tôi|chúng mình|chúng em|bọn mình"
_OWNED_VI = (
    "e?mail|tài khoản|mật khẩu|đơn hàng|đơn|hóa đơn|hoá đơn|số dư|địa chỉ|số điện thoại|điện thoại|lương|hợp đồng|"
    "thanh toán|gói hàng|vé|lịch hẹn|lịch|hồ sơ|tên|thẻ|ngân hàng|bác sĩ|đơn thuốc|kết quả|bảo hiểm|thuế|hộ chiếu|"
    "căn cước|sinh nhật"
)
_TIMES = "minutes?|hours?|days?|weeks?|months?|years?"

RULES = (
    Rule("email address", r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,64}\.[a-z]{2,}", "says who asks, or about whom"),
    Rule("long number", r"(?<![\d.])\d(?:[ -]?\d){11,18}(?![\d.])", "numbers of cards and accounts are somebody's"),
    Rule("iban", r"\b[a-z]{2}\d{2}(?: ?\d{4}){3,7}(?: ?\d{1,4})?\b", "numbers of accounts are somebody's"),
    Rule("phone number", r"(?<![\w.])(?:\+|00)\d(?:[ ()/-]{0,2}\d){7,14}|\(\d{3}\) ?\d{3}-\d{4}|\b\d{3}-\d{3}-\d{4}\b|"
         r"\b0\d{2,4}[ /-]\d{5,}", "numbers of phones are somebody's"),
    Rule("social security number", r"\b\d{3}-\d{2}-\d{4}\b", "numbers of persons are somebody's"),
    Rule("introduction", r"\b(?:my name is|i am called|call me|ich heiße|mein name ist|"
         r"(?<!if )(?<!can )(?<!should )i live (?:at|in)|ich wohne|"
         r"i was born|ich bin geboren|(?<!can )(?<!do )(?<!should )i work (?:at|for)|"
         r"ich arbeite bei)\b", "says who asks"),
    Rule("own facts", r"\b(?:what|when|who|where|how old|how much|how many)(?:'s| is| are| was| were) (?:my|our)\b|"
         r"\b(?:was|wann|wer|wo|wie(?: alt| hoch)?) (?:ist|sind|war|waren|lautet|heißt) (?:mein|unser)",
         "asks for a fact about the user"),
    Rule("own things", rf"\b(?:my|our)(?: \w+)? (?:{_OWNED})\b", "about what the user owns, or whom the user knows"),
    Rule("own things, German", rf"\b(?:mein|unser)(?:e[mnrs]?)?(?: \w+)? (?:{_OWNED_DE})(?:s|es|en|n)?\b",
         "about what the user owns, or whom the user knows"),
    Rule("own state", r"\b(?:(?<!can )(?<!if )i (?:owe|ordered|bought|paid|booked|signed|weigh|"
         r"suffer from)\b|am i (?:pregnant|"
         r"insured|eligible|registered|subscribed)|was i\b|have i (?:paid|got|been)|did i\b|i(?: am|'m) \d+)|"
         r"\b(?:habe ich|bin ich|wurde ich|ich (?:schulde|bestellte|habe (?:bestellt|gekauft|bezahlt|gebucht)|wiege|"
         r"bin \d+))\b", "about the user's own state"),
    Rule("own things, Vietnamese", rf"\b(?:{_OWNED_VI})(?: \w+)? của (?:{_I_VI})\b|"
         rf"\bcủa (?:{_I_VI}) (?:là (?:gì|ai|bao nhiêu|khi nào)|ở đâu|đâu|khi nào|bao giờ|còn bao nhiêu|bao nhiêu)\b",
         "about what the user owns, or whom the user knows"),
    Rule("own state, Vietnamese", r"\b(?:(?:tôi|mình|em) tên(?: là)?|tên (?:tôi|mình|em) là|(?:tôi|mình) (?:sống|ở|"
         r"làm việc|làm) (?:ở|tại|cho)|tôi sinh (?:năm|ngày|ra)|tôi (?:nợ|đã (?:đặt|mua|trả|thanh toán|đăng ký|ký)|"
         r"nặng|đang mang thai|\d+ tuổi)|tôi (?:có|đã) (?:được|bị)\b.{0,40}\b(?:không|chưa))\b",
         "about the user's own state"),
    Rule("earlier talk", r"\b(?:you (?:just )?(?:said|told|mentioned)|as (?:i|we) (?:said|discussed)|"
         r"remember (?:when|me|"
         r"that)|last time we|hast du (?:eben |vorhin )?gesagt|wie (?:gesagt|besprochen)|erinnerst du dich)\b",
         "refers to what was said elsewhere"),
    Rule("now", r"\b(?:today|tonight|tomorrow|yesterday|right now|just now|at the moment|at present|currently|nowadays|"
         r"this (?:morning|afternoon|evening|week|weekend|month|year|season)|(?:last|next|past|coming) (?:night|week|"
         r"weekend|month|year|season|monday|tuesday|wednesday|thursday|friday|saturday|sunday)|"
         rf"(?:in|within) (?:\d+|a|an|two|three) (?:{_TIMES})(?! (?:can|do|does))\b|(?:\d+|two|three|few) (?:{_TIMES}) "
         r"ago|as of now|so far this|what(?:'s| is) the (?:date|time|day)|what (?:time|day|date) is it|how old is|"
         r"time is it)\b",
         "the answer depends on when it is asked"),
    Rule("now, German", r"\b(?:heute|heutigen?|morgen(?! (?:früh )?essen)|gestern|übermorgen|vorgestern|gerade jetzt|"
         r"jetzt gerade|im moment|momentan|derzeit|aktuell\w*|gegenwärtig|zurzeit|dies(?:e|en|er|es) (?:woche|monat|"
         r"jahr|wochenende|abend)|(?:letzte|nächste|kommende|vergangene)[nmrs]? (?:nacht|woche|monat|jahr|wochenende|"
         r"montag|dienstag|mittwoch|donnerstag|freitag|samstag|sonntag)|vor (?:\d+|zwei|drei|einigen|einem|einer) "
         r"(?:minuten?|stunden?|tage?n?|wochen?|monate?n?|jahre?n?)|wie (?:spät|viel uhr)|welcher tag|wie alt ist)\b",
         "the answer depends on when it is asked"),
    Rule("now, Vietnamese", r"\b(?:hôm (?:nay|qua|kia)|ngày (?:mai|kia)|(?:sáng|trưa|chiều|tối|đêm) (?:nay|mai|qua)|"
         r"bây giờ|lúc này|hiện (?:nay|tại|giờ)|đang là|mấy giờ|(?:tuần|tháng|quý) (?:này|trước|sau|tới|vừa rồi)|"
         r"năm (?:nay|ngoái|tới|sau)|(?:\d+|một|hai|ba|vài|mấy) (?:phút|giờ|tiếng|ngày|tuần|tháng|năm) (?:trước|nữa|"
         r"tới|qua)|"
         r"thứ mấy|ngày mấy|ngày bao nhiêu|bao nhiêu tuổi)\b", "the answer depends on when it is asked"),
    Rule("market, Vietnamese", r"\b(?:(?<!đánh )giá (?:vàng|bạc|xăng|dầu|điện|đất|nhà|vé|cả|bán|bitcoin|btc|usd|đô|"
         r"cổ phiếu|của|hiện|thị trường)|bao nhiêu tiền|giá (?:là )?bao nhiêu|tỷ giá|tỉ giá|chứng khoán|cổ phiếu|"
         r"vn-?index|giảm giá|khuyến mãi|khuyến mại|còn hàng|rẻ nhất)\b", "prices and stocks change"),
    Rule("news, Vietnamese", r"\b(?:mới nhất|gần đây|tin tức|tin nóng|thời sự|thời tiết|dự báo|có mưa|trời mưa|"
         r"nhiệt độ (?:ở|tại|ngoài)|tỷ số|tỉ số|xổ số|kết quả (?:trận|bóng đá|bầu cử)|lịch thi đấu|giờ mở cửa|"
         r"đang mở cửa|tắc đường|kẹt xe)\b", "the answer ages within hours"),
    Rule("where I am, Vietnamese", r"\b(?:gần (?:tôi|mình|đây|chỗ)|quanh đây|(?:chỗ|nơi) (?:tôi|mình)|(?:tôi|mình) đang"
         r" ở đâu|ở đây)\b", "the answer depends on where it is asked"),
    Rule("anew, Vietnamese", r"\b(?:ngẫu nhiên|bất kỳ một|tung (?:đồng xu|xúc xắc)|làm (?:tôi|mình) bất ngờ|"
         r"(?:câu|chuyện|ý tưởng|ví dụ|bài|cái|gì đó) khác)\b", "the user wants another answer each time"),
    Rule("earlier talk, Vietnamese", r"\b(?:(?:bạn|anh|chị|cậu) (?:vừa|đã|mới) (?:nói|bảo|nhắc)|như (?:tôi|mình|đã|"
         r"vừa) (?:đã )?(?:nói|bàn|hỏi)|(?:bạn )?còn nhớ|lần trước|câu trên|ở trên)\b",
         "refers to what was said elsewhere"),
    Rule("news", r"\b(?:latest|newest|most recent|breaking news|in the news|(?:today's|the|any) news|news (?:about|"
         r"on|from)|up to date|updates? (?:on|about)|neueste[nrs]?|"
         r"jüngste[nrs]?|nachrichten|kürzlich|neulich|auf dem neuesten stand)\b", "the answer ages within hours"),
    Rule("weather", r"\b(?:weather|forecast|temperature (?:in|outside)|will it (?:rain|snow)|is it (?:raining|snowing|"
         r"cold outside|hot outside)|wetter\w*|wettervorhersage|regnet es|schneit es|wird es (?:regnen|schneien))\b",
         "the answer ages within hours"),
    Rule("price", r"\b(?:price of|prices? (?:for|in)|what(?:'s| is) the price|cost of|how much (?:is|are|does|"
         r"do)\b.{0,80}"
         r"\b(?:cost|worth)|stock (?:price|market)s?|share price|exchange rate|bitcoin (?:price|worth)|in stock|"
         r"cheapest|discounts?|deals? on|preise?s?|kosten|kostet|aktie|aktien|"
         r"aktienkurs|wechselkurs|börse|lieferbar|vorrätig|rabatt|billigste[nrs]?|günstigste[nrs]?)\b",
         "prices and stocks change"),
    Rule("scores", r"\b(?:score of|who (?:is winning|is leading|won (?:the )?(?:game|match|race|election))|standings|"
         r"next (?:match|game|election)|opening "
         r"hours|open (?:now|on)|traffic (?:jams?|now|report)|how is the traffic|wer (?:hat gewonnen|gewinnt|führt)|"
         r"spielstand|tabelle der|öffnungszeiten|"
         r"geöffnet|stau|verspätung)\b", "the answer ages within hours"),
    Rule("where I am", r"\b(?:near me|around here|in my (?:area|city|town|country)|where am i|(?:closest|"
         r"nearest)\b.{0,40}\b(?:me|here)|"
         r"in meiner nähe|hier in der nähe|in der umgebung|in meine[rm] (?:stadt|gegend|land)|wo bin ich|nächstgelegene"
         r"[nrs]?)\b", "the answer depends on where it is asked"),
    Rule("anew", r"\b(?:a random (?:number|word|name|joke|fact|card)|random number|surprise me|another (?:one|joke|"
         r"idea|example)|something (?:new|else|different)|roll (?:a|"
         r"the) di[ce]e?|flip a coin|pick a (?:number|card)|zufällig\w*|überrasch\w* mich|noch (?:einen|eine|eins)|"
         r"würfle|würfel|wirf eine münze|etwas anderes)\b", "the user wants another answer each time"),
    Rule("offices", r"\b(?:who is the (?:current )?(?:president|prime minister|chancellor|ceo|king|queen|pope|mayor|"
         r"governor|minister|head|champion)|wer ist (?:der|die) (?:präsident\w*|kanzler\w*|bundeskanzler\w*|"
         r"ministerpräsident\w*|bürgermeister\w*|minister\w*|papst|könig\w*))\b", "who holds an office changes", HOUR),
    Rule("offices, Vietnamese", r"\bai (?:là|đang là|làm|đang làm) (?:tân )?(?:tổng thống|thủ tướng|chủ tịch|"
         r"tổng bí thư|bộ trưởng|vua|giáo hoàng|thị trưởng|giám đốc|ceo)\b|\b(?:tổng thống|thủ tướng|chủ tịch|"
         r"tổng bí thư|bộ trưởng|vua|giáo hoàng|thị trưởng|giám đốc|ceo)\b.{0,40}\blà ai\b",
         "who holds an office changes", HOUR),
    Rule("versions", r"\b(?:version|release[ds]?|changelog|roadmap|deprecated|end of life|eol|veröffentlicht\w*|"
         r"neue[nrs]? version)\b", "software moves on", 6 * HOUR),
    Rule("records", r"\b(?:population of|how many (?:people|users|employees|members|followers)|richest|tallest|fastest|"
         r"biggest|largest|world record|net worth|best \w+ (?:of|in) 20\d\d|einwohner\w*|wie viele (?:menschen|nutzer|"
         r"mitarbeiter)|reichste[nrs]?|weltrekord|vermögen von)\b", "records and counts change", 6 * HOUR),
    Rule("records, Vietnamese", r"\b(?:phiên bản|phát hành|bản cập nhật|dân số|(?:giàu|cao|lớn|nhanh|đông dân) nhất|"
         r"kỷ lục|bao nhiêu (?:người|nhân viên|thành viên))\b", "records and counts change", 6 * HOUR),
    Rule("year", r"\b20[2-9]\d\b", "what is said of these years still changes", 6 * HOUR),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Ruling:
    """What the rules say of a question: seconds to keep its answer (0: not at all), and which rule says so."""

    ttl: float
    rule: Rule | None = None


class Rules:
    """The table, after the operator's own rules."""

    def __init__(self, own: Sequence[Rule] = ()) -> None:
        rules = sorted((*own, *RULES), key=lambda rule: rule.ttl > 0)
        self._rules = [(rule, _compiled(rule)) for rule in rules]

    def ruling(self, texts: Iterable[str], ttl: float) -> Ruling:
        """What holds for a question, asked after `texts` of the same user. `ttl`: where no rule fits."""
        best = Ruling(ttl)
        for text in texts:
            found = self._of_text(text)
            if found is not None and found.ttl < best.ttl:
                best = Ruling(found.ttl, found)
        return best

    def _of_text(self, text: str) -> Rule | None:
        plain = " ".join(unicodedata.normalize("NFC", text).replace("’", "'").lower().split())
        return next((rule for rule, pattern in self._rules if pattern.search(plain)), None)


def parse_rules(never: Iterable[str], shorter: Iterable[str]) -> list[Rule]:
    """The operator's rules: `NAME=PATTERN`, and `NAME=SECONDS=PATTERN`. Raises ConfigError."""
    rules = []
    for text in never:
        name, _, pattern = text.partition("=")
        rules.append(Rule(name, pattern, "a rule of the operator"))
    for text in shorter:
        name, _, rest = text.partition("=")
        seconds, _, pattern = rest.partition("=")
        if not seconds.isdecimal() or not int(seconds):
            raise ConfigError(f"[cache] shorter: {text!r} is not NAME=SECONDS=PATTERN")
        rules.append(Rule(name, pattern, "a rule of the operator", float(seconds)))
    for rule in rules:
        if not rule.name or not rule.pattern:
            raise ConfigError(f"[cache] rule {rule.name!r} is not NAME=PATTERN")
        _compiled(rule)
    return rules


@lru_cache(maxsize=256)
def _compiled(rule: Rule) -> re.Pattern[str]:
    try:
        return re.compile(rule.pattern)
    except re.error as error:
        raise ConfigError(f"[cache] rule {rule.name!r}: {rule.pattern!r} is no pattern: {error}") from None
