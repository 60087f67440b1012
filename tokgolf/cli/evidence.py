"""A score as a person reads it: the number, how it was taken, and what was checked by letter."""

from typing import Any

import click

from tokgolf.cli.options import print_rows

TITLES = {
    "a": "bytes are the documents'",
    "b": "documents decode exactly",
    "c": "the corpus, in its order",
    "d": "probabilities sum to one",
    "e": "nothing looks ahead",
    "f": "each target once, state unchanged",
}
BASELINES = {
    "ppmd_bpb": "PPMd, its best order",
    "brotli_bpb": "brotli -q 11 -w 24",
    "xz_bpb": "xz -9e",
    "zstd_bpb": "zstd -19",
    "unigram_token_bpb": "tokens by their own counts",
    "unigram_byte_bpb": "bytes by their own counts",
    "uniform_token_bpb": "uniform tokens",
    "uniform_byte_bpb": "uniform bytes",
}
VERDICT = {True: "yes", False: "NO", None: "-"}


def print_score(values: dict[str, Any]) -> None:
    """Rows of a score's values, its protocol on one line, and a table of its evidence."""
    protocol = {name: value for name, value in values["protocol"].items() if value is not None}
    adapt = protocol.pop("adapt", {})
    protocol |= {f"adapt.{name}": value for name, value in adapt.items()}
    rest = {name: value for name, value in values.items() if type(value) not in (dict, list)}
    rest["protocol"] = ", ".join(f"{name} {value}" for name, value in protocol.items())
    rest.pop("baselines", None)
    rest.pop("mode")
    rest.pop("stride")
    if rest.pop("estimate"):
        click.echo("an estimate, in mixed precision; the score is taken in fp32\n")
        rest = {"bpb (estimate)": rest.pop("bpb"), **rest}
    print_rows(list(rest.items()))
    click.echo()
    if values["baselines"] is not None:
        click.echo("beside it, bits per byte of the same text:")
        print_rows([(f"    {BASELINES[name]}", values["baselines"][name]) for name in BASELINES])
        click.echo()
    rows: list[tuple[str, str, str]] = []
    for letter, seen in values["evidence"].items():
        rows.append((f"({letter}) {TITLES[letter]}", "", ""))
        rows += [
            (f"    {name}", VERDICT[values["invariants"][name]], "") for name in seen["checks"]
        ]
        rows += [(f"    {name}", "", _number(seen[name])) for name in seen if name != "checks"]
    width = max(len(row[0]) for row in rows)
    for name, verdict, number in rows:
        click.echo(f"{name:<{width}}  {verdict:<4}{number}".rstrip())


def _number(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.2g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
