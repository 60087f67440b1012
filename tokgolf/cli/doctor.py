"""`tokgolf doctor`."""

from pathlib import Path

import click

from tokgolf.cli.command import Command
from tokgolf.cli.options import json_option, print_json


@click.command(cls=Command, short_help="Whether all that is needed is here.")
@click.option("--compile", "compiles", is_flag=True, help="Try the compiler too (half a minute).")
@json_option
def doctor(compiles: bool, as_json: bool) -> int:
    """Check this machine: versions, device, threads, compiler, disk, hub and optional extras.

    Every line is ok, warn (it works, but slower or without a part) or fail, with what to do. The
    exit code is 1 only if something fails that nothing works without.

    Example: tokgolf doctor
    """
    from dataclasses import asdict

    from tokgolf.doctor import examine

    checks = examine(Path.cwd(), compiles=compiles)
    failed = sum(check.status == "fail" for check in checks)
    if as_json:
        print_json({"ok": not failed, "checks": [asdict(check) for check in checks]})
        return int(failed > 0)
    width = max(len(check.name) for check in checks)
    for check in checks:
        start, below = f"{check.status:<4}  {check.name:<{width}}  ", " " * (width + 8)
        click.echo(click.wrap_text(check.found, 100, start, below))
        if check.advice:
            click.echo(click.wrap_text(check.advice, 100, f"{below}-> ", f"{below}   "))
    return int(failed > 0)
