"""Label values compared by what they say, and the classes that the training rows have."""

from __future__ import annotations

import operator
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from lightning_utilities.core.rank_zero import rank_zero_warn

from lightning_backdoor.errors import InputError, did_you_mean
from lightning_backdoor.files.columns import shown

T = TypeVar("T")
#: a label value as a user may give it.
LabelValue = str | int | float | bool
WHOLE = re.compile(r"\+?(-?(?:0|[1-9][0-9]{0,17}))(?:\.0*)?")
NUMBER = re.compile(r"[-+]?(?:0|[1-9][0-9]*)?(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?")
TRUTH = {"true": "1", "false": "0"}
#: what pandas and spreadsheets write for a missing value; and further words that stand for one among numbers.
MISSING = frozenset({"nan", "<na>", "#n/a"})
MISSING_AMONG_NUMBERS = MISSING | {"na", "n/a", "null", "none"}
SHOWN = 20  # labels that an error message quotes


def canonical(value: LabelValue) -> str:
    """The text by which a label value is compared: without surrounding blanks, whole numbers as integers.

    >>> [canonical(value) for value in (0, "0", 0.0, " 0.0", "-0", "+1", "00", "0.5", " pos ", True)]
    ['0', '0', '0', '0', '0', '1', '00', '0.5', 'pos', 'True']
    """
    text = str(value).strip()
    whole = WHOLE.fullmatch(text)
    return text if whole is None else "0" if whole[1] == "-0" else whole[1]


def distinct(values: Iterable[T]) -> list[T]:
    """The values that differ in type or value, in their order; in a set, True and 1 are one value.

    >>> distinct([1, True, "1", 1, True])
    [1, True, '1']
    """
    return [*{(type(value), value): value for value in values}.values()]


def for_each(values: Sequence[Any], make: Callable[[Any], T]) -> list[T]:
    """What is made of each value; it is made once of each of the :func:`distinct` ones."""
    made = {(type(value), value): make(value) for value in distinct(values)}
    return [made[type(value), value] for value in values]


def missing_words(values: Iterable[LabelValue]) -> set[LabelValue]:
    """The values that stand for a missing label, such as ``nan``; ``none`` does among numbers only.

    >>> missing_words(["0", "1", "None"]), missing_words(["favor", "none"])
    ({'None'}, set())
    """
    words = [(value, canonical(value)) for value in values]
    named = {word for _, word in words if word.lower() not in MISSING_AMONG_NUMBERS}
    missing = MISSING_AMONG_NUMBERS if named and all(map(_is_whole, named)) else MISSING
    return {value for value, word in words if word.lower() in missing}


class Classes:
    """The classes of a source: their names, and the class of each label value.

    If the training rows have no other values than true and false, or 1 and 0, true is the same as 1, false as 0.

    Args:
        values: label values of the training rows.
        labels: names of the classes in order, for labels counted from 0 or for labels that are these names; or a
            mapping from each name to the values of the class. None: the values of the training rows, in order.
        column: name of the column, for errors.
        by_index: whether the values are indices of ``labels``, even if these are numbers themselves.

    Raises:
        InputError: a value belongs to no class, two classes have the same name or value, or ``labels`` names none.

    >>> classes = Classes(["neg", "pos "], None, "label")
    >>> classes.names, classes.index(" neg")
    (['neg', 'pos'], 0)
    """

    def __init__(
        self,
        values: Iterable[LabelValue],
        labels: Sequence[LabelValue] | Mapping[str, Sequence[LabelValue] | LabelValue] | None,
        column: str,
        by_index: bool = False,
    ) -> None:
        names = None if labels is None else declared_names(labels)
        texts = {canonical(value) for value in distinct(values)}
        self._truth = TRUTH if {text.lower() for text in texts} <= {*TRUTH, *TRUTH.values()} else {}
        keys = {self._key(text): None for text in texts}
        self.names = _names(texts, column) if names is None else names
        if isinstance(labels, Mapping):
            pairs = [
                (self._key(value), i)
                for i, given in enumerate(labels.values())
                for value in (given if isinstance(given, list | tuple) else (given,))
            ]
        elif labels is not None:
            names_fit = not all(map(_is_whole, keys)) or all(_is_whole(self._key(name)) for name in labels)
            by_name = names_fit and not by_index
            pairs = [(self._key(name) if by_name else str(i), i) for i, name in enumerate(labels)]
        else:
            pairs = [(self._key(name), i) for i, name in enumerate(self.names)]
        self._index = dict(pairs)
        if any(self._index[key] != i for key, i in pairs):
            raise _same(labels)
        unknown = sorted(keys - self._index.keys())
        if unknown:
            raise InputError(
                "labels",
                f"{_shown(unknown[:1])} in column {column!r} is not one of the labels {_shown(self._index)}",
                "give every value of the column a label",
            )
        self._in_training = {self._index[key] for key in keys}

    def values_of(self, indices: Sequence[Any], names: Sequence[str], where: str) -> list[Any]:
        """The training rows' values for the classes of another table, by its own names of its indices.

        Args:
            indices: the label values of the table.
            names: names of the classes that the table declares. If it shares none with the training rows, its indices
                are those of the training rows.
            where: the table, for errors.

        Raises:
            InputError: some names are classes of the training rows, and others are not.
        """
        if set(names).isdisjoint(self.names):
            return [*indices]
        key_of = {i: key for key, i in self._index.items()}
        return by_names(indices, names, {name: key_of[i] for i, name in enumerate(self.names) if i in key_of}, where)

    def index(self, value: LabelValue) -> int | None:
        """The class of a value; None if no training row is of its class."""
        i = self._index.get(self._key(value))
        return i if i in self._in_training else None

    def unknown(self, value: LabelValue) -> str:
        """The problem with a value that :meth:`index` does not know."""
        of_training = [key for key, i in self._index.items() if i in self._in_training]
        return f"{_shown([canonical(value)])} is not a label of the training rows ({_shown(of_training)})"

    def _key(self, value: LabelValue) -> str:
        text = canonical(value)
        return self._truth.get(text.lower(), text)


def by_names(indices: Sequence[Any], names: Sequence[str], known: Mapping[str, Any], where: str) -> list[Any]:
    """What stands elsewhere for classes that a table declares by name; what is no index stays, such as -1.

    Args:
        indices: the label values of the table.
        names: names of the classes that it declares.
        known: for each name, what stands for it elsewhere.
        where: the table, for errors.

    Raises:
        InputError: a row is of a class whose name is not known.

    >>> by_names([0, 1, -1], ["pos", "neg"], {"neg": 0, "pos": 1}, "test")
    [1, 0, -1]
    """

    def other(index: Any) -> Any:
        name = names[index] if isinstance(index, int) and 0 <= index < len(names) else None
        if name is not None and name not in known:
            problem = f"{where} has rows of the class {name[:40]!r}, which is none of {_shown(known)}"
            raise InputError("label_column", problem, "declare the names of the training rows")
        return index if name is None else known[name]

    return for_each(indices, other)


def given_label(label: Any, field: str) -> int | str:
    """A label as a user gives it: its name, or its index, also numpy's, as an ``int``.

    Raises:
        InputError: it is neither, or an index below 0.

    >>> from numpy import int64
    >>> given_label("positive", "target_label"), given_label(int64(1), "target_label")
    ('positive', 1)
    """
    if isinstance(label, str):
        return label
    try:
        index = operator.index(label)
    except TypeError:
        problem = f"{label!r} is neither an index nor a name"
        raise InputError(field, problem, "give the index or the name of a class") from None
    if index < 0:
        raise InputError(field, f"{index} is out of range", "class indices count from 0")
    return index


def label_index(name: str, labels: Sequence[str], field: str) -> int:
    """The index of a label that is given by its name.

    Raises:
        InputError: no label has this name.
    """
    if name not in labels:
        remedy = f"{did_you_mean(name, labels)} the labels are {', '.join(labels)}".strip()
        raise InputError(field, f"{name!r} is not a label", remedy)
    return list(labels).index(name)


def check_victim_labels(labels: object, of_data: Sequence[str] | None, field: str) -> None:
    """Checks that the class indices of a trained victim mean the classes of the data; other names are said.

    Args:
        labels: label names that the victim was trained with; anything but a list of strings is not checked.
        of_data: label names of the data; None if they are unknown.
        field: the option that names the victim, for errors.

    Raises:
        InputError: there are more or fewer labels, or the same names in another order.
    """
    if not isinstance(labels, list) or not all(isinstance(name, str) for name in labels) or of_data is None:
        return
    if labels == list(of_data):
        return
    if len(labels) != len(of_data):
        problem = f"it has a head for {len(labels)} classes, the data have {len(of_data)}"
        raise InputError(field, problem, "give one of these labels")
    said_so = f"its labels are {shown(labels)}, those of the data {shown(of_data)}"
    if any(name in of_data and name != other for name, other in zip(labels, of_data, strict=True)):
        raise InputError(field, f"{said_so}, in another order", "set labels of the source in the victim's order")
    rank_zero_warn(f"{field}: {said_so}; they are taken for the same in this order")


def declared_names(labels: Sequence[LabelValue] | Mapping[str, Any]) -> list[str]:
    """Names of classes as they are declared: a list of them, or the keys of a mapping.

    Raises:
        InputError: it is neither, names none, or gives two classes the same name; or a name is not text, or blank.

    >>> declared_names(["negative ", 1])
    ['negative', '1']
    """
    if not isinstance(labels, list | tuple | Mapping) or not labels:
        raise InputError("labels", f"{str(labels)[:60]!r} is not a list of names", "give [negative, positive]")
    names = [_name(name) for name in labels]
    if len(set(names)) < len(names):
        raise _same(labels)
    return names


def _same(labels: object) -> InputError:
    return InputError("labels", f"{labels} gives two classes the same name or value", "give different ones")


def _name(name: Any) -> str:
    if name is None or isinstance(name, bool):
        raise InputError("labels", f"the name {name} is not text, as YAML reads it", "put it in quotes")
    text = str(name).strip()
    if not text:  # which outcomes read back as no label
        raise InputError("labels", f"the name {name!r} is blank", "give the class a name")
    return text


def _names(values: set[str], column: str) -> list[str]:
    """Names of the classes where none are declared: the values, numbers in their order."""
    if all(map(_is_whole, values)):
        return sorted(values, key=int)
    if values & {"inf", "-inf"} and any(map(_is_whole, values)):
        raise InputError("label_column", f"{column!r} holds an infinite number", "label every row with a class")
    if all(map(NUMBER.fullmatch, values)) and any(set(value) & set(".eE") for value in values):
        raise InputError("label_column", f"{column!r} holds fractions", "set rating_cut for ratings")
    lower = {value.lower() for value in values}
    if lower <= TRUTH.keys():
        return sorted(value.capitalize() for value in lower)
    if lower <= {*TRUTH, *TRUTH.values()}:  # true and 1 mixed
        return sorted({TRUTH.get(value, value) for value in lower})
    alike: defaultdict[str, list[str]] = defaultdict(list)
    for value in sorted(values):
        alike[value.casefold()].append(value)
    for same in alike.values():
        if len(same) > 1:
            rank_zero_warn(f"label_column: {_shown(same)} in {column!r} differ in case alone and are different classes")
    return sorted(values)


def _is_whole(text: str) -> bool:
    return WHOLE.fullmatch(text) is not None


def _shown(values: Iterable[str]) -> str:
    given = [value if _is_whole(value) else repr(value[:40]) for value in values]
    return ", ".join(given[:SHOWN]) + (f" and {len(given) - SHOWN} more" if len(given) > SHOWN else "")
