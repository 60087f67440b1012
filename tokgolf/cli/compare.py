"""`tokgolf compare`."""

from math import log
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tokgolf.cli.command import Command
from tokgolf.cli.options import json_option, print_json, print_rows
from tokgolf.cli.tables import print_table

if TYPE_CHECKING:
    from tokgolf.eval.compare import Comparison

BETWEEN = "vs"
LN2 = log(2)


@click.command(cls=Command, short_help="Which score is better, how surely, and its worth in bytes.")
@click.argument("scores", nargs=-1, required=True, metavar="SCORE... [vs SCORE...]...")
@click.option(
    "--test",
    default="auto",
    show_default=True,
    help="Over seeds: welch; paired, in the order given; auto pairs equal seeds of runs.",
)
@click.option("--level", default=0.95, show_default=True, help="Of the intervals.")
@click.option(
    "--exchange",
    "exchanges",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Measured points of bytes and bpb: a benchmark's JSON, or scores of several exports.",
)
@click.option("--across-protocols", is_flag=True, help="Compare though the protocols differ.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw it: .png, .svg or .pdf.")
@json_option
def compare(
    scores: tuple[str, ...],
    test: str,
    level: float,
    exchanges: tuple[Path, ...],
    across_protocols: bool,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Compare scores with the first one, on the same documents.

    A SCORE is a file that tokgolf score --save wrote, or a run directory with a score.json.
    Several seeds of one model make a side; write vs between sides. The interval over documents
    asks whether other documents would agree, the test over seeds whether another training would.
    The challenge's rule (0.005 nats a token better at p < 0.01) is of the second kind.

    Example: tokgolf compare runs/a1 runs/a2 runs/a3 vs runs/b1 runs/b2 runs/b3
    """
    from tokgolf.cli.options import check_folder
    from tokgolf.eval.compare import compare as run_compare
    from tokgolf.eval.exchange import read_exchange
    from tokgolf.eval.saved import read_score
    from tokgolf.inspection import check_plot

    if plot is not None:
        check_folder(plot)
        check_plot(plot)
    groups: list[list[str]] = [[]]
    for name in scores:
        groups.append([]) if name == BETWEEN else groups[-1].append(name)
    if BETWEEN not in scores:
        groups = [[name] for name in scores]
    found = run_compare(
        [[read_score(name) for name in group] for group in groups],
        test=test,
        level=level,
        across_protocols=across_protocols,
        exchange=read_exchange(exchanges) if exchanges else None,
    )
    if plot is not None:
        from tokgolf.comparisonplot import plot_comparisons

        plot_comparisons(found, plot)
    if as_json:
        print_json({"level": level, "comparisons": [each.as_dict() for each in found]})
        return
    for number, comparison in enumerate(found):
        if number:
            click.echo()
        _print(comparison)


def _print(found: "Comparison") -> None:
    """One comparison for a person."""
    from tokgolf.eval.compare import FEW_DOCUMENTS, RULE_NATS, RULE_P
    from tokgolf.eval.saved import protocol_differences

    a, b = found.reference, found.candidate
    first = a.scores[0]
    count = len(first.sizes)
    rows: list[tuple[str, str]] = [
        ("documents", f"{count:,} of {first.corpus}, {sum(first.sizes):,.0f} bytes, {first.mode}"),
        ("reference", a.name),
        ("candidate", b.name),
    ]
    unlike = "; ".join(protocol_differences(first, b.scores[0]))
    rows += [("protocols", f"different: {unlike}")] if unlike else []
    print_rows(list(rows))
    click.echo()
    level = f"{100 * found.level:g} %"
    seeds = None if found.seeds is None else found.seeds.interval(found.level)
    cells = [["", "reference", "candidate", "difference"]]
    cells[0] += [f"{level} over documents"] if found.documents else []
    cells[0] += [f"{level} over seeds"] if seeds else []
    ours, theirs, shift = a.as_dict(), b.as_dict(), found.as_dict()
    for unit in ("bpb", "nats_per_byte", "nats_per_token"):
        line = [unit.replace("_per_", "/"), f"{ours[unit]:.5f}", f"{theirs[unit]:.5f}"]
        if shift[unit] is None:
            cells.append([*line, "-", *["-"] * (len(cells[0]) - 4)])
            continue
        factor = {"bpb": 1.0, "nats_per_byte": LN2}.get(unit, LN2 * a.bytes_per_token)
        intervals = [pair for pair in (found.documents, seeds) if pair is not None]
        ends = [f"{low * factor:+.5f} to {high * factor:+.5f}" for low, high in intervals]
        cells.append([*line, f"{shift[unit]:+.5f}", *ends])
    print_table(cells)
    click.echo()
    notes: list[tuple[str, str]] = []
    if first.protocol.get("precision", "fp32") != "fp32":
        notes.append(("estimates", "in mixed precision; scores are taken in fp32"))
    if not found.same_model:
        kinds = {"float": "a float model", "artifact": "an artifact", "mixed": "some of each"}
        text = f"the reference is {kinds[a.model]}, the candidate {kinds[b.model]}: "
        notes.append(("models", text + "what export costs is in the difference"))
    if not found.same_tokenizer:
        notes.append(("tokenizers", "different: nats a token of the two are of different tokens"))
    if found.documents is None or count < FEW_DOCUMENTS:
        notes.append(("documents", f"{count}: too few for an interval that can be relied on"))
    if found.seeds is not None:
        test, rule = found.seeds, f"{RULE_NATS} nats a token better"
        sizes = f"{len(a.scores)} and {len(b.scores)} runs"
        notes.append(
            (
                "seeds",
                f"{test.kind} t-test, {sizes}, {test.freedom:.1f} degrees of freedom: "
                f"p = {test.p_equal:.2g} (equal), {test.p_below(0):.2g} (not better), "
                f"{found.p_rule:.2g} (not {rule})",
            )
        )
    worst = " (the greater of the two tokenizers')" if not found.same_tokenizer else ""
    verdict = {
        True: f"cleared, p < {RULE_P}",
        False: f"not cleared at p < {RULE_P}",
        None: "cannot be told without two seeds or more on each side",
    }[found.clears]
    notes.append(("rule", f"{RULE_NATS} nats a token = {found.rule_bpb:.5f} bpb{worst}: {verdict}"))
    notes += _byte_notes(found)
    print_rows(list(notes))


def _byte_notes(found: "Comparison") -> list[tuple[str, str]]:
    """What bytes have to do with it."""
    notes = []
    if found.bytes_difference is not None:
        size = f"{found.reference.artifact_bytes:,} and {found.candidate.artifact_bytes:,}"
        text = f"{size}, difference {found.bytes_difference:+,}"
        if found.bytes_paid is not None:
            paid = found.bytes_paid / 1000
            text += f"; the larger paid {paid:,.{0 if paid >= 10 else 1}f} bytes for 0.001 bpb"
        notes.append(("bytes", text))
    if found.segment is not None and found.worth_bytes is not None:
        part = found.segment
        notes.append(
            (
                "exchange",
                f"{1000 * part.rate:.5f} bpb for 1,000 bytes, measured between "
                f"{part.small_bytes:,.0f} and {part.large_bytes:,.0f} bytes in {part.source}",
            )
        )
        worth = (
            f"as much as {found.worth_bytes:,.0f} bytes more would gain the reference"
            if found.worth_bytes >= 0
            else f"as much as {-found.worth_bytes:,.0f} bytes fewer would cost the reference"
        )
        equal = found.difference_at_equal_bytes
        if equal is not None:
            worth += f"; at equal bytes the difference would be {equal:+.5f} bpb"
        notes.append(("worth", worth))
        if not part.text_known:
            text = (
                "not known: the file names no corpus, so the rate may be of other text or options"
            )
            notes.append(("points' text", text))
    return notes
