"""`tokgolf corpus`: what text there is, what it amounts to, and writing it out."""

from pathlib import Path

import click

from tokgolf.cli.command import Command
from tokgolf.cli.completion import complete_corpus
from tokgolf.cli.options import json_option, print_json, print_rows, say


@click.group()
def corpus() -> None:
    """List, describe and export corpora.

    Example: tokgolf corpus info stdlib:val
    """


@corpus.command("list", cls=Command)
@json_option
def list_corpora(as_json: bool) -> None:
    """List the corpora that have a name. Any path works too.

    Example: tokgolf corpus list
    """
    from tokgolf.corpora import corpus_names

    if as_json:
        print_json(corpus_names())
    else:
        print_rows(list(corpus_names().items()))


@corpus.command(cls=Command)
@click.argument("spec", shell_complete=complete_corpus)
@json_option
def info(spec: str, as_json: bool) -> None:
    """Count documents and bytes of SPEC (a name or path, or either with :train, :val or :test).

    Example: tokgolf corpus info stdlib:val
    """
    from tokgolf.corpora import open_corpus

    summary = open_corpus(spec).summary()
    values = {
        "corpus": summary.name,
        "documents": summary.documents,
        "bytes": summary.bytes,
        "sha256": summary.sha256,
        **summary.provenance,
    }
    print_json(values) if as_json else print_rows(list(values.items()))


@corpus.command("export", cls=Command)
@click.argument("spec", shell_complete=complete_corpus)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path))
@click.option(
    "--tokenizer", type=click.Path(path_type=Path), help="Write token shards with this tokenizer."
)
@click.option("--prefix", help="Of the shards' names; default: the split. fineweb_val, ...")
def export_corpus(spec: str, output: Path, tokenizer: Path | None, prefix: str | None) -> None:
    """Write SPEC as documents (.jsonl or .jsonl.zst) or, with --tokenizer, as token shards.

    Shards are files PREFIX_000000.bin, ... in the folder OUTPUT, as the challenge's scripts read
    them: those look for files that begin with fineweb_train and fineweb_val.

    Example: tokgolf corpus export stdlib:val -o val.jsonl.zst
    """
    from tokgolf.corpora import open_corpus, write_jsonl
    from tokgolf.errors import ConfigError

    if prefix is not None and (tokenizer is None or not prefix or Path(prefix).name != prefix):
        raise ConfigError(
            f"--prefix {prefix!r} is the start of shards' names; give one without folders, and "
            "--tokenizer"
        )
    source = open_corpus(spec)
    if tokenizer is None:
        count = write_jsonl(output, source.documents())
        say(f"wrote {count:,} documents to {output}")
        return
    from tokgolf.tokenizers import load_tokenizer
    from tokgolf.training.data import tokenize

    prefix = prefix or source.split or "tokens"
    tokens = tokenize(source, load_tokenizer(tokenizer), output, prefix, source.summary().sha256)
    say(f"wrote {tokens.documents:,} documents, {len(tokens.stream):,} tokens to {output}")


@corpus.command("decode", cls=Command)
@click.argument("shards", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--tokenizer", required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path))
@json_option
def decode_shards(shards: tuple[Path, ...], tokenizer: Path, output: Path, as_json: bool) -> None:
    """Write token SHARDS (.bin, in order) as documents (.jsonl or .jsonl.zst).

    The tokenizer is the one that wrote them, a .tok file (tokgolf import-tokenizer makes one). One
    that normalises gives normalised text back.

    Example: tokgolf corpus decode fineweb_val_000000.bin --tokenizer fineweb.tok -o val.jsonl.zst
    """
    from tokgolf.corpora import write_jsonl
    from tokgolf.corpora.decode import shard_documents
    from tokgolf.tokenizers import load_tokenizer

    loaded = load_tokenizer(tokenizer)
    changed: list[int] = []
    documents = shard_documents(
        shards,
        bos_id=loaded.bos_id,
        vocab_size=loaded.vocab_size,
        decode=loaded.decode,
        encode=loaded.encode,
        on_changed=changed.append,
    )
    count = write_jsonl(output, documents)
    values = {"file": str(output), "documents": count, "other_tokens": len(changed)}
    print_json(values) if as_json else print_rows(list(values.items()))
    if changed:
        say(
            f"note: {len(changed):,} of {count:,} documents, number {changed[0]:,} the first, "
            "encode to other tokens than the shards have"
        )
