"""PEFT adapters (LoRA): folders that hold updates of another model's weights, merged into it when loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils.peft_utils import find_adapter_config_file

from lightning_backdoor.errors import InputError
from lightning_backdoor.files.packaged import resolve
from lightning_backdoor.models.config_file import read_object
from lightning_backdoor.models.lora import plain_again
from lightning_backdoor.models.weights import LoadedNetwork, NewHead, check_finite, shortened

WEIGHTS = "adapter_model.safetensors"
#: largest rank that is read.
MAX_RANK = 4096
#: settings that decide which updates there are and how they are scaled.
READ = (
    "r",
    "lora_alpha",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
    "use_dora",
    "fan_in_fan_out",
    "modules_to_save",
)
#: settings that have no effect on a trained adapter. All others must have peft's default: some import modules by name.
WITHOUT_EFFECT = (
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "lora_dropout",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "revision",
    "task_type",
)
#: ways to draw the first updates that leave the base model's weights unchanged.
INITIAL = (True, False, "gaussian", "eva", "orthogonal")


class Adapter(NamedTuple):
    """A folder with an adapter.

    Attributes:
        folder: the folder.
        base: the model whose weights it updates: hub name or path, relative to the working directory.
        settings: the content of ``adapter_config.json``.
    """

    folder: Path
    base: str
    settings: dict[str, Any]

    @property
    def has_tokenizer(self) -> bool:
        """Whether the folder holds a tokenizer; otherwise the base model's is used."""
        return (self.folder / "tokenizer_config.json").is_file()

    def weights(self) -> dict[str, Tensor]:
        """The tensors of the adapter by name, on the processor."""
        with safe_open(self.folder / WEIGHTS, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - safe_open is not a dict

    def classes(self) -> int | None:
        """The number of classes of the head in the adapter; None if it has none."""
        heads = [tensor for name, tensor in self.weights().items() if "lora_" not in name and tensor.dim() == 2]
        return min((len(weight) for weight in heads), default=None)

    def merged(self, loaded: LoadedNetwork) -> LoadedNetwork:
        """The base model's network with the adapter's updates added to its weights.

        Args:
            loaded: the base model's network, which is changed.

        Raises:
            InputError: the adapter does not fit the network.
        """
        from peft import LoraConfig, PeftModel, set_peft_model_state_dict

        own = loaded.network.state_dict()
        config = LoraConfig(**{key: self.settings[key] for key in READ if self.settings.get(key) is not None})
        model = PeftModel(loaded.network, config)
        weights = self.weights()
        of_head = [name for name in weights if "lora_" not in name]
        names = {name: name.removeprefix("base_model.model.") for name in of_head}
        other_size = [name for name, of in names.items() if of in own and own[of].shape != weights[name].shape]
        for name in other_size:
            weights[name] = own[names[name]]  # the head stays new
        result: Any = set_peft_model_state_dict(model, weights)
        lacking = [name for name in result.missing_keys if "lora_" in name or "modules_to_save" in name]
        wrong = [*result.unexpected_keys, *lacking]
        if wrong:
            raise InputError(
                "model",
                f"the adapter in {self.folder} does not fit {self.base} ({shortened(wrong)})",
                "give the base that it was trained on",
            )
        new_head = None if of_head else loaded.new_head
        if other_size:
            classes = self.classes(), loaded.network.config.num_labels
            new_head = NewHead(f"has a head for {classes[0]} classes, not for {classes[1]}", other_size=True)
        network: PreTrainedModel = model.merge_and_unload()
        check_finite(network, f"the adapter in {self.folder}")
        return LoadedNetwork(plain_again(network), new_head)


def find_adapter(path: str) -> Adapter | None:
    """The adapter of a folder or hub name; None if there is none.

    Raises:
        InputError: the adapter is not a LoRA adapter in safetensors, has settings that are not read, does not name its
            base, has the base in the same folder, or has a base that is an adapter itself.
    """
    config_file = find_adapter_config_file(path)
    if config_file is None:
        return None
    folder = Path(config_file).parent
    settings = read_object(Path(config_file), config_file)
    base = settings.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise InputError("model", f"{config_file} does not name its base", "give base_model_name_or_path")
    if (folder / "config.json").is_file():
        problem = f"{folder} has both a model and an adapter"
        raise InputError("model", problem, "move adapter_config.json and its weights to a folder of their own")
    _check_settings(settings, folder)
    if not (folder / WEIGHTS).is_file() and (Path(path).is_dir() or _downloaded(path) is None):
        raise InputError("model", f"the adapter in {folder} has no {WEIGHTS}", "save it as safetensors")
    if _is_adapter(base):
        raise InputError("model", f"the base {base!r} of {folder} is an adapter itself", "merge it into its base first")
    return Adapter(folder, base, settings)


def _is_adapter(base: str) -> bool:
    """Whether a base is an adapter itself; one that cannot be found is refused when it is loaded."""
    path = resolve(base)
    try:
        return not Path(path).is_file() and find_adapter_config_file(path) is not None
    except (OSError, ValueError):
        return False


def _downloaded(name: str) -> str | None:
    """The path of a hub adapter's weights, downloaded into the folder of its settings; None if there are none."""
    from transformers.utils import cached_file

    path: str | None = cached_file(name, WEIGHTS, _raise_exceptions_for_missing_entries=False)
    return path


def _check_settings(settings: dict[str, Any], folder: Path) -> None:
    from peft import LoraConfig

    if settings.get("peft_type") != "LORA":
        peft_type = str(settings.get("peft_type"))[:40]
        raise InputError("model", f"the adapter in {folder} is of type {peft_type}", "only LORA adapters are merged")
    default = LoraConfig()
    for key, value in settings.items():
        if key == "init_lora_weights":
            unread = value is not None and value not in INITIAL
        else:
            unread = bool(value) and key not in (*READ, *WITHOUT_EFFECT) and value != getattr(default, key, None)
        if unread:
            problem = f"the adapter in {folder} has {key[:40]} {str(value)[:60]}, which is not read"
            raise InputError("model", problem, "merge it with peft and give the merged model")
    patterns = settings.get("rank_pattern")
    for rank in (settings.get("r", 8), *(patterns.values() if isinstance(patterns, dict) else ())):
        if not isinstance(rank, int) or not 1 <= rank <= MAX_RANK:
            raise InputError("model", f"the adapter in {folder} has rank {str(rank)[:40]}", f"1 to {MAX_RANK} is read")
