"""Hostile checkpoints: model folders and Lightning checkpoints given to ``scan``, ``test`` and ``fit``."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from tests.hostile.hostile_input import Files, HostileInput, Inputs
from tests.support.unsafe import KINDS, Payload, unsafe_checkpoint


def checkpoints(files: Files, model: Path, calibration: Path, marker: Path) -> Inputs:
    """Model folders and checkpoint files that ``scan`` loads."""

    def scan(path: object) -> list[str]:
        return ["scan", "--model", str(path), "--calibration", str(calibration), "--input", str(calibration)]

    for kind in KINDS:
        path = unsafe_checkpoint(kind, files.path(), model, marker)
        yield HostileInput(f"model: {kind}", scan(path), (0, 2) if kind == "code for a known model" else (2,))
    for name, change in _changed_configs():
        yield HostileInput(f"config.json: {name}", scan(_copy(files, model, "config.json", change)), (0, 2))
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"):
        for name, content in _contents(marker):
            yield HostileInput(f"{file}: {name}", scan(_copy(files, model, file, _always(content))), (0, 2))
    for name, header in _safetensors_headers():
        content = len(header).to_bytes(8, "little") + header
        yield HostileInput(f"safetensors: {name}", scan(_copy(files, model, "model.safetensors", _always(content))))
    for name, checkpoint in _lightning(model, marker):
        path = files.path(".ckpt")
        torch.save(checkpoint, path)
        yield HostileInput(f"checkpoint: {name}", scan(path))
    for name, content in _contents(marker):
        yield HostileInput(f"checkpoint file: {name}", scan(files.file(content, ".ckpt")))
    for name in ("", "/dev/null", "\0", "nowhere", "a" * 5000, "package://os", "package://../../x", "-1", "\x1b[31m"):
        yield HostileInput(f"model {name[:20]!r}", scan(name))


def unsafe_options(files: Files, trained: Path, marker: Path) -> Inputs:
    """Options of ``fit``, ``test`` and ``predict`` that would load a checkpoint with code in it."""
    pickled = files.path(".ckpt")
    torch.save({"state_dict": {}, "callbacks": Payload(marker)}, pickled)
    run = files.path()
    shutil.copytree(trained, run)
    for name in ("last", "best"):
        shutil.copy(pickled, run / "checkpoints" / f"{name}.ckpt")
    shutil.copy(pickled, run / "hpc_ckpt_1.ckpt")
    unsafe_config = files.file("weights_only: false\n", ".yaml")
    switches: tuple[list[str], ...] = ([], ["--weights_only", "false"], ["-c", unsafe_config])
    named = (str(pickled), "last", "best", "hpc", "registry", f"file://{pickled}", f"local://{pickled}")
    for turn, command in enumerate(("fit", "validate", "test", "predict")):
        start = [command, "-c", str(trained / "config.yaml"), "--run_dir", str(run)]
        for number, checkpoint in enumerate(named):
            off = switches[(turn + number) % len(switches)]  # every switch with every command and every name
            name = f"{command} {' '.join(off[:1])} of {Path(checkpoint).name if '/' in checkpoint else checkpoint}"
            yield HostileInput(name, [*start, *off, "--ckpt_path", checkpoint])
    for address in ("http://127.0.0.1:9/x.ckpt", "s3://bucket/x.ckpt", "hf://x/y.ckpt", "zip://x.ckpt::x.zip"):
        start = ["test", "-c", str(trained / "config.yaml"), "--run_dir", str(run)]
        yield HostileInput(f"test of {address}", [*start, "--ckpt_path", address])
    fresh = ["fit", "-c", str(trained / "config.yaml"), "--run_dir", str(files.path())]
    for option, right in (("--model.published", (2,)), ("--data.victim", (0, 2))):
        yield HostileInput(f"{option} with code", [*fresh, f"{option}={pickled}"], right)


def _always(content: bytes) -> Callable[[bytes], bytes]:
    return lambda original: content


def _with(key: str, value: Any) -> Callable[[bytes], str]:
    return lambda original: json.dumps({**json.loads(original), key: value})


def _copy(files: Files, model: Path, file: str, change: Callable[[bytes], bytes | str]) -> Path:
    """A copy of the model in which one file is changed; the others are links."""
    folder = files.path()
    folder.mkdir()
    for original in model.iterdir():
        if original.name == file:
            content = change(original.read_bytes())
            (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
        else:
            (folder / original.name).symlink_to(original)
    return folder


def _changed_configs() -> Iterator[tuple[str, Callable[[bytes], str]]]:
    """Changes of config.json by one key."""
    values: dict[str, list[Any]] = {
        "num_labels": [0, 1, -1, 10_000_000, "2", None, 1.5],
        "id2label": [
            {},
            {"0": "a", "5": "b"},
            {"x": "a", "y": "b"},
            [],
            "ab",
            {"0": "\x1b[31m", "1": "b"},
            {"0": {}, "1": []},
        ],
        "vocab_size": [0, -1, 3, 10**12, "a"],
        "hidden_size": [0, 7, -8, 10**9, None],
        "num_hidden_layers": [-1, 10**9, "two"],
        "max_position_embeddings": [0, -1, 1, "many", 10**12],
        "model_type": ["", "nowhere", 3, None, "gpt2", "t5", "../../x"],
        "architectures": [[], ["\x1b[31m"], "Bert", [3]],
        "problem_type": ["multi_label_classification", "regression", "\x1b[31m", 3],
        "attn_implementation": ["kernels-community/flash-attn", "flash_attention_2", "x/y:z", 3],
        "_attn_implementation": ["kernels-community/flash-attn", "x/y"],
        "use_kernels": [True],
        "quantization_config": [{}, {"quant_method": "gptq"}, {"quant_method": "x", "modules": ["os"]}, 3],
        "torch_dtype": ["float99", "os.system", 3],
        "dtype": ["float99", "float16"],
        "auto_map": [{"AutoModelForSequenceClassification": "evil.Model"}, {"AutoConfig": "x/y--evil.Config"}, 3],
        "pad_token_id": [-1, 10**9, "a"],
        "hidden_act": ["nowhere", 3],
        "_name_or_path": ["/etc/passwd", "\x1b[31m"],
        "transformers_weights": ["../../x"],
    }
    for key, options in values.items():
        for value in options:
            yield f"{key} = {json.dumps(value)[:30]}", _with(key, value)


def _contents(marker: Path) -> Iterator[tuple[str, bytes]]:
    """Contents that do not have the format of the file."""
    yield "empty", b""
    yield "brackets", b"[" * 200_000
    yield "an empty object", b"{}"
    yield "null", b"null"
    yield "zero bytes", bytes(1000)
    yield "pickle", pickle.dumps(Payload(marker))
    yield "a page", b"<html>"


def _safetensors_headers() -> Iterator[tuple[str, bytes]]:
    tensor = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
    yield "without its data", json.dumps({"a": tensor}).encode()
    yield "a shape beyond memory", json.dumps({"a": {**tensor, "shape": [10**9, 10**9]}}).encode()
    yield "a negative shape", json.dumps({"a": {**tensor, "shape": [-1, 2]}}).encode()
    yield "an unknown dtype", json.dumps({"a": {**tensor, "dtype": "X"}}).encode()
    yield "brackets", b"[" * 100_000
    yield "no tensors", json.dumps({}).encode()


def _lightning(model: Path, marker: Path) -> Iterator[tuple[str, Any]]:
    """Contents of Lightning checkpoints."""
    value: Any
    good = {"model": str(model), "labels": ["a", "b"], "max_length": 32}
    yield "a list", []
    yield "a tensor", torch.zeros(2)
    yield "no weights", {"hyper_parameters": good}
    yield "weights in a list", {"state_dict": [], "hyper_parameters": good}
    yield "empty weights", {"state_dict": {}, "hyper_parameters": good}
    for value in (1, "a", [1], {"a": 1}, torch.zeros(0), torch.zeros(2, 2), torch.zeros(2, 2).to_sparse()):
        yield (
            f"a weight of {value!r}"[:60],
            {"state_dict": {"network.classifier.weight": value}, "hyper_parameters": good},
        )
    for key in (1, "", "\x1b[31m", "network." + "a" * 10_000):
        yield f"the weight name {str(key)[:20]!r}", {"state_dict": {key: torch.zeros(1)}, "hyper_parameters": good}
    changes: dict[str, list[Any]] = {
        "model": [
            None,
            1,
            [],
            {},
            "",
            "nowhere",
            "\x1b[31m",
            "\0",
            "/etc",
            "package://..",
            "a" * 5000,
            "http://127.0.0.1:9/x",
        ],
        "labels": [
            None,
            1,
            "ab",
            [],
            ["a"],
            [["a"], ["b"]],
            [1, 2],
            ["a", "a"],
            ["a"] * 100_000,
            {"a": 1},
            ["\x1b[31m", "b"],
        ],
        "max_length": [-1, 0, 10**12, "a", None, 1.5, [1]],
        "lora_rank": [-1, 0, "a", 10**9, [1]],
    }
    for key, values in changes.items():
        for value in values:
            yield f"{key} = {value!r}"[:60], {"state_dict": {}, "hyper_parameters": {**good, key: value}}
    for value in (None, 1, [], "a", {1: 2}):
        yield f"hyper_parameters = {value!r}", {"state_dict": {}, "hyper_parameters": value}
    for value in (1, "\x1b[31m", {"name": 1}, {"name": "x", "settings": 3, "more": 4}, [[]]):
        yield f"training_defense = {value!r}", {"state_dict": {}, "hyper_parameters": good, "training_defense": value}
    for value in (1, [], {"source": 3}, {"cut": None}):
        yield f"data module = {value!r}", {"state_dict": {}, "hyper_parameters": good, "BackdoorDataModule": value}
    for key in ("state_dict", "hyper_parameters", "callbacks", "loops", "anything"):
        yield f"code under {key}", {"state_dict": {}, "hyper_parameters": good, key: Payload(marker)}
