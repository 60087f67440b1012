"""The page: a report put into its template, with style and script inside and nothing from outside.

Every value goes through jinja2's escaping, and what came from a file through `plain` before. The
policy in the page's head lets its own style and script run, by their hashes, and nothing else.
"""

import base64
import json
from hashlib import sha256
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from tokgolf.report import charts
from tokgolf.report.board import Row
from tokgolf.report.build import MOST_CHARTED, Report, varied
from tokgolf.report.curves import AXES, MOST_CURVES
from tokgolf.report.heat import Heat, Token, pieces, plain, unlike_score
from tokgolf.report.palette import HEAT_FROM, SERIES, heat_class, stylesheet

BASELINES = {
    "xz_bpb": "xz -9e",
    "zstd_bpb": "zstd -19",
    "brotli_bpb": "brotli -11",
    "ppmd_bpb": "PPMd",
    "unigram_token_bpb": "unigram tokens",
}


def render(report: Report) -> str:
    """The whole page as text."""
    style = stylesheet() + _resource("page.css")
    script = _resource("page.js")
    policy = (
        f"default-src 'none'; style-src 'sha256-{_hash(style)}'; script-src 'sha256-"
        f"{_hash(script)}'; base-uri 'none'; form-action 'none'"
    )
    environment = Environment(
        loader=PackageLoader("tokgolf.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"plain": plain, "n": whole, "f": decimals, "said": said}
    looks = charts.series_of(row.entry.head for board in report.boards for row in board.rows)
    return environment.get_template("page.html").render(
        report=report,
        policy=policy,
        style=Markup(style),
        script=Markup(script),
        sections=sections(report),
        best=report.boards[0].best if report.boards else None,
        baselines=_baselines(report),
        looks=looks,
        mark=charts.legend_mark,
        paretos=[
            charts.pareto(board, looks) if len(board.sized) > 1 else None for board in report.boards
        ],
        varied=[varied([row.entry for row in board.rows]) for board in report.boards],
        curve_axes=AXES,
        curves={axis: charts.curves(report.curves, axis, title) for axis, title in AXES.items()}
        if report.curves
        else {},
        most_curves=MOST_CURVES,
        series=SERIES,
        treemap=charts.treemap(report.ledger) if report.ledger else None,
        lengths=charts.lengths,
        predicted=charts.predictions(report.predictions[:MOST_CHARTED])
        if report.predictions
        else None,
        heat_spans=heat_spans(report.heat) if report.heat else None,
        heat_data=Markup(heat_data(report.heat)) if report.heat else None,
        heat_from=HEAT_FROM,
        heat_unlike=unlike_score(report.subject.score)
        if report.subject and report.subject.score
        else "",
        row_class=row_class,
        unscored=unscored(report),
    )


def sections(report: Report) -> list[tuple[str, str]]:
    """The parts that the page has, in order: anchor and title."""
    parts = [
        ("leaderboard", "Leaderboard", bool(report.boards)),
        ("front", "Bits per byte over bytes", any(len(b.sized) > 1 for b in report.boards)),
        ("curves", "Learning curves", bool(report.curves)),
        ("ledger", "Where the bytes are", bool(report.ledger)),
        ("heads", "What heads cost", bool(report.heads)),
        ("tokenizers", "Tokenizers", bool(report.tokenizers)),
        ("predictions", "Predicted and measured", bool(report.predictions)),
        ("heat", "Bits by token", report.heat is not None),
        ("failed", "Failed", bool(report.gathered.failed)),
        ("open", "Without a score", bool(unscored(report))),
    ]  # fmt: skip
    return [(anchor, title) for anchor, title, there in parts if there]


def unscored(report: Report) -> list[Any]:
    """Runs that have no number yet."""
    failed = {entry.run for entry in report.gathered.failed}
    return [e for e in report.gathered.entries if e.bpb is None and e.run not in failed]


def row_class(row: Row) -> str:
    """What is to be seen of a row at once."""
    return "front-row" if row.front else ""


def _baselines(report: Report) -> list[tuple[str, float]]:
    told = report.boards[0].best.entry.told.get("baselines") if report.boards else None
    found = told if isinstance(told, dict) else {}
    return [(name, found[key]) for key, name in BASELINES.items() if type(found.get(key)) is float]


def heat_spans(heat: Heat) -> Markup:
    """The text, a span a token; marks stand for what cannot be shown."""
    return Markup("").join(_span(number, token) for number, token in enumerate(heat.tokens))


def _span(number: int, token: Token) -> Markup:
    inner = Markup("").join(
        Markup("<i>{}</i>").format(words) if kind == "mark" else Markup("{}").format(words)
        for kind, words in pieces(token.data)
    )
    return Markup('<span class="k h{}" data-i="{}" title="{} bits">{}</span>').format(
        heat_class(token.bits), number, f"{token.bits:.2f}", inner
    )


def heat_data(heat: Heat) -> str:
    """What the script shows of each token, as JSON that can stand within a script element.

    [[token, bits, rank, [[alternative, probability], ...]], ...]
    """
    rows = [
        [
            token_text(token.data),
            round(token.bits, 4),
            token.rank,
            [[token_text(data), round(odd, 5)] for data, odd in token.alternatives],
        ]
        for token in heat.tokens
    ]
    text = json.dumps(rows, separators=(",", ":"))
    # Within a string any character may be spelt so; "<" could end the element otherwise.
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def token_text(data: bytes | None) -> str:
    """A token in one line; a space at its ends is made visible.  b" the" -> "\u2423the" """
    words = "".join(
        words for kind, words in pieces(data) if not (kind == "text" and words == "\n")
    ).removeprefix("\n")
    start = len(words) - len(words.lstrip(" "))
    end = len(words) - len(words.rstrip(" ")) if start < len(words) else 0
    return "\u2423" * start + words[start : len(words) - end] + "\u2423" * end


def whole(value: int | None) -> str:
    """An integer with separators, or a dash.  249749 -> "249,749" """
    return "\u2013" if value is None else f"{value:,}"


def said(value: Any) -> str:
    """A setting's value, or a dash for none."""
    return "\u2013" if value is None else plain(value)


def decimals(value: float | None, places: int = 4) -> str:
    """A number with so many decimals, or a dash.  1.63, 4 -> "1.6300" """
    return "\u2013" if value is None else f"{value:,.{places}f}"


def _resource(name: str) -> str:
    return (resources.files("tokgolf.report") / name).read_text("utf-8")


def _hash(text: str) -> str:
    return base64.b64encode(sha256(text.encode()).digest()).decode()
