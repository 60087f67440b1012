"""The texts of a record folder: submission.json, a log a seed, and README.md.

Keys and lines are those that the challenge's records have (openai/parameter-golf); what has no
place there stands under keys of our own. Numbers are written in full where a machine reads them.
"""

from pathlib import Path
from typing import Any

import torch

from tokgolf.eval.audit.claims import CAP, CHALLENGE_BYTES
from tokgolf.eval.compare import RULE_NATS, RULE_P
from tokgolf.heads import head_to_dict
from tokgolf.submit.claim import LIMIT_SECONDS, SEEDS, Claim, is_named, shown_name
from tokgolf.submit.seeds import Seed


def submission_json(claim: Claim, checks: dict[str, Any]) -> dict[str, Any]:
    """The record's facts; `checks` are what was done before the folder was written."""
    first, labels = claim.seeds[0], claim.labels
    sizes = [claim.code + len(seed.artifact.data) for seed in claim.seeds]
    return {
        "author": labels.author,
        "github_id": labels.github_id,
        "name": claim.name,
        "blurb": labels.blurb,
        "date": labels.date,
        "track": claim.track,
        "val_loss": claim.val_loss,
        "val_bpb": claim.val_bpb,
        "val_loss_std": claim.val_loss_std,
        "val_bpb_std": claim.val_bpb_std,
        "seeds": [seed.number for seed in claim.seeds],
        "seed_results": {str(seed.number): _seed_result(claim, seed) for seed in claim.seeds},
        "scored_tokens": first.score.tokens,
        "scored_bytes": claim.scored_bytes,
        "documents": len(first.score.bits),
        "text": shown_name(claim.text),
        "text_sha256": first.score.corpus_sha256,
        "mode": first.score.mode,
        "protocol": first.protocol.as_dict(),
        "bytes_total": claim.total,
        "bytes_code": claim.code,
        "bytes_code_readable": claim.readable,
        "bytes_code_scoring_packed": first.ledger.code.packed,
        "bytes_model": claim.model,
        "bytes_tokenizer": dict(first.ledger.rows)["tokenizer"],
        "artifact_bytes_mean": sum(sizes) / len(sizes),
        "artifact_bytes_max": max(sizes),
        "cap": claim.cap,
        "hardware": labels.hardware,
        "pytorch_version": torch.__version__,
        "compliance": {
            "train_under_600s": claim.train_in_time,
            "artifact_under_16mb": claim.total <= CAP,
            "eval_under_600s": claim.eval_in_time,
            "score_first_ttt": None if first.protocol.adapt is None else True,
            "three_seeds": len(claim.seeds) >= SEEDS,
        },
        **_comparison(claim),
        "significance": claim.significant,
        "whole_challenge_split": claim.whole_split,
        "lossless_tokenizer": first.artifact.tokenizer.lossless,
        "invariants": first.values["invariants"],
        "checks": checks,
        "missing": claim.missing(),
    }


def _comparison(claim: Claim) -> dict[str, Any]:
    """The challenge's keys about the record to beat, none without one.

    `t_statistic` and `p_value` (one-sided) are of "not better", `p_value_rule` of "not 0.005 nats
    a token better". Nats a token of two tokenizers have no difference.
    """
    if (found := claim.against) is None:
        return {}
    before, values, test = found.reference.as_dict(), found.as_dict(), found.seeds
    return {
        "comparison_baseline": [_score_name(each.name) for each in found.reference.scores],
        "comparison_baseline_bpb": before["bpb"],
        "comparison_baseline_nats": before["nats_per_token"],
        "comparison_baseline_bpb_of_each": before["bpb_of_each"],
        "delta_vs_baseline_bpb": values["bpb"],
        "delta_vs_baseline_nats": values["nats_per_token"],
        "rule_bpb": found.rule_bpb,
        "t_test": None if test is None else test.kind,
        "t_statistic": None if test is None or not test.error else test.difference / test.error,
        "degrees_of_freedom": None if test is None else test.freedom,
        "p_value": None if test is None else test.p_below(0),
        "p_value_rule": found.p_rule,
    }


def _score_name(name: str) -> str:
    """The file or run that a score is of, without its folders.  "x/a1/score.json" -> "a1" """
    path = Path(name)
    return path.parent.name or path.name if path.name == "score.json" else path.name


def _seed_result(claim: Claim, seed: Seed) -> dict[str, Any]:
    return {
        "val_loss": seed.val_loss,
        "val_bpb": seed.val_bpb,
        "artifact_bytes": claim.code + len(seed.artifact.data),
        "bytes_model": len(seed.artifact.data),
        "artifact": seed.file,
        "artifact_sha256": seed.artifact.sha256,
        "steps": seed.steps,
        "train_time_s": seed.seconds,
        "step_avg_ms": 1000 * seed.seconds / max(1, seed.steps),
        "eval_time_s": seed.values["seconds"],
    }


def log_text(claim: Claim, seed: Seed) -> str:
    """The log of a seed in the challenge's lines, put together from what the run recorded."""
    score, model = seed.score, len(seed.artifact.data)
    trained_on = seed.trained_on
    lines = [
        "# written by tokgolf submit from metrics.jsonl, score.json and model.golf of the run",
        f"seed:{seed.number}",
        f"train_loader text:{shown_name(str(trained_on.get('name')))} "
        f"bytes:{trained_on.get('bytes')} sha256:{trained_on.get('sha256')}",
        f"val_loader text:{shown_name(claim.text)} documents:{len(score.bits)} "
        f"bytes:{claim.scored_bytes} sha256:{score.corpus_sha256} tokens:{score.tokens}",
        f"model_params:{sum(p.numel() for p in seed.artifact.model.parameters())}",
        *(
            f"step:{each['step']}/{seed.steps} train_loss:{each['loss']:.4f} "
            f"train_time:{1000 * each['seconds']:.0f}ms "
            f"step_avg:{1000 * each['seconds'] / max(1, each['step']):.2f}ms"
            for each in seed.metrics
        ),
        f"Serialized model: {model} bytes",
        f"Code size: {claim.code} bytes",
        f"Total submission size: {model + claim.code} bytes",
        f"artifact:{seed.file} sha256:{seed.artifact.sha256}",
        f"final_roundtrip_exact val_loss:{seed.val_loss!r} val_bpb:{seed.val_bpb!r} "
        f"eval_time:{1000 * float(seed.values['seconds']):.0f}ms",
    ]
    return "\n".join(lines) + "\n"


def readme_text(claim: Claim, checks: dict[str, Any]) -> str:
    """The README: the number, how it was taken, the bytes, what is packed, what is missing."""
    labels = claim.labels
    parts = [
        f"# {claim.name}",
        labels.blurb or "",
        _headline(claim),
        _seed_table(claim),
        *_beside(claim),
        "## How it was scored",
        *_protocol(claim),
        "## Bytes",
        _bytes(claim),
        "## What is packed",
        _packed(claim),
        "## The model",
        _model(claim),
        "## What was checked before this folder was written",
        _checks(checks),
        "## What is missing",
        "\n".join(f"* {line}" for line in claim.missing()) or "Nothing that tokgolf knows of.",
        f"Author: {labels.author or 'not given'}, {labels.github_id or 'no GitHub id given'}. "
        f"Date: {labels.date or 'not given'}. Hardware: {labels.hardware or 'not given'}.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _headline(claim: Claim) -> str:
    spread = "" if claim.val_bpb_std is None else f" (standard deviation {claim.val_bpb_std:.6f})"
    count = f"mean of {len(claim.seeds)} seeds" if len(claim.seeds) > 1 else "one seed"
    none = (
        " No significance over another record is claimed here: `tokgolf submit --baseline` tests "
        "that, with the scores of both."
    )
    return (
        f"**{claim.val_bpb:.6f} bits per byte**, {count}{spread}; {claim.val_loss:.6f} nats a "
        f"token; {claim.total:,} bytes of {claim.cap:,}."
    ) + ("" if claim.against else none)


def _beside(claim: Claim) -> list[str]:
    """The record to beat, and whether it is beaten."""
    if (found := claim.against) is None:
        return []
    before, facts = found.reference, _comparison(claim)
    each = ", ".join(f"{bpb:.6f}" for bpb in facts["comparison_baseline_bpb_of_each"])
    nats = facts["delta_vs_baseline_nats"]
    per_token = (
        "the tokenizers differ, so nats a token do not compare"
        if nats is None
        else f"{nats:+.6f} nats a token"
    )
    verdict = {
        True: f"Cleared, p = {found.p_rule:.2g}.",
        False: f"Not cleared, p = {found.p_rule:.2g}.",
        None: f"Not to be told: it takes {SEEDS} seeds on each side.",
    }[claim.significant]
    parts = [
        f"Record to beat: {', '.join(facts['comparison_baseline'])}, scored on the same text by "
        f"the same protocol: {before.bpb:.6f} bits per byte ({each}). Difference "
        f"{found.difference:+.6f} bits per byte; {per_token}."
    ]
    if found.seeds is not None:
        parts.append(
            f"{found.seeds.kind.capitalize()} t-test over seeds: t = "
            f"{facts['t_statistic'] or 0:.3f}, {found.seeds.freedom:.2f} degrees of freedom, p = "
            f"{facts['p_value']:.2g} (not better, one-sided)."
        )
    parts.append(
        f"The challenge's rule, {RULE_NATS} nats a token ({found.rule_bpb:.6f} bits per byte here) "
        f"better at p < {RULE_P}: {verdict}"
    )
    return ["## Against the record to beat", " ".join(parts)]


def _seed_table(claim: Claim) -> str:
    rows = [
        f"| {seed.number} | {seed.val_loss:.8f} | {seed.val_bpb:.8f} | "
        f"{claim.code + len(seed.artifact.data):,} | {seed.steps:,} | {seed.seconds:.1f} | "
        f"{float(seed.values['seconds']):.1f} |"
        for seed in claim.seeds
    ]
    head = "| seed | val_loss | val_bpb | bytes in all | steps | training, s | scoring, s |"
    return "\n".join([head, "|---|---|---|---|---|---|---|", *rows])


def _protocol(claim: Claim) -> list[str]:
    first, options = claim.seeds[0], claim.seeds[0].protocol
    score = first.score
    what = (
        "the challenge's text (nmt_nfkc), stream and windows"
        if claim.official
        else "each document as it is, every byte of it, which is not the challenge's text"
    )
    lines = [
        f"Text: `{shown_name(claim.text)}`, {len(score.bits):,} documents, "
        f"{claim.scored_bytes:,} bytes, {score.tokens:,} targets, SHA-256 `{score.corpus_sha256}`. "
        f"Mode {score.mode}: {what}. Context: {options.context}; window {options.window}, stride "
        f"{options.stride}, in fp32. The score is of the decoded artifact.",
    ]
    if claim.official and not claim.whole_split:
        lines.append(
            f"This is not the challenge's validation split, which has {CHALLENGE_BYTES:,} bytes."
        )
    if options.adapt is not None:
        lines.append(
            f"Test-time training: {options.adapt.kind}, in chunks of {options.adapt.chunk} tokens. "
            "A chunk is scored first and learned from after; nothing is scored twice."
        )
    if not first.artifact.tokenizer.lossless:
        lines.append(
            "The tokenizer does not give every text back; bytes are those of the normalised text."
        )
    invariants = first.values["invariants"]
    unknown = [name for name, holds in invariants.items() if holds is None]
    lines.append(
        f"{sum(holds is True for holds in invariants.values())} invariants of the score hold"
        + (f"; not checked: {', '.join(unknown)}." if unknown else ".")
    )
    return lines


def _bytes(claim: Claim) -> str:
    ledger = claim.seeds[0].ledger
    rows = [
        ("train_gpt.py as it is here: what is claimed", claim.code, claim.total),
        ("the files in source/, readable", claim.readable, claim.readable + claim.model),
        ("tokgolf's ledger: scoring alone, packed as xz", ledger.code.packed, ledger.full),
    ]
    tokenizer = dict(ledger.rows)["tokenizer"]
    return "\n".join(
        [
            "| code | bytes | with the artifact |",
            "|---|---|---|",
            *(f"| {name} | {code:,} | {total:,} |" for name, code, total in rows),
            "",
            f"The largest artifact has {claim.model:,} bytes; {tokenizer:,} of them are the "
            "tokenizer, which the challenge does not count. Libraries are free, as there.",
        ]
    )


def _packed(claim: Claim) -> str:
    first = claim.seeds[0]
    default = f" Without --text it scores `{claim.text}`." if is_named(claim.text) else ""
    lines = [
        "`train_gpt.py` holds the modules of tokgolf in `source/`, without docstrings, comments "
        "and annotations, as compressed text; it needs the libraries in `requirements.txt` and no "
        "tokgolf. It scores the artifacts beside it by the protocol above:",
        "```\npython train_gpt.py --text DOCUMENTS.jsonl\npython train_gpt.py --shards FOLDER\n```",
        f"Documents are a `.jsonl` with a `text` field, `.txt` or `.parquet`.{default} Shards "
        "are the challenge's format, of this artifact's tokenizer.",
    ]
    if claim.training:
        lines += [
            "It trains too, with the tokenizer in `tokenizer.tok` and the configuration at the end "
            "of the script, exports, and scores what it exported:",
            f"```\npython train_gpt.py --train DOCUMENTS.jsonl --text VAL.jsonl --seed "
            f"{first.number} -o run\n```",
            f"The training text was `{shown_name(str(first.trained_on.get('name')))}`, "
            f"{first.trained_on.get('bytes'):,} bytes, SHA-256 "
            f"`{first.trained_on.get('sha256')}`.",
        ]
    else:
        lines.append("It does not train: training was left out when it was packed.")
    return "\n\n".join(lines)


def _model(claim: Claim) -> str:
    artifact = claim.seeds[0].artifact
    head = head_to_dict(artifact.head)
    shape = ", ".join(f"{key} {value}" for key, value in artifact.trunk.stored().items())
    options = ", ".join(f"{key} {value}" for key, value in head.items() if key != "name")
    tokenizer = artifact.tokenizer
    return (
        f"Head `{head['name']}` ({options}); trunk: {shape}; tokenizer: {tokenizer.kind}, "
        f"{tokenizer.vocab_size:,} tokens, {artifact.model.head.shape.d_model} wide; "
        f"{sum(p.numel() for p in artifact.model.parameters()):,} parameters. The challenge allows "
        f"{LIMIT_SECONDS} s of training and as many of scoring on 8xH100."
    )


def _checks(checks: dict[str, Any]) -> str:
    return "\n".join(f"* {name}: {what}" for name, what in checks.items())
