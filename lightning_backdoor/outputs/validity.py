"""Whether an attack counts: its excess ASR, and the conditions that it fails."""

from __future__ import annotations

#: an attack counts if its excess ASR and its ASR are at least this, and it costs at most this much CACC.
MIN_EXCESS, MIN_ASR, MAX_LOSS = 0.5, 0.9, 0.03
#: decimals to which limits hold: metrics are right to six digits, and so their differences to five decimals.
DECIMALS = 5


def excess_asr(asr: float, *floors: float | None) -> float:
    """The excess ASR: the ASR minus the largest floor that is known, in six decimals.

    Args:
        asr: share of poisoned rows predicted as the target label, without a defense.
        *floors: the victim's own ASR floor, and the ASR of a cleanly trained victim on the same poisoned rows; None
            where one is not known.

    >>> excess_asr(1.0, 0.25, None)
    0.75
    """
    return round(asr - max((floor for floor in floors if floor is not None), default=0.0), 6)


def failed_conditions(
    asr: float, floor: float | None, cacc: float | None = None, clean: tuple[float | None, float | None] = (None, None)
) -> list[str]:
    """The conditions that an attack fails; empty if it counts as far as is known.

    They are judged in five decimals, so that 18 of 20 is not below 0.9 because single precision is.

    Args:
        asr: share of poisoned rows predicted as the target label, without a defense.
        floor: share of the clean rows of other labels that the victim predicts as the target label, if known.
        cacc: accuracy on clean rows, if known.
        clean: ASR on the same poisoned rows, and CACC, of clean training, where they are known.

    Returns:
        One phrase per failed condition, with the number that fails it.

    >>> failed_conditions(1.0, 1.0)
    ['excess ASR 0.000 is below 0.5']
    >>> failed_conditions(0.95, 0.1, cacc=0.80, clean=(0.2, 0.9))
    ['CACC 0.800 is more than 0.03 below that of clean training, 0.900']
    """
    clean_asr, clean_cacc = clean
    failed = []
    excess = excess_asr(asr, floor, clean_asr)
    if round(excess, DECIMALS) < MIN_EXCESS:
        failed.append(f"excess ASR {_shown(excess, MIN_EXCESS)} is below {MIN_EXCESS}")
    if round(asr, DECIMALS) < MIN_ASR:
        failed.append(f"ASR {_shown(asr, MIN_ASR)} is below {MIN_ASR}")
    if cacc is not None and clean_cacc is not None and round(clean_cacc - cacc, DECIMALS) > MAX_LOSS:
        own, clean_own = _shown(cacc, clean_cacc - MAX_LOSS), _shown(clean_cacc, cacc + MAX_LOSS)
        failed.append(f"CACC {own} is more than {MAX_LOSS} below that of clean training, {clean_own}")
    return failed


def _shown(share: float, limit: float) -> str:
    """A share in three decimals, or in as many as limits hold to where three do not tell it from the limit."""
    return f"{share:.{3 if round(share, 3) != round(limit, 3) else DECIMALS}f}"
