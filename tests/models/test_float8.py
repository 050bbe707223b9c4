"""Half-size and FP8 weights: what is served are the numbers that the files stand for."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from gguf_writer import tiny_decoder
from mc_core.errors import ConfigError
from mc_core.models.loading import INDEX, WEIGHTS, load_decoder, save_decoder, write_json

DEEPSEEK = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [32, 16]}
FP8 = {"type": "float", "num_bits": 8}
ROWS = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": {**FP8, "strategy": "channel"}}},
}
BLOCKS = {
    "quant_method": "compressed-tensors",
    "config_groups": {"group_0": {"weights": {**FP8, "strategy": "block", "block_structure": [32, 16]}}},
}
LAYOUTS = {
    "deepseek": (DEEPSEEK, "weight_scale_inv", (32, 16)),
    "llm-compressor, a row": (ROWS, "weight_scale", (1, None)),
    "llm-compressor, a tensor": (ROWS, "weight_scale", (None, None)),
    "llm-compressor, a block": (BLOCKS, "weight_scale", (32, 16)),
}


def write_fp8(folder, settings, scale_name, block, *, shards=False):
    """A tiny model's folder with its layers' matrices in FP8 -> the numbers that they stand for, in float32."""
    save_decoder(folder, tiny_decoder())
    tensors = load_file(folder / WEIGHTS)
    expected, stored, scales = {}, {}, {}
    for name, weight in tensors.items():
        if weight.dim() != 2 or ".layers." not in name:
            stored[name] = expected[name] = weight
            continue
        stored[name], scale = quantised(weight, block)
        scales[name.removesuffix("weight") + scale_name] = scale
        scales[name.removesuffix("weight") + "input_scale"] = torch.tensor(0.5)
        expected[name] = by_hand(stored[name], scale, block)
    raw = json.loads((folder / "config.json").read_text()) | {"quantization_config": settings}
    write_json(folder / "config.json", raw)
    if shards:
        (folder / WEIGHTS).unlink()
        save_file(stored, folder / "a.safetensors")
        save_file(scales, folder / "b.safetensors")
        write_json(folder / INDEX, {"weight_map": {**dict.fromkeys(stored, "a.safetensors"), "s": "b.safetensors"}})
    else:
        save_file(stored | scales, folder / WEIGHTS)
    return expected


def sizes(weight, block):
    return [size or whole for size, whole in zip(block, weight.shape, strict=True)]


def quantised(weight, block):
    rows, columns = sizes(weight, block)
    grid = [[part.abs().max() / 448 for part in row.split(columns, 1)] for row in weight.split(rows, 0)]
    scale = torch.tensor(grid)
    return (weight / by_hand(torch.ones_like(weight), scale, block)).to(torch.float8_e4m3fn), scale


def by_hand(weight, scale, block):
    """Number by number."""
    rows, columns = sizes(weight, block)
    values = weight.float().numpy()
    told = [[v * scale[r // rows, c // columns].item() for c, v in enumerate(row)] for r, row in enumerate(values)]
    return torch.from_numpy(np.array(told, np.float32))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shards", [False, True])
def test_fp8_weights_are_their_values_times_their_scales(tmp_path, layout, shards):
    """Law: each number of an FP8 matrix is multiplied by the scale of its block, row or tensor, wherever that is."""
    expected = write_fp8(tmp_path, *LAYOUTS[layout], shards=shards)
    decoder = load_decoder(tmp_path)
    for name, weight in decoder.state_dict().items():
        on_disk = name if name.startswith("lm_head") else f"model.{name}"
        torch.testing.assert_close(weight, expected[on_disk], rtol=1e-6, atol=0)


def test_transformers_dequantises_the_same(tmp_path):
    """Law: of a folder as DeepSeek and Qwen3 publish them, transformers makes the same weights."""
    transformers = pytest.importorskip("transformers")
    write_fp8(tmp_path, *LAYOUTS["deepseek"])
    how = transformers.FineGrainedFP8Config(weight_block_size=(32, 16), dequantize=True)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=how, dtype=torch.float32)
    known = theirs.model.state_dict()
    for name, weight in load_decoder(tmp_path).state_dict().items():
        if not name.startswith("lm_head"):
            torch.testing.assert_close(weight, known[name].float(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_size_weights_are_the_same_numbers(tmp_path, dtype):
    """Law: a float16 or bfloat16 folder loads to those very numbers, in float32 and in its own type."""
    decoder = tiny_decoder()
    save_decoder(tmp_path, decoder, dtype=dtype)
    for wanted in (torch.float32, dtype):
        for name, weight in load_decoder(tmp_path, wanted).state_dict().items():
            assert torch.equal(weight, decoder.state_dict()[name].to(dtype).to(wanted))


def test_what_does_not_fit_is_named(tmp_path):
    """Law: a scale too few, too many or of another shape is an error with the tensor's name; so are other methods."""
    write_fp8(tmp_path, *LAYOUTS["deepseek"])
    tensors = load_file(tmp_path / WEIGHTS)
    name = next(name for name in tensors if name.endswith("weight_scale_inv"))
    weight = name.replace("_scale_inv", "")
    for change, told in (
        ({name: None}, "neither weight_scale_inv nor weight_scale"),
        ({weight: tensors[weight].to(torch.bfloat16)}, "bfloat16 with a scale"),
        ({name: torch.ones(3, 5)}, r"scale of \(3, 5\)"),
    ):
        save_file({k: t for k, t in {**tensors, **change}.items() if t is not None}, tmp_path / WEIGHTS)
        with pytest.raises(ConfigError, match=rf"{weight}.*{told}"):
            load_decoder(tmp_path)
    for method in ({"quant_method": "gptq", "bits": 4}, {**ROWS, "config_groups": {"g": {"weights": {"type": "int"}}}}):
        raw = json.loads((tmp_path / "config.json").read_text()) | {"quantization_config": method}
        write_json(tmp_path / "config.json", raw)
        with pytest.raises(ConfigError, match="quantization_config"):
            load_decoder(tmp_path)
