"""`tokgolf import-tokenizer` and `tokgolf export-tokenizer`."""

from pathlib import Path

import click

from tokgolf.cli.command import Command
from tokgolf.cli.options import check_folder, json_option, print_json, print_rows, say


@click.command(
    "import-tokenizer", cls=Command, short_help="Import another library's tokenizer, ids kept."
)
@click.argument("source", metavar="FILE", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path))
@click.option("--pattern", help="Where tiktoken cuts text: gpt4 (default), gpt2 or regex:....")
@json_option
def import_tokenizer(source: Path, output: Path, pattern: str | None, as_json: bool) -> None:
    """Import a SentencePiece .model, a tokenizer.json, a tiktoken rank file or a byte260 file.

    Example: tokgolf import-tokenizer tokenizer.model -o tokenizer.tok
    """
    from tokgolf.tokenizers import save_tokenizer
    from tokgolf.tokenizers.foreign import describe_import, import_tokenizer

    check_folder(output)
    tokenizer = import_tokenizer(source, pattern=pattern)
    save_tokenizer(tokenizer, output)
    values = {"tokenizer": str(output)} | describe_import(tokenizer, source.read_bytes())
    print_json(values) if as_json else print_rows(list(values.items()))


@click.command(
    "export-tokenizer", cls=Command, short_help="Write a tokenizer as another library's file."
)
@click.argument("tokenizer", metavar="TOKENIZER", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path))
@json_option
def export_tokenizer(tokenizer: Path, output: Path, as_json: bool) -> None:
    """Write a tokenizer as .json (tokenizers), .model (sentencepiece) or .tiktoken, ids kept.

    Example: tokgolf export-tokenizer bpe1024.tok -o tokenizer.json
    """
    from tokgolf.tokenizers import load_tokenizer
    from tokgolf.tokenizers.foreign import export_tokenizer

    check_folder(output)
    loaded = load_tokenizer(tokenizer)
    note = export_tokenizer(loaded, output)
    values = {
        "file": str(output),
        "kind": loaded.kind,
        "vocab_size": loaded.vocab_size,
        "asset_bytes": len(loaded.asset()),
        "file_bytes": output.stat().st_size,
    }
    if as_json:
        print_json(values | {"note": note})
        return
    print_rows(list(values.items()))
    if note:
        say(f"note: {note}")


@click.command("export-weights", cls=Command, short_help="Write a model's tensors as safetensors.")
@click.argument("path", metavar="PATH", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path))
@json_option
def export_weights(path: Path, output: Path, as_json: bool) -> None:
    """Write the tensors of an artifact, dequantized, or of a run directory, as .safetensors.

    They are named as in the model and in fp32. The file's metadata has the configuration of trunk
    and head as JSON, and the tokenizer's fingerprint.

    Example: tokgolf export-weights runs/golf/model.golf -o model.safetensors
    """
    from tokgolf.artifact.tensors import export_weights
    from tokgolf.eval.score import open_source

    check_folder(output)
    tensors, metadata = export_weights(open_source(path)[0], output)
    values = {
        "file": str(output),
        "tensors": tensors,
        "file_bytes": output.stat().st_size,
        "tokenizer": metadata["tokenizer"],
    }
    print_json(values) if as_json else print_rows(list(values.items()))
