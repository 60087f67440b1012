"""A trained trunk for another tokenizer and head, so that these are cheap to try.

Only the trunk's weights are taken over: both ends of the vocabulary and all optimizers start
afresh. With a frozen trunk only the ends are trained. Value embeddings have a row for each token:
of another tokenizer's trunk they are no part, but start afresh and are trained too.

Source: ReTok (Gu et al. 2024, arXiv 2410.04335).
"""

from pathlib import Path

import numpy as np
from torch import Tensor

from tokgolf.artifact.checkpoint import load_run
from tokgolf.config import TrunkConfig, to_dict
from tokgolf.corpora import read_digests
from tokgolf.corpora.disjoint import Digests
from tokgolf.errors import TrainingError
from tokgolf.tokenizers import Tokenizer
from tokgolf.training.guards import listed

VALUES = "values"
"""The table of value embeddings, within the trunk."""


def trunk_of(run: Path, wanted: TrunkConfig, tokenizer: Tokenizer) -> dict[str, Tensor]:
    """The weights of a run's trunk, by name within the trunk; `VALUES` only of this `tokenizer`.

    Raises `TrainingError` unless it is the trunk that is `wanted`, but for the sequence's length.
    """
    source = load_run(run)
    theirs, ours = to_dict(source.trunk), to_dict(wanted)
    other = [name for name in ours if name != "sequence_length" and theirs[name] != ours[name]]
    if other:
        found = listed([f"{name} {theirs[name]} (here {ours[name]})" for name in other])
        way = " ".join(f"--set trunk.{name}={theirs[name]}" for name in other)
        if source.state["config"]["trunk"] == theirs:  # not of one that ended before it repeated
            way = f"--recipe {run / 'config.toml'}, or {way}"
        raise TrainingError(f"the trunk of {run} has {found}; use {way}")
    weights = source.model.trunk.state_dict()
    if source.tokenizer.fingerprint != tokenizer.fingerprint:
        weights.pop(VALUES, None)
    return weights


def with_digests_of(run: Path, digests: Digests) -> Digests:
    """All documents that a model has seen whose trunk comes from `run`: its own and the trunk's."""
    path = run / "train_documents.npy"
    if not path.is_file():
        raise TrainingError(
            f"{run} has no train_documents.npy: what its trunk has seen could be scored as held "
            "out; take a trunk from a whole run directory"
        )
    return np.union1d(digests, read_digests(path))
