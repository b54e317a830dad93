"""GGUF files: dequantized once, shared by processes, and loaded like any folder."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import gguf as format
import numpy
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from lightning_backdoor.batch import batch_of_texts
from lightning_backdoor.errors import InputError
from lightning_backdoor.files.cache_entry import RECORD
from lightning_backdoor.files.hashing import content_hash
from lightning_backdoor.models import gguf
from lightning_backdoor.models.gguf import dequantized
from lightning_backdoor.models.loading import load_safely
from lightning_backdoor.victim import TextClassifier
from tests.support.tiny import DECODER, SENTENCES, tokenizer_of

SIZE, HEADS, HIDDEN = 32, 4, 64
TEMPLATE = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"


def write_gguf(path: Path) -> dict[str, numpy.ndarray[Any, Any]]:
    """Writes a tiny quantized Llama with random weights; returns its weights before quantization."""
    tokenizer = tokenizer_of(DECODER)
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    writer = format.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(136)
    writer.add_embedding_length(SIZE)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(SIZE // HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([format.TokenType.CONTROL, *[format.TokenType.NORMAL] * (len(tokens) - 1)])
    writer.add_token_merges(
        [" ".join(pair) for pair in json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]]
    )
    for add in (writer.add_bos_token_id, writer.add_eos_token_id, writer.add_pad_token_id, writer.add_unk_token_id):
        add(0)
    writer.add_chat_template(TEMPLATE)
    shapes = {"token_embd": (len(tokens), SIZE), "output": (len(tokens), SIZE)}
    shapes |= {f"blk.0.attn_{part}": (SIZE, SIZE) for part in ("q", "k", "v", "output")}
    shapes |= {f"blk.0.ffn_{part}": (HIDDEN, SIZE) for part in ("gate", "up")} | {"blk.0.ffn_down": (SIZE, HIDDEN)}
    random = numpy.random.default_rng(0)
    weights = {name: random.normal(0, 0.3, shape).astype(numpy.float32) for name, shape in shapes.items()}
    quantization = format.GGMLQuantizationType.Q8_0
    for name, weight in weights.items():
        writer.add_tensor(f"{name}.weight", format.quantize(weight, quantization), raw_dtype=quantization)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", numpy.ones(SIZE, numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def changed_vocabulary(path: Path) -> str:
    """A ``tokenizer.json`` in which two words of the vocabulary have each other's ids."""
    content = json.loads(path.read_text(encoding="utf-8"))
    words = content["model"]["vocab"]
    first, second = sorted(words)[-2:]
    words[first], words[second] = words[second], words[first]
    return json.dumps(content)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LIGHTNING_BACKDOOR_CACHE", str(tmp_path / "cache"))
    write_gguf(tmp_path / "tiny.gguf")
    return tmp_path / "tiny.gguf"


def test_a_gguf_file_becomes_a_folder_of_float32_weights_once(tmp_path: Path) -> None:
    weights = write_gguf(tmp_path / "tiny.gguf")
    folder = dequantized(tmp_path / "tiny.gguf", tmp_path / "cache")
    written = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert any(file.suffix == ".safetensors" for file in written)
    network = AutoModelForCausalLM.from_pretrained(folder)
    assert network.dtype == torch.float32
    assert not hasattr(network.config, "quantization_config")
    for name, ours in (
        ("token_embd", network.model.embed_tokens),
        ("blk.0.ffn_down", network.model.layers[0].mlp.down_proj),
    ):
        assert ours.weight.detach().numpy() == pytest.approx(weights[name], abs=0.01)  # eight bits
    (tmp_path / "moved").mkdir()
    moved = (tmp_path / "tiny.gguf").rename(tmp_path / "moved" / "tiny.gguf")
    assert dequantized(moved, tmp_path / "cache") == folder
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == written


def test_the_chat_template_and_the_tokenizer_stay(model: Path) -> None:
    tokenizer = load_safely(AutoTokenizer, str(model))
    original = tokenizer_of(DECODER)
    said = tokenizer.apply_chat_template([{"role": "user", "content": "a film"}], tokenize=False)
    assert said == "<user>a film"
    assert [tokenizer(text)["input_ids"] for text in SENTENCES] == [original(text)["input_ids"] for text in SENTENCES]


@pytest.mark.parametrize("links", [True, False], ids=["linked", "copied"])
def test_files_beside_a_gguf_file_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError("this file system has no links")

    if not links:
        monkeypatch.setattr(Path, "symlink_to", refuse)
    write_gguf(tmp_path / "tiny.gguf")
    expected = dequantized(tmp_path / "tiny.gguf", tmp_path / "cache")
    (tmp_path / "others").mkdir()
    other = shutil.copy(tmp_path / "tiny.gguf", tmp_path / "others" / "tiny.gguf")
    for name in ("tokenizer_config.json", "adapter_config.json", "config.json"):
        (tmp_path / "others" / name).write_text('{"tokenizer_class": "BertTokenizer", "model_type": "bert"}')
    (tmp_path / "others" / "tokenizer.json").write_text(changed_vocabulary(expected / "tokenizer.json"))
    found = dequantized(Path(other), tmp_path / "another cache")
    assert {file.name: file.read_bytes() for file in found.iterdir()} == {
        file.name: file.read_bytes() for file in expected.iterdir()
    }


def test_a_folder_of_an_earlier_format_is_left_behind(model: Path, tmp_path: Path) -> None:
    earlier = tmp_path / "cache" / "dequantized" / content_hash(model)
    earlier.mkdir(parents=True)
    assert dequantized(model) != earlier
    assert [*earlier.iterdir()] == []


def test_a_gguf_file_is_a_victim(model: Path, tmp_path: Path) -> None:
    victim = TextClassifier(str(model), labels=["no", "yes"], lora_rank=2)
    victim.configure_model()
    batch = batch_of_texts(SENTENCES[:3], victim.tokenizer, victim.max_length)
    assert victim.eval()(batch).shape == (3, 2)
    backbone = load_safely(AutoModelForCausalLM, str(model)).model
    victim.save_pretrained(tmp_path / "export")
    exported = TextClassifier(str(tmp_path / "export"), labels=["no", "yes"])
    exported.configure_model()
    for name, value in backbone.state_dict().items():  # untrained, so the weights are those of the file
        assert torch.equal(exported.network.model.state_dict()[name], value), name


def test_a_process_that_comes_second_takes_the_folder_of_the_first(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = gguf._read

    def slow(path: Path) -> Any:
        monkeypatch.setattr(gguf, "_read", read)
        dequantized(path)  # another process, meanwhile
        return read(path)

    monkeypatch.setattr(gguf, "_read", slow)
    folder = dequantized(model)
    assert load_safely(AutoConfig, str(model)).model_type == "llama"
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_run_that_dies_while_writing_leaves_no_folder(
    model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Dies:
        def save_pretrained(self, folder: Path) -> None:
            (folder / "model.safetensors").write_bytes(b"half")
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(gguf, "_read", lambda path: (Dies(),))
        with pytest.raises(KeyboardInterrupt):
            dequantized(model)
    assert not [*(tmp_path / "cache").rglob("*.safetensors")]
    assert load_safely(AutoConfig, str(model)).vocab_size > 0


@pytest.mark.parametrize("content", [None, b"no model", b"GGUF\x03\x00\x00\x00"], ids=["missing", "other", "cut off"])
def test_a_file_that_is_not_gguf_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    monkeypatch.setenv("LIGHTNING_BACKDOOR_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "odd.gguf"
    if content is not None:
        path.write_bytes(content)
    for loading in (lambda: load_safely(AutoConfig, str(path)), lambda: dequantized(path)):
        with pytest.raises(InputError, match=r"^model: .*odd\.gguf.*$") as error:
            loading()
        assert "\n" not in str(error.value)
    assert not [*tmp_path.glob("cache/dequantized/*")]


def test_a_cache_that_cannot_be_written_is_refused_in_one_line(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"^cache_dir: .* cannot be written"):
        dequantized(model, tmp_path / "file")


@pytest.mark.parametrize(
    "damage", ["swapped weights", "cut off", "no record", "another's", "added", "missing", "empty"]
)
def test_a_folder_in_the_cache_that_was_changed_is_made_anew_and_said(tmp_path: Path, damage: str) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    folder = dequantized(tmp_path / "tiny.gguf", tmp_path / "cache")
    written = {file.name: file.read_bytes() for file in folder.iterdir()}
    weights, record = folder / "model.safetensors", folder / RECORD
    if damage == "swapped weights":
        weights.write_bytes(written[weights.name][:-4] + bytes(4))
    elif damage == "cut off":
        weights.write_bytes(written[weights.name][:-1000])
    elif damage == "another's":
        record.write_text(record.read_text().replace(folder.name, "0" * 64))
    elif damage == "added":
        (folder / "pytorch_model.bin").write_bytes(b"")
    elif damage == "empty":
        record.write_text("")
    elif damage == "pipe":
        weights.unlink()
        os.mkfifo(weights)
    else:
        (record if damage == "no record" else weights).unlink()
    gguf._checked.clear()  # as in another process
    with pytest.warns(UserWarning, match="is damaged and is made anew: "):
        assert dequantized(tmp_path / "tiny.gguf", tmp_path / "cache") == folder
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == written
    assert [*folder.parent.iterdir()] == [folder]
