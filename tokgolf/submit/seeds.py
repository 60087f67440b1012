"""The runs behind a submission: each an artifact with its score, all alike but for the seed.

Everything that a claim rests on is read back from the run directories and checked against each
other here; nothing is taken from what a command printed.
"""

import json
import math
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokgolf.artifact.checkpoint import exported, read_checkpoint
from tokgolf.artifact.export import read_plan
from tokgolf.artifact.load import Artifact, load_artifact
from tokgolf.config import from_dict, to_dict
from tokgolf.errors import ArtifactError, ConfigError, ScoreError
from tokgolf.eval.adapt import AdaptConfig
from tokgolf.eval.protocol import Protocol
from tokgolf.eval.saved import SavedScore, read_json_object, read_score, taken_differences
from tokgolf.eval.score import modules_beside
from tokgolf.ledger import Ledger, ledger_of


@dataclass(frozen=True, kw_only=True)
class Seed:
    """One run: what was trained, what it was packed into, and what that scored."""

    run: Path
    number: int
    artifact: Artifact
    score: SavedScore
    values: dict[str, Any]
    """All of score.json."""
    protocol: Protocol
    ledger: Ledger
    config: dict[str, Any]
    """The run's configuration, resolved."""
    quantizer: dict[str, Any]
    """How the artifact was exported."""
    trained_on: dict[str, Any]
    """Name, SHA-256 and bytes of the training text."""
    steps: int
    seconds: float
    metrics: list[dict[str, Any]]

    @property
    def val_loss(self) -> float:
        """Nats a token."""
        return float(self.values["nats_per_token"])

    @property
    def val_bpb(self) -> float:
        """Bits a byte."""
        return float(self.values["bpb"])

    @property
    def file(self) -> str:
        """The artifact's name in the folder."""
        return f"model_seed{self.number}.golf"

    @property
    def log(self) -> str:
        """The log's name in the folder."""
        return f"train_seed{self.number}.log"


def read_seeds(runs: Sequence[str | os.PathLike[str]]) -> list[Seed]:
    """The runs of a submission, by their seeds.

    Raises `ConfigError` if they differ in more than the seed or share one, and what `read_seed`
    raises.
    """
    seeds = sorted((read_seed(Path(run)) for run in runs), key=lambda each: each.number)
    if not seeds:
        raise ConfigError("there are 0 runs; name one at least")
    first = seeds[0]
    for before, seed in zip(seeds, seeds[1:], strict=False):
        if before.number == seed.number:
            raise ConfigError(
                f"{before.run} and {seed.run} both have the seed {seed.number}; train one of them "
                f"again with --seed {max(each.number for each in seeds) + 1}"
            )
        if different := _differences(first, seed):
            raise ConfigError(
                f"{first.run} and {seed.run} are no seeds of one configuration: {different}; "
                "submit them apart"
            )
    return seeds


def read_seed(run: Path) -> Seed:
    """A run directory with its artifact and score.

    Raises `ArtifactError` or `ScoreError` for files that are missing, damaged, of each other's
    strangers, or whose score cannot be claimed: an estimate, or one with an invariant that fails.
    """
    if not run.is_dir():
        raise ConfigError(f"{run} is no run directory; give one that holds model.golf")
    path = run / "model.golf"
    if not path.is_file():
        raise ArtifactError(f"{run} holds no model.golf; make it: tokgolf export {run}")
    artifact, score = load_artifact(path), read_score(run)
    if artifact.sha256 not in exported(run):
        raise ArtifactError(f"{path} was not exported from {run}; make it: tokgolf export {run}")
    again = f"score it again: tokgolf score {path} --save {run / 'score.json'}"
    if score.artifact_sha256 != artifact.sha256:
        raise ScoreError(
            f"{run / 'score.json'} is of artifact {str(score.artifact_sha256)[:12]}, {path} is "
            f"{artifact.sha256[:12]}; {again}"
        )
    values = read_json_object(run / "score.json")
    protocol = _protocol(values, again)
    _check_claimable(values, score, protocol, again)
    ledger = ledger_of(artifact, modules_beside(protocol, artifact.trunk))
    if ledger.full != score.artifact_bytes:
        raise ScoreError(
            f"{run / 'score.json'} says {score.artifact_bytes} bytes in the full accounting, they "
            f"are {ledger.full}: it was scored by another version of the code; {again}"
        )
    _, state = read_checkpoint(run)
    try:
        config, trained_on = dict(state["config"]), dict(state["corpus"])
        number, steps = int(config["seed"]), int(state["step"])
        seconds = float(state["seconds"])
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{run}: the checkpoint's state is damaged: {error!r}") from error
    if config.get("trunk_from"):
        raise ConfigError(
            f"{run} started from the trunk of {config['trunk_from']}, whose training a record "
            "folder cannot tell or repeat; submit a run trained from scratch"
        )
    quantizer = to_dict(read_plan(f"{path}.plan.json").config)
    return Seed(
        run=run,
        number=number,
        artifact=artifact,
        score=score,
        values=values,
        protocol=protocol,
        ledger=ledger,
        config=config,
        quantizer=quantizer,
        trained_on=trained_on,
        steps=steps,
        seconds=seconds,
        metrics=_metrics(run / "metrics.jsonl"),
    )


def _protocol(values: dict[str, Any], again: str) -> Protocol:
    found = values.get("protocol")
    if not isinstance(found, dict) or not {"window", "adapt"} <= found.keys():
        raise ScoreError(f"the score does not say how it was taken; {again}")
    options = {key: value for key, value in found.items() if key != "adapt"}
    protocol = from_dict(Protocol, options, "protocol")
    if found["adapt"] is None:
        return protocol
    return replace(protocol, adapt=from_dict(AdaptConfig, found["adapt"], "protocol.adapt"))


def _check_claimable(
    values: dict[str, Any], score: SavedScore, protocol: Protocol, again: str
) -> None:
    if protocol.estimate:
        raise ScoreError(
            f"the score was taken in {protocol.precision}, which is an estimate of it; {again}, "
            "without --precision"
        )
    invariants = values.get("invariants")
    if not isinstance(invariants, dict) or not {"causal", "train_disjoint"} <= invariants.keys():
        raise ScoreError(f"the score has no record of its invariants; {again}")
    if failed := [name for name, holds in invariants.items() if holds is False]:
        raise ScoreError(f"the score is invalid: {', '.join(failed)} failed; {again}")
    nats = values.get("nats_per_token")
    expected = score.bpb * math.log(2) * math.fsum(score.sizes) / score.tokens
    if type(nats) is not float or not math.isclose(nats, expected, rel_tol=1e-9):
        raise ScoreError(f"nats_per_token is {nats}, the documents' bits make {expected}; {again}")


def _differences(a: Seed, b: Seed) -> str:
    """What else differs than the seed, in words; "" if nothing does."""
    found = [
        f"{key} {a.config.get(key)} and {b.config.get(key)}"
        for key in sorted(a.config.keys() | b.config.keys())
        if key != "seed" and a.config.get(key) != b.config.get(key)
    ]
    found += [  # tuning is left out where it does not pay, and bits where the cap decides
        f"export's {key} {a.quantizer.get(key)} and {b.quantizer.get(key)}"
        for key in sorted(a.quantizer.keys() | b.quantizer.keys())
        if key != "tune" and a.quantizer.get(key) != b.quantizer.get(key)
    ]
    if a.score.tokenizer != b.score.tokenizer:
        found.append(f"tokenizers {a.score.tokenizer[:12]} and {b.score.tokenizer[:12]}")
    if a.trained_on.get("sha256") != b.trained_on.get("sha256"):
        found.append(f"trained on {a.trained_on.get('name')} and {b.trained_on.get('name')}")
    return ", ".join([*found, *taken_differences(a.score, b.score)])


def _metrics(path: Path) -> list[dict[str, Any]]:
    """The steps that were logged; a line cut short is no step."""
    if not path.is_file():
        raise ArtifactError(f"there is no {path}, so there is no log of the training to submit")
    found = []
    for line in path.read_text("utf-8", errors="replace").splitlines():
        with suppress(ValueError, KeyError, TypeError, RecursionError):
            values = json.loads(line)
            step, loss, seconds = int(values["step"]), values["loss"], values["seconds"]
            found.append({"step": step, "loss": float(loss), "seconds": float(seconds)})
    return found
