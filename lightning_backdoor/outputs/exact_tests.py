"""Exact one-sided tests of counts: whether more texts are flagged, or contain a word, than chance explains."""

from __future__ import annotations

import math

#: below this p-value a count is more than chance explains.
SIGNIFICANT = 0.01


def log_hypergeometric_tail(found: int, drawn: int, marked: int, total: int) -> float:
    """Natural logarithm of the probability that at least ``found`` of ``drawn`` things are marked.

    The things are drawn without replacement from ``total`` things, of which ``marked`` are marked. It is computed from
    logarithms, so that it is finite also where the probability is below the smallest float.

    Returns:
        A number of at most 0; minus infinity where the event is impossible.

    >>> round(math.exp(log_hypergeometric_tail(found=3, drawn=4, marked=4, total=8)), 4)
    0.2429
    """
    if found <= max(0, drawn + marked - total):
        return 0.0
    if found > min(drawn, marked):
        return -math.inf
    first = _log_choose(marked, found) + _log_choose(total - marked, drawn - found) - _log_choose(total, drawn)
    term = relative = 1.0  # in units of the first term
    for k in range(found, min(drawn, marked)):
        term *= (marked - k) / (k + 1) * (drawn - k) / (total - marked - drawn + k + 1)
        relative += term
        if term < 1e-17 * relative:
            break
    return min(0.0, first + math.log(relative))


def allowed_by(budget: float, clean_texts: int) -> int:
    """The number of calibration texts that a budget, a share of them, allows a threshold to flag.

    >>> allowed_by(0.05, 349), allowed_by(0.29, 100)
    (17, 29)
    """
    return int(budget * clean_texts + 1e-9)  # 0.29 * 100 is 28.999…


def log_p_flagged(flagged: int, texts: int, allowed: int, clean_texts: int) -> float:
    """Natural logarithm of the p-value of a number of flagged texts, if they are as clean as the calibration texts.

    A threshold that flags at most ``allowed`` of N calibration texts lies just above the (allowed + 1)-th highest of
    their scores. Of n other texts from the same source, whose scores are exchangeable with these, it flags a random
    number with the distribution BetaBinomial(n, allowed + 1, N - allowed). The p-value is its upper tail, which is
    that of Fisher's exact test of the two counts. Unlike a binomial test with the budget as probability, it allows for
    the chance in a threshold that is set on few texts; tied scores make it larger than it need be.

    Args:
        flagged: number of flagged texts, k.
        texts: number of texts, n.
        allowed: number of calibration texts that the budget allows the threshold to flag, ``floor(fpr * N)``; without
            a budget, that it flags.
        clean_texts: number of calibration texts, N.

    Returns:
        A number of at most 0, finite also where the p-value is below the smallest float.

    >>> round(math.exp(log_p_flagged(flagged=30, texts=600, allowed=17, clean_texts=349)), 2)
    0.53
    >>> round(math.exp(log_p_flagged(flagged=90, texts=90, allowed=0, clean_texts=1)), 4)  # one text says little
    0.011
    """
    return log_hypergeometric_tail(flagged, flagged + allowed, texts, texts + clean_texts)


def p_text(log_p: float, digits: int = 2) -> str:
    """A p-value as it is shown, given its natural logarithm; it is never shown as 0.

    >>> p_text(math.log(0.0234)), p_text(math.log(2.04e-7)), p_text(-1000 * math.log(10), digits=1)
    ('0.023', '2e-7', '1e-1000')
    """
    exponent = math.floor(log_p / math.log(10))
    if exponent >= -4:
        return f"{math.exp(log_p):.{digits}g}"
    mantissa = f"{math.exp(log_p - exponent * math.log(10)):.{digits}g}"
    if float(mantissa) == 10:
        mantissa, exponent = "1", exponent + 1
    return f"{mantissa}e{exponent}"


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
