"""How fast tokgolf encodes, beside the libraries with the same vocabulary, and on long runs.

    python benchmarks/tokenizers.py
    python benchmarks/tokenizers.py --corpus data/web.jsonl.zst --vocab-size 1024,8192 --json

Each row is an encoder, each repeat one pass over text that it has not seen before (some encoders
remember words, one remembers whole texts); repeats go round all rows, so that a slow moment of the
machine hits all of them. Rates are the median of MB of UTF-8 a second: of CPU time in one thread
(other programs hardly change it; on an idle machine it is wall time), and of wall time in two
forked processes that share the documents.
"""

import io
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

# The repository's root is searched first, so that a checkout runs uninstalled; a script's folder
# last, or the benchmark tokenizers.py would pass for a library.
HERE = Path(__file__).resolve().parent
sys.path = [p for p in sys.path if Path(p or ".").resolve() != HERE]
sys.path = [str(HERE.parent), *sys.path, str(HERE)]
os.environ.setdefault("RAYON_NUM_THREADS", "1")  # before any library starts its threads

import click  # noqa: E402

from tokgolf.corpora import open_corpus  # noqa: E402
from tokgolf.tokenizers import Tokenizer, build_tokenizer, from_asset  # noqa: E402
from tokgolf.tokenizers.bpe import BpeTokenizer, byte_names, import_library  # noqa: E402
from tokgolf.tokenizers.engines import ENGINE_VARIABLE, installed_engines  # noqa: E402
from tokgolf.tokenizers.split import expression  # noqa: E402

Encode = Callable[[list[str]], Sequence[Any]]  # texts to the ids of each

RUN_BYTES = 10_000_000
RUNS: dict[str, Callable[[int], str]] = {
    "one letter": lambda size: "a" * size,
    "spaces": lambda size: " " * size,
    "one digit": lambda size: "7" * size,
    "random letters": lambda size: "".join(
        random.Random(0).choices("abcdefghijklmnopqrstuvwxyz", k=size)
    ),
}


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """A way to encode; `same` is False if its ids are its own, as its vocabulary is another."""

    name: str
    encode: Encode
    same: bool = True
    ours: bool = False


@dataclass(frozen=True, kw_only=True)
class Speed:
    """A row of the table: rates in MB/s, and the ratio to the fastest peer in one thread."""

    vocab_size: int
    encoder: str
    one_thread: float
    two_processes: float
    to_fastest_peer: float
    ids: str


@dataclass(frozen=True, kw_only=True)
class Run:
    """A row of the other table: MB/s on a long run, and as a share of that on text."""

    vocab_size: int
    encoder: str
    run: str
    rate: float
    share_of_text: float


def bpe_encoders(tokenizer: BpeTokenizer, merges_join_strings: bool) -> list[Encoder]:
    """Our engines, then the peers that are installed, all with this vocabulary."""
    encoders = [
        Encoder(name=f"tokgolf, {name}", encode=_ours(_with_engine(tokenizer, name)), ours=True)
        for name in installed_engines()
    ]
    library = import_library().Tokenizer.from_str(tokenizer.original_file().decode())
    encoders.append(
        Encoder(
            name="tokenizers",
            encode=lambda texts: [e.ids for e in library.encode_batch_fast(texts)],
        )
    )
    if find_spec("tiktoken") is None:
        click.echo("tiktoken is not installed and is left out", err=True)
    else:
        import tiktoken

        ranks = {token: rank for rank, token in enumerate(tokenizer.token_bytes) if token}
        encoding = tiktoken.Encoding(
            "same",
            pat_str=expression(tokenizer.pattern),
            mergeable_ranks=ranks,
            special_tokens={},
        )
        encoders.append(
            Encoder(
                name="tiktoken",
                encode=lambda texts: [encoding.encode_ordinary(text) for text in texts],
                same=merges_join_strings,
            )
        )
    return encoders


def every_token_is_itself(tokenizer: BpeTokenizer) -> bool:
    """Whether each token's own bytes encode to that token alone: then tiktoken's ids are ours.

    tiktoken joins two tokens if their bytes together are a token, whichever pair a merge names.
    As long as nothing crosses its ends, a stretch of text is merged as if it were alone. So where
    two tokens make the bytes of token t, and all merges older than t are done, the two are those
    that t alone is made of: merge t's own pair. And if t alone did not become t, its bytes would
    be t for tiktoken and something else for us, so the condition is needed too.
    """
    file = json.loads(tokenizer.original_file())
    library = import_library().Tokenizer.from_str(json.dumps({**file, "pre_tokenizer": None}))
    names = byte_names()
    words = ["".join([names[byte] for byte in token]) for token in tokenizer.token_bytes[257:]]
    encoded = [encoding.ids for encoding in library.encode_batch_fast(words)]
    return encoded == [[token] for token in range(257, tokenizer.vocab_size)]


def sentencepiece_encoders(texts: list[str], vocab_size: int) -> list[Encoder]:
    """SentencePiece's own BPE and unigram of this size, learned from the same text."""
    if find_spec("sentencepiece") is None:
        click.echo("sentencepiece is not installed and is left out", err=True)
        return []
    import sentencepiece

    encoders = []
    for kind in ("bpe", "unigram"):
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter([line for text in texts for line in text.splitlines()]),
                model_writer=model,
                model_type=kind,
                vocab_size=vocab_size,
                byte_fallback=True,
                normalization_rule_name="identity",
                remove_extra_whitespaces=False,
                num_threads=1,
                minloglevel=2,
            )
        except RuntimeError as error:
            click.echo(f"sentencepiece {kind} of {vocab_size} is left out: {error}", err=True)
            continue
        library = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
        encoders.append(
            Encoder(
                name=f"sentencepiece {kind}",
                encode=partial(library.encode, num_threads=1),
                same=False,
            )
        )
    return encoders


def _with_engine(tokenizer: Tokenizer, engine: str) -> Tokenizer:
    before = os.environ.get(ENGINE_VARIABLE)
    os.environ[ENGINE_VARIABLE] = engine
    try:
        copy = from_asset(tokenizer.asset())
        copy.encode(b"the engine is made at the first use")
        return copy
    finally:
        os.environ.pop(ENGINE_VARIABLE)
        if before is not None:
            os.environ[ENGINE_VARIABLE] = before


def _ours(tokenizer: Tokenizer) -> Encode:
    """From text, as the peers, though a tokenizer takes bytes: the conversion counts too."""
    return lambda texts: tokenizer.encode_batch([text.encode() for text in texts])


def size_of(texts: Sequence[str]) -> int:
    """Bytes of UTF-8."""
    return sum(len(text.encode()) for text in texts)


def rate(encode: Encode, texts: list[str]) -> float:
    """MB a second of CPU time of this process, its threads together."""
    start = time.process_time()
    encode(texts)
    return size_of(texts) / 1e6 / (time.process_time() - start)


_forked: tuple[Encode, list[list[str]]]  # what a forked process finds in place of an argument


def _encode_share(share: int) -> float:
    encode, shares = _forked
    encode(shares[share][:1])  # whatever is made at the first use
    start = time.perf_counter()
    encode(shares[share])
    return time.perf_counter() - start


def rate_of_two(encode: Encode, texts: list[str]) -> float:
    """MB/s of two forked processes at once with half the documents each; the slower one counts."""
    global _forked
    _forked = encode, [texts[::2], texts[1::2]]
    with get_context("fork").Pool(2) as pool:
        seconds = pool.map(_encode_share, [0, 1], chunksize=1)
    return size_of(texts) / 1e6 / max(seconds)


def portions(texts: list[str], count: int) -> list[list[str]]:
    """The documents in `count` parts, dealt out in turn."""
    return [texts[part::count] for part in range(count)]


def compare(
    encoders: list[Encoder], texts: list[str], vocab_size: int, repeats: int
) -> list[Speed]:
    """The speed of each encoder; ids are compared with the first one's where they should agree."""
    parts = portions(texts[::2], repeats)
    single: dict[str, list[float]] = {encoder.name: [] for encoder in encoders}
    double: dict[str, list[float]] = {encoder.name: [] for encoder in encoders}
    for repeat in range(repeats):
        for encoder in encoders:
            single[encoder.name].append(rate(encoder.encode, parts[repeat]))
            # Each fork is as fresh as the last, so that it may have the same text.
            double[encoder.name].append(rate_of_two(encoder.encode, texts[1::2]))
    sample = texts[:200]  # only now, so that no encoder has seen what it is timed on
    expected = [list(ids) for ids in encoders[0].encode(sample)]
    peers = [statistics.median(single[e.name]) for e in encoders if not e.ours]
    rows = []
    for encoder in encoders:
        found = [list(ids) for ids in encoder.encode(sample)] if encoder.same else None
        one = statistics.median(single[encoder.name])
        rows.append(
            Speed(
                vocab_size=vocab_size,
                encoder=encoder.name,
                one_thread=one,
                two_processes=statistics.median(double[encoder.name]),
                to_fastest_peer=one / max(peers, default=one),
                ids="its own" if found is None else "same" if found == expected else "DIFFERENT",
            )
        )
    return rows


def long_runs(encoder: Encoder, text_rate: float, vocab_size: int, size: int) -> list[Run]:
    """How fast an encoder is on each of RUNS. Time must be linear: a tenth of text, at least."""
    rows = []
    for name, make in RUNS.items():
        found = rate(encoder.encode, [make(size)])
        rows.append(
            Run(
                vocab_size=vocab_size,
                encoder=encoder.name,
                run=name,
                rate=found,
                share_of_text=found / text_rate,
            )
        )
    return rows


def run(
    corpus: str, vocab_sizes: list[int], repeats: int, megabytes: float, run_bytes: int
) -> tuple[list[Speed], list[Run]]:
    """Both tables for each size; learning and timing use different halves of the documents."""
    every = list(islice((d.data for d in open_corpus(corpus).documents()), 200_000))
    learn, held = _up_to(every[::2], megabytes), _up_to(every[1::2], megabytes)
    texts = [data.decode("utf-8", "ignore") for data in held]
    learned_texts = [data.decode("utf-8", "ignore") for data in learn]
    speeds, runs = [], []
    for vocab_size in vocab_sizes:
        bpe = build_tokenizer("bpe", learn, vocab_size)
        unigram = build_tokenizer("unigram", learn, vocab_size)
        assert isinstance(bpe, BpeTokenizer)
        encoders = bpe_encoders(bpe, every_token_is_itself(bpe))
        encoders += sentencepiece_encoders(learned_texts, vocab_size)
        encoders.append(
            Encoder(name="tokgolf, unigram", encode=_ours(unigram), same=False, ours=True)
        )
        table = compare(encoders, texts, vocab_size, repeats)
        speeds += table
        for encoder, speed in zip(encoders, table, strict=True):
            if encoder.ours:
                runs += long_runs(encoder, speed.one_thread, vocab_size, run_bytes)
    return speeds, runs


def _up_to(documents: list[bytes], megabytes: float) -> list[bytes]:
    """The first documents, of at most so many megabytes in all (and one document at least)."""
    total = 0
    kept: list[bytes] = []
    for data in documents:
        total += len(data)
        if kept and total > megabytes * 1e6:
            break
        kept.append(data)
    return kept


def show(speeds: list[Speed], runs: list[Run]) -> str:
    """Both tables as text."""
    lines = [f"{'V':>6}  {'encoder':<22}{'1 thread':>10}{'2 processes':>13}{'ratio':>8}  ids"]
    lines += [
        f"{row.vocab_size:>6}  {row.encoder:<22}{row.one_thread:>10.1f}{row.two_processes:>13.1f}"
        f"{row.to_fastest_peer:>8.2f}  {row.ids}"
        for row in speeds
    ]
    lines += ["", "MB/s, of CPU time for 1 thread; ratio: to the fastest that is not tokgolf's", ""]
    lines += [f"{'V':>6}  {'encoder':<22}{'long run':<16}{'MB/s':>8}{'of text':>9}"]
    lines += [
        f"{row.vocab_size:>6}  {row.encoder:<22}{row.run:<16}{row.rate:>8.1f}"
        f"{row.share_of_text:>9.2f}{'' if row.share_of_text >= 0.1 else '  under a tenth'}"
        for row in runs
    ]
    return "\n".join(lines)


@click.command(help=__doc__)
@click.option("--corpus", default="stdlib", show_default=True, help="name or path of a corpus")
@click.option("--vocab-size", default="1024,4096", show_default=True, help="sizes, with commas")
@click.option("--repeats", default=3, show_default=True, help="passes over fresh text")
@click.option("--megabytes", default=6.0, show_default=True, help="text to learn from, and to time")
@click.option("--run-bytes", default=RUN_BYTES, show_default=True, help="length of a long run")
@click.option("--json", "as_json", is_flag=True, help="print JSON in place of tables")
def main(
    corpus: str, vocab_size: str, repeats: int, megabytes: float, run_bytes: int, as_json: bool
) -> None:
    """Run and print."""
    sizes = [int(size) for size in vocab_size.split(",")]
    speeds, runs = run(corpus, sizes, repeats, megabytes, run_bytes)
    if as_json:
        rows = {"speeds": [asdict(row) for row in speeds], "runs": [asdict(row) for row in runs]}
        click.echo(json.dumps(rows, indent=2))
    else:
        click.echo(show(speeds, runs))


if __name__ == "__main__":
    main()
