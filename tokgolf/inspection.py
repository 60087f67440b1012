"""What `tokgolf inspect` tells about a file or run.

Torch is imported only for what holds a model, so that a tokenizer is told about at once.
"""

from collections.abc import Iterable, Sequence
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokgolf.codesize import code_bytes, tokenizer_modules
from tokgolf.corpora import Corpus
from tokgolf.errors import ConfigError
from tokgolf.files import write_bytes
from tokgolf.tokenizers import load_tokenizer, statistics

if TYPE_CHECKING:
    from tokgolf.ledger import Ledger

PLOT_SUFFIXES = (".png", ".svg", ".pdf")
# Okabe & Ito 2008: eight colours that the colour-blind tell apart, less black and yellow.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
_MARKERS = "osD^vP"


def inspect_path(path: Path) -> dict[str, Any]:
    """The byte ledger of an artifact, or the main facts of a tokenizer or a run."""
    if path.is_dir():
        return _inspect_run(path)
    if path.suffix == ".tok":
        return inspect_tokenizers([path])[0]
    return _inspect_artifact(path)


def _inspect_run(path: Path) -> dict[str, Any]:
    from tokgolf.artifact.checkpoint import load_run

    run = load_run(path)
    params = {name: p.numel() for name, p in run.model.named_parameters()}
    return {
        "run": str(path),
        "head": run.head.name,
        "addons": ", ".join(run.head.add) or None,
        "steps": run.state["step"],
        "seconds": float(run.state["seconds"]),
        "finished": run.state["finished"],
        "corpus": run.state["corpus"]["name"],
        "params": sum(params.values()),
        "head_params": sum(n for name, n in params.items() if name.startswith("head.")),
        "vocab_size": run.tokenizer.vocab_size,
        "asset_bytes": len(run.tokenizer.asset()),
    }


def _inspect_artifact(path: Path) -> dict[str, Any]:
    from tokgolf.artifact.load import load_artifact

    artifact = load_artifact(path)
    return {
        "artifact": str(path),
        "sha256": artifact.sha256,
        "head": artifact.head.name,
        "addons": ", ".join(artifact.head.add) or None,
        "vocab_size": artifact.tokenizer.vocab_size,
        "file_bytes": len(artifact.data),
        **ledger_facts(artifact.ledger),
    }


def ledger_facts(ledger: "Ledger") -> dict[str, Any]:
    """All that a ledger holds, as plain values."""
    weights: dict[str, int] = {}
    for tensor in ledger.tensors:
        weights[tensor.component] = weights.get(tensor.component, 0) + tensor.weights
    return {
        "full": ledger.full,
        "official": ledger.official,
        "raw": ledger.raw,
        "artifact_bytes": ledger.full,
        "asset_bytes": dict(ledger.rows)["tokenizer"],
        "bits": ledger.bits,
        "ledger": dict(ledger.rows),
        "weights": weights,
        "code": ledger.code._asdict(),
        "modules": list(ledger.modules),
        "tensors": [
            {**tensor._asdict(), "bytes": tensor.bytes, "bits": tensor.bits}
            for tensor in ledger.tensors
        ],
    }


def inspect_tokenizers(
    paths: Sequence[Path], corpora: Iterable[Corpus] = (), *, limit: int | None = None
) -> list[dict[str, Any]]:
    """The facts of tokenizer files and, with corpora, of the tokens they make of each.

    Every corpus is a domain, read once for all tokenizers; of each, the first `limit` bytes
    count. Raises `ConfigError` for a path that is no `.tok` file.
    """
    for path in paths:
        if path.suffix != ".tok":
            raise ConfigError(
                f"{path} is no tokenizer (.tok); several files, --corpus and --plot are for "
                "tokenizers, so inspect it alone"
            )
    tokenizers = [load_tokenizer(path) for path in paths]
    facts = [
        {
            "tokenizer": str(path),
            **statistics.describe(tokenizer),
            "decoder_code_bytes": code_bytes(tokenizer_modules(tokenizer))[0],
            "fingerprint": tokenizer.fingerprint,
        }
        for path, tokenizer in zip(paths, tokenizers, strict=True)
    ]
    pairs = [statistics.PairCounts(t) if t.bigram else None for t in tokenizers]
    domains = []
    for corpus in corpora:
        domain = [
            statistics.Usage(tokenizer, corpus.name, pairs=counts)
            for tokenizer, counts in zip(tokenizers, pairs, strict=True)
        ]
        for batch in statistics.batches((doc.data for doc in corpus), limit=limit):
            for usage in domain:
                usage.add(batch)
        domains.append(domain)
    if domains:
        for values, tokenizer, counts, *usages in zip(
            facts, tokenizers, pairs, *domains, strict=True
        ):
            values.update(statistics.summarize(tokenizer, usages, counts))
    return facts


def check_plot(path: Path) -> None:
    """Raise `ConfigError` unless a plot can be made and written under this name."""
    if path.suffix not in PLOT_SUFFIXES:
        raise ConfigError(f"{path.name} is no plot; end it in one of {', '.join(PLOT_SUFFIXES)}")
    matplotlib_module("figure")


def plot_tokenizers(facts: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw bytes per token and asset bytes over the vocabulary size, and write it to `path`.

    `facts` are those of `inspect_tokenizers` with corpora; each kind, order and
    transform is a line.
    """
    check_plot(path)
    groups: dict[str, list[dict[str, Any]]] = {}
    for values in sorted(facts, key=lambda values: values["vocab_size"]):
        transform = values["transform"]
        rounded = "max" if values["order"] == "max" else ""
        marks = "" if transform == "none" else transform
        label = ", ".join(filter(None, [values["kind"], rounded, marks]))
        groups.setdefault(label, []).append(values)
    figure = matplotlib_module("figure").Figure(figsize=(10, 4.2), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    for index, (label, group) in enumerate(groups.items()):
        style = {
            "label": label,
            "color": _COLORS[index % len(_COLORS)],
            "marker": _MARKERS[index % len(_MARKERS)],
            "linestyle": ("-", "--", ":")[index // len(_COLORS) % 3],
            "markersize": 5,
        }
        sizes = [values["vocab_size"] for values in group]
        left.plot(sizes, [v["all_domains"]["bytes_per_token"] for v in group], **style)
        right.plot(sizes, [values["asset_bytes"] for values in group], **style)
    sizes = [values["vocab_size"] for values in facts]
    powers = range(min(sizes).bit_length() - 1, (max(sizes) - 1).bit_length() + 1)
    ticks = [1 << power for power in powers]
    tick_size = 10 if len(ticks) <= 6 else 7  # more would run into each other
    for axes, title in ((left, "bytes per token"), (right, "asset bytes")):
        axes.set_title(title, loc="left", fontsize=11)
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks], fontsize=tick_size)
        axes.set_xlabel("vocabulary size")
        axes.grid(True, color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    left.set_ylim(bottom=0)
    right.set_yscale("log")
    right.yaxis.set_major_locator(matplotlib_module("ticker").LogLocator(subs=(1, 2, 5)))
    right.yaxis.set_major_formatter(lambda size, _: f"{size:,.0f}")
    for axes in (left, right):
        axes.minorticks_off()
    figure.legend(*left.get_legend_handles_labels(), loc="outside right upper", frameon=False)
    names = ", ".join(Path(domain["corpus"]).name for domain in facts[0]["domains"])
    figure.supxlabel(f"text: {names}", fontsize=8, color="#555555", x=0.01, ha="left", wrap=True)
    write_figure(figure, path)


def matplotlib_module(module: str) -> Any:
    """A module of matplotlib; without `pyplot` it opens no window and keeps no state."""
    try:
        return import_module(f"matplotlib.{module}")
    except ImportError as error:
        raise ConfigError(
            "a plot needs matplotlib, which is not here; pip install 'tokgolf[report]'"
        ) from error


def write_figure(figure: Any, path: Path) -> None:
    """Write a matplotlib figure, whole or not at all; the same figure gives the same bytes."""
    dated = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix)
    buffer = BytesIO()
    with import_module("matplotlib").rc_context({"svg.hashsalt": "tokgolf"}):
        figure.savefig(buffer, format=path.suffix[1:], metadata=dated)
    write_bytes(path, buffer.getvalue())
