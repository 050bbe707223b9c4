"""A bundle: one folder with a base model, the networks trained for it, and how they want to be run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mc_core.bundle.manifest import Manifest
from mc_core.context.reading_format import ReadingFormat
from mc_core.errors import ConfigError
from mc_core.kv.layout import SEGMENT_BLOCKS
from mc_core.models.decoder import Decoder
from mc_core.models.generation import sampling_defaults
from mc_core.models.gguf_file import GgufFile
from mc_core.models.gguf_tokenizer import load_tokenizer
from mc_core.models.loading import HuggingFaceFolder, decoder_of, find_gguf, read_json, save_tensors, write_json
from mc_core.models.low_rank import Adapted
from mc_core.models.sampling_params import SamplingParams
from mc_core.models.tokenizer import Tokenizer
from mc_core.models.words import Words
from mc_core.nets.encoder_gistnet import EncoderGistNet
from mc_core.nets.excerpt_gistnet import ExcerptGistNet
from mc_core.nets.gist_maker import GistMaker
from mc_core.nets.gistnet import GistNet
from mc_core.nets.lensnet import LensNet, LensNetConfig

NARROW = {"narrow": 0.4, "hops": 0, "recent_tokens": 32, "best_last": True}
"""Of ``FocusConfig``, for a small base that was not trained to look past what it doesn't need. Measured on the tuning
statements (docs/reading.md): what stands beside the place that answers costs a small model answers, and what it reads
last before the question it tells best. Leads are not followed, for what they name stands beside the answer too."""
SMALL = 1_000_000_000
"""Weights below which a base is small. Measured is 135 million alone; from a billion on, models are known to read past
other places, and to miss the conversation more than they gain."""
GISTNET, LENSNET, MANIFEST = "gistnet.safetensors", "lensnet.safetensors", "bundle.json"
ADAPTERS = "adapters.safetensors"
SHOWN = ("encoder", "excerpt")
"""Kinds of GistNet whose gists are made only where the model is shown them."""


@dataclass(frozen=True, eq=False)
class Bundle:
    """Everything that sessions of one model share; loaded once, never changed.

    The decoder has the asked dtype; the networks compute in float32, so give them what ``embed`` returns.
    hidden_gists: no GistNet that passed its evaluation is there, so gists must not be shown to the model.
    lens, positions, repair: the bundle's own choices. words: of the decoder's vocabulary. gist_fingerprint,
    key_fingerprint: equal for bundles whose stored gists, or lens keys (None: no LensNet), can be shared.
    sampling: as the model's makers want tokens drawn. frames: how places that stand apart are put to the model; None
    shows them as they are, as a base that was trained with that wants it.
    """

    name: str
    decoder: Decoder
    tokenizer: Tokenizer
    gistnet: GistMaker
    lensnet: LensNet | None
    manifest: Manifest
    block_size: int
    hidden_gists: bool
    lens: str
    positions: str
    repair: str
    sigma_scale: float
    words: Words
    gist_fingerprint: str
    key_fingerprint: str | None
    sampling: SamplingParams
    frames: ReadingFormat | None = None

    def embed(self, ids: Tensor) -> Tensor:
        """ids [...] -> input embeddings [..., hidden_size] in float32, as the networks want them."""
        return self.decoder.embed(ids).float()

    @property
    def device(self) -> torch.device:
        return self.decoder.device

    @property
    def segment_blocks(self) -> int | None:
        """Of the block mask that the base is served with unless settings say otherwise, None = the full mask."""
        return SEGMENT_BLOCKS if self.repair == "block" else None

    @property
    def takes_frames(self) -> bool:
        """Whether frames can stand between opened places, as the bundle is run by its own choices."""
        return self.repair != "block" and self.positions == "compact" and self.hidden_gists

    @property
    def focus(self) -> dict[str, Any]:
        """Defaults of ``FocusConfig``: a small base that was not trained to look past what it needs is shown little."""
        narrow = self.takes_frames and self.decoder.config.num_weights < SMALL
        return {**(NARROW if narrow else {}), **self.manifest.focus}

    @property
    def gist_cost(self) -> int:
        """Of a gist in the budget: its vectors, and nothing where the model is not shown any."""
        return 0 if self.hidden_gists else self.gistnet.vectors


def load_bundle(
    path: Path | str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    block_size: int | None = None,
    networks: Path | None = None,
    gists: bool | None = None,
) -> Bundle:
    """Load a bundle, or what is one without ``bundle.json``: a plain Hugging Face folder, or a GGUF file.

    block_size: None takes the bundle's (32 without one). networks: a folder with ``bundle.json`` and networks for the
    model file ``path``; such a folder is a path too, if the file that it names can be found. gists: whether they are
    shown to the model, which then has the bundle's adapters; None: if the GistNet has passed. Hidden ones of kinds that
    serve the model alone (``SHOWN``) are not made: their bundle has the plain mean. ConfigError if the parts do not fit
    each other, or ``block_size`` is not the one that the networks were trained for.
    """
    given = Path(path)
    if find_gguf(given) is None and not given.is_dir():
        raise ConfigError(f"model must be a folder or a GGUF file, and {given} is neither")
    folder = networks or given
    manifest = Manifest.from_json(read_json(folder / MANIFEST)) if (folder / MANIFEST).exists() else Manifest()
    file = _base_file(given, folder, manifest)
    named = given if file is None or find_gguf(given) is not None else file
    size = _block_size(manifest, block_size)
    base = HuggingFaceFolder(given) if file is None else GgufFile(file)
    tokenizer = load_tokenizer(base) if isinstance(base, GgufFile) else Tokenizer.load(given)
    shown = manifest.passed("gistnet") if gists is None else gists
    updates = read_tensors(folder / ADAPTERS) if shown and manifest.adapters is not None else {}
    decoder = decoder_of(Adapted(base, updates) if updates else base, dtype, device)
    tokenizer.fit(decoder.config.vocab_size)
    # An ingest would run a part of the base, or an MLP, for what nobody sees.
    arguments = None if not shown and _kind(manifest.gistnet) in SHOWN else manifest.gistnet
    gistnet = make_gistnet(decoder.config.hidden_size, size, arguments, decoder)
    if arguments is not None:
        _load_weights(gistnet, folder / GISTNET)
    lensnet = None
    if manifest.lensnet is not None:
        lensnet = make_lensnet(decoder.config.hidden_size, manifest.lensnet)
        _load_weights(lensnet, folder / LENSNET)
        lensnet = lensnet.to(device)
        if lensnet.word_net is not None:
            word = torch.from_numpy(tokenizer.words(decoder.config.vocab_size).fold >= 0)
            lensnet.word_net.learn_vocabulary(decoder.embed_tokens.weight.detach(), word.to(device))
    return Bundle(
        name=manifest.name or named.resolve().name.removesuffix(".gguf"),
        decoder=decoder,
        tokenizer=tokenizer,
        gistnet=gistnet.to(device).eval(),
        lensnet=lensnet,
        manifest=manifest,
        block_size=size,
        hidden_gists=not shown,
        lens=manifest.default_lens(),
        positions=manifest.default_positions(),
        repair=manifest.default_repair(decoder.config),
        sigma_scale=manifest.sigma_scale,
        words=tokenizer.words(decoder.config.vocab_size),
        gist_fingerprint=_fingerprint(decoder, gistnet if arguments is not None else None, updates),
        key_fingerprint=_fingerprint(decoder, lensnet.key_net) if lensnet and lensnet.key_net else None,
        sampling=sampling_defaults(folder) if folder.is_dir() else SamplingParams(),
    )


def tokenizer_at(path: Path | str) -> Tokenizer:
    """The tokenizer and chat template of what ``load_bundle`` takes, without its weights. ConfigError likewise."""
    given = Path(path)
    manifest = Manifest.from_json(read_json(given / MANIFEST)) if (given / MANIFEST).exists() else Manifest()
    file = _base_file(given, given, manifest)
    return Tokenizer.load(given) if file is None else load_tokenizer(GgufFile(file))


def save_networks(
    path: Path | str,
    manifest: Manifest,
    gistnet: GistMaker | None = None,
    lensnet: LensNet | None = None,
    adapters: Mapping[str, Tensor] | None = None,
) -> None:
    """Add networks and ``bundle.json`` to a folder that holds the base model and its tokenizer already.

    The manifest's ``gistnet`` and ``lensnet`` must be the arguments that the networks were made with; what it does
    not list is not written (ConfigError if the two disagree). adapters: as ``LowRank.updates`` names them.
    """
    folder = Path(path)
    for name, network in (("gistnet", gistnet), ("lensnet", lensnet), ("adapters", adapters)):
        if (getattr(manifest, name) is None) != (network is None):
            raise ConfigError(f"{name} must be given if and only if the manifest describes it")
    if gistnet is not None:
        save_tensors(folder / GISTNET, gistnet.state_dict())
    if lensnet is not None:
        save_tensors(folder / LENSNET, lensnet.state_dict())
    if adapters is not None:
        save_tensors(folder / ADAPTERS, adapters)
    # Last, so that a folder cut short by a crash is not a bundle yet.
    write_json(folder / MANIFEST, manifest.to_json())


def make_gistnet(
    dim: int, block_size: int, arguments: Mapping[str, Any] | None, base: Decoder | None = None
) -> GistMaker:
    """A GistNet from its arguments in a manifest; None is the plain mean. base: read by one of kind ``encoder``.
    ConfigError for arguments it has not."""
    given = {**(arguments or {"kind": "mean"})}
    others = {name: value for name, value in given.items() if name != "kind"}
    try:
        if base is not None and _kind(given) == "encoder":
            return EncoderGistNet(base, block_size, **others)
        if _kind(given) == "excerpt":
            return ExcerptGistNet(dim, block_size, **others)
        return GistNet(dim, block_size, **given)
    except TypeError as error:
        raise ConfigError(f"gistnet in bundle.json has arguments that GistNet has not: {error}") from error


def _kind(arguments: Mapping[str, Any] | None) -> str | None:
    return None if arguments is None else arguments.get("kind")


def make_lensnet(dim: int, arguments: Mapping[str, Any]) -> LensNet:
    """A LensNet from its arguments in a manifest. ConfigError for arguments it has not."""
    try:
        return LensNet(LensNetConfig(**{"dim": dim, **arguments})).eval()
    except TypeError as error:
        raise ConfigError(f"lensnet in bundle.json has arguments that LensNet has not: {error}") from error


def lensnet_arguments(net: LensNet) -> dict[str, Any]:
    """What a manifest has to say of a LensNet."""
    return asdict(net.config)


def networks_for(model: Path, folders: Iterable[Path]) -> Path | None:
    """The first of the folders that holds networks for just this model file; None without one, or for no file."""
    file = find_gguf(model)
    for folder in folders if file is not None else ():
        if (folder / MANIFEST).exists():
            base = Manifest.from_json(read_json(folder / MANIFEST)).base_file
            if file is not None and base is not None and base.is_at(file):
                return folder
    return None


def _base_file(given: Path, folder: Path, manifest: Manifest) -> Path | None:
    """The GGUF file to read the base from, None where a folder holds it. ConfigError if it is not the networks' own."""
    base, file = manifest.base_file, find_gguf(given)
    if base is None:
        return file
    if given == folder:
        return base.find(folder)
    if file is None or not base.is_at(file):
        raise ConfigError(f"the networks in {folder} are for {base.file}, SHA-256 {base.sha256}, and {given} is not it")
    return file


def _block_size(manifest: Manifest, wanted: int | None) -> int:
    trained = manifest.gistnet is not None or manifest.lensnet is not None
    if wanted is not None and trained and wanted != manifest.block_size:
        raise ConfigError(f"block_size must be {manifest.block_size}, as the networks were trained, got {wanted}")
    return wanted or manifest.block_size


def read_tensors(path: Path) -> dict[str, Tensor]:
    """What a bundle's file holds, in float32; ConfigError if it is missing or damaged."""
    try:
        # A copy, because a loaded tensor may still be the mapped file.
        return {name: tensor.float().clone() for name, tensor in load_file(path).items()}
    except FileNotFoundError:
        raise ConfigError(f"{path.name} is missing in {path.parent}, but {MANIFEST} describes it") from None
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path} cannot be read as safetensors: {error}") from error


def _load_weights(network: nn.Module, path: Path) -> None:
    try:
        network.load_state_dict(read_tensors(path))
    except RuntimeError as error:
        raise ConfigError(f"{path} does not fit {MANIFEST}: {error}") from error


def _fingerprint(decoder: Decoder, network: nn.Module | None, updates: Mapping[str, Tensor] | None = None) -> str:
    """Digest of what a network's vectors of blocks are made of: the base's embeddings and updates, its own weights.

    None is the GistNet that was not trained, a plain mean: its learned part is random and adds nothing.
    """
    digest = hashlib.sha256()
    own = network.state_dict() if network is not None else {}
    tensors = {"embed_tokens": decoder.embed_tokens.weight, **(updates or {}), **own}
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().to(torch.float32).cpu().contiguous().numpy())
    return digest.hexdigest()
