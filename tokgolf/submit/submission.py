"""A submission: runs that are checked, packed, scored again by their own script, and audited.

Nothing appears under the folder's name until its claims hold: the script in it has given the
claimed scores in a process that sees no tokgolf, and the audit that reads other people's claims
has read these.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tokgolf import bundle
from tokgolf.codesize import code_bytes
from tokgolf.corpora import Corpus, open_corpus
from tokgolf.errors import ConfigError, CorpusError, ScoreError
from tokgolf.eval.audit.audit import audit
from tokgolf.eval.audit.claims import (
    CAP,
    SCRIPT,
    SUBMISSION,
    Reference,
    claim_findings,
    read_claim,
)
from tokgolf.eval.audit.findings import ERROR
from tokgolf.eval.compare import Comparison, compare
from tokgolf.eval.official import normalised
from tokgolf.eval.saved import read_score
from tokgolf.eval.score import modules_beside
from tokgolf.files import write_bytes, write_text
from tokgolf.submit.claim import Claim, Labels, Track, is_named
from tokgolf.submit.seeds import Seed, read_seeds
from tokgolf.submit.texts import log_text, readme_text, submission_json

RERUN_TOLERANCE = 1e-5  # bpb: what another device may move a score by (docs/results/score.md)
_NAME = re.compile(r"\d{4}-\d\d-\d\d_\S+")
Say = Callable[[str], None]


def submit(
    runs: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    labels: Labels | None = None,
    cap: int = CAP,
    track: Track = "non_record_16mb",
    corpus: str | None = None,
    baseline: Sequence[str | os.PathLike[str]] = (),
    training: bool = True,
    rerun: bool = True,
    device: str = "auto",
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """Write the folder `output` of these runs, which differ by their seeds; returns its facts.

    `corpus` is the text that was scored, if it is not where the score found it. `baseline` are the
    scores of the record to beat, a file or run a seed; they are compared as `tokgolf compare` does,
    which raises `ScoreError` for scores of other text or another protocol. Without `training`
    the script can score only; without `rerun` it is not tried, and the folder says so. Raises
    `CapError` for a script and artifact over `cap` bytes, `ScoreError` for a claim that its rerun
    or audit does not support, and what reading the runs raises. Then nothing is written.
    """
    folder = Path(os.path.abspath(output))
    if os.path.lexists(folder):
        raise ConfigError(f"{folder} is there already; choose another -o, or remove it")
    if not _NAME.fullmatch(folder.name):
        say(f"note: the challenge calls its folders YYYY-MM-DD_Name, this is {folder.name}")
    seeds = read_seeds(runs)
    first = seeds[0]
    against = _against(baseline, seeds) if baseline else None
    spec = corpus or first.score.corpus
    text = _scored_text(spec, first)
    modules = bundle.script_modules(
        [seed.artifact for seed in seeds],
        modules_beside(first.protocol, first.artifact.trunk),
        official=first.protocol.mode == "official",
        training=training,
    )
    settings: dict[str, Any] = {
        "protocol": first.protocol.as_dict(),
        "corpus": spec if is_named(spec) else None,
        "sha256": first.score.corpus_sha256,
        "cap": cap,
    }
    if training:
        tune = max(seed.quantizer["tune"] for seed in seeds)
        settings |= {
            "run": first.config,
            "quantizer": {**first.quantizer, "tune": tune},
            "export_cap": max(seed.ledger.full for seed in seeds),
        }
    script = bundle.train_gpt(SCRIPT, modules, settings)
    claim = Claim(
        name=folder.name,
        track=track,
        labels=labels or Labels(),
        text=spec,
        seeds=seeds,
        cap=cap,
        code=len(script.encode()),
        readable=code_bytes(modules).plain,
        training=training,
        against=against,
    )
    claim.check()
    parent = next(place for place in folder.parents if place.is_dir())
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=parent) as temporary:
        place = Path(temporary, "folder")
        place.mkdir()
        _write_files(place, claim, modules, script)
        said = _rerun(place, claim, device, say) if rerun else "not run (--no-rerun)"
        checks = {"the script's own score of each artifact": said}
        facts = _write_texts(place, claim, checks)
        _audit(place, claim, text)
        folder.parent.mkdir(parents=True, exist_ok=True)
        os.rename(place, folder)
    return facts


def _against(baseline: Sequence[str | os.PathLike[str]], seeds: list[Seed]) -> Comparison:
    """The seeds beside the record to beat."""
    (found,) = compare([[read_score(path) for path in baseline], [seed.score for seed in seeds]])
    return found


def _scored_text(spec: str, seed: Seed) -> Corpus:
    """The text that was scored. Raises `CorpusError` if it is not to be found, or another one."""
    try:
        text = open_corpus(spec)
        found = text.summary().sha256
    except CorpusError as error:
        raise CorpusError(
            f"the scored text is needed for the audit: {error}; give --corpus"
        ) from error
    if found != seed.score.corpus_sha256:
        raise CorpusError(
            f"{spec} has SHA-256 {found[:12]}, the scored text has "
            f"{seed.score.corpus_sha256[:12]}; give it with --corpus"
        )
    return text


def _write_files(place: Path, claim: Claim, modules: tuple[str, ...], script: str) -> None:
    """Script, source, requirements, tokenizer, artifacts and logs."""
    write_text(place / SCRIPT, script)
    bundle.write_source(place / "source", modules)
    write_text(place / "requirements.txt", "".join(f"{x}\n" for x in bundle.requirements(modules)))
    write_bytes(place / "tokenizer.tok", claim.seeds[0].artifact.tokenizer.asset())
    for seed in claim.seeds:
        write_bytes(place / seed.file, seed.artifact.data)
        write_text(place / seed.log, log_text(claim, seed))


def _write_texts(place: Path, claim: Claim, checks: dict[str, Any]) -> dict[str, Any]:
    """submission.json and README.md; returns what the former says."""
    checks = {
        **checks,
        "tokgolf audit of submission.json, logs and files, against the scored text": "no error",
    }
    facts = submission_json(claim, checks)
    write_text(place / SUBMISSION, json.dumps(facts, indent=1) + "\n")
    write_text(place / "README.md", readme_text(claim, checks))
    return facts


def _rerun(place: Path, claim: Claim, device: str, say: Say) -> str:
    """Score every artifact by the script, where no tokgolf can be imported; how near it comes.

    Raises `ScoreError` if the script fails, or gives another score than is claimed.
    """
    say(f"scoring {len(claim.seeds)} artifacts again by {SCRIPT}, on its own")
    text = claim.text if is_named(claim.text) else _absolute(claim.text)
    done = subprocess.run(
        [sys.executable, "-I", SCRIPT, "--json", "--device", device, "--text", text],
        cwd=place,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stderr.strip().splitlines()
    if done.returncode:
        raise ScoreError(f"{SCRIPT} failed on its own: {lines[-1] if lines else 'no reason given'}")
    found = {values["artifact"]: values for values in map(json.loads, done.stdout.splitlines())}
    worst = 0.0
    for seed in claim.seeds:
        own = found[seed.file]
        off = abs(own["val_bpb"] - seed.val_bpb)
        if not off <= RERUN_TOLERANCE or own["tokens"] != seed.score.tokens:
            raise ScoreError(
                f"{seed.run} claims {seed.val_bpb:.8f} bits per byte of {seed.score.tokens:,} "
                f"tokens, its artifact scores {own['val_bpb']:.8f} of {own['tokens']:,}; score it "
                f"again: tokgolf score {seed.run / 'model.golf'} --save {seed.run / 'score.json'}"
            )
        worst = max(worst, off, abs(own["val_loss"] - seed.val_loss))
    return f"within {worst:.1e}" if worst else "the same, bit for bit"


def _absolute(spec: str) -> str:
    """A path that another working directory finds too, with the split it ends in."""
    if os.path.exists(spec):
        return os.path.abspath(spec)
    path, _, split = spec.rpartition(":")
    return f"{os.path.abspath(path)}:{split}"


def _audit(place: Path, claim: Claim, text: Corpus) -> None:
    """Audit what was written, as somebody else's. Raises `ScoreError` for an error in it."""
    report = audit(
        [],
        corpus=normalised(text) if claim.official else text,
        tokenizer=place / "tokenizer.tok",
        claim=read_claim(place),
        record=place,
        challenge=claim.whole_split,
    )
    found = [("submission.json", error) for error in report.errors]
    held = report.facts["claim"]
    reference = Reference(
        name=held["held_against"],
        bytes_per_token=held["true_bytes_per_token"],
        targets=claim.seeds[0].score.tokens,
        tolerance=held["tolerance"],
    )
    for seed in claim.seeds:
        errors = claim_findings(read_claim(place / seed.log), reference)
        found += [(seed.log, error) for error in errors if error.severity == ERROR]
    if found:
        name, first = found[0]
        raise ScoreError(
            f"the audit does not support {name}: {first.name}, {first.evidence}; {first.advice}"
        )
