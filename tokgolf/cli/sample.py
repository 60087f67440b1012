"""`tokgolf sample`."""

from pathlib import Path

import click

from tokgolf.cli.command import Command


@click.command(cls=Command, short_help="Text from an artifact.")
@click.argument("path", metavar="MODEL", type=click.Path(path_type=Path))
@click.option("--prompt", default="", help="Text to go on from; it is printed too.")
@click.option("--tokens", default=256, show_default=True, help="At most this many more tokens.")
@click.option("--temperature", default=1.0, show_default=True, help="0: the likeliest token.")
@click.option("--top-p", default=1.0, show_default=True, help="Keep the likeliest of this share.")
@click.option("--seed", default=0, show_default=True)
def sample(
    path: Path, prompt: str, tokens: int, temperature: float, top_p: float, seed: int
) -> None:
    """Write text from an artifact to stdout, as bytes; a document that ends, ends.

    Example: tokgolf sample runs/golf/model.golf --prompt "Return the" --top-p 0.9
    """
    import os

    from tokgolf.artifact.load import load_artifact
    from tokgolf.eval.sample import sample as run_sample

    artifact = load_artifact(path)
    text = run_sample(
        artifact.model,
        artifact.tokenizer,
        os.fsencode(prompt),
        tokens=tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
    )
    click.echo(text, nl=False)
