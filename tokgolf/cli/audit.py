"""`tokgolf audit`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tokgolf.cli.command import Command
from tokgolf.cli.completion import complete_corpus
from tokgolf.cli.options import json_option, open_corpus, print_json, print_rows
from tokgolf.errors import ConfigError

if TYPE_CHECKING:
    from tokgolf.eval.audit.claims import Claim


@click.command(
    cls=Command, short_help="Byte accounting of a foreign tokenizer, shards or a claimed score."
)
@click.argument("paths", type=click.Path(path_type=Path), nargs=-1, metavar="[PATH]...")
@click.option(
    "--corpus",
    "spec",
    help="The text that was scored: name (its val split) or path.",
    shell_complete=complete_corpus,
)
@click.option(
    "--tokenizer", type=click.Path(path_type=Path), help="Whose table, shards or claim they are."
)
@click.option("--val-loss", help="Claimed nats a token, in all its digits.")
@click.option("--val-bpb", help="Claimed bits a byte, in all its digits.")
@click.option(
    "--tokens", type=click.IntRange(1, 1 << 30), help="How many targets the claim scored."
)
@click.option(
    "--claim",
    "claim_file",
    type=click.Path(path_type=Path),
    help="A record folder, a submission.json, a score.json or a training log.",
)
@click.option(
    "--challenge", is_flag=True, help="The claim is about the challenge's whole validation split."
)
@json_option
@click.pass_context
def audit(
    context: click.Context,
    paths: tuple[Path, ...],
    spec: str | None,
    tokenizer: Path | None,
    val_loss: str | None,
    val_bpb: str | None,
    tokens: int | None,
    claim_file: Path | None,
    challenge: bool,
    as_json: bool,
) -> None:
    """Check the byte accounting of other people's tokenizers, shards and scores.

    A PATH is a tokenizer (SentencePiece .model, tokenizer.json, tiktoken ranks, TokenMonster's
    YAML, .tok, .golf), a table of bytes a token (.npz with base_bytes, has_leading_space and
    is_boundary_token; give its tokenizer too), or token shards (.bin, or a folder of them).

    A --claim that is a record folder is held against its own logs and files too: the mean of the
    seeds, each log's numbers, hashes, and bytes.

    Without --corpus bytes are counted on Python's own documentation, and a claim is only held
    against itself. Exit code 1 if something is wrong; text that is normalised as the challenge
    does is a warning.

    Example: tokgolf audit tokenizer.model --corpus val.jsonl.zst --claim submission.json
    """
    from tokgolf.eval.audit.audit import audit as run_audit

    report = run_audit(
        paths,
        corpus=open_corpus(spec or "stdlib", "val"),
        own_corpus=spec is not None,
        tokenizer=tokenizer,
        claim=_claim(claim_file, val_loss, val_bpb, tokens),
        record=claim_file if claim_file is not None and claim_file.is_dir() else None,
        challenge=challenge,
    )
    values = report.as_dict()
    if as_json:
        print_json(values)
    else:
        _print(values)
    context.exit(1 if report.errors else 0)


def _claim(
    file: Path | None, val_loss: str | None, val_bpb: str | None, tokens: int | None
) -> "Claim | None":
    from dataclasses import replace

    from tokgolf.eval.audit.claims import Claim, pair, read_claim

    if (val_loss is None) != (val_bpb is None):
        raise ConfigError("--val-loss and --val-bpb only say something together; give both")
    if file is not None and val_loss is not None:
        raise ConfigError("a claim comes from --claim or from --val-loss and --val-bpb, not both")
    if file is None and (val_loss is None or val_bpb is None):
        if tokens is not None:
            raise ConfigError("--tokens is about a claim; add --claim, or --val-loss and --val-bpb")
        return None
    if file is not None:
        claim = read_claim(file)
    else:
        assert val_loss is not None and val_bpb is not None
        claim = Claim(pairs=[pair("the claim", val_loss, val_bpb)])
    return claim if tokens is None else replace(claim, targets=tokens)


def _print(values: dict[str, Any]) -> None:
    """The facts, then each finding on lines of its own, then the verdict."""
    for name, facts in values.get("tokenizers", {}).items():
        print_rows([("tokenizer", name), *facts.items()])
        click.echo()
    for part in ("shards", "claim"):
        if part in values:
            print_rows([(f"{part.rstrip('s')} {key}", v) for key, v in values[part].items()])
            click.echo()
    for finding in values["findings"]:
        click.echo(f"{finding['severity']}: {finding['name']} ({finding['means']})")
        click.echo(f"    {finding['evidence']}")
        if finding["factor"] is not None:
            click.echo(f"    bytes counted / true bytes: {finding['factor']:.4f}")
        click.echo(f"    what to do: {finding['advice']}")
    click.echo(f"verdict: {values['verdict']}")
