"""The entropy coder of artifacts beside general compressors and the entropy, on quantized weights.

    python benchmarks/codec.py                          # 25 million synthetic weights
    python benchmarks/codec.py runs/golf --method gptq  # a trained run
    python benchmarks/codec.py runs/golf --method trellis --bits 3.3,2.4

A run's matrices and tables take steps in proportion to their spreads, so that a weight has about
`--bits` bits. Synthetic weights are Gaussian; the deviations of their rows and columns are
log-normal, and nothing is known of their inputs. What is coded is the
same for all: one byte a symbol (two where symbols do not fit one) for the general compressors, in
natural order (row after row) and transposed (column after column), each tensor in turn. "ours" is
all sections: tables, steps, classes, stream. Entropies count nothing but the symbols. Times are
process seconds on one thread; of ours and the quick ones the median of three.
"""

import bz2
import json
import lzma
import statistics
import sys
import time
import zlib
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

# The repository's root is searched first, so that a checkout runs uninstalled; a script's folder
# last, or the benchmark tokenizers.py would pass for a library.
HERE = Path(__file__).resolve().parent
sys.path = [p for p in sys.path if Path(p or ".").resolve() != HERE]
sys.path = [str(HERE.parent), *sys.path, str(HERE)]

import click  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import zstandard  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from tokgolf.artifact import encode, sizes, weights  # noqa: E402
from tokgolf.artifact.checkpoint import load_run  # noqa: E402
from tokgolf.artifact.export import calibration_tokens  # noqa: E402
from tokgolf.heads import Stored  # noqa: E402
from tokgolf.quantize import Quantized, trellis_parities  # noqa: E402
from tokgolf.quantize.rows import METHODS, QuantConfig, Rounder, step_bits  # noqa: E402
from tokgolf.quantize.trellis import round_rows  # noqa: E402

Codes = NDArray[np.int16]
SLOW = 1 << 23  # weights from which the slow compressors run once


@click.command(help=(__doc__ or "").splitlines()[0])
@click.argument("run", required=False, type=click.Path(path_type=Path))
@click.option("--bits", default="3.3", help="Bits a weight, about; several with commas.")
@click.option("--method", type=click.Choice(METHODS), default="nearest", show_default=True)
@click.option("--weights", "count", default=25_000_000, help="How many synthetic ones.")
@click.option("--quick", is_flag=True, help="Leave out zstd-22, xz and brotli.")
@click.option("--json", "output", type=click.Path(path_type=Path), help="Also write it there.")
def main(
    run: Path | None,
    bits: str,
    method: str,
    count: int,
    quick: bool,
    output: Path | None,
) -> None:
    torch.set_num_threads(1)
    results = []
    for rate in map(float, bits.split(",")):
        stored, found = from_run(run, rate, method) if run else synthetic(count, rate, method)
        result = compare(stored, found, method == "trellis", quick=quick)
        results.append({"bits": rate, "method": method, **result})
        print_table(results[-1])
    if output:
        output.write_text(json.dumps(results, indent=1) + "\n")


def from_run(run: Path, bits: float, method: str) -> tuple[list[Stored], dict[str, Quantized]]:
    """A run's tensors rounded as export rounds, at steps in proportion to their spreads."""
    source = load_run(run)
    batches = calibration_tokens(run, source) if method != "nearest" else ()
    config = QuantConfig(method=method)  # type: ignore[arg-type]
    rounder = Rounder(source.model, config, batches)
    found = {}
    for name, (_, _, kind) in rounder.stored.items():
        # A Gaussian's entropy is log2(deviation / step) + 2.05 bits; a vector takes 8.
        step = rounder.spread(name) * 2 ** (2.05 - (8 if kind == "vector" else bits))
        found[name] = rounder.quantize(name, max(step, rounder.finest(name)))
    return list(rounder.stored.values()), found


def synthetic(count: int, bits: float, method: str) -> tuple[list[Stored], dict[str, Quantized]]:
    """Square and oblong Gaussian matrices whose rows and columns differ in scale."""
    rng = np.random.default_rng(0)
    trellis = method == "trellis"
    stored: list[Stored] = []
    found: dict[str, Quantized] = {}
    shapes = [(512, 512), (256, 512), (256, 512), (512, 512), (1536, 512), (512, 1536)]
    while sum(tensor.tensor.numel() for tensor in stored) < count:
        rows, columns = shapes[len(stored) % len(shapes)]
        scales = [np.exp2(0.3 * rng.standard_normal(n)) for n in (rows, columns)]
        z = rng.standard_normal((rows, columns)) * scales[0][:, None] * scales[1]
        grid = np.full(rows, 2 ** (2.05 - bits) / (2 if trellis else 1))
        codes = round_rows(z, None, grid, trellis=trellis)
        name = f"t{len(stored):03}"
        stored.append(Stored(name, torch.empty(rows, columns), "matrix"))
        found[name] = Quantized(codes, step_bits(1.0), None)
    return stored, found


def compare(
    stored: list[Stored], found: dict[str, Quantized], trellis: bool, *, quick: bool
) -> dict[str, Any]:
    """Bytes and seconds of every coder, and the entropies."""
    order = weights.layout(stored)
    blocks = [found[tensor.name].codes for tensor in [*order.dense, *order.vectors]]
    count = sum(block.size for block in blocks)
    narrow = max(int(np.abs(block).max()) for block in blocks) <= 127
    dtype = np.int8 if narrow else np.dtype("<i2")
    natural = b"".join(block.astype(dtype).tobytes() for block in blocks)
    transposed = b"".join(block.T.astype(dtype).tobytes() for block in blocks)

    rows: list[dict[str, Any]] = []
    sections, encoding = timed(lambda: encode.encode(stored, lambda s: found[s.name], trellis), 3)
    _, decoding = timed(lambda: weights.decode(stored, sections, trellis, 0, []), 3)
    back = weights.read(stored, sections, trellis)
    assert all((back.quantized[name].codes == found[name].codes).all() for name in found)
    total = sum(len(data) for data in sections.values())
    rows.append({"coder": "ours, all sections", "bytes": total, "s": [encoding, decoding]})
    coders: dict[str, tuple[Callable[[bytes], bytes], Callable[[bytes], bytes], int]] = {
        "zlib-9": (lambda data: zlib.compress(data, 9), zlib.decompress, 3),
        "bzip2-9": (bz2.compress, bz2.decompress, 1),
    }
    if not quick:
        tall = zstandard.ZstdCompressor(level=22)
        times = 1 if count >= SLOW else 3
        coders["zstd-22"] = tall.compress, zstandard.decompress, times
        coders["xz-9e"] = (
            lambda data: lzma.compress(data, preset=9 | lzma.PRESET_EXTREME),
            lzma.decompress,
            times,
        )
        brotli = optional("brotli")
        if brotli:
            pack = lambda data: brotli.compress(data, quality=11, lgwin=24)  # noqa: E731
            coders["brotli-11"] = pack, brotli.decompress, times
    for name, (pack_, unpack, times) in coders.items():
        for label, data in (("natural", natural), ("transposed", transposed)):
            packed, encoding = timed(lambda p=pack_, d=data: p(d), times)
            plain, decoding = timed(lambda u=unpack, d=packed: u(d), times)
            assert plain == data
            row = {"coder": f"{name}, {label}", "bytes": len(packed), "s": [encoding, decoding]}
            rows.append(row)
    if library := optional("constriction"):
        rows.append(library_row(library, np.concatenate([block.ravel() for block in blocks])))

    prices = sizes.stream_bits(stored, sections, trellis)
    conditional = conditional_bytes(order, found, back, trellis)
    return {
        "count": count,
        "rows": rows,
        "entropy": {
            "of all symbols": entropy_bytes(np.concatenate([block.ravel() for block in blocks])),
            "of each tensor": sum(entropy_bytes(block.ravel()) for block in blocks),
            "conditional on our contexts": conditional,
        },
        "sections": {name: len(data) for name, data in sections.items()},
        "contexts": back.contexts,
        "symbols_over_conditional": sum(prices.values()) / 8 / conditional - 1,
        "stream_over_conditional": stream_excess(sections, back, conditional),
        "all_over_conditional": total / conditional - 1,
        "all_over_conditional_and_factors": total / (conditional + factor_bytes(order, back)) - 1,
    }


def optional(module: str) -> Any:
    """A library that may be missing."""
    try:
        return import_module(module)
    except ImportError:
        return None


def timed(work: Callable[[], Any], times: int) -> tuple[Any, float]:
    """What `work` returns, and the median of its process seconds."""
    seconds = []
    for _ in range(times):
        start = time.process_time()
        result = work()
        seconds.append(time.process_time() - start)
    return result, statistics.median(seconds)


def library_row(constriction: Any, symbols: Codes) -> dict[str, Any]:
    """One table for all symbols, coded by constriction's ANS coder."""
    used, indices, counts = np.unique(symbols, return_inverse=True, return_counts=True)
    indices = indices.astype(np.int32)
    model = constriction.stream.model.Categorical(counts / counts.sum(), perfect=True)

    def packed() -> Any:
        coder = constriction.stream.stack.AnsCoder()
        coder.encode_reverse(indices, model)
        return coder.get_compressed()

    words, encoding = timed(packed, 3)
    coder = constriction.stream.stack.AnsCoder
    back, decoding = timed(lambda: coder(words).decode(model, len(indices)), 3)
    assert (used[back] == symbols).all()
    return {"coder": "constriction, one table", "bytes": 4 * len(words), "s": [encoding, decoding]}


def entropy_bytes(symbols: NDArray[Any]) -> float:
    """Empirical entropy of all symbols together."""
    _, n = np.unique(symbols, return_counts=True)
    if not symbols.size:
        return 0.0
    return float(n.sum() * np.log2(n.sum()) - (n * np.log2(n)).sum()) / 8


def conditional_bytes(
    order: weights.Layout, found: dict[str, Quantized], back: weights.Symbols, trellis: bool
) -> float:
    """Empirical entropy of the weights given their contexts, and of the vectors."""
    counts = np.zeros((2 * back.contexts, 1024), np.int64)
    for index, (name, _, _) in enumerate(order.dense):
        codes = found[name].codes
        sums = back.row_classes[index][:, None] + back.column_classes[index]
        contexts = 2 * sums.clip(0, back.contexts - 1)
        if trellis:
            contexts += trellis_parities(codes)
        counts += np.bincount(
            (contexts * 1024 + codes + 512).ravel(), minlength=counts.size
        ).reshape(counts.shape)
    vectors = [found[tensor.name].codes.ravel() for tensor in order.vectors]
    return sum(entropy_bytes(np.repeat(np.arange(1024), row)) for row in counts if row.any()) + (
        entropy_bytes(np.concatenate(vectors)) if vectors else 0.0
    )


def factor_bytes(order: weights.Layout, back: weights.Symbols) -> float:
    """Entropy of the factors of rows and columns in the tables that their lists share: they are
    the quantizer's, not the coder's."""
    return list_bytes(back, slice(0, 2 * len(order.dense)))


def list_bytes(back: weights.Symbols, part: slice) -> float:
    """Entropy of some of the lists, as differences where they are, by table."""
    lists, tables = back.lists[part], back.list_tables[part]
    by_table = ([x for x, t in zip(lists, tables, strict=True) if t == own] for own in set(tables))
    return sum(entropy_bytes(np.concatenate(some)) for some in by_table)


def stream_excess(sections: dict[str, bytes], back: weights.Symbols, conditional: float) -> float:
    """How much longer the stream is than the entropy of all that is in it."""
    return len(sections["weights"]) / (conditional + list_bytes(back, slice(None))) - 1


def print_table(result: dict[str, Any]) -> None:
    count, kind = result["count"], result["method"]
    base = result["entropy"]["of all symbols"]
    print(f"\n{count:,} weights, --bits {result['bits']}, {kind}, {result['contexts']} contexts")
    print(
        f"{'':32}{'bytes':>12}{'bits/weight':>13}{'vs entropy':>12}{'encode s':>10}{'decode s':>10}"
    )
    for name, size in result["entropy"].items():
        print(f"{'entropy ' + name:32}{size:12,.0f}{8 * size / count:13.4f}{size / base - 1:12.2%}")
    for row in result["rows"]:
        size, (encoding, decoding) = row["bytes"], row["s"]
        print(
            f"{row['coder']:32}{size:12,}{8 * size / count:13.4f}{size / base - 1:12.2%}"
            f"{encoding:10.2f}{decoding:10.2f}"
        )
    print(f"sections {result['sections']}")
    print(
        f"over the conditional entropy: symbols {result['symbols_over_conditional']:.3%}, "
        f"stream (with classes, over theirs too) {result['stream_over_conditional']:.3%}, "
        f"all sections {result['all_over_conditional']:.3%} (over that of the factors too "
        f"{result['all_over_conditional_and_factors']:.3%})"
    )


if __name__ == "__main__":
    main()
