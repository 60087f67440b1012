"""`tokgolf completion`, and what options complete to.

Completion must answer while a key is pressed, so nothing here loads torch: names of heads and
add-ons are read off the registries' source.
"""

import ast
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path

import click
from click.shell_completion import CompletionItem, get_completion_class

from tokgolf.cli.command import Command

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


@click.command(cls=Command, short_help="The script that lets a shell complete tokgolf.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script that completes commands, options, heads, recipes and corpora in a SHELL.

    In ~/.bashrc or ~/.zshrc: eval "$(tokgolf completion bash)", or zsh. For fish, write it to
    ~/.config/fish/completions/tokgolf.fish.

    Example: tokgolf completion bash
    """
    root = ctx.find_root()
    complete = get_completion_class(shell)
    assert complete is not None
    click.echo(complete(root.command, {}, "tokgolf", "_TOKGOLF_COMPLETE").source())


def registered(registry: str) -> list[str]:
    """The keys of a dict literal in tokgolf.heads.

    "ADDONS" -> ["unigram-bias", "bigram-hash", ...]
    """
    for node in ast.parse((_folder("tokgolf.heads") / "__init__.py").read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == registry:
            return [*ast.literal_eval(node.value)]
    return []


def recipes() -> list[str]:
    """The shipped recipes."""
    return sorted(path.stem for path in (_folder("tokgolf.training") / "recipes").glob("*.toml"))


def corpora() -> list[str]:
    """The named corpora."""
    from tokgolf.corpora import corpus_names

    return [*corpus_names()]


def _folder(package: str) -> Path:
    """Where a package lies, which is not imported for it."""
    spec = find_spec(package)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def _completes(names: Callable[[], Iterable[str]], *, files: bool = False) -> Complete:
    """Completion by names and, with `files`, by the shell's own of paths."""

    def complete(
        ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        items = [CompletionItem(name) for name in names() if name.startswith(incomplete)]
        # First, as click's script for bash forgets what came before it.
        return [CompletionItem(incomplete, type="file"), *items] if files else items

    return complete


complete_head = _completes(lambda: registered("HEADS"))
complete_addon = _completes(lambda: registered("ADDONS"))
complete_recipe = _completes(recipes, files=True)
complete_corpus = _completes(corpora, files=True)
