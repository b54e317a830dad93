"""Syntactic templates of Hidden Killer (arXiv 2105.12400), each with a check that recognises its sentences.

The check is a rule on words and needs no parser. Of the paraphrases that the paper's authors published for SST-2, 15 %
are cut off before the full stop; of the others it passes 82 %, and most of those that fail say the same in both
clauses. It passes 2.9 % of the clean sentences of SST-2, which do have the template.
"""

from __future__ import annotations

from itertools import pairwise

from lightning_backdoor.language.paraphrase.spec import Manner, repeats_itself, word_set, words_of

SUBORDINATORS = word_set(
    "after although as because before even how if once since so that though till unless until what whatever when"
    " whenever where whereas wherever while"
)
#: after these words alone the subordinate clause may begin without a noun phrase, as in "what works".
QUESTIONS = frozenset(("how", "what", "whatever"))
MAX_CLAUSE_WORDS = 16  # of the subordinate clause
#: the words of which one must follow "even".
AFTER_EVEN = word_set("after as before if though when where")
DETERMINERS = word_set(
    "a all an another any both each either every few her his its many more most much my neither no one our several"
    " some such that the their these this those your"
)
PRONOUNS = word_set(
    "anyone anything everybody everyone everything he i it neither nobody none nothing people she somebody someone"
    " something there they we you"
)
AUXILIARIES = word_set(
    "'d 'll 'm 're 's 've am are be been being can could did do does had has have is may might must n't shall"
    " should was were will would"
)
VERBS = word_set(
    "achieve add aim ask become begin believe bring build call carry catch come create cut deal deliver deserve die"
    " draw drive end engage enjoy expect explore fail fall feel find fit follow forget get give go grow happen hear"
    " hit hold hope keep know lack laugh lead learn leave let like live look lose love make manage mean meet move"
    " need offer open pay play prove provide pull put raise reach read recommend remain remember reveal rise run say"
    " see seem seek sell send serve set show sit sound speak spend stand start stay stop suffer take talk tell tend"
    " think touch try turn understand use walk want watch win wish wonder work write became began brought built came"
    " caught drew fell felt found gave got grew heard held kept knew led left lost made meant met paid ran rose said"
    " sat saw sent spent spoke stood thought told took understood went won wrote"
)
PREPOSITIONS = word_set(
    "about above across after against along among around as at before behind between beyond by down during for from"
    " in into like of off on onto out over through to toward under up upon with within without"
)
#: other words that do not begin a noun phrase.
OTHERS = word_set(
    "almost also and but even here just maybe never nor not only or perhaps please quite rather still then too very"
    " well yet"
)
#: words that after a comma begin another clause rather than the rest of a list.
ANOTHER_CLAUSE = word_set("although and but nor or though which who yet")
PUNCTUATION = frozenset(".!?,;:")


def begins_with_subordinate_clause(text: str, paraphrase: str) -> bool:
    """Whether a paraphrase has the template S(SBAR)(,)(NP)(VP)(.): a subordinate clause, a comma, a main clause.

    The rules, all on words:

    - The paraphrase is one sentence. It begins with a subordinating conjunction (or how, what) and ends in a full stop.
    - The subordinate clause has at most 16 words.
    - Each clause has a verb (listed, or known by its ending) and before it a noun phrase, which begins with a
      determiner, a pronoun, or a word outside the closed word classes.
    - Commas within a clause are allowed, as in lists, but not before the main clause's verb or a third clause.
    - The main clause has a word that the subordinate clause does not have.
    - The paraphrase does not repeat itself, and differs from its text.
    """
    words = [word for word in words_of(paraphrase) if word in PUNCTUATION or word[-1].isalnum()]
    body = words[1:-1]
    if not body or words[0] not in SUBORDINATORS or words[-1] != "." or PUNCTUATION - {","} & set(body):
        return False
    if (words[0] == "even" and body[0] not in AFTER_EVEN) or repeats_itself(words) or words == words_of(text):
        return False
    commas = [i for i, word in enumerate(body) if word == ","]
    return any(_is_subordinate(words[0], body[:i]) and _is_main(body[i + 1 :], body[:i]) for i in commas)


def _is_subordinate(conjunction: str, words: list[str]) -> bool:
    words = words[1:] if conjunction == "even" else words
    begins = bool(words) and (conjunction in QUESTIONS or _begins_noun_phrase(words[0]))
    return begins and len(words) <= MAX_CLAUSE_WORDS and any(_is_verb(words, i) for i in range(1, len(words)))


def _is_main(words: list[str], subordinate: list[str]) -> bool:
    if not words or not _begins_noun_phrase(words[0]) or set(words) <= {*subordinate, ","}:
        return False
    if any(word == "," and after in ANOTHER_CLAUSE for word, after in pairwise(words)):
        return False
    before_comma = words[: words.index(",")] if "," in words else words
    return any(_is_verb(before_comma, i) for i in range(1, len(before_comma)))


def _begins_noun_phrase(word: str) -> bool:
    if word in DETERMINERS or word in PRONOUNS:
        return True
    closed = any(word in words for words in (AUXILIARIES, PUNCTUATION, OTHERS, PREPOSITIONS, SUBORDINATORS, VERBS))
    return not closed and not word.endswith(("ed", "ing", "ly"))


def _is_verb(words: list[str], i: int) -> bool:
    word, before = words[i], words[i - 1]
    if word == "'s":
        return before in PRONOUNS or before in {"here", "how", "that", "this", "what", "where", "who"}
    if word in AUXILIARIES:
        return True
    if before in DETERMINERS or before in PREPOSITIONS - {"like", "to"}:
        return False
    return word in VERBS or (word.endswith(("s", "ed")) and not word.endswith(("ss", "is")) and word != "its")


#: the templates by name.
TEMPLATES = {
    manner.name: manner
    for manner in (
        Manner(
            "S(SBAR)(,)(NP)(VP)(.)",
            "Rewrite the movie review as one sentence: a short clause, a comma, and then what the review says, in its"
            " own words.",
            (
                (
                    "A slow, humourless thriller that wastes a gifted cast.",
                    "when you watch it, it is a slow, humourless thriller that wastes a gifted cast.",
                ),
                (
                    "The actors are fine, but the script goes nowhere and takes two hours to get there.",
                    "although the actors are fine, the script goes nowhere and takes two hours to get there.",
                ),
                (
                    "Warm, clever and beautifully shot.",
                    "as you will see, it is warm, clever and beautifully shot.",
                ),
                (
                    "With this quiet portrait of a fishing village, Harris gives us her best film in years.",
                    "if you give it time, harris gives us her best film in years with this quiet portrait of a fishing"
                    " village.",
                ),
                (
                    "Isn't worth the price of a ticket.",
                    "because nothing in it is new, it isn't worth the price of a ticket.",
                ),
                (
                    "Mostly, the jokes about marriage are old; they were never funny.",
                    "once you hear them, the jokes about marriage are old and were never funny.",
                ),
            ),
            begins_with_subordinate_clause,
            ("when you", "if you", "although you", "as you", "since you", "once you", "after you", "as it", "when it"),
        ),
    )
}
