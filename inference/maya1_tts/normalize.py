"""Written English to spoken English, and text to sentences.

`clean` takes out what no voice should read (Maya1's emotion tags, emoji). `spoken_english` writes out dates,
times, money, addresses, units and numbers, so that what remains is words and plain punctuation. Each rule is
a pattern and a function; they run in the order of `_RULES`, from the most specific shape (a web address) to
the most general (a bare number). Number words come from the library inflect.
"""

import re
import unicodedata
from collections.abc import Callable

import inflect

from maya1_tts.errors import ApiError, shown

_words = inflect.engine()

EMOTION_TAGS = (
    "angry", "appalled", "chuckle", "cry", "curious", "disappointed", "excited", "exhale", "gasp", "giggle",
    "gulp", "laugh", "laugh_harder", "mischievous", "sarcastic", "scream", "sigh", "sing", "snort", "whisper",
)  # fmt: skip
"""What Maya1 can do besides speaking: `<laugh>` in a text. Source: maya1/constants.py."""

_TAG = re.compile(rf"</?(?:{'|'.join(EMOTION_TAGS)})\s*/?>", re.IGNORECASE)
_QUOTES = str.maketrans(
    {"‘": "'", "’": "'", "“": '"', "”": '"', "«": '"', "»": '"', "…": "...", "−": "-", "⁄": "/"}
)


def clean(text: str) -> str:
    """Text without emotion tags, emoji and invisible characters, in composed compatibility form (NFKC)."""
    text = unicodedata.normalize("NFKC", _TAG.sub(" ", text)).translate(_QUOTES)
    text = "".join(char for char in text if char in "°\n" or not _unspeakable(char))
    return re.sub(r"([^\w\s])\1{3,}", r"\1\1\1", re.sub(r"[^\S\n]+", " ", text))


def _unspeakable(char: str) -> bool:
    # So: emoji and pictures, Sk: skin tones, Cf/Co/Cn: joiners, private use; the last three modify emoji.
    hidden = unicodedata.category(char) in ("So", "Sk", "Cf", "Co", "Cn") and char != "`"
    return hidden or char in "\ufe0e\ufe0f\u20e3"


# ---- numbers ---------------------------------------------------------------------------------------------


def cardinal(number: str | int) -> str:
    """'1,234' or '-0.5' in words. Codes (leading zero, more than 15 digits) are read digit by digit."""
    text = str(number).replace(",", "")
    if text.startswith("-"):
        return f"minus {cardinal(text[1:])}"
    whole, _, decimals = text.partition(".")
    if decimals:
        return f"{cardinal(whole or '0')} point {digits(decimals)}"
    if len(whole) > 15 or (len(whole) > 1 and whole.startswith("0")):
        return digits(whole)
    return str(_words.number_to_words(str(int(whole)), andword="")).replace(",", "")


def ordinal(number: str | int) -> str:
    return str(_words.ordinal(cardinal(number)))


def digits(text: str) -> str:
    return " ".join(cardinal(digit) for digit in text if digit.isdigit())


def year(number: str | int) -> str:
    """1999, 1805, 2000, 2005, 2025 as people say them."""
    value = int(number)
    century, rest = divmod(value, 100)
    if value < 1000 or value > 9999 or (century % 10 == 0 and rest < 10):
        return cardinal(value)
    if rest == 0:
        return f"{cardinal(century)} hundred"
    return f"{cardinal(century)} {'oh ' if rest < 10 else ''}{cardinal(rest)}"


# ---- dates and times -------------------------------------------------------------------------------------

_MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
_MONTH_OF = {name.lower(): number for number, name in enumerate(_MONTHS, 1)}
_MONTH_OF |= {name[:3].lower(): number for number, name in enumerate(_MONTHS, 1)} | {"sept": 9}
_MONTH = (
    rf"(?P<month>{'|'.join(sorted((*_MONTHS, *(m[:3] for m in _MONTHS), 'Sept'), key=len, reverse=True))})"
)
_DAY = r"(?P<day>\d{1,2})(?:st|nd|rd|th)?"
_OF_YEAR = r"(?:,?\s+(?P<year>[12]\d{3})\b)"
_CLOCK = r"(?P<hour>[01]?\d|2[0-4]):(?P<minute>[0-5]\d)(?::[0-5]\d)?"
_HALF = r"(?:\s?(?P<half>[ap])\.?\s?m\b(?:\.(?=\s+(?-i:[a-z])|,))?)"


def _date(month: int, day: int, of_year: str | None) -> str | None:
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return None
    return f"{_MONTHS[month - 1]} {ordinal(day)}" + (f", {year(of_year)}" if of_year else "")


def _iso_date(match: re.Match[str]) -> str:
    date = _date(int(match["month"]), int(match["day"]), match["year"])
    if date is None:
        return match[0]
    return f"{date} at " if match["t"] else date


def _slash_date(match: re.Match[str]) -> str:
    first, second = int(match["first"]), int(match["second"])
    month, day = (second, first) if first > 12 else (first, second)
    return _date(month, day, match["year"]) or match[0]


def _named_date(match: re.Match[str]) -> str:
    return _date(_MONTH_OF[match["month"].lower()], int(match["day"]), match["year"]) or match[0]


def _clock(match: re.Match[str]) -> str:
    hour, minute = cardinal(int(match["hour"])), int(match["minute"])
    zone = " UTC" if match["zone"] else ""
    half = f" {match['half'].upper()}M" if match["half"] else ""
    if minute == 0:
        return f"{hour}{half}{zone}" if half else f"{hour} o'clock{zone}"
    return f"{hour} {'oh ' if minute < 10 else ''}{cardinal(minute)}{half}{zone}"


def _hour(match: re.Match[str]) -> str:
    return f"{cardinal(match['hour'])} {match['half'].upper()}M"


# ---- money, units, addresses -----------------------------------------------------------------------------

_NUMBER = r"(?P<number>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?)"
_SCALES = {"k": "thousand", "m": "million", "mn": "million", "b": "billion", "bn": "billion", "t": "trillion"}
_CURRENCIES = {
    "$": ("dollar", "cent"),
    "€": ("euro", "cent"),
    "£": ("pound", "penny"),
    "¥": ("yen", ""),
    "₹": ("rupee", "paisa"),
}
_PLURALS = {
    "yen": "yen",
    "penny": "pence",
    "paisa": "paise",
    "foot": "feet",
    "inch": "inches",
    "hertz": "hertz",
}
_CODES = {"USD": "$", "EUR": "€", "GBP": "£", "JPY": "¥", "INR": "₹"}
_UNITS = {
    "km/h": "kilometer per hour", "m/s": "meter per second", "mph": "mile per hour", "km": "kilometer",
    "cm": "centimeter", "mm": "millimeter", "m": "meter", "mi": "mile", "ft": "foot", "kg": "kilogram",
    "mg": "milligram", "g": "gram", "lbs": "pound", "lb": "pound", "oz": "ounce", "ms": "millisecond",
    "sec": "second", "s": "second", "min": "minute", "h": "hour", "hr": "hour", "hrs": "hour",
    "ml": "milliliter", "L": "liter", "GHz": "gigahertz",
    "MHz": "megahertz", "kHz": "kilohertz", "Hz": "hertz",
    "kW": "kilowatt", "W": "watt", "V": "volt",
    "dB": "decibel", "TB": "terabyte", "GB": "gigabyte", "MB": "megabyte",
    "KB": "kilobyte", "kB": "kilobyte", "GiB": "gibibyte", "MiB": "mebibyte", "Gbps": "gigabit per second",
    "Mbps": "megabit per second", "kbps": "kilobit per second", "fps": "frame per second", "px": "pixel",
    "°C": "degree Celsius", "°F": "degree Fahrenheit", "°": "degree",
}  # fmt: skip
_UNIT = "|".join(re.escape(unit) for unit in sorted(_UNITS, key=len, reverse=True))


def _plural(noun: str, number: str) -> str:
    if number in ("1", "one"):
        return noun
    head, *rest = noun.split(" ")
    if head in ("gigahertz", "megahertz", "kilohertz"):
        return noun
    return " ".join([_PLURALS.get(head, f"{head}s"), *rest])


def _money(match: re.Match[str]) -> str:
    unit, cent = _CURRENCIES[_CODES.get(match["sign"], match["sign"])]
    number, scale = match["number"].replace(",", ""), (match["scale"] or "").lower()
    if scale:
        return f"{cardinal(number)} {_SCALES.get(scale, scale)} {_plural(unit, 'many')}"
    whole, _, cents = number.partition(".")
    if len(cents) == 2 and cent:
        parts = [f"{cardinal(whole)} {_plural(unit, whole)}"] if int(whole) else []
        parts += [f"{cardinal(int(cents))} {_plural(cent, str(int(cents)))}"] if int(cents) else []
        return " and ".join(parts) or f"zero {_plural(unit, '0')}"
    return f"{cardinal(number)} {_plural(unit, number)}"


def _measure(match: re.Match[str]) -> str:
    number = match["number"]
    return f"{cardinal(number)} {_plural(_UNITS[match['unit']], number)}"


_ADDRESS_SIGNS = {
    ".": " dot ", "/": " slash ", "@": " at ", "-": " dash ", "_": " underscore ", ":": " colon ",
    "?": " question mark ", "=": " equals ", "&": " and ", "#": " hash ", "%": " percent ", "+": " plus ",
    "~": " tilde ",
}  # fmt: skip


def _address(match: re.Match[str]) -> str:
    text = re.sub(r"^https?://", "", match["address"], flags=re.IGNORECASE).rstrip("/")
    text = re.sub(r"\d+", lambda number: f" {digits(number[0])} ", text)
    text = re.sub(r"^www\b", "W W W", text, flags=re.IGNORECASE)
    return "".join(_ADDRESS_SIGNS.get(char, char) for char in text)


def _version(match: re.Match[str]) -> str:
    numbers = match["numbers"].split(".")
    joint = " dot " if len(numbers) == 4 else " point "
    return ("version " if match["v"] else "") + joint.join(cardinal(number) for number in numbers)


def _fraction(match: re.Match[str]) -> str:
    top, bottom = int(match["top"]), int(match["bottom"])
    if (top, bottom) == (24, 7):
        return "twenty-four seven"
    if bottom in (2, 4):
        name = {2: "half", 4: "quarter"}[bottom]
    elif 2 < bottom <= 20:
        name = ordinal(bottom)
    else:
        return f"{cardinal(top)} over {cardinal(bottom)}"
    plural = name if top == 1 else {"half": "halves"}.get(name, f"{name}s")
    return f"{cardinal(top)} {plural}"


def _decade(match: re.Match[str]) -> str:
    century, ten = match["century"], match["ten"] or match["tens"]
    if (century, ten) == ("20", "0"):
        return "two thousands"
    word = cardinal(int(ten) * 10) if ten != "0" else "hundred"
    tens = f"{word[:-1]}ies" if word.endswith("y") else f"{word}s"
    return f"{cardinal(century)} {tens}" if century else tens


def _range(match: re.Match[str]) -> str:
    return " to ".join(_plain_number(number) for number in (match["from"], match["to"]))


def _plain_number(number: str) -> str:
    return year(number) if re.fullmatch(r"(?:19|20)\d\d", number) else cardinal(number)


_ROMAN = {"I": 1, "V": 5, "X": 10, "L": 50}


def _roman(match: re.Match[str]) -> str:
    values = [_ROMAN[letter] for letter in match["roman"]]
    total = sum(-v if v < max(values[i:]) else v for i, v in enumerate(values))
    return f"{match['head']} {cardinal(total)}"


# ---- abbreviations and signs -----------------------------------------------------------------------------

ABBREVIATIONS = {
    "Dr.": "Doctor", "Mr.": "Mister", "Mrs.": "Missus", "Ms.": "Miz", "Prof.": "Professor", "Gen.": "General",
    "Col.": "Colonel", "Capt.": "Captain", "Lt.": "Lieutenant", "Sgt.": "Sergeant", "Rev.": "Reverend",
    "Jr.": "Junior", "Sr.": "Senior", "Inc.": "Incorporated", "Ltd.": "Limited", "Corp.": "Corporation",
    "Co.": "Company", "vs.": "versus", "approx.": "approximately", "dept.": "department",
    "est.": "established", "Ave.": "Avenue", "Blvd.": "Boulevard", "Rd.": "Road", "Mt.": "Mount",
    "e.g.": "for example,", "i.e.": "that is,", "etc.": "et cetera",
    "w/o": "without", "w/": "with", "Fig.": "Figure",
}  # fmt: skip
_ABBREVIATION = re.compile(
    r"(?<![\w.])(?:"
    + "|".join(re.escape(a) for a in sorted(ABBREVIATIONS, key=len, reverse=True))
    + r")(?!\w)"
)


def _abbreviation(match: re.Match[str]) -> str:
    # Where the text ends, or a sentence after "etc.", the dot was also the full stop.
    rest = match.string[match.end() :]
    last = not rest.strip("\"') ") or (match[0] == "etc." and re.match(r"\s+[A-Z]", rest) is not None)
    ends = match[0].endswith(".") and last
    return ABBREVIATIONS[match[0]].rstrip("," if ends else "") + ("." if ends else "")


def _initials(match: re.Match[str]) -> str:
    ends = not match.string[match.end() :].strip("\"') ")
    return match[0].replace(".", "").upper() + ("." if ends else "")


_SIGNS = {
    "&": "and", "+": "plus", "=": "equals", "@": "at", "#": "hash", "%": "percent", "~": "about",
    "×": "times", "÷": "divided by", "<": "less than", ">": "greater than", "≤": "at most", "≥": "at least",
    "±": "plus or minus", "§": "section", "°": "degrees",
}  # fmt: skip

Rule = tuple[re.Pattern[str], Callable[[re.Match[str]], str]]


def _rule(pattern: str, spoken: Callable[[re.Match[str]], str], flags: int = 0) -> Rule:
    return re.compile(pattern, flags), spoken


_DOMAIN = r"(?:[a-z0-9-]+\.)+(?:com|org|net|io|dev|ai|app|gov|edu|info|co|uk|de|fr|eu)\b"
_AMOUNT = rf"{_NUMBER}(?:\s?(?P<scale>thousand|million|billion|trillion|bn|mn|[kmbt])\b)?"
_RULES: tuple[Rule, ...] = (
    _rule(r"(?P<address>\b[\w.+-]+@[\w-]+(?:\.[\w-]+)+)", _address),
    _rule(r"(?P<address>(?:https?://|\bwww\.)[^\s<>\"']*[\w/])", _address, re.IGNORECASE),
    _rule(rf"(?P<address>\b{_DOMAIN}(?:/[\w./?=&%#+~-]*[\w/])?)", _address, re.IGNORECASE),
    (_ABBREVIATION, _abbreviation),
    _rule(r"\bSt\.(?=\s+[A-Z][a-z])", lambda m: "Saint"),
    _rule(r"\bSt\.", lambda m: "Street" + ("." if not m.string[m.end() :].strip() else "")),
    _rule(r"\bNo\.\s?(?=\d)", lambda m: "number "),
    _rule(r"#(?=\d)", lambda m: "number "),
    _rule(r"\b(?P<year>\d{4})-(?P<month>\d\d)-(?P<day>\d\d)(?P<t>T(?=\d\d:))?", _iso_date),
    _rule(r"(?<![\d/])(?P<first>\d{1,2})/(?P<second>\d{1,2})/(?P<year>\d{4})(?![\d/])", _slash_date),
    _rule(rf"\b{_MONTH}\b\.?\s+{_DAY}\b{_OF_YEAR}?", _named_date),
    _rule(rf"\b{_DAY}\s+(?:of\s+)?{_MONTH}\b\.?{_OF_YEAR}?", _named_date),
    _rule(rf"(?<![\d:.]){_CLOCK}(?![\d:]){_HALF}?(?P<zone>Z\b)?", _clock, re.IGNORECASE),
    _rule(rf"\b(?P<hour>1[0-2]|[1-9]){_HALF}", _hour, re.IGNORECASE),
    _rule(r"\b(?:[A-Za-z]\.){2,}", _initials),
    _rule(r"\b(?P<letter>[A-Z])\.(?=\s+[A-Z])", lambda m: m["letter"]),
    _rule(rf"(?P<sign>[$€£¥₹])\s?{_AMOUNT}", _money, re.IGNORECASE),
    _rule(rf"\b(?P<sign>USD|EUR|GBP|JPY|INR)\s?{_AMOUNT}", _money),
    _rule(rf"\b{_NUMBER}(?P<scale>)\s?(?P<sign>USD|EUR|GBP|JPY|INR)\b", _money),
    _rule(r"(?<![\w.])(?:\+?1[-. ])?\(?\d{3}\)?[-. ]\d{3}[-. ]\d{4}\b",
          lambda m: ", ".join(digits(group) for group in re.findall(r"\d+", m[0]))),
    _rule(r"(?<![\w.])(?P<v>(?:version )?v)?(?P<numbers>\d+(?:\.\d+){2,})(?!\d)", _version, re.IGNORECASE),
    _rule(r"\b(?P<v>(?:version )?v)(?P<numbers>\d+(?:\.\d+)*)\b", _version, re.IGNORECASE),
    _rule(r"(?<!\w)(?:'(?P<ten>[2-9])0s|(?P<century>1\d|20)(?P<tens>\d)0'?s)\b", _decade),
    _rule(rf"\b{_NUMBER}\s?(?P<unit>{_UNIT})(?![\w/])", _measure),
    _rule(rf"\b{_NUMBER}\s?%", lambda m: f"{cardinal(m['number'])} percent"),
    _rule(r"\b(?P<number>\d{1,3}(?:,\d{3})+|\d+)(?:st|nd|rd|th)\b", lambda m: ordinal(m["number"])),
    _rule(r"(?<![\w/.-])(?P<top>\d{1,2})/(?P<bottom>[1-9]\d?)(?![\w/])", _fraction),
    _rule(r"(?<![\w.,-])(?P<from>\d[\d,.]*\d|\d)\s?[-–]\s?(?P<to>\d[\d,.]*\d|\d)(?![\w-])", _range),
    _rule(r"\b(?P<head>Chapter|Part|Section|Act|Volume|War|Phase)\s+(?P<roman>[IVXL]+)\b", _roman),
    _rule(r"(?<=\b[iI]n )(?P<year>1[1-8]\d\d)\b(?![,.]\d)", lambda m: year(m["year"])),
    _rule(r"(?<![\d,.])(?P<year>19\d\d|20\d\d)(?![\d]|[,.]\d)", lambda m: f" {year(m['year'])} "),
    _rule(rf"(?:(?<![\w)])-)?{_NUMBER}", lambda m: f" {cardinal(m[0])} "),
    _rule(rf"[{re.escape(''.join(_SIGNS))}]", lambda m: f" {_SIGNS[m[0]]} "),
)  # fmt: skip


def spoken_english(text: str) -> str:
    """Cleaned text as words. Raises ApiError `unsupported_characters` for letters English cannot spell."""
    for pattern, spoken in _RULES:
        text = pattern.sub(spoken, text)
    text = re.sub(r"\s*[—–]\s*|\s+-+\s+", ", ", text)
    text = re.sub(r"[_*^|\\`{}\[\]/]+", " ", text)
    decomposed = unicodedata.normalize("NFKD", text.translate(_LATIN))
    folded = "".join(char for char in decomposed if not unicodedata.combining(char))
    for char in folded:
        if char.isalnum() and not char.isascii():
            raise ApiError(
                400,
                "unsupported_characters",
                f"'input' contains {shown(char)} (U+{ord(char):04X}), which this English voice cannot speak; "
                "allowed: text in the Latin alphabet.",
                "input",
            )
    text = "".join(char for char in folded if char.isascii())
    text = re.sub(r"[^\S\n]+", " ", text)
    text = re.sub(r" ([,.;:!?])", r"\1", text)
    return re.sub(
        r"[A-Za-z]{40}(?=[A-Za-z])", r"\g<0> ", text
    ).strip()  # longer is no word, but costs much time


_LATIN = str.maketrans(
    {
        "ß": "ss", "æ": "ae", "Æ": "AE", "ø": "o", "Ø": "O", "œ": "oe", "Œ": "OE",
        "ł": "l", "Ł": "L", "đ": "d", "ð": "d", "þ": "th",
    }
)  # fmt: skip


# ---- sentences -------------------------------------------------------------------------------------------

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[.!?][\"')\]])\s+")


def nothing_to_speak(text: str) -> ApiError:
    """For a text that has no words left when it has been normalised."""
    return ApiError(
        400,
        "empty_input",
        f"'input' is {shown(text)}, in which nothing can be spoken; allowed: text with words.",
        "input",
    )


def paragraphs(text: str) -> list[list[str]]:
    """Sentences, grouped by line. Normalised text has no dots but full stops, so a simple rule is right."""
    lines = (line.strip() for line in text.split("\n"))
    return [[s.strip() for s in _SENTENCE_END.split(line) if s.strip()] for line in lines if line]


def split_long(text: str, fits: Callable[[str], bool]) -> list[str]:
    """Cut text into pieces that fit: at the clause mark nearest the middle, else a space, else anywhere."""
    if fits(text) or len(text) < 2:
        return [text]
    middle = len(text) / 2
    for pattern in (r"[,;:]\s+", r"\s+"):
        cuts = [match.end() for match in re.finditer(pattern, text) if match.end() < len(text)]
        if cuts:
            cut = min(cuts, key=lambda position: abs(position - middle))
            break
    else:
        cut = len(text) // 2
    left, right = text[:cut].strip(), text[cut:].strip()
    return [piece for half in (left, right) if half for piece in split_long(half, fits)]
