"""What a report is of: runs, cells of sweeps, and what is wrong with those that gave no number.

Everything is read from files and nothing is loaded: a thousand cells take seconds. A run that
was made by hand gets its settings from its `config.toml`.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokgolf.artifact.checkpoint import exported
from tokgolf.config import read_toml
from tokgolf.corpora import read_sidecar, shard_files
from tokgolf.errors import ConfigError, TokgolfError
from tokgolf.eval.saved import SavedScore, read_json_object, read_score
from tokgolf.heads import head_config, head_to_dict
from tokgolf.sweep.cells import CELL_FILE, RESULTS_FILE, Cell, Sweep, read_cell, read_sweep
from tokgolf.tokenizers import load_tokenizer

ARTIFACT, SCORE, METRICS, CONFIG = "model.golf", "score.json", "metrics.jsonl", "config.toml"
RUN_FILES = (CELL_FILE, CONFIG, SCORE)
SHORT_HASH = 10
_HASH = re.compile(r"[0-9a-f]{16,64}")
NO_SETTING = {"seed"}  # runs that differ in nothing else are seeds of one model


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A run. Numbers are None where no file says them.

    `settings` are flat: {"head": "tied", "vocab_size": 1024, "trunk.layers": 4}. `alike` is the
    same for runs that differ by their seed alone. `told` holds the rest of `score.json`; the score
    is not the run's own if it is of an artifact that the run did not export.
    """

    name: str
    run: Path
    settings: Mapping[str, Any]
    alike: str
    status: str = "done"
    reason: str | None = None
    attempts: int = 1
    score: SavedScore | None = None
    own_score: bool = True
    told: Mapping[str, Any] = field(default_factory=dict)
    bpb: float | None = None
    bpb_before_export: float | None = None
    artifact_bytes: int | None = None
    asset_bytes: int | None = None
    cap: int | None = None
    params: int | None = None
    bytes_per_train_token: float | None = None
    seconds: float | None = None

    @property
    def head(self) -> str:
        """The head with its options and add-ons: "factorized rank 32 + bigram-hash"."""
        options, addons = [], []
        for key, value in self.settings.items():
            if key.startswith("head.add."):
                addons.append(key.split(".")[2])
            elif key.startswith("head.") and value is not None:
                options.append(f" {key.removeprefix('head.')} {value}")
        name = str(self.settings.get("head", "unknown"))
        return name + "".join(options) + "".join(f" + {name}" for name in dict.fromkeys(addons))

    @property
    def vocab_size(self) -> int | None:
        """Tokens in the vocabulary."""
        size = self.settings.get("vocab_size")
        return size if type(size) is int else None

    @property
    def over_cap(self) -> bool:
        """Whether it is larger than it may be."""
        return bool(self.cap and self.artifact_bytes and self.artifact_bytes > self.cap)

    @property
    def seed(self) -> Any:
        """The training's seed."""
        return self.settings.get("seed")

    @property
    def invariants(self) -> tuple[int, int, list[str]]:
        """How many hold, how many there are, and the names of the others."""
        found = self.told.get("invariants")
        found = found if isinstance(found, dict) else {}
        others = [f"{name}: {'failed' if ok is False else 'not checked'}" for name, ok in
                  found.items() if ok is not True]  # fmt: skip
        return len(found) - len(others), len(found), others


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """All that was found at the paths of a report, each run once."""

    entries: tuple[Entry, ...]
    predictions: tuple[Mapping[str, Any], ...]
    sweeps: tuple[str, ...]

    @property
    def scored(self) -> list[Entry]:
        """Runs with a number, the best first."""
        found = [entry for entry in self.entries if entry.bpb is not None]
        return sorted(found, key=lambda entry: (entry.bpb or 0.0, entry.name))

    @property
    def failed(self) -> list[Entry]:
        """Runs without a number that will not get one by themselves."""
        return [entry for entry in self.entries if entry.status == "failed"]


def gather(paths: Iterable[Path], cap: int | None = None) -> Gathered:
    """Every run, and every prediction, in run directories, stores and sweeps.

    `cap` is of the runs that name none themselves: only a sweep writes one down.
    Raises `ConfigError` for a path that holds none of them, `OSError` for one that is not there.
    """
    runs: dict[Path, tuple[str, Cell | None]] = {}
    predictions: list[Mapping[str, Any]] = []
    names: list[str] = []
    broken: list[Entry] = []

    def sweep(found: Sweep) -> None:
        names.append(found.name)
        predictions.extend(found.predictions)
        for cell in found.cells:
            assert cell.run is not None
            runs.setdefault(cell.run.resolve(), (cell.run.name, cell))

    for path in paths:
        before = len(runs) + len(broken) + len(names)
        if path.name == RESULTS_FILE or (path / RESULTS_FILE).is_file():
            sweep(read_sweep(path))
            continue
        if _is_run(path):
            runs.setdefault(path.resolve(), (path.resolve().name, None))
            continue
        for child in sorted(path.iterdir()):
            if child.is_dir() and _is_run(child):
                runs.setdefault(child.resolve(), (child.name, None))
        for results in sorted(path.glob(f"sweeps/*/{RESULTS_FILE}")):
            try:
                sweep(read_sweep(results))
            except ConfigError as error:
                broken.append(_broken(results.parent, f"sweep {results.parent.name}", str(error)))
        if len(runs) + len(broken) + len(names) == before:
            raise ConfigError(
                f"{path} holds 0 runs; name a run directory (with a {CONFIG}), a store of them or "
                "a sweep, or make one with tokgolf golf"
            )
    entries = [_entry(run, _short(name), cell, cap) for run, (name, cell) in runs.items()]
    return Gathered(
        entries=(*entries, *broken),
        predictions=tuple(predictions),
        sweeps=tuple(dict.fromkeys(names)),
    )


def _short(name: str) -> str:
    """The start of a cell's hash, which is enough to find it; any other name as it is."""
    return name[:SHORT_HASH] if _HASH.fullmatch(name) else name


def _is_run(path: Path) -> bool:
    return any((path / name).is_file() for name in RUN_FILES)


def _broken(run: Path, name: str, reason: str) -> Entry:
    return Entry(name=name, run=run, settings={}, alike=str(run), status="failed", reason=reason)


def _entry(run: Path, name: str, cell: Cell | None, cap: int | None) -> Entry:
    """A run from its files; the cell's own file is newer than a sweep's copy of it."""
    try:
        if (run / CELL_FILE).is_file():
            cell = read_cell(run)
        settings = dict(cell.settings) if cell is not None else run_settings(run)
        score, told = None, dict[str, Any]()
        if (run / SCORE).is_file():
            score, told = read_score(run), read_json_object(run / SCORE)
        if cell is None:
            cell = Cell(id=name, settings=settings, status="done")
        alike = _alike(run, settings, score)
        # A float model's score has no hash; an artifact's must be of one that the run exported.
        own = score is None or score.artifact_sha256 in {None, *exported(run)}
    except (TokgolfError, OSError) as error:
        return _broken(run, name, str(error))
    told = {key: value for key, value in told.items() if not key.startswith("document_")}
    ratio = cell.train_bytes / cell.tokens if cell.tokens and cell.train_bytes else None
    return Entry(
        name=name,
        run=run,
        settings=settings,
        alike=alike,
        status=cell.status,
        reason=cell.reason,
        attempts=cell.attempts,
        score=score,
        own_score=own,
        told=told,
        bpb=cell.bpb if score is None else score.bpb,
        bpb_before_export=cell.bpb_before_export,
        artifact_bytes=cell.artifact_bytes if score is None else score.artifact_bytes,
        asset_bytes=cell.asset_bytes or _whole(told.get("asset_bytes")),
        cap=cell.cap or cap,
        params=cell.params,
        bytes_per_train_token=ratio or _train_ratio(run),
        seconds=cell.seconds or None,
    )


def _whole(value: Any) -> int | None:
    return value if type(value) is int else None


def _alike(run: Path, settings: Mapping[str, Any], score: SavedScore | None) -> str:
    """A text that runs share which differ by nothing but the seed."""
    values: dict[str, Any] = {k: v for k, v in settings.items() if k not in NO_SETTING}
    if not (run / CELL_FILE).is_file() and (run / CONFIG).is_file():
        values = {k: v for k, v in read_toml(run / CONFIG).items() if k not in NO_SETTING}
        values["tokenizer"] = score.tokenizer if score else str(run)
    return json.dumps(values, sort_keys=True, default=str)


def run_settings(run: Path) -> dict[str, Any]:
    """Flat settings of a run that no sweep made, options of its head that are no default included.

    Raises `TokgolfError` for a config or a tokenizer that is damaged.
    """
    found: dict[str, Any] = {}
    tokenizer = run / "tokenizer.tok"
    if tokenizer.is_file():
        loaded = load_tokenizer(tokenizer)
        found |= {"tokenizer.kind": loaded.kind, "vocab_size": loaded.vocab_size}
    if not (run / CONFIG).is_file():
        return found
    config = read_toml(run / CONFIG)
    head, trunk = config.get("head"), config.get("trunk")
    if not isinstance(head, dict) or not isinstance(trunk, dict):
        raise ConfigError(f"{run / CONFIG} has no tables head and trunk; tokgolf train writes them")
    found["head"] = head.get("name")
    usual = head_to_dict(head_config({"name": head.get("name")}, str(run / CONFIG)))
    for key, value in head.items():
        if key == "add":
            found |= {f"head.add.{name}": True for name in value}
        elif key != "name" and value != usual.get(key):
            found[f"head.{key}"] = value
    found |= {f"trunk.{key}": trunk[key] for key in ("layers", "d_model") if key in trunk}
    found["seed"] = config.get("seed")
    return found


def _train_ratio(run: Path) -> float | None:
    """Bytes of text a token of training stands for, from the shards' sidecars."""
    try:
        infos = [read_sidecar(path) for path in shard_files(run / "tokens", "train")]
    except (TokgolfError, OSError):
        return None  # a help for one axis, not a need
    known = [info for info in infos if info is not None]
    tokens = sum(info.tokens for info in known)
    if not tokens or len(known) < len(infos):
        return None
    return math.fsum(info.bytes for info in known) / tokens
