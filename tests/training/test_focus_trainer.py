"""Focus training runs: what learns, what stays, what a stop and a resume leave alike."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from gguf_writer import write_gguf
from mc_core.bundle.bundle import load_bundle
from mc_core.errors import ConfigError
from mc_core.focus.focus_config import FocusConfig
from mc_core.lab.controller import MCController
from mc_core.lab.training.base.base_config import BaseTrainConfig
from mc_core.lab.training.base.batches import Stage
from mc_core.lab.training.focus import rarity
from mc_core.lab.training.focus.contexts import ContextShape, sample_context
from mc_core.lab.training.focus.export import export_focus
from mc_core.lab.training.focus.focus_training import FocusStage, FocusTrainConfig, GistShape, LossWeights
from mc_core.lab.training.focus.passages import PassageMaker
from mc_core.lab.training.focus.summary import mc_summary
from mc_core.lab.training.focus.trainer import FocusTrainer, train_focus
from mc_core.lab.training.haystack import ANSWER_WEIGHT
from mc_core.lab.training.lens.lens_training import LensTrainConfig
from mc_core.lab.training.sample_maker import SampleMaker
from server.cli import app
from server.commands.lab.preset import load_preset, names, runs_of
from training_lab import Corpus

STAGES = (
    FocusStage(0.5, (200, 500), (400, 440), views=2, kinds={"lod1": 0.5, "mixed": 0.5}),
    FocusStage(
        0.5, (300, 2400), (400, 480), horizon=40, views=2, kinds={"coarse": 0.5, "mixed": 0.3, "full": 0.2}, memory=0.5
    ),
)


def settings(corpus: Corpus, model: Path, out: Path, **others: object) -> FocusTrainConfig:
    base = (Stage(1.0, 256, (96, 160), 0.3, 0.1, (1, 3), memory=0.4, tasks=("needle", "tracking")),)
    chosen = {
        "stages": STAGES,
        "base_stages": base,
        "steps": 6,
        "log_steps": 2,
        "batch_tokens": 512,
        "recent_tokens": 64,
        **others,
    }
    return FocusTrainConfig(data=corpus.data, model=model, out=out, **chosen)  # type: ignore[arg-type]


def run(config: FocusTrainConfig, stop: Event | None = None) -> FocusTrainer:
    return train_focus(config, lambda _: None, stop or Event())


def newest(out: Path) -> dict[str, torch.Tensor]:
    folder = max((out / "checkpoints").glob("step-*"))
    return load_file(folder / "tensors.safetensors")


@pytest.fixture(scope="module")
def joint_run(corpus: Corpus, model: Path, tmp_path_factory: pytest.TempPathFactory) -> FocusTrainer:
    """A finished joint run of two batches a step."""
    return run(settings(corpus, model, tmp_path_factory.mktemp("joint") / "run", mode="joint", accumulate=2))


def changed_in_base(trained: FocusTrainer) -> set[str]:
    """Parameters of the base that are no longer what the run began with."""
    before = load_bundle(trained.config.model).decoder.state_dict()
    after = trained.model.decoder.state_dict()
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_a_frozen_run_trains_the_gistnet_alone(corpus: Corpus, model: Path, tmp_path: Path) -> None:
    """GistNet changes, and is in the checkpoint; the base stays as it was, to the bit."""
    trained = run(settings(corpus, model, tmp_path / "run"))
    assert trained.finished
    assert float(trained.model.gistnet.scale.detach()) != 0
    assert torch.equal(newest(tmp_path / "run")["gistnet.scale"], trained.model.gistnet.scale.detach())
    assert not changed_in_base(trained)


def test_a_joint_run_trains_both(joint_run: FocusTrainer) -> None:
    """GistNet and every parameter of the base change, and are in the checkpoint."""
    saved = newest(joint_run.config.out)
    assert float(joint_run.model.gistnet.scale.detach()) != 0
    assert torch.equal(saved["gistnet.scale"], joint_run.model.gistnet.scale.detach())
    assert changed_in_base(joint_run) == set(joint_run.model.decoder.state_dict())
    for name, parameter in joint_run.model.decoder.named_parameters():
        assert torch.equal(saved[f"model.{name}"], parameter.detach()), name


def test_embeddings_that_stay(corpus: Corpus, model: Path, tmp_path: Path) -> None:
    """A joint run can leave the embeddings, which a LensNet reads, to the bit, while it trains all else."""
    trained = run(settings(corpus, model, tmp_path / "run", mode="joint", train_embeddings=False))
    names = set(trained.model.decoder.state_dict())
    assert names - changed_in_base(trained) == {n for n in names if "embed_tokens" in n or "lm_head" in n}


def test_a_resumed_run_ends_where_an_unbroken_one_does(joint_run: FocusTrainer, tmp_path: Path) -> None:
    """Stopping after any step and going on gives the same weights and optimizers, to the bit."""
    broken = dataclasses.replace(joint_run.config, out=tmp_path / "broken")
    stop = Event()

    def stop_soon(progress: object) -> None:
        stop.set()

    assert not train_focus(broken, stop_soon, stop).finished
    assert run(broken).finished
    whole, parts = newest(joint_run.config.out), newest(tmp_path / "broken")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_batches_made_ahead_are_the_same(joint_run: FocusTrainer, tmp_path: Path) -> None:
    """How many processes make the batches changes nothing of what is learned."""
    run(dataclasses.replace(joint_run.config, out=tmp_path / "ahead", workers=2))
    alone, ahead = newest(joint_run.config.out), newest(tmp_path / "ahead")
    assert all(torch.allclose(alone[name], ahead[name], atol=1e-6) for name in alone)


def test_a_run_goes_on_from_the_models_own_gistnet(corpus: Corpus, model: Path, tmp_path: Path) -> None:
    """A GistNet of the shape that is asked for is trained further; one of another shape begins anew."""
    trained = run(settings(corpus, model, tmp_path / "first"))
    first = settings(corpus, model, tmp_path / "first")
    export_focus(first, trained.model, tmp_path / "bundle", {})
    samples = SampleMaker(corpus.train, corpus.encoder)
    same = FocusTrainer(settings(corpus, tmp_path / "bundle", tmp_path / "second"), samples).model.gistnet
    other = FocusTrainer(
        settings(corpus, tmp_path / "bundle", tmp_path / "third", gist=GistShape(head="linear")), samples
    ).model.gistnet
    assert float(same.scale.detach()) == float(trained.model.gistnet.scale.detach()) != 0
    assert float(other.scale.detach()) == 0


def test_a_run_does_not_go_on_as_another_one(corpus: Corpus, model: Path, tmp_path: Path) -> None:
    """What the weights depend on cannot change when a run is resumed."""
    config = settings(corpus, model, tmp_path / "run", steps=2)
    run(config)
    with pytest.raises(ConfigError, match="mode"):
        run(dataclasses.replace(config, mode="joint"))


def test_gist_training_lowers_the_loss(corpus: Corpus, model: Path, tmp_path: Path) -> None:
    """Joint training on passages seen through gists makes the horizon easier to foretell."""
    config = settings(
        corpus, model, tmp_path / "run", mode="joint", steps=40, base_share=0.0, log_steps=10, warmup_steps=2
    )
    run(config)
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    horizon = [line["losses"]["horizon"] for line in log]
    assert horizon[-1] < horizon[0] - 0.3


def test_the_bundle_holds_what_was_trained(corpus: Corpus, model: Path, tmp_path: Path) -> None:
    """An exported bundle loads with its GistNet, hides gists until the gate is passed, and names its figures."""
    config = settings(
        corpus, model, tmp_path / "run", mode="joint", gist=GistShape("transformer", 2, 2, "cls", "linear")
    )
    trained = run(config)
    summary = mc_summary(config, trained.model, samples=2)
    export_focus(config, trained.model, tmp_path / "bundle", summary, torch.float32)
    bundle = load_bundle(tmp_path / "bundle")
    assert bundle.hidden_gists
    assert bundle.manifest.evaluation["gistnet"]["kept_lod1"] == summary["kept_lod1"]
    for name, tensor in trained.model.gistnet.state_dict().items():
        assert torch.equal(bundle.gistnet.state_dict()[name], tensor)
    for name, tensor in trained.model.decoder.state_dict().items():
        assert torch.equal(bundle.decoder.state_dict()[name], tensor)
    with pytest.raises(ConfigError, match="another folder"):
        export_focus(config, trained.model, model, {})


ENCODER = GistShape("encoder", layers=2, wide=32, vectors=4)
EXCERPT = GistShape("excerpt", wide=32, vectors=4)


@pytest.mark.parametrize("gist", [ENCODER, EXCERPT], ids=["encoder", "excerpt"])
def test_an_adapted_run_leaves_the_base_as_it_is(
    corpus: Corpus, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gist: GistShape
) -> None:
    """GistNet (but for excerpts, which are fitted before the first step) and low-rank updates learn and come out as two
    small files; the bundle's base is stock while gists are hidden, and what was trained where they are shown; a stop
    and a resume change nothing of it."""
    monkeypatch.setattr(rarity, "FIT_STEPS", 4)
    stages = (
        FocusStage(0.5, (200, 300), (400, 440), views=2, kinds={"lod1": 1.0}, rebuild=1.0),
        FocusStage(0.5, (300, 700), (400, 480), views=2, kinds={"lod1": 1.0}),
    )
    weights = LossWeights(token=0, kl=1, lod1=0, lod2=0, separation=0)
    chosen = {"mode": "adapted", "gist": gist, "rank": 4, "stages": stages, "weights": weights}
    config = settings(corpus, model, tmp_path / "run", **chosen)
    trained = run(config)
    low_rank = trained.model.low_rank
    assert low_rank is not None
    assert not changed_in_base(trained)
    assert all(up.detach().abs().sum() > 0 for up in low_rank.up)
    samples = SampleMaker(corpus.train, corpus.encoder)
    begun = FocusTrainer(dataclasses.replace(config, out=tmp_path / "begun"), samples).model.gistnet.state_dict()
    made = trained.model.gistnet.state_dict()
    assert all(torch.equal(begun[name], made[name]) == (gist == EXCERPT) for name in made)
    assert any(name.startswith("gistnet") for name in trained.gist_adam.parameters) == (gist == ENCODER)
    stop, broken = Event(), dataclasses.replace(config, out=tmp_path / "broken")
    assert not train_focus(broken, lambda _: stop.set(), stop).finished
    run(broken)
    whole, parts = newest(config.out), newest(broken.out)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    export_focus(config, trained.model, tmp_path / "bundle", mc_summary(config, trained.model, samples=1))
    hidden, shown = load_bundle(tmp_path / "bundle"), load_bundle(tmp_path / "bundle", gists=True)
    assert (hidden.manifest.adapters, hidden.gist_cost, shown.gist_cost) == ({"rank": 4}, 0, 4)
    assert hidden.gist_fingerprint != shown.gist_fingerprint
    updates = low_rank.updates()
    for name, weight in trained.model.decoder.state_dict().items():
        layer = name.removesuffix(".weight")
        added = updates[f"{layer}.up"] @ updates[f"{layer}.down"] if f"{layer}.up" in updates else 0
        assert torch.equal(hidden.decoder.state_dict()[name], weight)
        torch.testing.assert_close(shown.decoder.state_dict()[name], weight + added)
    on = FocusTrainer(dataclasses.replace(config, model=tmp_path / "bundle", out=tmp_path / "on"), samples)
    assert torch.equal(on.tensors()["low_rank.up.0"], low_rank.up[0])
    for loaded in (shown.gistnet, on.model.gistnet):
        assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in made.items())


def test_of_excerpts_nothing_learns() -> None:
    """A run that would train what has no gradient is refused by the field that asks for it."""
    chosen: dict[str, Any] = {"data": Path("data"), "model": Path("model"), "out": Path("out"), "gist": EXCERPT}
    with pytest.raises(ConfigError, match=r"mode must be adapted for gist\.kind excerpt"):
        FocusTrainConfig(**chosen, mode="frozen")
    with pytest.raises(ConfigError, match=r"weights\.separation must be 0"):
        FocusTrainConfig(**chosen, mode="adapted", weights=LossWeights(lod1=0, lod2=0))


def test_gists_for_a_file_are_shipped_without_it(corpus: Corpus, model: Path, tmp_path: Path) -> None:
    """Of a base that is a GGUF file the bundle holds its name and digest alone; a joint run, which would change it, is
    refused before it begins."""
    config = settings(corpus, model, tmp_path / "run", mode="adapted", gist=ENCODER, rank=4)
    trainer = FocusTrainer(config, SampleMaker(corpus.train, corpus.encoder))
    file = write_gguf(tmp_path / "base.gguf", load_bundle(model).decoder, "qwen3", tokenizer=None)
    export_focus(dataclasses.replace(config, model=file), trainer.model, tmp_path / "nets", {})
    found = sorted(path.name for path in (tmp_path / "nets").iterdir())
    assert found == ["adapters.safetensors", "bundle.json", "gistnet.safetensors"]
    with pytest.raises(ConfigError, match="frozen or adapted"):
        run(settings(corpus, file, tmp_path / "joint", mode="joint"))


def test_what_is_rebuilt_stands_as_gists(corpus: Corpus) -> None:
    """The horizon is the history's own blocks between the first and the tail, and all of them count."""
    maker = PassageMaker(SampleMaker(corpus.train, corpus.encoder))
    for history in (96, 130, 500):
        found = maker.rebuild(np.random.default_rng(history), history, 64)
        wc = sample_context(np.random.default_rng(0), found, "lod1", ContextShape(1024, 64, 32))
        gists = [found.ids[i * 32 : i * 32 + 32] for i in wc.indices[wc.levels == 1].tolist()]
        assert found.history == history
        assert np.array_equal(found.ids[history:], np.concatenate([*gists, np.empty(0, np.int64)]))
        assert (found.weights[history:] == 1).all()


def test_process_batch_gives_losses_caches_and_embeddings(corpus: Corpus, model: Path) -> None:
    """Any batch, padded rows included, has finite losses, a rotation a sample, and the embeddings of each history."""
    controller = MCController(load_bundle(model), FocusConfig(budget=448, recent_tokens=64))
    rng = np.random.default_rng(0)
    ids = torch.from_numpy(rng.integers(0, 500, (3, 1344)))
    ids[1, 896:] = -1
    losses = controller.process_batch(ids, horizon=64, weights=LossWeights(kl=1.0))
    assert all(torch.isfinite(value) for value in losses.figures().values())
    assert losses.lod1 > 0
    assert losses.kl > 0
    assert len(losses.positional_caches[0]) == 3
    assert [len(rows) for rows in losses.embeddings] == [1280, 832, 1280]
    losses.total.backward()
    assert controller.core.bundle.gistnet.scale.grad is not None
    only = LossWeights(token=0, kl=1, lod1=0, lod2=0, separation=0)
    alone = controller.process_batch(ids, horizon=64, weights=only)
    assert alone.total == alone.kl
    torch.testing.assert_close(alone.kl, losses.kl)
    with pytest.raises(ConfigError, match="horizon"):
        controller.process_batch(ids[:, :64], horizon=64)


def test_memory_passages_show_what_the_answer_needs(corpus: Corpus) -> None:
    """The answer follows its question, and its gold blocks are open, unless words are to be read off gists."""
    maker = PassageMaker(SampleMaker(corpus.train, corpus.encoder))
    text = corpus.tokenizer.decode
    opened = hidden = 0
    for seed in range(40):
        found = maker.memory(np.random.default_rng(seed), 1500, gisted=0.5)
        answer = text(found.ids[found.history :].tolist(), skip_special_tokens=True).strip()
        assert (found.weights[found.history :] >= ANSWER_WEIGHT).all()
        assert text(found.ids[: found.history].tolist(), skip_special_tokens=False).endswith("assistant\n")
        shown = " ".join(text(found.ids[b * 32 : b * 32 + 32].tolist()) for b in found.opened)
        shown += text(found.ids[found.history - 128 : found.history].tolist())
        values = {word.strip(".,") for word in answer.split() if any(map(str.isdigit, word))}
        opened += bool(found.opened)
        hidden += not found.opened
        # A value may straddle two blocks, so digits are compared without spaces.
        assert all(value.replace(" ", "") in shown.replace(" ", "") for value in values)
    assert opened > 15
    assert hidden > 2


def test_presets_are_settings(corpus: Corpus, model: Path, tmp_path: Path) -> None:
    """Each preset of the project is one that the trainer takes, or a matrix of such."""
    from pydantic import TypeAdapter

    paths = {"data": corpus.data, "model": model, "out": tmp_path}
    kinds = {"bundle-base": BaseTrainConfig, "bundle-lens": LensTrainConfig}
    for name in names():
        preset = load_preset(name)
        runs = runs_of(preset) if "vary" in preset else [(name, preset)]
        for _, values in runs:
            kind = kinds.get(name, FocusTrainConfig)
            given = {field.name for field in dataclasses.fields(kind)} & paths.keys()
            TypeAdapter(kind).validate_python({**values, **{key: paths[key] for key in given}})


def test_matrices_vary_one_setting_or_all() -> None:
    """``each`` leaves all but one setting at the base's value, ``all`` makes every combination."""
    vary = {"gist.head": ["linear", "mlp"], "steps": [1, 2]}
    base = {"gist": {"kind": "mean"}, "seed": 3}
    each = dict(runs_of({"base": base, "vary": vary}))
    assert list(each) == ["base", "gist.head=linear", "gist.head=mlp", "steps=1", "steps=2"]
    assert each["gist.head=mlp"] == {"gist": {"kind": "mean", "head": "mlp"}, "seed": 3}
    assert len(runs_of({"base": base, "vary": vary, "how": "all"})) == 4


def test_the_commands_train_and_compare(corpus: Corpus, model: Path, tmp_path: Path) -> None:
    """``train focus`` writes a bundle to serve, ``ablate`` a table of finished runs that it does not run again."""
    preset = tmp_path / "quick.yaml"
    stage = "{share: 1.0, history: [200, 300], budget: [400, 440], views: 1, horizon: 32}"
    preset.write_text(f"steps: 2\nrecent_tokens: 64\nstages: [{stage}]\n")
    base = ["--data", str(corpus.data), "--model", str(model)]
    runner = CliRunner()
    done = runner.invoke(
        app, ["train", "focus", *base, "--out", str(tmp_path / "run"), "--preset", str(preset), "--samples", "1"]
    )
    assert done.exit_code == 0, done.output
    assert load_bundle(tmp_path / "run" / "bundle").manifest.gistnet is not None
    matrix = tmp_path / "matrix.yaml"
    matrix.write_text(f"base: {{steps: 2, recent_tokens: 64, stages: [{stage}]}}\nvary: {{gist.head: [linear]}}\n")
    asked = ["ablate", str(matrix), *base, "--out", str(tmp_path / "ablation"), "--samples", "1"]
    first, again = runner.invoke(app, asked), runner.invoke(app, asked)
    assert first.exit_code == 0, first.output
    runs = json.loads(first.stdout.splitlines()[-1])["runs"]
    assert list(runs) == ["base", "gist.head=linear"]
    assert json.loads(again.stdout.splitlines()[-1])["runs"] == runs
