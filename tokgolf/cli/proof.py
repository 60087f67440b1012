"""`tokgolf compress` and `tokgolf decompress`: the proof of a score."""

from pathlib import Path

import click

from tokgolf.cli.command import Command
from tokgolf.cli.completion import complete_corpus
from tokgolf.cli.options import check_folder, json_option, open_corpus, print_json, print_rows
from tokgolf.cli.progress import token_lines

model_option = click.option(
    "-m", "--model", required=True, type=click.Path(path_type=Path), help="An artifact, *.golf."
)
output_option = click.option("-o", "--output", required=True, type=click.Path(path_type=Path))


@click.command(cls=Command, short_help="Documents as a file as small as the score says.")
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@model_option
@output_option
@click.option(
    "--corpus",
    "spec",
    help="Compress a corpus' documents in place of FILES.",
    shell_complete=complete_corpus,
)
@click.option("--stride", default=0, help="Start a window every N tokens; 0: disjoint windows.")
@json_option
def compress(
    files: tuple[Path, ...],
    model: Path,
    output: Path,
    spec: str | None,
    stride: int,
    as_json: bool,
) -> None:
    """Code FILES, each one document, by an artifact's own probabilities.

    The result proves what tokgolf score says with the same --stride: decompress gives every byte
    back from it and the artifact alone (names of files are not kept). With --corpus it proves the
    score of the whole corpus, by name that of its val split. Both commands run on one core, and
    must run on the same kind of machine: probabilities have to agree in every bit.

    Example: tokgolf compress --corpus stdlib -m runs/golf/model.golf -o stdlib.bits
    """
    from tokgolf.artifact.load import load_artifact
    from tokgolf.eval.proof import compress as run_compress
    from tokgolf.files import write_bytes

    if bool(files) == (spec is not None):
        raise click.UsageError("give FILES or --corpus, one of the two")
    check_folder(output)
    artifact = load_artifact(model)
    if spec is None:
        documents = [path.read_bytes() for path in files]
    else:
        documents = [document.data for document in open_corpus(spec, "val")]
    progress = token_lines("compressing")
    data, proof = run_compress(artifact, documents, stride=stride, on_progress=progress)
    write_bytes(output, data)
    values = proof.as_dict()
    print_json(values) if as_json else print_rows(list(values.items()))


@click.command(cls=Command, short_help="What compress was given, bit for bit.")
@click.argument("path", metavar="BITS", type=click.Path(path_type=Path))
@model_option
@output_option
@json_option
def decompress(path: Path, model: Path, output: Path, as_json: bool) -> None:
    """Restore the documents of a *.bits file with the artifact it was made with.

    One document becomes the file OUTPUT. Several become a new folder OUTPUT with a .txt file for
    each, a corpus of the same hash, or JSON lines if OUTPUT ends in .jsonl or .jsonl.zst. Nothing
    is written unless all of it is what was compressed.

    Example: tokgolf decompress stdlib.bits -m runs/golf/model.golf -o stdlib.jsonl
    """
    import time

    from tokgolf.artifact.load import load_artifact
    from tokgolf.eval.bits import read_bits, unpack
    from tokgolf.eval.proof import check_target, write_documents
    from tokgolf.eval.proof import decompress as run_decompress

    data = read_bits(path)
    check_target(output, len(unpack(data).counts))
    check_folder(output)
    artifact = load_artifact(model)
    began = time.perf_counter()
    documents = run_decompress(artifact, data, on_progress=token_lines("decompressing"))
    seconds = time.perf_counter() - began
    write_documents(output, documents)
    values = {
        "documents": len(documents),
        "bytes": sum(map(len, documents)),
        "file_bytes": len(data),
        "output": str(output),
        "seconds": seconds,
    }
    print_json(values) if as_json else print_rows(list(values.items()))
