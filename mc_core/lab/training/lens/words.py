"""Word vectors in training: fitted to a teacher's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from mc_core.bundle.bundle import Bundle
from mc_core.lab.data.cache import Stream
from mc_core.lab.training.lens.lens_training import LensTrainConfig
from mc_core.lab.training.lens.teacher import load_teacher, word_vectors
from mc_core.lab.training.vocabulary import fit_vocabulary, token_counts
from mc_core.models.loading import save_tensors
from mc_core.nets.lens_keys import clean, whiten
from mc_core.nets.lens_words import WordNet

RARE_IN = 32.0
"""Tokens that a word's rarity counts in: log of how many blocks there are to one that holds it."""


@dataclass(frozen=True, eq=False)
class WordTargets:
    """What word vectors are fitted to: unit vectors [V, D], rarities [V]; often: how often each token is drawn [V]."""

    vectors: Tensor
    rarity: Tensor
    often: Tensor


def word_targets(teacher: Tensor, counts: Tensor, fold: Tensor, size: int) -> WordTargets:
    """teacher [V, E]: its vector of each token's text; counts [V] in the corpus; fold [V] as ``Words`` has it.

    The teacher's vectors lose the mean that all share, and keep their ``size`` main directions, as in model2vec
    (Tulkens & van Dongen 2024). A word is as rare as all of its spellings together.
    """
    word = fold >= 0
    of_word = torch.zeros(len(fold), dtype=torch.float64)
    of_word.index_add_(0, fold[word].long(), counts[word].double())
    share = torch.where(word, of_word[fold.clamp_min(0).long()], of_word.new_zeros(())) / counts.sum().clamp_min(1)
    common = share.clamp_max(1e-3) + 1e-9
    x = teacher.double() - (teacher.double() * common[:, None]).sum(0) / common.sum()
    directions = torch.linalg.eigh(x[word].T @ x[word])[1].flip(1)[:, :size]
    vectors = F.normalize(x @ directions, dim=-1).float()
    if vectors.shape[1] < size:
        vectors = F.pad(vectors, (0, size - vectors.shape[1]))
    rarity = torch.where(word, (1 / (share * RARE_IN + 1e-5)).log1p(), share.new_zeros(())).float()
    often = torch.where(word, (share + 1e-7).sqrt(), share.new_full((), 1e-5)).float()
    return WordTargets(vectors, rarity, often)


def fit_words(net: WordNet, embeddings: Tensor, targets: WordTargets, steps: int, generator: torch.Generator) -> float:
    """Fit ``net`` to the targets, from embeddings [V, d] that ``net.enter`` whitens and that stay so; the mean
    cosine of the last tenth of the steps."""
    with torch.no_grad():
        whitened = net.enter(clean(embeddings[None], None)[0])
    learned = [p for name, p in net.named_parameters() if not name.startswith("enter")]
    alike = list[float]()

    def loss_of(rows: Tensor) -> Tensor:
        rows = rows.to(embeddings.device)
        vectors, rarity = net.from_whitened(whitened[rows])
        cosine = (vectors * targets.vectors[rows]).sum(-1).mean()
        alike.append(float(cosine.detach()))
        return 1 - cosine + 0.02 * F.smooth_l1_loss(rarity, targets.rarity[rows])

    fit_vocabulary(learned, targets.often, steps, generator, loss_of)
    last = alike[-max(1, steps // 10) :]
    return sum(last) / max(1, len(last))


def taught_words(
    net: WordNet, bundle: Bundle, tokenizer: Tokenizer, streams: Sequence[Stream], config: LensTrainConfig
) -> None:
    """Give ``net`` the weights that fit the teacher's vectors; they are made once in a run, and change no more.

    streams: of the corpus, in which words are counted.
    """
    path = config.out / "words.safetensors"
    if not path.exists():
        size = tokenizer.get_vocab_size()
        embeddings = bundle.embed(torch.arange(size, device=config.device))
        counts = token_counts(streams, size)
        fold = torch.from_numpy(bundle.words.fold[:size])
        targets = word_targets(word_vectors(load_teacher(), tokenizer).float(), counts, fold, config.net.words)
        generator = torch.Generator().manual_seed(config.seed)
        whiten(net.enter, embeddings, generator)
        fit_words(net, embeddings, targets, config.fit_steps, generator)
        save_tensors(path, net.state_dict())
    net.load_state_dict(load_file(path))
    net.requires_grad_(False)
