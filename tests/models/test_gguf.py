"""GGUF files: the same weights, ids and logits as other readers get, or an error in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

import tiny_tokenizers
from gguf_writer import Q, tables_of, tiny_decoder, write_gguf
from mc_core.bundle.bundle import load_bundle
from mc_core.errors import ConfigError
from mc_core.models.attention import FullAttention
from mc_core.models.decoder import Decoder
from mc_core.models.decoder_config import RopeScaling
from mc_core.models.gguf_file import GgufFile
from mc_core.models.gguf_tokenizer import (
    PRE_TOKENIZERS,
    chat_template,
    end_ids,
    tokenizer_json,
    tokenizer_settings,
)
from mc_core.models.rotary import Rotary
from mc_core.models.tokenizer import Tokenizer as OwnTokenizer

SHAPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama tied": {"tie_word_embeddings": True, "num_kv_heads": 1},
    "llama wide heads": {"head_dim": 32},
    "qwen2": {"family": "qwen2", "qkv_bias": True},
    "qwen3": {"family": "qwen3", "qk_norm": "weighted", "head_dim": 32},
}
TEXTS = st.text(st.sampled_from("aZ ß東🙂\n\t 12'.,<|im_end|>the quick brown"), max_size=60)


@pytest.mark.parametrize("case", SHAPES)
def test_weights_and_shape_come_back(case: str, tmp_path: Path) -> None:
    """A model that was written as the converter does comes back with its own weights and configuration."""
    decoder = tiny_decoder(**SHAPES[case])
    file = GgufFile(write_gguf(tmp_path / "m.gguf", decoder, decoder.config.family))
    shown = file.config()
    assert {k: v for k, v in vars(shown).items() if k != "rms_norm_eps"} == {
        k: v for k, v in vars(decoder.config).items() if k != "rms_norm_eps"
    }
    read = {name.removeprefix("model."): tensor for name, tensor in file.tensors()}
    expected = decoder.state_dict()
    if decoder.config.tie_word_embeddings:
        del expected["lm_head.weight"]
    assert read.keys() == expected.keys()
    assert all(torch.equal(read[name], expected[name]) for name in expected)


def test_logits_are_those_that_transformers_gets(tmp_path: Path) -> None:
    """The order of rows in q and k is read as others read it."""
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    path = write_gguf(tmp_path / "m.gguf", tiny_decoder(), "llama")
    shape = load_gguf_checkpoint(str(path))["config"]
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**shape, "vocab_size": 96})).eval()
    weights = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=theirs)["tensors"]
    theirs.load_state_dict(weights)
    ids = torch.arange(24)[None] * 7 % 96
    with torch.no_grad():
        expected = theirs(ids).logits
    assert torch.allclose(_logits(_loaded(GgufFile(path)), ids), expected, atol=1e-4)


@pytest.mark.parametrize("kind", [Q.F16, Q.BF16, Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1, Q.Q8_0])
def test_quantised_weights_are_dequantised(kind: Q, tmp_path: Path) -> None:
    """A quantised matrix is what its own type makes of the numbers, whichever type it is."""
    decoder = tiny_decoder(family="qwen2", qkv_bias=True)
    file = GgufFile(write_gguf(tmp_path / "m.gguf", decoder, "qwen2", quantised=kind))
    for name, tensor in file.tensors():
        own = decoder.state_dict()[name.removeprefix("model.")].numpy()
        lossy = gguf.dequantize(gguf.quantize(own, kind), kind) if own.ndim == 2 else own
        assert np.array_equal(tensor.float().numpy(), lossy.astype(np.float32)), name


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"])
def test_types_that_only_others_write_are_read(kind: str, tmp_path: Path) -> None:
    """K-quants and their like, which the package reads and does not write, load too."""
    number = Q[kind]
    values, size = gguf.GGML_QUANT_SIZES[number]
    decoder = tiny_decoder(family="qwen2", qkv_bias=True, hidden_size=256, intermediate_size=256, num_layers=1)
    path = write_gguf(tmp_path / "m.gguf", decoder, "qwen2", quantised=Q.Q8_0)
    reader = gguf.GGUFReader(path)
    raw = np.random.default_rng(0).integers(0, 60, (256, 256 // values * size), np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "k.gguf", "qwen2")
    for field in reader.fields.values():
        if not field.name.startswith(("GGUF.", "general.architecture")):
            writer.add_key_value(field.name, field.contents(), field.types[0])
    for tensor in reader.tensors:
        if tensor.name == "blk.0.ffn_down.weight":
            writer.add_tensor(tensor.name, raw, raw_dtype=number)
        else:
            writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    read = dict(GgufFile(tmp_path / "k.gguf").tensors())["model.layers.0.mlp.down_proj.weight"]
    assert np.array_equal(read.numpy(), gguf.dequantize(raw, number))


def test_parts_are_one_model(tmp_path: Path) -> None:
    """A model in parts is the same as in one file, whichever part is named; a part that is gone is named."""
    decoder = tiny_decoder()
    first = write_gguf(tmp_path / "m.gguf", decoder, "llama", parts=3)
    whole = dict(GgufFile(write_gguf(tmp_path / "one.gguf", decoder, "llama")).tensors())
    for path in (first, tmp_path / "m-00003-of-00003.gguf"):
        parts = dict(GgufFile(path).tensors())
        assert parts.keys() == whole.keys()
        assert all(torch.equal(parts[name], whole[name]) for name in whole)
    (tmp_path / "m-00002-of-00003.gguf").unlink()
    with pytest.raises(ConfigError, match=r"m-00002-of-00003\.gguf is not there"):
        GgufFile(first)


def test_rope_factors_are_used(tmp_path: Path) -> None:
    """Llama 3.1's long wavelengths come as divisors, and turn as its configuration would have them turn."""
    scaling = RopeScaling("llama3", 8.0, 1.0, 4.0, 64)
    decoder = tiny_decoder(rope_scaling=scaling, rope_theta=500.0)
    own = Rotary(decoder.config).inv_freq
    plain = Rotary(tiny_decoder(rope_theta=500.0).config).inv_freq
    file = GgufFile(write_gguf(tmp_path / "m.gguf", decoder, "llama", factors=(plain / own).numpy()))
    assert torch.allclose(Rotary(file.config()).inv_freq, own)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"general.architecture": "gemma3"}, "'gemma3'; those that work are llama, qwen2, qwen3"),
        ({"llama.expert_count": 8}, "mixtures of experts"),
        ({"llama.rope.scaling.type": "yarn"}, "rope_type must be default, linear or llama3"),
        ({"llama.rope.dimension_count": 8}, "rope.dimension_count must be the head size 16, got 8"),
        ({"llama.attention.head_count_kv": [2, 1]}, "differs by layer"),
    ],
)
def test_what_is_not_supported_is_named(more: dict[str, Any], words: str, tmp_path: Path) -> None:
    """A model that would be computed wrongly is refused in words that name the key."""
    architecture = more.pop("general.architecture", "llama")
    path = write_gguf(tmp_path / "m.gguf", tiny_decoder(), architecture, more=more)
    with pytest.raises(ConfigError, match=words):
        GgufFile(path).config()


def test_a_file_that_is_cut_short_is_told(tmp_path: Path) -> None:
    """A broken download is an error that names the file, never a model."""
    path = write_gguf(tmp_path / "m.gguf", tiny_decoder(), "llama")
    data = path.read_bytes()
    for length in (0, 3, 20, 200, len(data) // 2):
        path.write_bytes(data[:length])
        with pytest.raises(ConfigError, match=r"m\.gguf"):
            dict(GgufFile(path).tensors())


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[GgufFile, Tokenizer]]:
    """One file a pre-tokenizer, and one for SentencePiece, each with the tokenizer that it was written from."""
    folder, found = tmp_path_factory.mktemp("gguf"), {}
    for name in ("gpt-2", "smollm", "qwen2", "llama-bpe", "tekken"):
        tokenizer = _cut_by(*PRE_TOKENIZERS[name])
        found[name] = (_write(folder / f"{name}.gguf", tokenizer, "gpt2", pre=name), tokenizer)
    tokenizer = tiny_tokenizers.sentencepiece()
    found["llama"] = (_write(folder / "llama.gguf", tokenizer, "llama"), tokenizer)
    return found


@settings(max_examples=60, deadline=None)
@given(text=TEXTS)
def test_ids_are_those_of_the_tokenizer_it_was_made_of(files: dict[str, tuple[GgufFile, Tokenizer]], text: str) -> None:
    """Tables of a GGUF file make the ids that the tokenizer makes which they were taken from."""
    for name, (file, original) in files.items():
        own = Tokenizer.from_str(tokenizer_json(file).decode())
        assert own.encode(text, add_special_tokens=False).ids == original.encode(text, add_special_tokens=False).ids, (
            name
        )


def test_names_ends_and_template_are_read(tmp_path: Path) -> None:
    """Special tokens have their names, every end token counts, and the begin token is put in front if it says so."""
    tokenizer = tiny_tokenizers.byte_level()
    start, end, begin, close = (tokenizer.token_to_id(text) for text in tiny_tokenizers.SPECIAL)
    more = {
        "ggml.pre": "gpt-2",
        "ggml.bos_token_id": begin,
        "ggml.eos_token_id": close,
        "ggml.eot_token_id": end,
        "ggml.add_bos_token": True,
        "chat_template": "{{ messages[0].content }}",
    }
    path = write_gguf(tmp_path / "m.gguf", tiny_decoder(), "llama", tokenizer=tables_of(tokenizer, "gpt2", **more))
    file = GgufFile(path)
    own = OwnTokenizer(tokenizer_json(file), tokenizer_settings(file), end_ids(file), chat_template(file))
    assert own.special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}
    assert own.eos_ids == {end, close}
    assert own.chat_template == "{{ messages[0].content }}"
    assert own.prefix_ids.tolist() == [begin]
    assert own.encode_control("<|im_start|>").tolist() == [start]
    assert start not in own.encode("<|im_start|>").tolist()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"ggml.pre": "made-up"}, "tokenizer.ggml.pre is 'made-up', which is not known"),
        ({"ggml.model": "bert"}, "tokenizer.ggml.model must be gpt2 or llama, got 'bert'"),
    ],
)
def test_a_tokenizer_that_is_not_known_is_an_error(more: dict[str, Any], words: str, tmp_path: Path) -> None:
    """Nothing is guessed: other ids than the model's own would make it stupid in silence."""
    tables = tables_of(tiny_tokenizers.byte_level(), "gpt2", **more)
    path = write_gguf(tmp_path / "m.gguf", tiny_decoder(), "llama", tokenizer=tables)
    with pytest.raises(ConfigError, match=words):
        tokenizer_json(GgufFile(path))


def _cut_by(*patterns: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=tiny_tokenizers.SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(tiny_tokenizers.TEXT, trainer)
    return tokenizer


def _write(path: Path, tokenizer: Tokenizer, kind: str, pre: str | None = None) -> GgufFile:
    more = {} if pre is None else {"ggml.pre": pre}
    return GgufFile(write_gguf(path, tiny_decoder(), "llama", tokenizer=tables_of(tokenizer, kind, **more)))


def _loaded(file: GgufFile) -> Decoder:
    decoder = Decoder(file.config())
    decoder.load_state_dict({name.removeprefix("model."): tensor for name, tensor in file.tensors()}, strict=False)
    return decoder.eval()


@torch.no_grad()
def _logits(decoder: Decoder, ids: torch.Tensor) -> torch.Tensor:
    rotation = Rotary(decoder.config).table(torch.arange(ids.shape[1])[None])
    return decoder.logits(decoder(decoder.embed(ids), FullAttention(rotation)))


def test_a_bundle_is_loaded_from_a_file_or_from_the_folder_that_holds_it(tmp_path: Path) -> None:
    """Weights, shape, tokenizer and name come from the file alone; two models in one folder are told apart by name."""
    tables = tables_of(tiny_tokenizers.byte_level(), "gpt2", **{"ggml.pre": "gpt-2"})
    decoder = tiny_decoder(vocab_size=420)
    path = write_gguf(tmp_path / "tiny.gguf", decoder, "llama", tokenizer=tables)
    for place, name in ((path, "tiny"), (tmp_path, tmp_path.name)):
        bundle = load_bundle(place)
        assert bundle.name == name
        assert torch.equal(bundle.decoder.embed_tokens.weight, decoder.embed_tokens.weight)
        assert bundle.tokenizer.decode(bundle.tokenizer.encode("the fox")) == "the fox"
    write_gguf(tmp_path / "other.gguf", decoder, "llama", tokenizer=tables)
    with pytest.raises(ConfigError, match=r"2 GGUF models; name one of other\.gguf, tiny\.gguf"):
        load_bundle(tmp_path)
