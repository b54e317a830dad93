"""Lightning callbacks, imported as ``lightning_backdoor.callbacks``."""

from lightning_backdoor.callbacks.abl import ABL
from lightning_backdoor.callbacks.btu import BTU
from lightning_backdoor.callbacks.cleaning_writer import CleaningWriter
from lightning_backdoor.callbacks.evasion import Evasion
from lightning_backdoor.callbacks.fine_mixing import FineMixing
from lightning_backdoor.callbacks.fine_pruning import FinePruning
from lightning_backdoor.callbacks.flattening import Flattening
from lightning_backdoor.callbacks.fourier_view import FourierView
from lightning_backdoor.callbacks.gradient_attention_defense import GradientAttentionDefense
from lightning_backdoor.callbacks.inference_defense import InferenceDefense
from lightning_backdoor.callbacks.inspection_callback import InspectionCallback
from lightning_backdoor.callbacks.low_capacity import LowCapacity
from lightning_backdoor.callbacks.meft import MEFT
from lightning_backdoor.callbacks.moderate_fitting import ModerateFitting
from lightning_backdoor.callbacks.muscle_lora import MuScleLoRA
from lightning_backdoor.callbacks.outcome_writer import OutcomeWriter
from lightning_backdoor.callbacks.output_folder import OutputFolder
from lightning_backdoor.callbacks.prediction_writer import PredictionWriter
from lightning_backdoor.callbacks.progress_writer import ProgressWriter
from lightning_backdoor.callbacks.pure import Pure
from lightning_backdoor.callbacks.repair import Repair
from lightning_backdoor.callbacks.run_labels import RunLabels
from lightning_backdoor.callbacks.small_margin import SmallMargin
from lightning_backdoor.callbacks.state_matching import StateMatching

__all__ = [
    "ABL",
    "BTU",
    "MEFT",
    "CleaningWriter",
    "Evasion",
    "FineMixing",
    "FinePruning",
    "Flattening",
    "FourierView",
    "GradientAttentionDefense",
    "InferenceDefense",
    "InspectionCallback",
    "LowCapacity",
    "ModerateFitting",
    "MuScleLoRA",
    "OutcomeWriter",
    "OutputFolder",
    "PredictionWriter",
    "ProgressWriter",
    "Pure",
    "Repair",
    "RunLabels",
    "SmallMargin",
    "StateMatching",
]
