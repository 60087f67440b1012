"""What `tokgolf cost` says of a model before training, beside what its export takes after it.

Every run is exported and read back. The estimate is told the artifact's own bits a weight, which is
what export can be told too; its error is that of all else. A second estimate is told the steps
instead, and the spreads of rows and columns, and has the bits from the entropy of Gaussians: what
that leaves out are weights that are none, as in a table whose rows few updates have moved, all of
their weights as far.

    tokgolf train --tokenizer bpe1024.tok --steps 150 -o runs/a
    python benchmarks/cost.py runs/a
"""

import sys
from pathlib import Path

# The repository's root is searched first, so that a checkout runs uninstalled; a script's folder
# last, or the benchmark tokenizers.py would pass for a library.
HERE = Path(__file__).resolve().parent
sys.path = [p for p in sys.path if Path(p or ".").resolve() != HERE]
sys.path = [str(HERE.parent), *sys.path, str(HERE)]

import click  # noqa: E402
import numpy as np  # noqa: E402

from tokgolf.artifact import container, weights  # noqa: E402
from tokgolf.artifact.checkpoint import load_run  # noqa: E402
from tokgolf.artifact.export import calibration_tokens, encode_artifact  # noqa: E402
from tokgolf.artifact.load import Artifact  # noqa: E402
from tokgolf.cost import cost_of, gaussian_bits  # noqa: E402
from tokgolf.heads import Stored  # noqa: E402
from tokgolf.quantize import path, steps_of  # noqa: E402
from tokgolf.quantize.rows import QuantConfig  # noqa: E402

UNIT = 16  # spreads are rounded to so many a factor of two


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
def main(runs: tuple[Path, ...]) -> None:
    """Print a line for each run."""
    columns = ("bits", "bytes", "estimate", "error", "Gaussian", "error")
    click.echo(f"{'run':<14}{'head':<12}" + "".join(f"{name:>12}" for name in columns))
    for run in runs:
        source = load_run(run)
        tokens = calibration_tokens(run, source)
        artifact = encode_artifact(source, QuantConfig(), tokens)
        measured = artifact.ledger
        guess = cost_of(source.trunk, source.head, source.tokenizer, bits=measured.bits).ledger
        dense = sum(t.coded for t in guess.tensors if t.kind in ("table", "matrix"))
        blind = guess.full - dense + round(gaussian_bytes(source.model.stored(), artifact))
        click.echo(
            f"{run.name:<14}{source.head.name:<12}{measured.bits:>12.3f}{measured.full:>12,}"
            f"{guess.full:>12,}{guess.full / measured.full - 1:>12.3%}"
            f"{blind:>12,}{blind / measured.full - 1:>12.2%}"
        )


def gaussian_bytes(stored: list[Stored], artifact: Artifact) -> float:
    """What tables and matrices would take at the artifact's steps, if every weight were drawn from
    a Gaussian with the spread of its row and column (their powers' product)."""
    header, sections = container.unpack(artifact.data)
    trellis = header["quantizer"] == "trellis"
    found = weights.read(stored, sections, trellis).quantized
    width, lead = artifact.trunk.d_model, header["lead"]
    bits = 0.0
    for name, tensor, kind in stored:
        if kind in ("table", "matrix"):
            values = tensor.detach().double().numpy().reshape(-1, tensor.shape[-1])
            values = values[:, path(values.shape[1], width, lead)]
            power = np.square(values / steps_of(found[name]) / (1 + trellis))
            rows, columns = power.mean(axis=1), power.mean(axis=0)
            spreads = np.sqrt(np.outer(rows, columns / max(columns.mean(), 1e-300)))
            octaves, counts = np.unique(
                np.rint(UNIT * np.log2(spreads.clip(2.0**-20))), return_counts=True
            )
            each = [gaussian_bits(2.0 ** (-octave / UNIT)) for octave in octaves.tolist()]
            bits += float(np.dot(counts, each))
    return bits / 8


if __name__ == "__main__":
    main()
