"""Bundles: a folder's parts fit each other or are refused, and untrained networks are never trusted."""

import json
from dataclasses import asdict, replace

import pytest
import torch

import tiny_tokenizers
from gguf_writer import tables_of, tiny_decoder, write_gguf
from mc_core.bundle.base_file import BaseFile
from mc_core.bundle.bundle import (
    lensnet_arguments,
    load_bundle,
    make_gistnet,
    make_lensnet,
    networks_for,
    save_networks,
)
from mc_core.bundle.manifest import Manifest, current_versions
from mc_core.errors import ConfigError
from mc_core.models.decoder import Decoder
from mc_core.models.decoder_config import DecoderConfig
from mc_core.models.loading import save_decoder
from tiny_tokenizers import write

DIM, K = 32, 16
SHAPE = DecoderConfig("qwen3", 512, DIM, 64, 1, 4, 2, 8, qk_norm="weighted", tie_word_embeddings=True)
GIST = {"kind": "transformer", "layers": 2, "heads": 4, "pooling": "query", "head": "mlp"}
LENS = {"kind": "cross", "width": 32, "heads": 4, "layers": 2, "keys": 2, "key_dim": 16}
WORDS = {"kind": "cross", "width": 32, "heads": 4, "layers": 1, "keys": 0, "words": 8, "word_hidden": 16}
PASSED = {"gistnet": {"passed": True, "dnll": 0.02}, "lensnet": {"passed": True}}


def folder_of(path, config=SHAPE):
    torch.manual_seed(0)
    save_decoder(path, Decoder(config))
    return write(path, "byte_level")


def trained(path, **settings):
    """A folder with both networks, shaken so that they are not what they were made as."""
    folder_of(path, replace(SHAPE, block_mask=True, reads_gists=True))
    gistnet, lensnet = make_gistnet(DIM, K, GIST), make_lensnet(DIM, LENS)
    with torch.no_grad():
        for parameter in [*gistnet.parameters(), *lensnet.parameters()]:
            parameter.add_(0.1 * torch.randn_like(parameter))
    fields = {"block_size": K, "gistnet": GIST, "lensnet": lensnet_arguments(lensnet), "evaluation": PASSED}
    manifest = Manifest(**{**fields, "versions": current_versions(), **settings})
    save_networks(path, manifest, gistnet, lensnet)
    return gistnet, lensnet


def test_a_plain_folder_is_a_bundle_that_invents_nothing(tmp_path):
    """Without bundle.json: mean gists that stay hidden, lexical focus, compact positions, incremental repair."""
    bundle = load_bundle(folder_of(tmp_path / "plain"))
    assert (bundle.hidden_gists, bundle.lens, bundle.positions) == (True, "lexical", "compact")
    assert (bundle.repair, bundle.block_size, bundle.lensnet) == ("incremental", 32, None)
    assert bundle.name == "plain"
    blocks = torch.randn(3, 32, DIM)
    mask = torch.arange(32)[None] < torch.tensor([[32], [5], [1]])
    expected = (blocks * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    assert torch.allclose(bundle.gistnet(blocks, mask), expected, atol=1e-5)
    assert load_bundle(tmp_path / "plain", block_size=64).block_size == 64


def test_our_own_base_repairs_by_block(tmp_path):
    """A base trained with the block mask is repaired block by block by default."""
    assert load_bundle(folder_of(tmp_path, replace(SHAPE, block_mask=True))).repair == "block"


def test_networks_come_back_as_they_were_saved(tmp_path):
    """GistNet and LensNet survive a save and a load, and are used because their evaluation passed."""
    gistnet, lensnet = trained(tmp_path)
    bundle = load_bundle(tmp_path)
    assert (bundle.hidden_gists, bundle.lens, bundle.repair, bundle.block_size) == (False, "hybrid", "block", K)
    for saved, loaded in ((gistnet, bundle.gistnet), (lensnet, bundle.lensnet)):
        assert loaded.state_dict().keys() == saved.state_dict().keys()
        assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in saved.state_dict().items())
        assert not loaded.training
    assert bundle.manifest.evaluation["gistnet"]["dnll"] == 0.02
    assert set(bundle.manifest.versions) == {"megacontext", "torch", "python"}


@pytest.mark.parametrize("evaluation", [{}, {"gistnet": {"passed": False}, "lensnet": {"dnll": 1.0}}])
def test_networks_that_did_not_pass_are_not_used_by_default(tmp_path, evaluation):
    """A network without a passed evaluation neither shows gists nor steers focus unless it is asked to."""
    trained(tmp_path, evaluation=evaluation)
    bundle = load_bundle(tmp_path)
    assert bundle.hidden_gists
    assert bundle.lens == "lexical"
    assert bundle.lensnet is not None


def test_the_manifest_may_choose(tmp_path):
    """Settings of bundle.json go before the defaults."""
    trained(tmp_path, lens="recency", positions="gaussian", repair="exact", sigma_scale=0.5, name="named")
    bundle = load_bundle(tmp_path)
    assert (bundle.lens, bundle.positions, bundle.repair) == ("recency", "gaussian", "exact")
    assert (bundle.sigma_scale, bundle.name) == (0.5, "named")


def test_networks_read_embeddings_of_a_narrow_base(tmp_path):
    """With a bfloat16 base the networks still compute in float32 on what embed returns."""
    trained(tmp_path)
    bundle = load_bundle(tmp_path, dtype=torch.bfloat16)
    assert bundle.decoder.dtype == torch.bfloat16
    vectors = bundle.embed(torch.arange(2 * K).reshape(2, K))
    gists = bundle.gistnet(vectors, torch.ones(2, K, dtype=torch.bool))
    assert gists.dtype == torch.float32
    assert gists.isfinite().all()


def test_gist_fingerprint_tells_networks_apart(tmp_path):
    """Stored gists can be shared between equal bundles and no others."""
    trained(tmp_path / "a")
    first = load_bundle(tmp_path / "a").gist_fingerprint
    assert load_bundle(tmp_path / "a").gist_fingerprint == first
    assert load_bundle(folder_of(tmp_path / "b")).gist_fingerprint != first


def test_key_fingerprint_tells_lensnets_apart(tmp_path):
    """Stored lens keys are of one key network over one base's embeddings; how the lens asks changes nothing of them."""
    first, second = (trained(tmp_path / name)[1] for name in "ab")
    loaded = [load_bundle(tmp_path / name) for name in "ab"]
    assert loaded[0].key_fingerprint == load_bundle(tmp_path / "a").key_fingerprint
    assert loaded[0].key_fingerprint != loaded[0].gist_fingerprint
    second.load_state_dict(first.state_dict())
    torch.nn.init.zeros_(second.query_net.salience.weight)
    save_networks(tmp_path / "b", loaded[1].manifest, loaded[1].gistnet, second)
    assert load_bundle(tmp_path / "b").key_fingerprint == loaded[0].key_fingerprint
    torch.nn.init.zeros_(second.key_net.project.weight)
    save_networks(tmp_path / "b", loaded[1].manifest, loaded[1].gistnet, second)
    assert load_bundle(tmp_path / "b").key_fingerprint != loaded[0].key_fingerprint
    assert load_bundle(folder_of(tmp_path / "c")).key_fingerprint is None


def change_manifest(path, **settings):
    raw = json.loads((path / "bundle.json").read_text())
    (path / "bundle.json").write_text(json.dumps({**raw, **settings}))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"format": 2}, "format of bundle.json"),
        ({"lenz": "hybrid"}, "lenz"),
        ({"lens": "bm25"}, "lens in bundle.json"),
        ({"block_size": 48}, "block_size in bundle.json"),
        ({"positions": "alibi"}, "positions in bundle.json"),
        ({"repair": "none"}, "repair in bundle.json"),
        ({"gistnet": {"kind": "transformer", "depth": 2}}, "GistNet has not"),
        ({"lensnet": {"kind": "cross", "depth": 2}}, "LensNet has not"),
        ({"gistnet": {**GIST, "layers": 4}}, r"gistnet\.safetensors does not fit"),
        ({"evaluation": []}, "evaluation in bundle.json"),
        ({"lens": "hybrid", "lensnet": None}, "needs a lensnet"),
    ],
)
def test_wrong_manifests_are_refused_in_words(tmp_path, settings, words):
    """bundle.json that does not fit its networks or this version is refused by field."""
    trained(tmp_path)
    change_manifest(tmp_path, **settings)
    with pytest.raises(ConfigError, match=words):
        load_bundle(tmp_path)


def test_parts_that_do_not_fit_are_refused(tmp_path):
    """Missing weights, another block size, a tokenizer larger than the model, and no folder at all."""
    trained(tmp_path / "a")
    with pytest.raises(ConfigError, match="block_size must be 16"):
        load_bundle(tmp_path / "a", block_size=32)
    (tmp_path / "a" / "lensnet.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"lensnet\.safetensors is missing"):
        load_bundle(tmp_path / "a")
    with pytest.raises(ConfigError, match=r"vocab_size in config\.json is 64"):
        load_bundle(folder_of(tmp_path / "b", replace(SHAPE, vocab_size=64)))
    with pytest.raises(ConfigError, match="model must be a folder"):
        load_bundle(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="lensnet must be given"):
        save_networks(tmp_path / "a", Manifest(lensnet=LENS))


def shipped(path, file, **settings):
    """Networks in a folder of their own for a model file."""
    lensnet = make_lensnet(64, WORDS)
    base = {**asdict(BaseFile.of(file, "a-package")), **settings}
    fields = {"lensnet": lensnet_arguments(lensnet), "evaluation": PASSED, "base": base}
    path.mkdir()
    save_networks(path, Manifest(**fields), None, lensnet)
    return path


@pytest.fixture
def model_file(tmp_path):
    tables = tables_of(tiny_tokenizers.byte_level(), "gpt2", **{"ggml.pre": "gpt-2"})
    return write_gguf(tmp_path / "tiny.gguf", tiny_decoder(vocab_size=420), "llama", tokenizer=tables)


def test_networks_find_the_file_that_they_are_for(tmp_path, model_file, monkeypatch):
    """Given the file, beside the networks, or among fetched models: the base is the one whose digest they name."""
    nets = shipped(tmp_path / "nets", model_file)
    with pytest.raises(ConfigError, match=r"networks for tiny\.gguf \(package a-package; megacontext model fetch\)"):
        load_bundle(nets)
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "tiny.gguf").write_bytes(model_file.read_bytes())
    monkeypatch.setenv("MEGACONTEXT_MODEL_CACHE", str(cache))
    for bundle in (load_bundle(nets), load_bundle(model_file, networks=nets)):
        assert (bundle.name, bundle.lens, bundle.key_fingerprint) == ("tiny", "hybrid", None)
        assert bundle.lensnet.word_net.table.shape == (420, 9)
    assert networks_for(model_file, [tmp_path / "none", nets]) == nets


def test_networks_are_not_used_for_another_file(tmp_path, model_file):
    """A file of another digest, or size, gets no networks, and an error that names both if they are asked for."""
    nets = shipped(tmp_path / "nets", model_file)
    data = bytearray(model_file.read_bytes())
    data[-1] ^= 1
    for changed in (bytes(data), bytes(data) + b"\0"):
        model_file.write_bytes(changed)
        assert networks_for(model_file, [nets]) is None
        with pytest.raises(ConfigError, match=r"are for tiny\.gguf, SHA-256 \w+, and .* is not it"):
            load_bundle(model_file, networks=nets)
    assert networks_for(tmp_path, [nets]) is None
    for wrong in ({"sha256": 3}, {"file": "../tiny.gguf"}, {"colour": "red"}):
        with pytest.raises(ConfigError, match=r"base.* in bundle\.json must"):
            Manifest(base={**asdict(BaseFile.of(model_file)), **wrong})
