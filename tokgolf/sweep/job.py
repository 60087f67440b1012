"""One cell, from documents to a score: idempotent, resumable, and never done by two at once.

Every stage leaves a file of the run directory that is whole or not there, and is skipped where its
file is sound; training goes on from its checkpoint. What ends a cell is one line in `cell.json`.
"""

import json
from pathlib import Path
from typing import Any

import tomli_w

from tokgolf.artifact.checkpoint import exported, holds_checkpoint
from tokgolf.artifact.export import export_run
from tokgolf.artifact.load import load_artifact
from tokgolf.config import to_dict
from tokgolf.corpora import open_corpus
from tokgolf.device import resolve_device
from tokgolf.errors import ConfigError, TokgolfError, TrainingError
from tokgolf.eval.saved import read_score
from tokgolf.eval.score import open_source, read_train_digests, save_score, score
from tokgolf.files import write_text
from tokgolf.sweep.attempts import Beat, attempt
from tokgolf.sweep.cells import read_cell
from tokgolf.sweep.plan import NO_CAP, Job, Prepared, prepared, read_job
from tokgolf.sweep.ranks import run_ranks
from tokgolf.sweep.store import shared_tokens
from tokgolf.tokenizers import save_tokenizer
from tokgolf.training import StepReport, TrainResult, train

RECIPE_FILE = "recipe.toml"
BEFORE_FILE = "float.json"  # the float model's score


def run_cell(store: str, cell_id: str) -> str:
    """Do what is left of a cell; returns its status, or "busy" if another worker has it.

    A failure is written down with its reason and raises nothing. A cell that has ended is left
    alone; `reopen` one to have it done again.
    """
    return attempt(Path(store), cell_id, measured)


def is_sound(run: Path) -> bool:
    """Whether the files of a cell that is done are there, and say what the cell says."""
    try:
        cell, saved = read_cell(run), read_score(run)
        return saved.bpb == cell.bpb and load_artifact(run / "model.golf").sha256 == (
            saved.artifact_sha256
        )
    except (TokgolfError, OSError):
        return False


def measured(store: Path, cell_id: str, beat: Beat) -> dict[str, Any]:
    """Train, score, export and score again; the cell's numbers."""
    run = store / cell_id
    job = read_job(run)
    corpus, held_out = open_corpus(job.corpus), open_corpus(job.scored)
    for one, wanted in ((corpus, job.corpus_sha256), (held_out, job.scored_sha256)):
        if (sha256 := one.summary().sha256) != wanted:
            raise ConfigError(
                f"{one.name} has changed since the sweep was planned, from SHA-256 {wanted[:16]} "
                f"to {sha256[:16]}; run the sweep again under another name"
            )
    device = resolve_device(job.device)
    ready = prepared(store, job, corpus)
    tokens = shared_tokens(store, ready.tokenizer, corpus, job.corpus_sha256, run)
    if job.processes > 1:
        result = trained_by_torchrun(job, ready, run, beat)
    else:
        result = _trained(job, ready, run, device, beat)
    bpb_before = _score(run, run / BEFORE_FILE, job, device, None)
    path = run / "model.golf"
    digest = _artifact(path)
    if digest is None:
        cap = NO_CAP if job.cap is None else job.cap
        export_run(run, path, cap=cap, config=job.quant_config(), device=device)
        digest = load_artifact(path).sha256
    bpb = _score(path, run / "score.json", job, device, digest)
    ledger = load_artifact(path).ledger
    return {
        "bpb": bpb,
        "bpb_before_export": bpb_before,
        "artifact_bytes": ledger.full,
        "asset_bytes": dict(ledger.rows)["tokenizer"],
        "params": result.params,
        "steps": result.steps,
        "tokens": result.tokens,
        "train_bytes": round(result.tokens * tokens.bytes / len(tokens.stream)),
    }


def _trained(job: Job, ready: Prepared, run: Path, device: str, beat: Beat) -> TrainResult:
    """Train, or go on; a run that has ended is only read."""

    def on_step(report: StepReport) -> None:
        beat(report.step)

    resume = _goes_on(run)
    return train(
        ready.config,
        ready.tokenizer,
        open_corpus(job.corpus),
        run,
        held_out=open_corpus(job.scored),
        device=device,
        resume=resume,
        on_step=on_step,
    )


def _goes_on(run: Path) -> bool:
    """Whether there is a checkpoint to go on from. What was made of weights that are lost goes."""
    if not (run / "checkpoints" / "latest.json").is_file():
        forget(run)
    return holds_checkpoint(run)


def trained_by_torchrun(job: Job, ready: Prepared, run: Path, beat: Beat) -> TrainResult:
    """As `_trained`, by `tokgolf train` in as many processes as the job says.

    Raises `TrainingError` with the line that the command ended with, `Interrupted` on Ctrl-C.
    """
    save_tokenizer(ready.tokenizer, run / "tokenizer.tok")
    write_text(run / RECIPE_FILE, tomli_w.dumps(to_dict(ready.config)))
    command = [
        *("train", "--corpus", job.corpus, "--val", job.scored, "--device", job.device, "--json"),
        *("--tokenizer", str(run / "tokenizer.tok"), "--recipe", str(run / RECIPE_FILE)),
        *("-o", str(run)),
    ]
    if _goes_on(run):
        command.append("--resume")
    done = run_ranks(command, job.processes, run, lambda: beat(_last_step(run)))
    try:
        values = json.loads(done.out.strip().splitlines()[-1])
        return TrainResult(**{**values, "run": Path(values["run"])})
    except (IndexError, ValueError, TypeError, KeyError) as error:
        lines = done.err.strip().splitlines() or ["nothing was said"]
        told = [line for line in lines if line.startswith("error: ")]
        raise TrainingError(
            f"torchrun of {job.processes} processes ended with {done.status}: "
            f"{(told or lines)[-1].removeprefix('error: ')}"
        ) from error


def _last_step(run: Path) -> int:
    """The last step that training has written down; 0 before the first."""
    try:
        line = (run / "metrics.jsonl").read_bytes().splitlines()[-1]
        return int(json.loads(line)["step"])
    except (OSError, IndexError, ValueError, KeyError, TypeError):  # none yet, or half a line
        return 0


def forget(run: Path) -> None:
    """Remove what was made of weights that are gone: a new training may give others."""
    for name in (BEFORE_FILE, "score.json", "model.golf", "model.golf.plan.json"):
        (run / name).unlink(missing_ok=True)


def _artifact(path: Path) -> str | None:
    """SHA-256 of a run's artifact, if a whole export left it."""
    try:
        digest = load_artifact(path).sha256
    except (TokgolfError, OSError):
        return None
    whole = path.with_name(f"{path.name}.plan.json").is_file() and digest in exported(path.parent)
    return digest if whole else None


def _score(source: Path, saved: Path, job: Job, device: str, digest: str | None) -> float:
    """Bits per byte of a run or artifact: the saved score if it is of this one, or a new one."""
    try:
        found = read_score(saved)
        if found.artifact_sha256 == digest:
            return found.bpb
    except (TokgolfError, OSError):
        pass  # none yet, or a damaged one
    model, folder = open_source(source)
    digests = read_train_digests(model, folder)
    held_out = open_corpus(job.scored)
    result = score(model, held_out, stride=job.stride, device=device, train_digests=digests)
    save_score(result, saved)
    return read_score(saved).bpb  # as an attempt that finds it there reads it, to the last digit
