"""A score's proof: bytes of the coded file beside what `tokgolf score` says, and speed both ways.

Whole documents of a corpus from its start, up to --bytes, are scored, compressed and restored for
each stride; then the longest of them alone. Beside them what xz -9e and PPMd make of the same
bytes, back to back. Speeds are in kB per second of processor time, on one thread.

    python benchmarks/proof.py runs/golf/model.golf --corpus stdlib:test --bytes 50KB
"""

import sys
import time
from itertools import pairwise
from pathlib import Path

# The repository's root is searched first, so that a checkout runs uninstalled; a script's folder
# last, or the benchmark tokenizers.py would pass for a library.
HERE = Path(__file__).resolve().parent
sys.path = [p for p in sys.path if Path(p or ".").resolve() != HERE]
sys.path = [str(HERE.parent), *sys.path, str(HERE)]

import click  # noqa: E402
import torch  # noqa: E402

from tokgolf.artifact.load import Artifact, load_artifact  # noqa: E402
from tokgolf.cli.options import Size  # noqa: E402
from tokgolf.corpora import Corpus, Document, open_corpus  # noqa: E402
from tokgolf.eval.compressors import baselines  # noqa: E402
from tokgolf.eval.proof import compress, decompress  # noqa: E402
from tokgolf.eval.score import score  # noqa: E402

COLUMNS = (
    "documents", "bytes", "stride", "score", "code", "file", "over", "over %", "over/doc",
    "score kB/s", "in kB/s", "out kB/s", "xz", "PPMd",
)  # fmt: skip


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True))
@click.option("--corpus", "spec", default="stdlib:test", show_default=True)
@click.option("--bytes", "size", type=Size(), default="50KB", show_default=True)
@click.option("--stride", "strides", type=int, multiple=True, default=(0, 64), show_default=True)
def main(model: Path, spec: str, size: int, strides: tuple[int, ...]) -> None:
    """Print a row for each stride, then the same of the longest document alone."""
    torch.set_num_threads(1)
    artifact = load_artifact(model)
    documents: list[Document] = []
    for document in open_corpus(spec):
        if sum(len(known.data) for known in documents) >= size:
            break
        documents.append(document)
    longest = max(documents, key=lambda document: len(document.data))
    click.echo("  ".join(f"{name:>10}" for name in COLUMNS))
    for chosen in (documents, [longest]):
        for stride in strides:
            click.echo("  ".join(f"{value:>10}" for value in row(artifact, chosen, stride)))


def row(artifact: Artifact, documents: list[Document], stride: int) -> list[str]:
    """What the columns say; sizes in bytes."""
    corpus = Corpus(name="part", split=None, source=lambda: iter(documents))
    texts = [document.data for document in documents]
    times = [time.process_time()]
    scored = score(artifact, corpus, stride=stride)
    times.append(time.process_time())
    data, made = compress(artifact, texts, stride=stride)
    times.append(time.process_time())
    assert decompress(artifact, data) == texts
    times.append(time.process_time())
    expected = scored.bpb * scored.bytes / 8
    over = len(data) - expected
    others = baselines(corpus)
    speeds = (made.bytes / (end - start) / 1000 for start, end in pairwise(times))
    return [
        f"{len(texts):,}", f"{made.bytes:,}", str(made.stride), f"{expected:,.1f}",
        f"{made.code_bytes:,}", f"{len(data):,}", f"{over:+.1f}", f"{over / expected:+.3%}",
        f"{over / len(texts):+.2f}", *(f"{speed:.2f}" for speed in speeds),
        *(f"{bpb * made.bytes / 8:,.0f}" for bpb in (others.xz_bpb, others.ppmd_bpb)),
    ]  # fmt: skip


if __name__ == "__main__":
    main()
