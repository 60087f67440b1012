"""`tokgolf export`."""

from pathlib import Path
from typing import Any

import click

from tokgolf.cli.options import (
    Size,
    check_folder,
    given,
    json_option,
    print_json,
    print_rows,
    quantize_options,
)


@click.command(short_help="Pack a run into one artifact under a cap.")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--cap", type=Size(), default="16MB", show_default=True, help="Byte cap, full count.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Default: RUN/model.golf.")
@quantize_options
@json_option
def export(run: Path, cap: int, output: Path | None, as_json: bool, **quantizer: Any) -> None:
    """Quantize and entropy-code the latest checkpoint of RUN into one artifact under a cap.

    Rows are rounded to steps of clip * std / (2^(bits-1) - 1); the entropy coder does the rest,
    so a larger clip is a smaller file. An artifact over the cap is not written.

    Example: tokgolf export runs/golf --cap 250KB -o model.golf
    """
    from tokgolf.artifact.export import export_run
    from tokgolf.quantize.rows import QuantConfig

    path = output or run / "model.golf"
    check_folder(path)
    ledger = export_run(run, path, cap=cap, config=QuantConfig(**given(**quantizer)))
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
        print_json({**totals, "ledger": dict(ledger.rows)})
    else:
        print_rows([*ledger.rows, *totals.items()])
