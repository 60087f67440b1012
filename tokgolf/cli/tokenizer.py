"""`tokgolf build-tokenizer`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tokgolf.cli.command import Command
from tokgolf.cli.options import (
    Size,
    check_folder,
    corpus_option,
    json_option,
    open_corpus,
    print_json,
    print_rows,
    say,
)

if TYPE_CHECKING:
    from tokgolf.corpora import Corpus
    from tokgolf.tokenizers import Tokenizer


class Sizes(click.ParamType[list[int]]):
    """One vocabulary size, or several with commas between them."""

    name = "size[,size...]"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[int]:
        if isinstance(value, list):
            return value
        try:
            return [int(part) for part in value.split(",")]
        except ValueError:
            self.fail(f"{value!r} is no size or list of sizes, such as 1024,4096", param, ctx)


@click.command(
    "build-tokenizer", cls=Command, short_help="Build a lossless tokenizer from a corpus."
)
@click.option(
    "--kind",
    default="bpe",
    show_default=True,
    help="bpe, sentencepiece (BPE as it learns it), unigram, byte; greedy or shortest (a set of "
    "strings without order: longest match first, or fewest tokens).",
)
@click.option(
    "--vocab-size",
    type=Sizes(),
    help="All ids, with the 256 bytes and BOS. Several, such as 1024,4096,16384, are nested "
    "tokenizers from one training run, written to NAME-1024.tok and so on.",
)
@corpus_option()
@click.option(
    "--pattern",
    default="gpt4",
    show_default=True,
    help="Where text is cut before learning: gpt4 or gpt2, then any of +digits1 (2, 3), +scripts, "
    "+words (tokens may cross spaces), or regex:EXPRESSION.",
)
@click.option(
    "--transform",
    default="none",
    show_default=True,
    help="Case marks: caps (before the space), caps-auto (only where unexpected), caps-v1 (as in "
    "the challenge's records).",
)
@click.option("--bigram-buckets", type=int, help="Carry a hash of token pairs to so many buckets.")
@click.option("--bigram-seed", type=int, default=0, show_default=True, help="Of that hash.")
@click.option(
    "--asset",
    "order",
    default="exact",
    show_default=True,
    help="exact, or max: the smallest file, whose merge order is rounded.",
)
@click.option(
    "--score-step",
    type=float,
    default=0.5,
    show_default=True,
    help="Unigram: round scores to multiples of so many nats.",
)
@click.option(
    "--sample",
    "sample_bytes",
    type=Size(),
    default="64MB",
    show_default=True,
    help="Learn from whole documents of so many bytes at most.",
)
@click.option("--seed", type=int, default=1337, show_default=True, help="Of that sample.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path))
@json_option
def build_tokenizer(
    kind: str,
    vocab_size: list[int] | None,
    spec: str,
    bigram_buckets: int | None,
    bigram_seed: int,
    sample_bytes: int,
    output: Path,
    as_json: bool,
    **options: Any,
) -> None:
    """Build a lossless tokenizer from a corpus (a name means its train split).

    Example: tokgolf build-tokenizer --kind bpe --vocab-size 1024 --corpus stdlib -o bpe1024.tok
    """
    from tokgolf.hashing import BigramBuckets
    from tokgolf.tokenizers import build_ladder, save_tokenizer

    check_folder(output)
    corpus = open_corpus(spec, "train")
    bigram = BigramBuckets(count=bigram_buckets, seed=bigram_seed) if bigram_buckets else None
    built = build_ladder(
        kind,
        (document.data for document in corpus),
        vocab_size or [None],
        bigram=bigram,
        sample_bytes=sample_bytes,
        **options,
    )
    rows = []
    for result in built:
        tokenizer, path = result.tokenizer, output
        if len(built) > 1:
            path = output.with_name(f"{output.stem}-{tokenizer.vocab_size}{output.suffix}")
        save_tokenizer(tokenizer, path)
        rows.append({**_facts(tokenizer, path, corpus, sample_bytes), **result.notes})
    if as_json:
        print_json(rows[0] if len(rows) == 1 else {"tokenizers": rows})
        return
    for row in rows:
        if row is not rows[0]:
            click.echo()
        print_rows(list(row.items()))
    if rows[0]["bytes"] >= sample_bytes:
        say(f"bytes per token are of the first {rows[0]['bytes']:,} bytes; learned from a sample")


def _facts(
    tokenizer: "Tokenizer", path: Path, corpus: "Corpus", measured_bytes: int
) -> dict[str, Any]:
    from tokgolf.tokenizers.statistics import batches

    size = tokens = 0
    for batch in batches((document.data for document in corpus), limit=measured_bytes):
        size += sum(map(len, batch))
        tokens += sum(map(len, tokenizer.encode_batch(batch)))
    return {
        "tokenizer": str(path),
        "kind": tokenizer.kind,
        "vocab_size": tokenizer.vocab_size,
        "asset_bytes": len(tokenizer.asset()),
        "corpus": corpus.name,
        "bytes": size,
        "tokens": tokens,
        "bytes_per_token": size / tokens,
        "fingerprint": tokenizer.fingerprint,
    }
