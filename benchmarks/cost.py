"""What `tokgolf cost` says of a model before training, beside what its export takes after it.

Every run is exported at several clips and read back. The estimate gets the artifact's own bits a
weight, as one would who knows what damage a rate does; so its error is that of all else: vectors,
frequency tables, lanes, header, codes. A second estimate has the bits too from a Gaussian with the
steps of that clip: what is known before training where nothing says how weights are spread.

    tokgolf train --tokenizer bpe1024.tok --steps 150 -o runs/a
    python benchmarks/cost.py runs/a
"""

from pathlib import Path

import click

from tokgolf.artifact.checkpoint import load_run
from tokgolf.artifact.export import calibration_tokens, encode_artifact
from tokgolf.cost import cost_of, gaussian_bits
from tokgolf.quantize.rows import QuantConfig

CLIPS = (8.0, 12.85, 20.0)


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
def main(runs: tuple[Path, ...]) -> None:
    """Print a line for each run and clip."""
    columns = ("bits", "bytes", "estimate", "error", "of weights", "Gaussian bits", "error")
    click.echo(f"{'run':<14}{'head':<12}" + "".join(f"{name:>14}" for name in columns))
    for run in runs:
        source = load_run(run)
        tokens = list(calibration_tokens(run, source))
        for clip in CLIPS:
            config = QuantConfig(matrix_clip=clip, table_clip=4 * clip)
            measured = encode_artifact(source, config, tokens).ledger
            guess = cost_of(
                source.trunk, source.head, source.tokenizer, bits=measured.bits, trellis=False
            ).ledger
            step = {"matrix": clip / 31, "table": 4 * clip / 127}
            dense = [tensor for tensor in measured.tensors if tensor.kind in step]
            gaussian = sum(
                tensor.weights * gaussian_bits(step[tensor.kind], trellis=False) for tensor in dense
            ) / sum(tensor.weights for tensor in dense)
            blind = cost_of(
                source.trunk, source.head, source.tokenizer, bits=gaussian, trellis=False
            ).ledger
            beside = measured.code.packed + dict(measured.rows)["tokenizer"]
            click.echo(
                f"{run.name:<14}{source.head.name:<12}{measured.bits:>14.3f}{measured.full:>14,}"
                f"{guess.full:>14,}{guess.full / measured.full - 1:>14.2%}"
                f"{(guess.full - measured.full) / (measured.full - beside):>14.2%}"
                f"{gaussian:>14.3f}{blind.full / measured.full - 1:>14.2%}"
            )


if __name__ == "__main__":
    main()
