"""`tokgolf export`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tokgolf.cli.command import Command
from tokgolf.cli.options import (
    Size,
    check_folder,
    device_option,
    given,
    json_option,
    print_json,
    print_rows,
    say,
)

if TYPE_CHECKING:
    from tokgolf.artifact.export import Plan


@click.command(cls=Command, short_help="Pack a run into one artifact under a cap.")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--cap", type=Size(), default="16MB", show_default=True, help="Byte cap, full count.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Default: RUN/model.golf.")
@click.option("--bits", type=float, help="Bits a weight, instead of filling the cap; up to 8.")
@click.option(
    "--method",
    type=click.Choice(["trellis", "gptq", "nearest"]),
    help="Default: trellis. nearest needs no training tokens.",
)
@click.option(
    "--rate-weight",
    type=float,
    help="Error given up for bits, 0 to 2; 1 is the step's own exchange rate. Default: 0.25.",
)
@click.option(
    "--tune",
    type=int,
    help="Updates of what is still float after each part is rounded; 0: round all at once. "
    "Default: 40, or 0 for nearest.",
)
@click.option(
    "--plan",
    "plan_path",
    type=click.Path(path_type=Path),
    help="Take every step from this *.plan.json of an earlier export.",
)
@device_option
@json_option
def export(
    run: Path,
    cap: int,
    output: Path | None,
    plan_path: Path | None,
    device: str,
    as_json: bool,
    **quantizer: Any,
) -> None:
    """Quantize and entropy-code the latest checkpoint of RUN into one artifact under a cap.

    The steps of all tensors are allocated by what their error costs on training tokens, so that
    the full accounting (code and tokenizer included) lands just under the cap. The model is rounded
    block by block; after each, --tune updates on training tokens bring what is left nearer to the
    float model. What is over the cap is not written. The plan goes to OUTPUT.plan.json.

    Example: tokgolf export runs/golf --cap 250KB -o model.golf
    """
    from tokgolf.artifact.export import export_run, read_plan
    from tokgolf.device import resolve_device
    from tokgolf.quantize.rows import quant_config

    path = output or run / "model.golf"
    check_folder(path)
    options = given(**quantizer)
    if plan_path and options:
        raise click.UsageError(
            f"--plan says it all; leave out --{next(iter(options)).replace('_', '-')}"
        )
    ledger, plan = export_run(
        run,
        path,
        cap=cap,
        config=quant_config(**options),
        plan=read_plan(plan_path) if plan_path else None,
        device=resolve_device(device),
        say=say,
    )
    totals = {
        "artifact": str(path),
        "file_bytes": path.stat().st_size,
        "official_bytes": ledger.official,
        "artifact_bytes": ledger.full,
        "raw_bytes": ledger.raw,
        "asset_bytes": dict(ledger.rows)["tokenizer"],
        "cap": cap,
        "headroom": cap - ledger.full,
    }
    if as_json:
        print_json({**totals, "ledger": dict(ledger.rows), "plan": plan.as_dict()})
    else:
        print_plan(plan)
        print_rows([*ledger.rows, *totals.items()])


def print_plan(plan: "Plan") -> None:
    """Each tensor's step and share of the damage."""
    shares = plan.shares()
    click.echo(f"{'tensor':44} {'step':>10} {'damage':>7}")
    for name, step in plan.steps.items():
        share = f"{shares[name]:6.1%}" if shares else "-"
        click.echo(f"{name:44} {step:10.6f} {share:>7}")
    click.echo()
