"""A test kit for your own attacks and defenses: one call checks one object against its contract.

    from lightning_backdoor.testing import check_attack, check_defense

    def test_my_attack() -> None:
        check_attack(MyAttack())

    def test_my_defense() -> None:
        check_defense(MyDefense())

``check_defense`` takes a defense of any moment: what cleans rows, scores texts or inspects models, and callbacks of a
training or a repair. The kit creates all it needs, a tiny random BERT and labelled texts, in a temporary folder. It
needs no network and takes seconds on a CPU. A broken rule raises an ``AssertionError`` that names the class, the method
and the rule. Errors that the class itself raises, such as an ``InputError`` about its arguments, are passed on.
"""

from lightning_backdoor.testing.attack import check_attack
from lightning_backdoor.testing.defense import check_defense
from lightning_backdoor.testing.material import labelled_texts, tiny_bert

__all__ = ["check_attack", "check_defense", "labelled_texts", "tiny_bert"]
