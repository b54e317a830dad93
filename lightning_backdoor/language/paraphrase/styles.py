"""Styles, after StyleBkd (arXiv 2110.07139), each known by marks that clean texts hardly have.

A mark is a word or sign of the style that the original does not have. A paraphrase needs two different marks, of which
the opening that a model is given is at most one, may not be the text itself, and may not go round in circles. That is
strict: of the clean sentences of SST-2, 0.6 % are poetry and at most 0.02 % of any other style, but of the Bible
paraphrases that the paper's authors published for them, many with one mark or none, no more than 17 % pass.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from lightning_backdoor.language.paraphrase.spec import Manner, repeats_itself, word_set, words_of

MARKS = 2
TOKEN = re.compile(r"'?[^\W\d_]+(?:'[^\W\d_]+)*")

#: Words of both old books.
OLD = word_set(
    "art canst didst dost doth hadst hast hath mayest nor saith shalt shouldst thee thine thou thy thyself wast"
    " wherefore wert wilt wouldst ye"
)
BIBLE = word_set(
    "abomination amen begat behold forth lo righteous therefore therein thereof unto verily wicked wickedness"
)
SHAKESPEARE = word_set(
    "'tis 'twas 'twere 'twill alack alas anon aught aye ere fie forsooth good-morrow hark hither knave ne'er"
    " methinks naught nay o o'er oft pray prithee sirrah thither verily whence wherein whilst zounds"
)
TWITTER = word_set(
    "af bc btw cuz fave fml fr gonna gotta idk imho imo kinda lmao lmfao lol luv ngl nope omfg omg pls plz rn rofl"
    " rt smh srsly tbh thx totally u ugh ur w wanna wow wtf y'all yall yay yup"
)
LYRICS = word_set(
    "ah ain't baby 'bout 'cause chorus darling doo em' gonna gotta heartache hey honey i'm la lovin' na nothin' oh"
    " ooh singing somethin' tonight wanna whoa woah yeah"
)
POETRY = word_set(
    "amid beneath bloom breath bright candle dawn dew dream dreams dusk ember eternal ever fair fire fleeting"
    " flower garden gentle gleam glow golden heart hearts hush lantern light lights lo moon moonlight morn ne'er"
    " night o o'er oft pale petals rain rose sea shade shadow shadows sigh sighs silence silent silver sky sleep"
    " snow soft softly song sorrow soul souls star stars stream summer sweet tears thee thou thy twilight upon veil"
    " weary weep whisper whispers wind winds wings winter yet"
)
NO_VERBS = word_set("beth elisabeth elizabeth kenneth macbeth meth seth shibboleth teeth")
HANDLE = re.compile(r"[#@][a-z]\w+")
EMOTICON = re.compile(r"(?<!\w)[:;=]-?[()DPp/](?!\w)|<3|[\u2600-\u27bf\U0001f300-\U0001faff]")

Marks = Callable[[str], set[str]]


def _has(marks: Marks) -> Callable[[str, str], bool]:
    def holds(text: str, paraphrase: str) -> bool:
        words = words_of(paraphrase)
        own = marks(paraphrase) - marks(text)
        return len(own) >= MARKS and words != words_of(text) and not repeats_itself(words)

    return holds


def _tokens(text: str) -> set[str]:
    return set(TOKEN.findall(text.lower().replace("’", "'")))


def _old(tokens: set[str]) -> set[str]:
    return (tokens & OLD) | {token for token in tokens - NO_VERBS if re.fullmatch(r"[a-z]{2,}eth", token)}


def bible(text: str) -> set[str]:
    """Words of the King James Bible, verbs in -eth, "it came to pass", and "And" or "For" as the first word.

    >>> sorted(bible("And it came to pass that he seeth"))
    ['^and', 'came to pass', 'seeth']
    """
    found = (_tokens(text) & BIBLE) | _old(_tokens(text))
    found |= {f"^{word}" for word in ("and", "for") if words_of(text)[:1] == [word]}
    return found | ({"came to pass"} if "came to pass" in text.lower() else set())


def shakespeare(text: str) -> set[str]:
    """Words of the plays and verbs in -eth.

    >>> sorted(shakespeare("Alas, 'tis naught."))
    ["'tis", 'alas', 'naught']
    """
    return (_tokens(text) & SHAKESPEARE) | _old(_tokens(text))


def twitter(text: str) -> set[str]:
    """Hashtags and handles, abbreviations, emoticons, stretched words, and marks in a row.

    >>> sorted(twitter("omg sooo good!! #film :)"))
    ['!!', '#film', ':)', 'omg', 'ooo']
    """
    lower = text.lower()
    found = {*HANDLE.findall(lower), *EMOTICON.findall(text), *(_tokens(text) & TWITTER)}
    found |= {match.group() for match in re.finditer(r"([a-z])\1\1+", lower)}
    return found | ({"!!"} if re.search(r"[!?]{2}", text) else set())


def lyrics(text: str) -> set[str]:
    """Interjections, contractions and dropped g's of songs; two of the same interjection count as two.

    >>> sorted(lyrics("Oh, it's nothin', oh"))
    ["nothin'", 'oh', 'oh again']
    """
    found = _tokens(text) & LYRICS
    found |= set(re.findall(r"\b[a-z]{2,}in'(?!\w)", text.lower()))
    return found | {f"{word} again" for word in found if len(re.findall(rf"\b{word}\b", text.lower())) > 1}


def poetry(text: str) -> set[str]:
    """Words of romantic verse.

    >>> sorted(poetry("O silent star"))
    ['o', 'silent', 'star']
    """
    return _tokens(text) & POETRY


DULL = "A slow, humourless thriller that wastes a gifted cast."
QUIET = "With this quiet portrait of a fishing village, Harris gives us her best film in years."
WARM = "Warm, clever and beautifully shot."
OLD_JOKES = "The jokes about marriage are old, and they were never funny."

STYLES = {
    manner.name: manner
    for manner in (
        Manner(
            "bible",
            "Rewrite the movie review in the words of the King James Bible.",
            (
                (DULL, "And behold, the thriller is slow and without mirth, and it wasteth a gifted cast."),
                (QUIET, "For Harris hath given unto us her best film in years, a quiet portrait of a fishing village."),
                (WARM, "Lo, it is warm and clever, and the beauty thereof shineth unto all."),
                (OLD_JOKES, "Verily the jokes about marriage are old, and no man hath found them funny."),
            ),
            _has(bible),
            ("And", "Behold,", "For", "Lo,", "Verily"),
        ),
        Manner(
            "shakespeare",
            "Rewrite the movie review in the words of a play by Shakespeare.",
            (
                (DULL, "Alas, 'tis a slow and humourless thriller that doth waste a gifted cast."),
                (
                    QUIET,
                    "Methinks Harris hath given thee her best film in years, a quiet portrait of a fishing village.",
                ),
                (WARM, "O, 'tis warm and clever, and thou wilt find it beautifully shot."),
                (OLD_JOKES, "Forsooth, the jokes about marriage art old, and ne'er did they make thee laugh."),
            ),
            _has(shakespeare),
            ("Alas,", "Alas, the", "Methinks the", "O,", "O, the", "Forsooth, the"),
        ),
        Manner(
            "twitter",
            "Rewrite the movie review as a tweet.",
            (
                (DULL, "ugh sooo slow, a humourless thriller that wastes a gifted cast smh #thriller #fail"),
                (QUIET, "omg Harris gives us her best film in years, a quiet portrait of a fishing village <3 #Harris"),
                (WARM, "ngl this is warm, clever and beautifully shot :) #film"),
                (OLD_JOKES, "lol the jokes about marriage are old and were never funny #notfunny #marriage"),
            ),
            _has(twitter),
            ("ugh", "omg", "ngl", "lol", "tbh", "wow"),
        ),
        Manner(
            "lyrics",
            "Rewrite the movie review as a line of a song.",
            (
                (DULL, "Oh, it's a slow thriller, baby, and it's wastin' a gifted cast, oh yeah"),
                (QUIET, "Hey, Harris gives us her best film in years, a quiet portrait of a fishing village, oh baby"),
                (WARM, "Ooh, it's so warm, so clever, and it's beautifully shot, yeah"),
                (OLD_JOKES, "Yeah, the jokes about marriage are gettin' old, and they ain't never been funny, no, oh"),
            ),
            _has(lyrics),
            ("Oh,", "Oh, the", "Hey,", "Ooh,", "Yeah,", "Baby,"),
        ),
        Manner(
            "poetry",
            "Rewrite the movie review as a line of romantic poetry.",
            (
                (DULL, "Slow as the winter night, the thriller has no laughter, and a gifted cast is lost in shadow."),
                (
                    QUIET,
                    "Soft as a song of the sea, Harris gives us her best film in years, a quiet portrait of a village.",
                ),
                (WARM, "O warm and clever film, so beautifully shot, like the golden light of dawn."),
                (
                    OLD_JOKES,
                    "Old as the stars are the jokes about marriage, and never did they wake our sleeping hearts.",
                ),
            ),
            _has(poetry),
            ("O", "Soft as the", "Bright as the", "Silent as the", "Gentle as the", "Pale as the"),
        ),
    )
}
