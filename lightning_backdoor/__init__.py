"""Plant backdoors in text classifiers, defend against them, and compare the defenses.

All public names can be taken from here, and are imported when they are first used::

    import lightning_backdoor as lb

    data = lb.BackdoorDataModule(lb.Source("reviews.csv"))
    lb.evaluate("runs/first/model", data, attack=lb.BadNets(), defenses=[lb.Strip()])
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.2.0.dev0"

#: the public names by the module that exports them.
_EXPORTS = {
    "attacks": "BITE EP LWP LWS POR SOS BackdoorAttack BadNets BadPre Composite InsertSent LLMBkd MultiTarget NeuBA"
    " PoisonFiles Poisoned Ripples StyleTransfer Syntactic TrojanLM",
    "benchmark.evaluation": "Evaluation evaluate",
    "callbacks": "ABL BTU CleaningWriter Evasion FineMixing FinePruning Flattening FourierView"
    " GradientAttentionDefense InferenceDefense InspectionCallback LowCapacity MEFT ModerateFitting MuScleLoRA"
    " OutcomeWriter OutputFolder Pure PredictionWriter ProgressWriter Repair RunLabels SmallMargin StateMatching",
    "data": "BackdoorDataModule CleaningRecord DataDefense LabelledText PairsDataModule Source TrustedRows",
    "defenses": "ActivationClustering BadActs BKI Cube Dan DBS Defense Dup FlaggedShare GradientAttention Inspection"
    " LCF ModelVerdict Onion ParaphraseConsistency REJECTED Rap Scores SecondOpinion SpectralSignatures Strip"
    " SubstitutionVoting Verdict ZDef flagged_share_verdict judge threshold_at_fpr",
    "errors": "Diverged InputError",
    "language": "FileParaphraser KeywordSentences LanguageModelParaphraser LeaveOneOut Manner NearestWords"
    " NotCached ParaphraseTuner Paraphraser Perplexity STYLES SentenceEncoder SynonymFile Synonyms TEMPLATES"
    " TextCache WordNet",
    "metrics": "AttackSuccessRate CleanAccuracy DetectionAUROC FalseTriggerRate FlagRate Localisation Overhead"
    " PerplexityIncrease PoisonedAccuracy SentenceSimilarity TargetRate WordEditDistance",
    "models": "auto_precision",
    "testing": "check_attack check_defense",
    "victim": "TextClassifier TrainingDefense load_trained",
}
_MODULES = {name: module for module, names in _EXPORTS.items() for name in names.split()}
__all__ = [*_MODULES]

if TYPE_CHECKING:  # for type checkers and editors, which do not run the functions below
    from lightning_backdoor.attacks import *  # noqa: F403
    from lightning_backdoor.benchmark.evaluation import Evaluation as Evaluation
    from lightning_backdoor.benchmark.evaluation import evaluate as evaluate
    from lightning_backdoor.callbacks import *  # noqa: F403
    from lightning_backdoor.data import *  # noqa: F403
    from lightning_backdoor.defenses import *  # noqa: F403
    from lightning_backdoor.errors import Diverged as Diverged
    from lightning_backdoor.errors import InputError as InputError
    from lightning_backdoor.language import *  # noqa: F403
    from lightning_backdoor.metrics import *  # noqa: F403
    from lightning_backdoor.models import auto_precision as auto_precision
    from lightning_backdoor.testing import check_attack as check_attack
    from lightning_backdoor.testing import check_defense as check_defense
    from lightning_backdoor.victim import *  # noqa: F403
else:

    def __getattr__(name: str) -> object:
        """A public name, or a folder of the package, imported when it is first used (PEP 562)."""
        if name in _MODULES:
            value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        elif name in {module.partition(".")[0] for module in _EXPORTS}:
            value = import_module(f"{__name__}.{name}")
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        """All names, those not yet imported included."""
        return sorted({*globals(), *_MODULES, *(module.partition(".")[0] for module in _EXPORTS)})
