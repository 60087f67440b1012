"""`tokgolf cost`."""

from pathlib import Path

import click

from tokgolf.cli.command import Command
from tokgolf.cli.options import (
    Size,
    check_folder,
    json_option,
    model_options,
    model_overrides,
    print_json,
    say,
)
from tokgolf.cli.tables import print_ledger
from tokgolf.errors import ConfigError


@click.command(cls=Command, short_help="What a model would cost, before it is trained.")
@model_options
@click.option("--tokenizer", type=click.Path(path_type=Path), help="Its asset is counted exactly.")
@click.option("--vocab-size", type=int, help="Instead: a BPE of the embedded corpus of this size.")
@click.option("--bits", type=float, help="Stored bits a weight.")
@click.option("--cap", type=Size(), help="Instead: as many bits as fit, e.g. under 16MB.")
@click.option("--tensors", is_flag=True, help="The bytes tensor by tensor, too.")
@click.option("--plot", type=click.Path(path_type=Path), help="A treemap (.png, .svg or .pdf).")
@json_option
def cost(
    recipe: str,
    tokenizer: Path | None,
    vocab_size: int | None,
    head: str | None,
    addons: tuple[str, ...],
    settings: tuple[str, ...],
    bits: float | None,
    cap: int | None,
    tensors: bool,
    plot: Path | None,
    as_json: bool,
) -> None:
    """What the artifact of a model would cost, row by row, before anything is trained.

    The options are those of train. Code, tokenizer, codes and header are counted exactly; all that
    is stored of weights takes --bits a weight, as inspect shows it of a finished artifact, or with
    --cap as many bits as fit. Flops are of a token, forward: repeated blocks count again.

    Example: tokgolf cost --recipe baseline --tokenizer bpe8192.tok --head factorized
    --set head.rank=128 --cap 16MB
    """
    from tokgolf.cost import cost_of, embedded_tokenizer
    from tokgolf.heads import head_config
    from tokgolf.inspection import check_plot, ledger_facts
    from tokgolf.tokenizers import load_tokenizer
    from tokgolf.training import run_config

    if (tokenizer is None) == (vocab_size is None):
        raise ConfigError("give either --tokenizer x.tok or --vocab-size N")
    if (bits is None) == (cap is None):
        raise ConfigError("give either --bits B, a weight, or the --cap that must hold it all")
    if plot is not None:
        check_folder(plot)
        check_plot(plot)
    config = run_config(recipe, model_overrides(settings, head, addons))
    options = head_config(config.head)
    if tokenizer is not None:
        chosen, name = load_tokenizer(tokenizer), str(tokenizer)
    else:
        assert vocab_size is not None
        say(f"building a BPE tokenizer of {vocab_size:,} tokens from the embedded corpus")
        chosen, name = embedded_tokenizer(vocab_size), "bpe of the embedded corpus"
    found = cost_of(config.trunk, options, chosen, bits=bits, cap=cap)
    values = {
        "recipe": recipe,
        "tokenizer": name,
        "head": found.head.name,
        "addons": ", ".join(found.head.add) or None,
        "vocab_size": chosen.vocab_size,
        "params": found.params,
        "flops": found.flops,
        "cap": cap,
        **ledger_facts(found.ledger),
    }
    if plot is not None:
        from tokgolf.treemap import plot_ledger

        plot_ledger(values["ledger"], f"{recipe}, {found.head.name}, {found.bits:g} bits", plot)
        say(f"wrote {plot}")
    print_json(values) if as_json else print_ledger(values, tensors=tensors, step="step/std")
