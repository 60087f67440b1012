"""`tokgolf build-tokenizer`."""

from pathlib import Path

import click

from tokgolf.cli.options import check_folder, json_option, open_corpus, print_json, print_rows


@click.command("build-tokenizer", short_help="Build a lossless tokenizer from a corpus.")
@click.option("--kind", default="bpe", show_default=True, help="bpe, unigram or byte.")
@click.option("--vocab-size", type=int, help="All ids, with the 256 bytes and BOS.")
@click.option("--corpus", "spec", default="stdlib", show_default=True, help="Name or path[:split].")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path))
@json_option
def build_tokenizer(
    kind: str, vocab_size: int | None, spec: str, output: Path, as_json: bool
) -> None:
    """Build a lossless tokenizer from a corpus (a name means its train split).

    Example: tokgolf build-tokenizer --kind bpe --vocab-size 1024 --corpus stdlib -o bpe1024.tok
    """
    from tokgolf.tokenizers import build_tokenizer as build
    from tokgolf.tokenizers import save_tokenizer

    check_folder(output)
    corpus = open_corpus(spec, "train")
    tokenizer = build(kind, (document.data for document in corpus), vocab_size)
    save_tokenizer(tokenizer, output)
    size = tokens = 0
    for document in corpus:
        size += len(document.data)
        tokens += len(tokenizer.encode(document.data))
    values = {
        "tokenizer": str(output),
        "kind": tokenizer.kind,
        "vocab_size": tokenizer.vocab_size,
        "asset_bytes": len(tokenizer.asset()),
        "corpus": corpus.name,
        "bytes": size,
        "tokens": tokens,
        "bytes_per_token": size / tokens,
        "fingerprint": tokenizer.fingerprint,
    }
    print_json(values) if as_json else print_rows(list(values.items()))
