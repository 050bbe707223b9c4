"""Base models from Hugging Face folders: the same logits as transformers, or an error in words."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from mc_core.errors import ConfigError
from mc_core.models.attention import FullAttention
from mc_core.models.decoder import Decoder
from mc_core.models.decoder_config import DecoderConfig, RopeScaling
from mc_core.models.families import read_config, write_config
from mc_core.models.loading import INDEX, load_decoder, save_decoder, save_tensors
from mc_core.models.rotary import Rotary

transformers = pytest.importorskip("transformers")

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CASES = {
    "llama": ("Llama", {}),
    "llama tied, one kv head": ("Llama", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    "llama full heads": ("Llama", {"num_key_value_heads": 4}),
    "llama biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama wide heads": ("Llama", {"head_dim": 20}),
    "llama3 rope": ("Llama", {"rope_parameters": LLAMA3}),
    "llama linear rope": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0}},
    ),
    "qwen2": ("Qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "qwen2 tied": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "qwen3 biases": ("Qwen3", {"head_dim": 16, "attention_bias": True, "rms_norm_eps": 1e-5}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral window": ("Mistral", {"sliding_window": 128}),
    "nanochat": ("NanoChat", {"hidden_act": "relu2"}),
    "nanochat no softcap": ("NanoChat", {"final_logit_softcapping": None, "num_key_value_heads": 4}),
}


def oracle(kind: str, settings: dict):
    """A random transformers model whose biases and norm weights are random too."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**SHAPE, **settings})
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            wide = 0.3 if parameter.dim() > 1 else 0.2
            parameter.copy_(wide * torch.randn_like(parameter) + ("norm" in name))
    return model


def ids(count: int = 100) -> torch.Tensor:
    return torch.randint(0, 97, (2, count), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(decoder: Decoder, tokens: torch.Tensor) -> torch.Tensor:
    rotation = Rotary(decoder.config).table(torch.arange(tokens.shape[1]))
    return decoder.logits(decoder(decoder.embed(tokens), FullAttention(rotation)))


@torch.no_grad()
def assert_same_logits(decoder: Decoder, model) -> None:
    expected = model(ids()).logits
    assert expected.std() > 0.1, "the oracle must say something"
    assert (logits(decoder, ids()) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers(case, tmp_path):
    """Each family computes what transformers computes, to 1e-4 in float32."""
    model = oracle(*CASES[case])
    model.save_pretrained(tmp_path)
    assert_same_logits(load_decoder(tmp_path), model)


@pytest.mark.parametrize("case", CASES)
def test_transformers_loads_what_we_save(case, tmp_path):
    """save_decoder writes a folder from which transformers and we both get the same model again."""
    model = oracle(*CASES[case])
    model.save_pretrained(tmp_path / "theirs")
    decoder = load_decoder(tmp_path / "theirs")
    save_decoder(tmp_path / "ours", decoder, extra={"eos_token_id": 3})
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32).eval()
    assert type(again) is type(model)
    assert again.config.eos_token_id == 3
    assert_same_logits(decoder, again)
    reloaded = load_decoder(tmp_path / "ours")
    assert reloaded.config == decoder.config
    assert torch.equal(logits(reloaded, ids()), logits(decoder, ids()))


def test_old_rope_keys_and_shards(tmp_path):
    """Folders written by older tools (rope_theta, rope_scaling with ``type``; sharded weights) read the same."""
    model = oracle("Llama", {"rope_parameters": LLAMA3})
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    raw = json.loads((tmp_path / "config.json").read_text())
    del raw["rope_parameters"]
    old = {k: v for k, v in LLAMA3.items() if k not in ("rope_theta", "rope_type")}
    raw |= {"rope_theta": 500.0, "rope_scaling": {"type": "llama3", **old}}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert_same_logits(load_decoder(tmp_path), model)


def test_a_stale_index_beside_a_whole_file(tmp_path, caplog):
    """The whole file is read, and the log says so; an index alone whose shards are missing is told by their names."""
    model = oracle("Llama", {"rope_parameters": LLAMA3})
    model.save_pretrained(tmp_path)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}))
    assert_same_logits(load_decoder(tmp_path), model)
    assert INDEX in caplog.text
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"names model-00001-of-00002\.safetensors, missing"):
        load_decoder(tmp_path)


def own_config(**settings) -> DecoderConfig:
    shape = DecoderConfig("qwen3", 97, 48, 80, 2, 4, 2, 16, qk_norm="weighted", tie_word_embeddings=True)
    return replace(shape, **settings)


def test_own_base_keeps_its_settings_and_is_a_qwen3_to_others(tmp_path):
    """A base of our own round-trips block_mask and reads_gists, and transformers loads it as Qwen3."""
    torch.manual_seed(0)
    decoder = Decoder(own_config(block_mask=True, reads_gists=True)).eval()
    save_decoder(tmp_path, decoder)
    assert json.loads((tmp_path / "config.json").read_text())["megacontext"]["block_mask"] is True
    assert load_decoder(tmp_path).config == decoder.config
    assert_same_logits(decoder, transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval())


def test_weights_do_not_change_with_their_file(tmp_path):
    """A loaded model owns its weights: overwriting the file in place does not reach into it."""
    decoder = Decoder(own_config())
    save_decoder(tmp_path, decoder)
    loaded = load_decoder(tmp_path)
    before = loaded.embed_tokens.weight.clone()
    file = tmp_path / "model.safetensors"
    with file.open("r+b") as handle:
        size = file.stat().st_size
        handle.seek(size // 2)
        handle.write(bytes(size - size // 2))
    assert torch.equal(loaded.embed_tokens.weight, before)
    assert loaded.lm_head.weight is loaded.embed_tokens.weight


def test_dtype_on_load_and_save(tmp_path):
    """Weights take the asked dtype in memory and on disk."""
    save_decoder(tmp_path, Decoder(own_config()), dtype=torch.bfloat16)
    assert {t.dtype for t in load_file(tmp_path / "model.safetensors").values()} == {torch.bfloat16}
    assert load_decoder(tmp_path, torch.float16).dtype == torch.float16


def rewrite(path, change) -> None:
    weights = load_file(path / "model.safetensors")
    change(weights)
    save_file(weights, path / "model.safetensors", {"format": "pt"})


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.pop(NORM), f"{NORM} is missing"),
        (lambda w: w.update({"model.extra": torch.zeros(2)}), "model.extra is unexpected"),
        (lambda w: w.update({NORM: torch.ones(47)}), rf"{NORM} has shape \(47,\), the configuration says \(48,\)"),
        (lambda w: w.update({"lm_head.weight": torch.zeros(97, 48)}), "tie_word_embeddings is true, but lm_head"),
    ],
)
def test_wrong_tensors_are_named(tmp_path, change, words):
    """Missing, unexpected, mis-shaped and wrongly tied tensors are refused by name."""
    save_decoder(tmp_path, Decoder(own_config()))
    rewrite(tmp_path, change)
    with pytest.raises(ConfigError, match=words):
        load_decoder(tmp_path)


def test_redundant_tensors_of_old_checkpoints_are_fine(tmp_path):
    """A copy of the tied head and stored rotary frequencies change nothing."""
    decoder = Decoder(own_config())
    save_decoder(tmp_path, decoder)

    def change(weights):
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
        weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)

    rewrite(tmp_path, change)
    assert torch.equal(load_decoder(tmp_path).embed_tokens.weight, decoder.embed_tokens.weight)


def test_missing_and_broken_files_are_named(tmp_path):
    """An empty folder, broken JSON, pickled weights and a broken weight file each get their own words."""
    with pytest.raises(ConfigError, match=r"config\.json is missing"):
        load_decoder(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read as JSON"):
        load_decoder(tmp_path)
    save_decoder(tmp_path, Decoder(own_config()))
    (tmp_path / "model.safetensors").write_bytes(b"not a weight file")
    with pytest.raises(ConfigError, match="cannot be read as safetensors"):
        load_decoder(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="neither"):
        load_decoder(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../model.safetensors"}}')
    with pytest.raises(ConfigError, match="own folder"):
        load_decoder(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "gpt2"}, "model_type must be one of"),
        ({"vocab_size": None}, "vocab_size must be a whole number"),
        ({"hidden_act": "gelu"}, "hidden_act of a qwen3 base"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"num_experts": 8}, "num_experts"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope_type must be default, linear or llama3"),
        ({"rope_parameters": {"rope_type": "linear"}}, "rope_parameters.factor"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "by layer type"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"layer_types": ["linear_attention", "full_attention"]}, "layer_types"),
        ({"megacontext": {"block_masc": True}}, "block_masc"),
        ({"num_key_value_heads": 3}, "num_kv_heads"),
    ],
)
def test_unsupported_settings_are_refused_in_words(change, words):
    """What the decoder does not compute is an error that names the setting, never ignored."""
    with pytest.raises(ConfigError, match=words):
        read_config({**write_config(own_config()), **change})


@pytest.mark.parametrize(
    ("family", "change", "window"),
    [
        ("qwen2", {"sliding_window": 64}, None),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1}, 64),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 2}, None),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 64, "layer_types": ["full_attention"] * 2}, None),
        ("mistral", {"sliding_window": 64}, 64),
        ("mistral", {"sliding_window": None}, None),
        ("llama", {"sliding_window": 64}, None),
    ],
)
def test_sliding_windows_are_read_as_the_family_means_them(family, change, window):
    """The narrowest window of any layer is known, so that a budget beyond it can be refused."""
    shape = {"model_type": family, **SHAPE, "num_hidden_layers": 2, "head_dim": 16}
    assert read_config({**shape, **change}).sliding_window == window


def test_a_shape_that_the_family_cannot_express_is_not_saved():
    """Saving never drops a setting in silence."""
    llama = own_config(family="llama", rope_scaling=RopeScaling("linear", 2.0))
    with pytest.raises(ConfigError, match="qk_norm"):
        write_config(llama)
    assert read_config(write_config(replace(llama, qk_norm="none"))).rope_scaling == RopeScaling("linear", 2.0)


def test_views_are_saved_as_what_they_show(tmp_path):
    """A transposed, cut or stepped tensor is in the file as the numbers that it shows."""
    whole = torch.arange(24.0).reshape(4, 6)
    views = {"turned": whole.T, "cut": whole[:, 2:4], "stepped": whole[::2, ::3], "same": whole.expand(2, 4, 6)}
    save_tensors(tmp_path / "views.safetensors", views)
    for name, found in load_file(tmp_path / "views.safetensors").items():
        assert torch.equal(found, views[name]), name
