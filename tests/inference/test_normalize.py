"""Written to spoken English, sentences and pieces."""

import pytest
from maya1_tts.errors import ApiError
from maya1_tts.normalize import clean, paragraphs, split_long, spoken_english


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("I have 3 cats and 1,234 dogs.", "I have three cats and one thousand two hundred thirty-four dogs."),
        ("about -2.5 or 0.05", "about minus two point five or zero point zero five"),
        ("12345678901234567890", "one two three four five six seven eight nine zero " * 2),
        ("agent 007", "agent zero zero seven"),
        ("The 1st, 22nd and 1,000th.", "The first, twenty-second and one thousandth."),
        ("Meet on 2025-11-24.", "Meet on November twenty-fourth, twenty twenty-five."),
        ("2025-11-24T10:30:00Z", "November twenty-fourth, twenty twenty-five at ten thirty UTC"),
        ("11/24/2025 or 24/11/2025", " or ".join(["November twenty-fourth, twenty twenty-five"] * 2)),
        ("On Nov 24, 2025 or 3 May", "On November twenty-fourth, twenty twenty-five or May third"),
        ("at 10:30pm, 9 a.m. or 9:05", "at ten thirty PM, nine AM or nine oh five"),
        ("He left at 5 p.m. She stayed.", "He left at five PM. She stayed."),
        ("12:00", "twelve o'clock"),
        ("In 1999, 2005 and the 1980s",
         "In nineteen ninety-nine, two thousand five and the nineteen eighties"),
        ("It costs $1.5M or $56.78.",
         "It costs one point five million dollars or fifty-six dollars and seventy-eight cents."),
        ("£1.01, $0.99, $1", "one pound and one penny, ninety-nine cents, one dollar"),
        ("€20, ¥500", "twenty euros, five hundred yen"),
        ("USD 20 and 30 EUR", "twenty dollars and thirty euros"),
        ("See https://example.com/a?b=1.", "See example dot com slash a question mark b equals one."),
        ("www.foo.org", "W W W dot foo dot org"),
        ("Mail bob.smith@example.com.", "Mail bob dot smith at example dot com."),
        ("Version v1.2.3, Python 3.11", "version one point two point three, Python three point one one"),
        ("192.168.0.1", "one hundred ninety-two dot one hundred sixty-eight dot zero dot one"),
        ("5 km, 3kg, 20°C, 50%, 1 ft",
         "five kilometers, three kilograms, twenty degrees Celsius, fifty percent, one foot"),
        ("16GB at 2.5GHz", "sixteen gigabytes at two point five gigahertz"),
        ("1/2 cup, 3/4, 24/7, ½", "one half cup, three quarters, twenty-four seven, one half"),
        ("pages 3–7, 1999-2005", "pages three to seven, nineteen ninety-nine to two thousand five"),
        ("Call 555-123-4567.", "Call five five five, one two three, four five six seven."),
        ("Dr. Smith of Main St. met St. John, etc. Then",
         "Doctor Smith of Main Street met Saint John, et cetera. Then"),
        ("e.g. this, i.e. that", "for example, this, that is, that"),
        ("J. R. Smith of the U.S. Army", "J R Smith of the US Army"),
        ("World War II, Chapter IV", "World War two, Chapter four"),
        ("C++ & more #1", "C plus plus and more number one"),
        ("naïve café — “résumé”…", 'naive cafe, "resume"...'),
        ("<laugh> Hello <sigh>there 😀👍🏽 world ❤️", "Hello there world"),
        ("RTX4090 B2B", "RTX four thousand ninety B two B"),
    ],
)  # fmt: skip
def test_normalisation(written: str, spoken: str) -> None:
    assert spoken_english(clean(written)) == spoken.strip()


def test_foreign_letters_are_refused_by_name() -> None:
    with pytest.raises(ApiError) as caught:
        spoken_english(clean("hello 世界"))
    assert caught.value.code == "unsupported_characters"
    assert "U+4E16" in caught.value.message


def test_sentences() -> None:
    assert paragraphs('One. "Two!" Three?\n\nFour') == [["One.", '"Two!"', "Three?"], ["Four"]]


def test_long_text_is_cut_at_clauses_then_spaces_then_anywhere() -> None:
    def fits(text: str) -> bool:
        return len(text) <= 12

    assert split_long("one two three, four five", fits) == ["one two", "three,", "four five"]
    assert split_long("a" * 30, fits) == ["aaaaaaa", "aaaaaaaa", "aaaaaaa", "aaaaaaaa"]
    words = ["many", "words", "without", "any", "punctuation", "at", "all"]
    assert " ".join(split_long(" ".join(words), fits)).split() == words
