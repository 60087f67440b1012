"""Documents from Hugging Face `datasets`, streamed: nothing is downloaded as a whole.

A spec is `hf:NAME` or `hf:NAME@CONFIG`, where NAME is a data set of the hub or a local folder in
the same layout: `hf:HuggingFaceFW/fineweb@sample-10BT`. `fineweb` and `fineweb-challenge` are short
names. Unlike `files`, this uses the network unless HF_HUB_OFFLINE=1 is set.

A data set's own splits are used if one of them is held out; where all is `train`, as the hub
calls whatever is not divided, `split_of(id)` decides. A document's id is its `id` column, or
"SPLIT#ROW" where there is none.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tokgolf.corpora.corpus import (
    CHALLENGE_FILE,
    OWN_SPLITS,
    SPLITS,
    Corpus,
    Document,
    select_by_hash,
    select_by_position,
)
from tokgolf.errors import CorpusError

PREFIX = "hf:"


@dataclass(frozen=True, slots=True, kw_only=True)
class HubDataset:
    """What `datasets.load_dataset` needs, and whether the challenge's split rule applies."""

    name: str
    config: str | None = None
    data_files: str | None = None
    challenge_split: bool = False


SHORT_NAMES = {
    "fineweb": HubDataset(name="HuggingFaceFW/fineweb", config="sample-10BT"),
    "fineweb-challenge": HubDataset(
        name="willdepueoai/parameter-golf",
        data_files=f"datasets/{CHALLENGE_FILE}",  # the path in data/cached_challenge_fineweb.py
        challenge_split=True,
    ),
}


def parse_hub_spec(spec: str) -> HubDataset:
    """Read `hf:NAME[@CONFIG]`.

    "hf:HuggingFaceFW/fineweb@sample-10BT" -> name "HuggingFaceFW/fineweb", config "sample-10BT"
    """
    name, at, config = spec.removeprefix(PREFIX), "", ""
    if "@" in name and not os.path.isdir(name):
        name, at, config = name.rpartition("@")
    if not name or (at and not config):
        raise CorpusError(f"{spec!r} names no data set; write for example hf:NAME@CONFIG")
    return HubDataset(name=name, config=config or None)


def open_hub(dataset: HubDataset, split: str | None, name: str, field: str = "text") -> Corpus:
    """The corpus of a data set; it is looked up when the documents are first asked for."""
    provenance = {"dataset": dataset.name}
    if dataset.config:
        provenance["config"] = dataset.config
    return Corpus(
        name=name,
        split=split,
        source=lambda: _documents(dataset, split, name, field),
        provenance=provenance,
    )


def _documents(dataset: HubDataset, split: str | None, name: str, field: str) -> Iterator[Document]:
    own = _load(dataset, name)
    if dataset.challenge_split:
        return select_by_position(_read(own, name, field), split, name)
    if split is None or {OWN_SPLITS.get(each) for each in own} <= {"train", None}:
        return select_by_hash(_read(own, name, field), split)
    wanted = {each: rows for each, rows in own.items() if OWN_SPLITS.get(each) == split}
    if not wanted:
        raise CorpusError(
            f"corpus {name} has no {split} split; its own splits are {', '.join(own)}"
        )
    return _read(wanted, name, field)


def _load(dataset: HubDataset, name: str) -> dict[str, Iterator[dict[str, Any]]]:
    """The data set's splits by name, as streams: train, val, test, then any others."""
    import datasets

    try:
        loaded: Mapping[str, Any] = datasets.load_dataset(
            dataset.name, dataset.config, data_files=dataset.data_files, streaming=True
        )
    except Exception as error:  # whatever the library, its transport or its parsers raise
        raise _failure(dataset, name, error) from error

    def order(split: str) -> int:
        return SPLITS.index(OWN_SPLITS[split]) if split in OWN_SPLITS else len(SPLITS)

    return {split: _rows(loaded[split], dataset, name) for split in sorted(loaded, key=order)}


def _read(
    splits: Mapping[str, Iterator[dict[str, Any]]], name: str, field: str
) -> Iterator[Document]:
    for split, rows in splits.items():
        for number, row in enumerate(rows):
            text = row.get(field)
            if not isinstance(text, str):
                raise CorpusError(
                    f"corpus {name}: row {number} of its split {split} has no string column "
                    f"{field!r}; its columns are {', '.join(row)}"
                )
            own_id = row.get("id")
            yield Document(
                own_id if isinstance(own_id, str) and own_id else f"{split}#{number}",
                text.encode("utf-8", "surrogatepass"),
            )


def _rows(rows: Any, dataset: HubDataset, name: str) -> Iterator[dict[str, Any]]:
    try:
        yield from rows
    except Exception as error:  # as in `_load`: a stream can break at any row
        raise _failure(dataset, name, error) from error


def _failure(dataset: HubDataset, name: str, error: Exception) -> CorpusError:
    lines = str(error).strip().splitlines()
    reason = lines[0] if lines else type(error).__name__
    return CorpusError(
        f"corpus {name} cannot be read by Hugging Face datasets: {reason.rstrip('.')}. Check the "
        "name and the network (HF_HUB_OFFLINE, or HF_HOME for a cache that has it), or get it "
        f"with `hf download {dataset.name} --repo-type dataset --local-dir DIR` and open DIR"
    )
