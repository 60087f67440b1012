"""A trained trunk under another tokenizer and head: what it takes, what stays, what is said."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from training_support import TOKENIZER as BYTES
from training_support import assert_same_checkpoint, nothing, stops_at
from training_support import run_it as train_it

from tokgolf.artifact.checkpoint import load_run, read_checkpoint
from tokgolf.config import TrunkConfig
from tokgolf.corpora import Corpus, Document, read_digests
from tokgolf.errors import ConfigError, CorpusError, TrainingError
from tokgolf.tokenizers import Tokenizer, build_tokenizer
from tokgolf.training import RunConfig, StepReport, run_config
from tokgolf.training.averages import AverageConfig
from tokgolf.training.qat import QatConfig

TRUNK = TrunkConfig(layers=2, d_model=16, heads=2, kv_heads=1, mlp_hidden=24, sequence_length=16)
CONFIG = RunConfig(
    trunk=TRUNK, batch_tokens=64, steps=8, warmdown_steps=3, precision="fp32", compile="off"
)


def corpus_of(text: str) -> Corpus:
    documents = [Document(str(i), f"{text} {i} times. ".encode()) for i in range(30)]
    return Corpus(name=text, split=None, source=lambda: iter(documents))


OLD, NEW = corpus_of("a trunk is trained"), corpus_of("another head is tried")
PAIRS = build_tokenizer("bpe", [document.data for document in NEW], 270)


def run_it(
    run: Path,
    *,
    corpus: Corpus = NEW,
    resume: bool = False,
    on_step: Callable[[StepReport], None] = nothing,
    held_out: Corpus | None = None,
    tokenizer: Tokenizer | None = None,
    **changes: Any,
) -> None:
    train_it(
        run,
        dataclasses.replace(CONFIG, **changes),
        tokenizer=tokenizer or (BYTES if corpus is OLD else PAIRS),
        corpus=corpus,
        held_out=held_out,
        resume=resume,
        on_step=on_step,
    )


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run whose trunk is taken."""
    run = tmp_path_factory.mktemp("retok") / "old"
    run_it(run, corpus=OLD)
    return run


@pytest.mark.parametrize("average", [AverageConfig(), AverageConfig(ema=0.9)], ids=["last", "ema"])
@pytest.mark.parametrize("head", ["tied", "vq"])
def test_a_frozen_trunk_is_the_other_runs_and_the_head_is_trained(
    head: str, average: AverageConfig, old: Path, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"head": {"name": head}, "average": average}
    run_it(tmp_path / "run", trunk_from=str(old), freeze_trunk=True, **changes)
    theirs, ours = load_run(old).model, load_run(tmp_path / "run").model
    assert all(
        torch.equal(value, ours.trunk.state_dict()[name])
        for name, value in theirs.trunk.state_dict().items()
    )
    optimized = {key for key in read_checkpoint(tmp_path / "run")[0] if "trunk" in key}
    assert not any(key.startswith(("adam.", "muon.")) for key in optimized)
    torch.manual_seed(CONFIG.seed)
    run_it(tmp_path / "short", trunk_from=str(old), freeze_trunk=True, steps=1, **changes)
    begun = dict(load_run(tmp_path / "short").model.head.named_parameters())
    for name, parameter in ours.head.named_parameters():
        assert not torch.equal(parameter, begun[name])


def test_a_trunk_that_is_not_frozen_starts_as_the_other_runs_and_moves(
    old: Path, tmp_path: Path
) -> None:
    losses: dict[str, float] = {}
    for name, source in (("fresh", ""), ("taken", str(old))):

        def on_step(report: StepReport, name: str = name) -> None:
            losses[name] = report.loss

        run_it(tmp_path / name, trunk_from=source, on_step=on_step)
    theirs, ours = load_run(old).model.trunk, load_run(tmp_path / "taken").model.trunk
    moved = dict(ours.named_parameters())
    for name, parameter in theirs.named_parameters():
        assert not torch.equal(parameter, moved[name])
    assert losses["taken"] != losses["fresh"]


def test_a_run_on_a_frozen_trunk_resumes_bit_by_bit_without_the_other_run(
    old: Path, tmp_path: Path
) -> None:
    source = tmp_path / "copy"
    shutil.copytree(old, source)
    taken: dict[str, Any] = {"trunk_from": str(source), "freeze_trunk": True}
    run_it(tmp_path / "whole", **taken)
    with pytest.raises(TrainingError, match="interrupted"):
        run_it(tmp_path / "cut", on_step=stops_at(4), **taken)
    shutil.rmtree(source)
    with pytest.raises(TrainingError, match=r"started with freeze_trunk True \(now False\)"):
        run_it(tmp_path / "cut", resume=True, **{**taken, "freeze_trunk": False})
    # What a run needs to be resumed is in its config.toml.
    assert run_config(str(tmp_path / "cut" / "config.toml"), {}) == dataclasses.replace(
        CONFIG, **taken, head={**CONFIG.head, "softcap": 30.0, "input_rank": 0}
    )
    run_it(tmp_path / "cut", resume=True, **taken)
    assert_same_checkpoint(tmp_path / "cut", tmp_path / "whole")
    digests = [read_digests(tmp_path / run / "train_documents.npy") for run in ("cut", "whole")]
    assert digests[0].tolist() == digests[1].tolist()


OTHER_PAIRS = build_tokenizer("bpe", [document.data for document in OLD], 270)


@pytest.mark.parametrize("with_tokenizer", [BYTES, OTHER_PAIRS, PAIRS], ids=["size", "text", "own"])
def test_value_embeddings_of_another_tokenizer_start_afresh_and_are_trained(
    with_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Of one of the same size too, whose rows are other tokens'; a tokenizer's own are kept."""
    trunk = dataclasses.replace(TRUNK, value_embeddings=1)
    run_it(tmp_path / "old", corpus=OLD, tokenizer=with_tokenizer, trunk=trunk)
    taken: dict[str, Any] = {"trunk_from": str(tmp_path / "old"), "freeze_trunk": True}
    taken["trunk"] = trunk

    run_it(tmp_path / "whole", **taken)
    with pytest.raises(TrainingError, match="interrupted"):
        run_it(tmp_path / "cut", on_step=stops_at(4), **taken)
    run_it(tmp_path / "cut", resume=True, **taken)
    assert_same_checkpoint(tmp_path / "cut", tmp_path / "whole")
    own = with_tokenizer is PAIRS
    whole, state = read_checkpoint(tmp_path / "whole")
    assert state["afresh"] == ([] if own else ["values"])
    theirs, ours = (load_run(tmp_path / run).model.trunk for run in ("old", "whole"))
    kept = {n for n, p in theirs.state_dict().items() if torch.equal(p, ours.state_dict()[n])}
    assert theirs.state_dict().keys() - kept == (set() if own else {"values"})
    assert ours.values is not None and ours.values.any()
    trained = {key for key in whole if "trunk" in key and key.startswith(("adam.", "muon."))}
    assert {key.split(".", 2)[2] for key in trained} == (set() if own else {"trunk.values"})


def test_what_the_trunk_has_seen_cannot_be_held_out(old: Path, tmp_path: Path) -> None:
    taken: dict[str, Any] = {"trunk_from": str(old), "freeze_trunk": True, "steps": 4}
    with pytest.raises(CorpusError, match="30 of 30"):
        run_it(tmp_path / "run", held_out=OLD, **taken)
    assert not (tmp_path / "run").exists()
    run_it(tmp_path / "run", held_out=corpus_of("never seen"), **taken)
    assert len(read_digests(tmp_path / "run" / "train_documents.npy")) == 60
    shutil.copytree(old, tmp_path / "bare")
    (tmp_path / "bare" / "train_documents.npy").unlink()
    with pytest.raises(TrainingError, match=r"bare has no train_documents\.npy"):
        run_it(tmp_path / "other", trunk_from=str(tmp_path / "bare"))


@pytest.mark.parametrize(
    ("trunk", "message"),
    [
        (
            {"d_model": 32},
            r"d_model 16 \(here 32\); use --recipe .*config.toml, or --set trunk.d_model=16$",
        ),
        (
            {"layers": 3, "negative_slope": 0.5},
            r"layers 2 \(here 3\), negative_slope 0\.0 \(here 0\.5\); use .* or "
            r"--set trunk.layers=2 --set trunk.negative_slope=0\.0$",
        ),
    ],
)
def test_another_trunk_is_refused_before_anything_is_written(
    trunk: dict[str, Any], message: str, old: Path, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match=message):
        run_it(tmp_path / "run", trunk_from=str(old), trunk=dataclasses.replace(TRUNK, **trunk))
    assert not (tmp_path / "run").exists()


def test_of_a_trunk_that_never_repeated_its_recipe_is_no_advice(tmp_path: Path) -> None:
    """It would ask for the same passes again, which nobody has trained."""
    looped = dataclasses.replace(TRUNK, loop_blocks=1, loops=2, loop_rank=2)
    run_it(tmp_path / "old", trunk=looped, loops_from=0.95, steps=4)
    run = tmp_path / "run"
    taken: dict[str, Any] = {"trunk_from": str(tmp_path / "old"), "freeze_trunk": True}
    with pytest.raises(
        TrainingError,
        match=r"has loops 1 \(here 2\), loop_rank 0 \(here 2\); use --set trunk.loops=1 "
        r"--set trunk.loop_rank=0$",
    ):
        run_it(run, trunk=looped, **taken)
    run_it(run, trunk=dataclasses.replace(looped, loops=1, loop_rank=0), steps=4, **taken)


def test_a_frozen_trunk_stays_so_when_its_blocks_are_repeated(tmp_path: Path) -> None:
    """What its later passes add does not move, no check asks for that, and errors wait for none."""
    looped = dataclasses.replace(TRUNK, loop_blocks=1, loops=2, loop_rank=2)
    run_it(tmp_path / "old", trunk=looped, steps=4)
    taken: dict[str, Any] = {"trunk_from": str(tmp_path / "old"), "freeze_trunk": True}
    qat = QatConfig(start=0.125, every=4, method="nearest")
    run_it(tmp_path / "run", trunk=looped, loops_from=0.25, qat=qat, **taken)
    state = read_checkpoint(tmp_path / "run")[1]
    assert (state["quantized_from"], state["afresh"]) == (1, [])
    theirs, ours = (load_run(tmp_path / run).model.trunk.state_dict() for run in ("old", "run"))
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(value, ours[name]) for name, value in theirs.items())


def test_longer_sequences_are_no_other_trunk(old: Path, tmp_path: Path) -> None:
    longer = dataclasses.replace(TRUNK, sequence_length=32)
    run_it(tmp_path / "run", trunk_from=str(old), freeze_trunk=True, trunk=longer, steps=4)


def test_a_trunk_that_nobody_trained_is_not_frozen() -> None:
    with pytest.raises(ConfigError, match="freeze_trunk is on and trunk_from names no run"):
        dataclasses.replace(CONFIG, freeze_trunk=True)
