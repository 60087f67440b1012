"""`tokgolf heads`."""

from pathlib import Path

import click

from tokgolf.cli.command import Command
from tokgolf.cli.options import json_option, print_json, print_rows


@click.command(cls=Command, short_help="What each head costs; its gradient bottleneck.")
@click.option("--tokenizer", type=click.Path(path_type=Path), help="Default: the bytes alone.")
@click.option("--d-model", default=512, show_default=True, help="Width of the trunk.")
@click.option("--bits", default=4.24, show_default=True, help="Stored bits a weight.")
@click.option("--measure", type=click.Path(path_type=Path), help="A trained run.")
@json_option
def heads(
    tokenizer: Path | None, d_model: int, bits: float, measure: Path | None, as_json: bool
) -> None:
    """List every head and add-on: weights, stored bytes, operations a token, and floor.

    A floor is what a token costs at least, in bits, under any trunk: some heads cannot tell some
    tokens apart. With --measure, tell instead how much of the gradient by the logits passes
    through the head of a trained run (rho), beside what would pass without any direction in it;
    only heads that are one softmax have it.

    Example: tokgolf heads --tokenizer bpe8192.tok --d-model 512
    """
    from dataclasses import asdict

    from tokgolf.config import TrunkConfig
    from tokgolf.headtable import bottleneck, head_costs
    from tokgolf.model import head_shape
    from tokgolf.tokenizers import build_tokenizer, load_tokenizer

    if measure is not None:
        found = asdict(bottleneck(measure))
        print_json(found) if as_json else print_rows(list(found.items()))
        return
    chosen = load_tokenizer(tokenizer) if tokenizer else build_tokenizer("byte", [], None)
    trunk = TrunkConfig(d_model=d_model, heads=1, kv_heads=1)
    rows = head_costs(head_shape(chosen, trunk), bits)
    if as_json:
        values = {"vocab_size": chosen.vocab_size, "d_model": d_model, "bits": bits}
        print_json({**values, "heads": [asdict(row) for row in rows]})
        return
    click.echo(f"V = {chosen.vocab_size:,}, d = {d_model}, {bits} bits a weight\n")
    click.echo(f"{'head':<18}{'weights':>12}{'bytes':>12}{'flops':>14}{'floor':>8}")
    for row in rows:
        if row.problem:
            click.echo(f"{row.name:<18}  {row.problem}")
            continue
        floor = "" if row.floor_bits is None else f"{row.floor_bits:.3f}" if row.floor_bits else "-"
        line = f"{row.name:<18}{row.params:>12,}{row.stored_bytes:>12,}{row.flops:>14,}{floor:>8}"
        click.echo(line.rstrip())
