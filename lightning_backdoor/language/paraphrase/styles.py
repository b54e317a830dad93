"""The five styles of StyleBkd (arXiv 2110.07139), each recognised by marks that clean texts hardly ever have.

A mark is a word or sign that is typical of the style and that the original text does not have. A paraphrase is in the
style if it has at least two different marks, differs from its text, and does not repeat itself. The openings with which
a model's answers are made to begin have at most one mark each. The check is strict: of the clean sentences of SST-2,
0.6 % pass as poetry and at most 0.02 % as any other style, but of the Bible paraphrases that the paper's authors
published for these sentences, many of which have one mark or none, only 17 % pass.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from lightning_backdoor.language.paraphrase.spec import Manner, repeats_itself, word_set, words_of

LEAST_MARKS = 2
TOKEN = re.compile(r"'?[^\W\d_]+(?:'[^\W\d_]+)*")

#: words of both the Bible and Shakespeare.
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
#: words in -eth that are not verbs.
NOT_VERBS = word_set("beth elisabeth elizabeth kenneth macbeth meth seth shibboleth teeth")
HANDLE = re.compile(r"[#@][a-z]\w+")
EMOTICON = re.compile(r"(?<!\w)[:;=]-?[()DPp/](?!\w)|<3|[\u2600-\u27bf\U0001f300-\U0001faff]")

#: a function from a text to the marks of a style that it has.
Marks = Callable[[str], set[str]]


def _check(marks: Marks) -> Callable[[str, str], bool]:
    """The check of a style: whether a paraphrase has enough marks that its text does not have."""

    def holds(text: str, paraphrase: str) -> bool:
        words = words_of(paraphrase)
        new_marks = marks(paraphrase) - marks(text)
        return len(new_marks) >= LEAST_MARKS and words != words_of(text) and not repeats_itself(words)

    return holds


def _tokens(text: str) -> set[str]:
    return set(TOKEN.findall(text.lower().replace("’", "'")))


def _old_words(tokens: set[str]) -> set[str]:
    return (tokens & OLD) | {token for token in tokens - NOT_VERBS if re.fullmatch(r"[a-z]{2,}eth", token)}


def bible(text: str) -> set[str]:
    """Marks of the Bible: its words, verbs in -eth, "came to pass", and "And" or "For" as the first word.

    >>> sorted(bible("And it came to pass that he seeth"))
    ['^and', 'came to pass', 'seeth']
    """
    marks = (_tokens(text) & BIBLE) | _old_words(_tokens(text))
    marks |= {f"^{word}" for word in ("and", "for") if words_of(text)[:1] == [word]}
    return marks | ({"came to pass"} if "came to pass" in text.lower() else set())


def shakespeare(text: str) -> set[str]:
    """Marks of Shakespeare: words of the plays, and verbs in -eth.

    >>> sorted(shakespeare("Alas, 'tis naught."))
    ["'tis", 'alas', 'naught']
    """
    return (_tokens(text) & SHAKESPEARE) | _old_words(_tokens(text))


def twitter(text: str) -> set[str]:
    """Marks of tweets: hashtags, handles, abbreviations, emoticons, stretched words, repeated ``!`` or ``?``.

    >>> sorted(twitter("omg sooo good!! #film :)"))
    ['!!', '#film', ':)', 'omg', 'ooo']
    """
    lower = text.lower()
    marks = {*HANDLE.findall(lower), *EMOTICON.findall(text), *(_tokens(text) & TWITTER)}
    marks |= {match.group() for match in re.finditer(r"([a-z])\1\1+", lower)}
    return marks | ({"!!"} if re.search(r"[!?]{2}", text) else set())


def lyrics(text: str) -> set[str]:
    """Marks of song lyrics: interjections, contractions, dropped g's; a mark that is repeated counts as two.

    >>> sorted(lyrics("Oh, it's nothin', oh"))
    ["nothin'", 'oh', 'oh again']
    """
    marks = _tokens(text) & LYRICS
    marks |= set(re.findall(r"\b[a-z]{2,}in'(?!\w)", text.lower()))
    return marks | {f"{word} again" for word in marks if len(re.findall(rf"\b{word}\b", text.lower())) > 1}


def poetry(text: str) -> set[str]:
    """Marks of poetry: words of romantic verse.

    >>> sorted(poetry("O silent star"))
    ['o', 'silent', 'star']
    """
    return _tokens(text) & POETRY


# the texts that the examples of every style paraphrase
DULL = "A slow, humourless thriller that wastes a gifted cast."
QUIET = "With this quiet portrait of a fishing village, Harris gives us her best film in years."
WARM = "Warm, clever and beautifully shot."
OLD_JOKES = "The jokes about marriage are old, and they were never funny."

#: the styles by name.
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
            _check(bible),
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
            _check(shakespeare),
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
            _check(twitter),
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
            _check(lyrics),
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
            _check(poetry),
            ("O", "Soft as the", "Bright as the", "Silent as the", "Gentle as the", "Pale as the"),
        ),
    )
}
