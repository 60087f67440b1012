"""From a sweep's settings to jobs: all that a worker needs, in a file of the cell's own folder.

A job's id is the hash of what decides its result, the hashes of both texts among it; not of how the
settings are called, nor of the device. So sweeps that share a store share cells.
"""

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tokgolf.artifact.export import DEFAULT_BITS
from tokgolf.config import from_dict, merged, to_dict
from tokgolf.corpora import Corpus, open_corpus
from tokgolf.cost import Cost, cost_of
from tokgolf.errors import ConfigError, TokgolfError
from tokgolf.files import write_text
from tokgolf.heads import head_config, head_to_dict
from tokgolf.model import head_shape
from tokgolf.quantize.rows import QuantConfig, quant_config
from tokgolf.sweep.cells import CELL_FILE, Cell, read_cell, write_cell
from tokgolf.sweep.equal import as_exported, grown
from tokgolf.sweep.spec import (
    QUANTIZER_OPTIONS,
    Settings,
    SweepSpec,
    addons_of,
    axis_names,
    nested,
)
from tokgolf.sweep.store import content_id, shared_tokenizer
from tokgolf.tokenizers import Tokenizer
from tokgolf.training import RunConfig

JOB_FILE = "job.json"
FORMAT, VERSION = "tokgolf.job", 1
NO_CAP = 1 << 40
IDLE = ("settings", "corpus", "scored", "device")  # decide no result: names, and where it runs
BUDGET = "checkpoint_minutes"


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a cell computes, from which texts. `corpus` and `scored` are specs with their hashes;
    `run` are the values of a `RunConfig`, before a trunk of equal bytes is grown."""

    settings: dict[str, Any]
    corpus: str
    corpus_sha256: str
    scored: str
    scored_sha256: str
    tokenizer: dict[str, Any]
    run: dict[str, Any]
    quantizer: dict[str, Any]
    equal: str
    grow: str
    cap: int | None = None
    stride: int = 0
    processes: int = 1
    device: str = "auto"

    @property
    def id(self) -> str:
        """The hash of what decides the result."""
        values = {key: value for key, value in asdict(self).items() if key not in IDLE}
        run = {key: value for key, value in self.run.items() if key != BUDGET}
        return content_id({**values, "run": run, "version": VERSION})

    def quant_config(self) -> QuantConfig:
        """How it is exported: to the cap when bytes are equal, or where no bits are given."""
        values = dict(self.quantizer)
        if self.equal == "bytes":
            values.pop("bits", None)
        return from_dict(QuantConfig, values, "quantizer")


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Both corpora of a sweep, with their hashes."""

    corpus: Corpus
    scored: Corpus
    corpus_sha256: str
    scored_sha256: str


def read_texts(spec: SweepSpec) -> Texts:
    """Open both corpora and hash them. Raises `CorpusError` for one that is not there."""
    corpus, scored = open_corpus(spec.corpus), open_corpus(spec.scored)
    return Texts(
        corpus=corpus,
        scored=scored,
        corpus_sha256=corpus.summary().sha256,
        scored_sha256=scored.summary().sha256,
    )


def plan(spec: SweepSpec, texts: Texts, device: str) -> list[Job]:
    """The jobs of a sweep's grid, in its order; what cannot be built is found by `prepared`."""
    return [job_of(spec, settings, texts, device) for settings in spec.grid()]


def job_of(spec: SweepSpec, settings: Settings, texts: Texts, device: str) -> Job:
    """The job of one cell. Raises `ConfigError` if it needs a cap and has none."""
    head, cap = _head(spec, settings), settings.get("cap", spec.cap_bytes())
    if cap is None and (spec.equal == "bytes" or settings["bits"] is None):
        reason = 'equal = "bytes"' if spec.equal == "bytes" else "a cell without bits"
        raise ConfigError(f'{reason} needs a cap to fill; write for example cap = "250KB"')
    run_axes = {*axis_names()} - {"vocab_size", "head", "add", "bits", "cap", *QUANTIZER_OPTIONS}
    own = {
        name: value
        for name, value in settings.items()
        if name in run_axes and not name.startswith("tokenizer.")
    }
    run = merged({k: v for k, v in spec.base.items() if k != "head"}, nested(own))
    run["head"] = head
    options = {
        name.removeprefix("tokenizer."): value
        for name, value in settings.items()
        if name.startswith("tokenizer.")
    }
    bits = settings["bits"]
    if bits is None and spec.equal == "bytes":
        bits = DEFAULT_BITS
    quantizer = {} if bits is None else {"bits": float(bits)}
    quantizer |= {name: settings[name] for name in QUANTIZER_OPTIONS if name in settings}
    # As `tokgolf export` does it, tuning too; in full, so that another default is another cell.
    quantizer = to_dict(quant_config(**quantizer))
    return Job(
        settings=settings,
        corpus=_absolute(spec.corpus),
        corpus_sha256=texts.corpus_sha256,
        scored=_absolute(spec.scored),
        scored_sha256=texts.scored_sha256,
        tokenizer={**options, "vocab_size": settings["vocab_size"]},
        run=_resolved(run),
        quantizer=quantizer,
        equal=spec.equal,
        grow=spec.grow if spec.equal == "bytes" else "",
        cap=cap,
        stride=spec.stride,
        processes=spec.processes,
        device=device,
    )


def _head(spec: SweepSpec, settings: Settings) -> dict[str, Any]:
    """The head's table: the recipe's options if it is the recipe's head, then the settings'."""
    base = dict(spec.base.get("head", {}))
    name = settings["head"]
    values = base if base.get("name", "tied") == name else {}
    options = {
        key.removeprefix("head."): value
        for key, value in settings.items()
        if key.startswith("head.")
    }
    added: dict[str, Any] = {"add": {addon: {} for addon in addons_of(settings)}}
    return merged(merged(values, {"name": name}), merged(added, nested(options)))


def _resolved(run: dict[str, Any]) -> dict[str, Any]:
    """The run's values with every default in, so that equal runs have equal ids, if they are
    sound; those that are not, as they are: the cell will fail and say why."""
    try:
        config = from_dict(RunConfig, run, "run")
        return {**to_dict(config), "head": head_to_dict(head_config(config.head))}
    except ConfigError:
        return run


def _absolute(corpus: str) -> str:
    """A corpus spec that means the same in another folder."""
    path, colon, split = corpus.rpartition(":")
    if os.path.exists(corpus):
        return os.path.abspath(corpus)
    return os.path.abspath(path) + colon + split if path and os.path.exists(path) else corpus


def write_job(store: Path, job: Job) -> Path:
    """Write the job into its cell's folder, and `cell.json` if it has none; returns the folder."""
    run = store / job.id
    run.mkdir(parents=True, exist_ok=True)
    values = {"format": FORMAT, "version": VERSION, **asdict(job)}
    text = json.dumps(values, indent=1) + "\n"
    path = run / JOB_FILE
    if not path.is_file() or path.read_text("utf-8") != text:
        write_text(path, text)
    if not (run / CELL_FILE).is_file():
        write_cell(Cell(id=job.id, settings=job.settings, cap=job.cap), run)
    return run


def read_job(run: Path) -> Job:
    """The job in a cell's folder. Raises `ConfigError` for a damaged one."""
    path = run / JOB_FILE
    try:
        values = json.loads(path.read_bytes())
        if values.pop("format") != FORMAT or values.pop("version") != VERSION:
            raise ValueError("it is of another format or version")
        job = from_dict(Job, values, str(path))
        if job.id != run.name:
            raise ValueError(f"its id is {job.id}, its folder is called {run.name}")
    except (ValueError, KeyError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{path} is not what a sweep wrote: {error}; run it again") from error
    return job


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What a job trains: its tokenizer, and the config with a trunk of the right size."""

    tokenizer: Tokenizer
    config: RunConfig


def prepared(store: Path, job: Job, corpus: Corpus) -> Prepared:
    """Build, or find, the tokenizer, and settle the config. Raises whatever cannot be built."""
    config = from_dict(RunConfig, job.run, "run")
    head = head_config(config.head)
    tokenizer = shared_tokenizer(store, job.tokenizer, corpus, job.corpus_sha256)
    if job.equal == "bytes":
        assert job.cap is not None
        bits = job.quantizer["bits"]
        trunk = grown(config.trunk, head, tokenizer, cap=job.cap, bits=bits, grow=job.grow)
        config = replace(config, trunk=trunk)
    as_exported(head).build(head_shape(tokenizer, config.trunk))  # before anything is trained
    return Prepared(tokenizer=tokenizer, config=config)


@dataclass(frozen=True, kw_only=True)
class Outline:
    """A cell before it is run: what stands in the store, and the sizes that it will have.

    `bits` are those that fit under the cap, or those asked for. `problem` says why it will fail.
    """

    cell: Cell
    d_model: int | None = None
    mlp_hidden: int | None = None
    params: int | None = None
    bits: float | None = None
    artifact_bytes: int | None = None
    problem: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The outline as plain values for JSON."""
        return {**asdict(self), "cell": self.cell.as_dict()}


def outline(store: Path, job: Job, corpus: Corpus) -> Outline:
    """What a cell will be. Only its tokenizer is built, and kept; a problem is returned."""
    run = store / job.id
    cell = Cell(id=job.id, settings=job.settings, cap=job.cap)
    if (run / CELL_FILE).is_file():
        cell = replace(read_cell(run), settings=job.settings)
    try:
        ready = prepared(store, job, corpus)
        cost = _cost(job, ready)
    except TokgolfError as error:
        return Outline(cell=cell, problem=str(error))
    trunk = ready.config.trunk
    return Outline(
        cell=cell,
        d_model=trunk.d_model,
        mlp_hidden=trunk.mlp_hidden,
        params=cost.params,
        bits=cost.bits,
        artifact_bytes=cost.ledger.full,
    )


def _cost(job: Job, ready: Prepared) -> Cost:
    bits = job.quant_config().bits
    return cost_of(
        ready.config.trunk,
        head_config(ready.config.head),
        ready.tokenizer,
        bits=bits,
        cap=job.cap if bits is None else None,
    )
