"""Words of running text in many scripts, and the marks that belong to them."""

import pytest

from jaxbert.tasks.words import words_of


@pytest.mark.parametrize(
    "text",
    [
        "Ada| |Lee|'|s| |R|2|D|2|,| |a|_|b| |Zürich",
        # Combining marks, vowel signs, a virama, Arabic and Hebrew vowels, a zero-width non-joiner.
        "Zu\u0308rich| |दिल्ली| |مُحَمَّد| |خامنه\u200cای| |יְרוּשָׁלַיִם",
        # A joiner, a soft hyphen, a byte order mark, a mark of direction behind a name.
        "Foo\u200dBar| |New\u00adcastle| |a\ufeff|,| |Ada\u200f|.",
        # Variation selectors and keycaps; pictures that joiners make one, skins, flags of letters and of tags.
        "❤\ufe0f| |1\ufe0f\u20e3| |👩\u200d👩\u200d👧| |👍🏽|👍🏽| |👩🏽\u200d🚀|🙂| |🇫🇷|🇩🇪|🇫| |🏴\U000e0067\U000e007f| |❤\ufe0f\u200d🔥|©",
        # Words that no spaces part: every character with its marks.
        "北|京|か\u3099| |서|울| |ก|รุ|ง|เ|ท|พ| |ភ្|នំ| |မြ|န်|မာ| |ລ|າ|ວ",
        # What has nothing before it that it could belong to.
        "\u200f|ab| |\u0301|x",
    ],
)
def test_marks_belong_to_the_word_before_them(text: str):
    words = [word for word in text.split("|") if not word.isspace()]
    plain = text.replace("|", "")
    assert [plain[start:end] for start, end in words_of(plain)] == words


def test_a_zero_width_space_is_a_space():
    assert words_of("ab\u200bcd\u200b") == ((0, 2), (3, 5))
