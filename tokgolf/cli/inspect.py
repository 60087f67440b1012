"""`tokgolf inspect`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from tokgolf.cli.command import Command
from tokgolf.cli.completion import complete_corpus
from tokgolf.cli.options import (
    Size,
    check_folder,
    json_option,
    open_corpus,
    print_json,
    print_rows,
    say,
)
from tokgolf.cli.tables import print_ledger, print_table
from tokgolf.errors import ConfigError

# The columns of the tables: heading, then where in a tokenizer's facts the number is.
_Columns = tuple[tuple[str, ...], ...]
_FILES: _Columns = (
    ("kind", "kind"),
    ("transform", "transform"),
    ("V", "vocab_size"),
    ("asset", "asset_bytes"),
    ("decoder code", "decoder_code_bytes"),
    ("original file", "original_file_bytes"),
    ("lossless", "lossless"),
)
_DOMAIN: _Columns = (
    ("documents", "documents"),
    ("bytes", "bytes"),
    ("tokens", "tokens"),
    ("bytes/token", "bytes_per_token"),
    ("tokens/word", "tokens_per_word"),
    ("byte fallback %", "byte_fallback"),
    ("marks %", "marks"),
)
_USE: _Columns = (
    ("byte fallback %", "all_domains", "byte_fallback"),
    ("marks %", "all_domains", "marks"),
    ("dead", "types", "dead"),
    ("of them bytes", "types", "dead_bytes"),
    ("rare", "types", "rare"),
)
_SANITY: _Columns = (
    ("tokens/word", "all_domains", "tokens_per_word"),
    ("Shannon efficiency", "sanity", "shannon_efficiency"),
    ("Renyi-2.5 efficiency", "sanity", "renyi_efficiency"),
    ("unigram bits/byte", "sanity", "unigram_bits_per_byte"),
)
_BUCKETS: _Columns = (
    ("pairs", "bigram", "pairs"),
    ("buckets", "bigram", "buckets"),
    ("used", "bigram", "used"),
    ("(random)", "bigram", "random_used"),
    ("sharing %", "bigram", "sharing"),
    ("by use %", "bigram", "sharing_uses"),
    ("(random) %", "bigram", "random_sharing"),
    ("outranked %", "bigram", "outranked_uses"),
    ("(random) %", "bigram", "random_outranked_uses"),
)
_NESTED = {"domains", "all_domains", "types", "sanity", "bigram"}


@click.command(cls=Command, short_help="Show where the bytes are.")
@click.argument(
    "paths", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="PATH..."
)
@click.option(
    "--corpus",
    "specs",
    shell_complete=complete_corpus,
    multiple=True,
    help="Count tokens in this text: name (its val split) or path[:split]. Repeat for more.",
)
@click.option("--limit", type=Size(), help="Count only the first bytes of each corpus, e.g. 1MB.")
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    help="Draw an artifact's bytes as a treemap or, with --corpus, bytes/token and asset bytes "
    "over the vocabulary size (.png, .svg or .pdf).",
)
@click.option("--tensors", is_flag=True, help="An artifact's bytes tensor by tensor, too.")
@json_option
def inspect(
    paths: tuple[Path, ...],
    specs: tuple[str, ...],
    limit: int | None,
    plot: Path | None,
    tensors: bool,
    as_json: bool,
) -> None:
    """Show where the bytes are: of an artifact, of tokenizers (.tok), or of a run.

    With --corpus, tokenizers are also told by the tokens they make of text, corpus by corpus.
    Words are runs without ASCII white space; byte fallback is the share of tokens that are a
    single byte beyond ASCII; rare types have fewer than 100 uses, dead ones none.

    The rows of an artifact sum to its length and the code's. A tensor's share of the entropy-coded
    stream is its ideal length: -log2 of the frequencies its symbols were coded with.

    Example: tokgolf inspect runs/golf/model.golf --plot ledger.png
    """
    from tokgolf import inspection

    alone = len(paths) == 1 and not specs
    if limit is not None and not specs:
        raise ConfigError("--limit is about the tokens of some text; add --corpus")
    ours = alone and not paths[0].is_dir() and paths[0].suffix != ".tok"
    if tensors and not ours:
        raise ConfigError("--tensors is about one artifact (.golf)")
    if plot is not None:
        if not specs and not ours:
            raise ConfigError(
                "--plot draws one artifact (.golf), or tokens of some text; add --corpus"
            )
        check_folder(plot)
        inspection.check_plot(plot)
    if alone:
        values = inspection.inspect_path(paths[0])
        if plot is not None:
            from tokgolf.treemap import plot_ledger

            plot_ledger(values["ledger"], paths[0].name, plot)
            say(f"wrote {plot}")
        if as_json:
            print_json(values)
        elif ours:
            print_ledger(values, tensors=tensors)
        else:
            print_rows(_flat(values))
        return
    corpora = [open_corpus(spec, "val") for spec in specs]
    facts = inspection.inspect_tokenizers(paths, corpora, limit=limit)
    if plot is not None:
        inspection.plot_tokenizers(facts, plot)
        say(f"wrote {plot}")
    if as_json:
        print_json(facts[0] if len(facts) == 1 else {"tokenizers": facts})
    else:
        _print_tables(facts)


def _print_tables(facts: list[dict[str, Any]]) -> None:
    """One tokenizer's facts and its domains, or a line for each tokenizer in every table."""
    names = _short([values["tokenizer"] for values in facts])
    if len(facts) == 1:
        print_rows(_flat(facts[0]))
    else:
        _table("", names, _FILES, facts)
    domains = facts[0].get("domains", [])
    if not domains:
        return
    if len(facts) == 1:
        rows = domains if len(domains) == 1 else [*domains, facts[0]["all_domains"]]
        _table("tokens by corpus", _short([row["corpus"] for row in rows]), _DOMAIN, rows)
    else:
        per_token: _Columns = (("all", "all_domains", "bytes_per_token"),)
        if len(domains) > 1:
            titles = _short([domain["corpus"] for domain in domains])
            per_token += tuple(
                (title, "domains", str(place), "bytes_per_token")
                for place, title in enumerate(titles)
            )
        _table("bytes per token", names, per_token, facts)
    _table("use of the vocabulary, by all the text", names, _USE, facts)
    _table(f"sanity columns: {facts[0]['sanity']['note']}", names, _SANITY, facts)
    hashed = {name: v for name, v in zip(names, facts, strict=True) if v["bigram"]}
    if hashed:
        title = (
            "bigram buckets: distinct pairs; the share that is not alone in its bucket; "
            "the share of uses\nthat are not of the bucket's most used pair; (what a random "
            "function would do)"
        )
        _table(title, [*hashed], _BUCKETS, [*hashed.values()])


def _short(names: Sequence[str]) -> list[str]:
    """The last part of each path, or the whole paths if some would be the same."""
    last = [name.rsplit("/", 1)[-1] or name for name in names]
    return last if len(set(last)) == len(last) else list(names)


def _table(
    title: str, names: Sequence[str], columns: _Columns, rows: Sequence[dict[str, Any]]
) -> None:
    """A heading and aligned columns, the first of them names; a share is shown in percent."""
    cells = [["", *(heading for heading, *_ in columns)]]
    for name, row in zip(names, rows, strict=True):
        cells.append([name])
        for heading, *path in columns:
            value: Any = row
            for key in path:
                value = value[int(key)] if isinstance(value, list) else value.get(key)
            cells[-1].append(_cell(value, percent=heading.endswith("%")))
    if title:
        click.echo(f"\n{title}")
    print_table(cells)


def _cell(value: Any, *, percent: bool) -> str:
    if value is None or isinstance(value, bool):
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, float):
        return f"{100 * value:.2f}" if percent else f"{value:,.{4 if value < 100 else 0}f}"
    return value if isinstance(value, str) else f"{value:,}"


def _flat(values: dict[str, Any]) -> list[tuple[str, Any]]:
    """Facts for `print_rows`, each on one line; what has a table of its own is left out."""
    rows = []
    for name, value in values.items():
        if name in _NESTED:
            continue
        if isinstance(value, dict):
            value = ", ".join(f"{key}: {number:,}" for key, number in value.items())
        elif isinstance(value, list):
            value = "  ".join(text if len(text) <= 24 else f"{text[:22]}.." for text in value)
        rows.append((name, value))
    return rows
