"""What export costs in bits per byte: rate-distortion curves, ours and the challenge's schemes.

    rtn + zlib     the baseline's: integers to the nearest with a float16 step for each row, from
                   the row's 99.99984th percentile; small tensors float16; zlib -9
    rtn + zstd     the same integers, zstd -22
    records        the late records': GPTQ, a step for each row from its deviation (12.85 sigma of
                   int6, tables 20 sigma of int8), brotli -11 of transposed integers; of all
                   pairs of scales of the two clips those that no smaller one beats
    by spread      GPTQ with a step a tensor in proportion to its spread; factors of rows and
                   columns, contexts and coder are export's
    allocated      the same with steps by measured damage
    trellis        the same with the 8-state trellis: what `tokgolf export --tune 0` does
    tuned          the same rounded in parts, where that is better: what `tokgolf export` does

Bits are all bytes of the weights, side information included, for each stored weight; code and
tokenizer are the same for all. KL is from the float model, in nats a token, on windows of the run's
training tokens; bpb is of the held-out corpus, raw, whole documents.

    python benchmarks/artifact.py runs/ref --val web_val_raw.jsonl.zst -o artifact.json --plot a.png
"""

import copy
import json
import math
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import chain, pairwise, product
from pathlib import Path
from typing import Any

# The repository's root is searched first, so that a checkout runs uninstalled; a script's folder
# last, or the benchmark tokenizers.py would pass for a library.
HERE = Path(__file__).resolve().parent
sys.path = [p for p in sys.path if Path(p or ".").resolve() != HERE]
sys.path = [str(HERE.parent), *sys.path, str(HERE)]

import brotli  # noqa: E402
import click  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import zstandard  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from torch import Tensor  # noqa: E402
from trained_tokenizers import excerpt  # noqa: E402

from tokgolf.artifact.checkpoint import load_run  # noqa: E402
from tokgolf.artifact.export import Fit, calibration_tokens, tuning_tokens  # noqa: E402
from tokgolf.artifact.load import decode_artifact  # noqa: E402
from tokgolf.corpora import Corpus, read_shard, shard_files  # noqa: E402
from tokgolf.eval.score import score  # noqa: E402
from tokgolf.files import write_text  # noqa: E402
from tokgolf.model import LanguageModel  # noqa: E402
from tokgolf.quantize.allocate import divergence  # noqa: E402
from tokgolf.quantize.rows import TUNE, QuantConfig, Rounder  # noqa: E402
from tokgolf.quantize.trellis import round_rows  # noqa: E402

BITS = (8.0, 6.0, 5.0, 4.0, 3.6, 3.3, 3.0, 2.5)
SCALES = (0.15, 0.3, 0.6, 0.8, 1.0, 1.25, 1.7)
TABLE_SCALES = (0.2, 0.4, 0.6, 0.8, 1.0, 1.25)  # at 0.15 the largest integer is 3 deviations
KLS = (0.1, 0.03, 0.01, 0.004, 0.001)
KL_WINDOWS = 24
PERCENTILE = 99.99984
OWN = ("by spread", "allocated", "trellis", "tuned")
Pack = Callable[[bytes], bytes]
Point = dict[str, Any]
Parts = dict[str, tuple[NDArray[np.int8], NDArray[np.float16]]]


def pack_zlib(data: bytes) -> bytes:
    """The baseline's."""
    return zlib.compress(data, 9)


def pack_zstd(data: bytes) -> bytes:
    """The early records'."""
    return zstandard.ZstdCompressor(level=22).compress(data)


def nearest(
    weights: NDArray[np.float64], bits: float
) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Integers to the nearest, a step for each row, as the baseline has them at 8 bits."""
    largest = max(round(2 ** (bits - 1)) - 1, 1)
    clip = np.percentile(np.abs(weights), PERCENTILE, axis=1)
    step = np.maximum(clip / largest, 2.0**-14).astype(np.float16)
    codes = np.rint(weights / step[:, None].astype(np.float64)).clip(-largest, largest)
    return codes.astype(np.int8), step


def records(
    rounder: Rounder, name: str, weights: NDArray[np.float64], kind: str, scale: float
) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """GPTQ with a step for each row in proportion to its deviation."""
    clip, largest = (20.0, 127) if kind == "table" else (12.85, 31)
    spread = np.maximum(weights.std(axis=1), 2.0**-14)
    step = (scale * clip * spread / largest).astype(np.float16)
    order = rounder.orders.get(name, np.arange(weights.shape[1]))
    grid = step.astype(np.float64)
    codes = round_rows(weights[:, order], rounder.spreads.get(name), grid, trellis=False)
    return codes[:, np.argsort(order)].clip(-127, 127).astype(np.int8), step


def stored_bytes(model: LanguageModel, parts: Parts, pack: Pack) -> int:
    """All weights in one compressed stream: integers, steps, and float16 for what stays so."""
    codes = b"".join(codes.tobytes() for codes, _ in parts.values())
    steps = b"".join(step.tobytes() for _, step in parts.values())
    rest = b"".join(
        s.tensor.detach().half().numpy().tobytes() for s in model.stored() if s.name not in parts
    )
    return len(pack(codes + steps + rest))


def shuffled_bytes(model: LanguageModel, parts: Parts) -> int:
    """The same with the integers transposed and 16-bit numbers split into their bytes."""
    codes = b"".join(np.ascontiguousarray(codes.T).tobytes() for codes, _ in parts.values())
    halves = [step for _, step in parts.values()]
    halves += [
        s.tensor.detach().half().numpy().ravel() for s in model.stored() if s.name not in parts
    ]
    pairs = np.concatenate(halves).view(np.uint8).reshape(-1, 2)
    return len(brotli.compress(codes + np.ascontiguousarray(pairs.T).tobytes(), quality=11))


class Bench:
    """A run's float model, and how far from it another is."""

    def __init__(
        self, run: Path, held_out: Corpus, only: tuple[str, ...], bits: tuple[float, ...], tune: int
    ) -> None:
        self.only, self.bits, self.tune = only, bits, tune
        self.source = load_run(run)
        self.held_out = held_out
        self.calibration = list(calibration_tokens(run, self.source))
        self.tuning = list(tuning_tokens(run, self.source, tune))
        shard = read_shard(shard_files(run / "tokens", "train")[0])
        length = self.source.trunk.sequence_length
        starts = np.random.default_rng(0).integers(0, len(shard) - length, KL_WINDOWS)
        windows = [shard[start : start + length].astype(np.int64) for start in starts]
        self.windows = [torch.from_numpy(window)[None] for window in windows]
        with torch.no_grad():
            self.reference = [
                self.source.model.log_probs(window).flatten(0, 1) for window in self.windows
            ]
        stored = self.source.model.stored()
        self.dense = [s for s in stored if s.kind in ("table", "matrix")]
        self.weights = sum(s.tensor.numel() for s in stored if s.kind != "codes")

    def wants(self, scheme: str) -> bool:
        """Whether this scheme was asked for."""
        return not self.only or scheme in self.only

    def point(self, scheme: str, size: int, model: LanguageModel, scored: bool) -> Point:
        """What a scheme's model is worth."""
        point: Point = {
            "scheme": scheme,
            "bytes": size,
            "bits": 8 * size / self.weights,
            "kl": divergence(model, self.windows, self.reference),
        }
        if scored:
            point["bpb"] = self.bpb(model)
        return point

    def bpb(self, model: LanguageModel) -> float:
        """Of the held-out text."""
        return score(replace(self.source, model=model), self.held_out).bpb

    def restored(self, parts: Parts) -> LanguageModel:
        """The float model with these integers and steps in place of its tensors."""
        model = copy.deepcopy(self.source.model)
        tensors = {s.name: s.tensor for s in model.stored()}
        with torch.no_grad():
            for name, (codes, step) in parts.items():
                weights = codes.astype(np.float32) * step.astype(np.float32)[:, None]
                tensors[name].copy_(torch.from_numpy(weights).view(tensors[name].shape))
        return model

    def weights_of(self, tensor: Tensor) -> NDArray[np.float64]:
        """A tensor as rows."""
        rows: NDArray[np.float64] = tensor.detach().double().numpy()
        return rows.reshape(-1, rows.shape[-1])


def classic(bench: Bench) -> Iterable[Point]:
    """The challenge's schemes; bits of the records' are reached by scaling both clips."""
    if not bench.wants("classic"):
        return
    for bits in bench.bits:
        parts = {s.name: nearest(bench.weights_of(s.tensor), bits) for s in bench.dense}
        model = bench.restored(parts)
        for scheme, pack in (("rtn + zlib", pack_zlib), ("rtn + zstd", pack_zstd)):
            size = stored_bytes(bench.source.model, parts, pack)
            yield bench.point(scheme, size, model, scored=True)
    rounder = Rounder(bench.source.model, QuantConfig(method="gptq"), bench.calibration)
    rounded = {
        (s.name, scale): records(rounder, s.name, bench.weights_of(s.tensor), s.kind, scale)
        for s in bench.dense
        for scale in (TABLE_SCALES if s.kind == "table" else SCALES)
    }
    found = []
    for scales in product(SCALES, TABLE_SCALES):
        parts = {s.name: rounded[s.name, scales[s.kind == "table"]] for s in bench.dense}
        found.append((shuffled_bytes(bench.source.model, parts), scales, parts))
    least = math.inf
    for size, scales, parts in sorted(found, key=lambda entry: entry[:2]):
        model = bench.restored(parts)
        point = bench.point("records", size, model, scored=False)
        if point["kl"] < least:  # no smaller one is nearer
            least = point["kl"]
            yield {**point, "bpb": bench.bpb(model), "scales": scales}


def own(bench: Bench) -> Iterable[Point]:
    """Ours, and the steps on the way to it."""
    for scheme, method, measured in (
        ("by spread", "gptq", False),
        ("allocated", "gptq", True),
        ("trellis", "trellis", True),
        ("tuned", "trellis", True),
    ):
        if not bench.wants(scheme):
            continue
        tuned = scheme == "tuned"
        config = QuantConfig(method=method, tune=bench.tune * tuned)  # type: ignore[arg-type]
        rounder = Rounder(bench.source.model, config, bench.calibration)
        fit = Fit(bench.source, rounder, tuning=bench.tuning if tuned else None)
        if measured:
            fit.measure()
        else:
            fit.follow_spreads()
        for bits in bench.bits:
            began = time.perf_counter()
            fit.rounder = rounder  # tuning leaves one of tuned weights
            fit.scale_to(bits * bench.weights / 8)
            fit.round_all()
            fit.approach(bits * bench.weights / 8, within=False)
            if tuned:
                fit.tune_if_better(bits * bench.weights / 8, within=False)
            seconds = time.perf_counter() - began
            model = decode_artifact(fit.data).model
            point = bench.point(scheme, fit.weight_bytes(), model, scored=method == "trellis")
            yield {**point, "seconds": seconds, **({"tune": bench.tune} if tuned else {})}


def bits_at(points: list[Point], kl: float) -> float | None:
    """Bits at which a scheme's KL is `kl`, between its points on a line in the logarithm."""
    curve = sorted((point["kl"], point["bits"]) for point in points)
    for (low, more), (high, fewer) in pairwise(curve):
        if low <= kl <= high:
            part = math.log(kl / low) / math.log(high / low)
            return float(more + part * (fewer - more))
    return None


def report(result: dict[str, Any]) -> Iterable[str]:
    """The points, and bits at equal damage beside the records'."""
    points = result["points"]
    yield "| scheme | bits a weight | bytes | KL | bpb | to float |"
    yield "|---|---|---|---|---|---|"
    for p in points:
        bpb = f"{p['bpb']:.4f} | {p['bpb'] - result['bpb_float']:+.4f}" if "bpb" in p else "- | -"
        yield f"| {p['scheme']} | {p['bits']:.3f} | {p['bytes']:,} | {p['kl']:.5f} | {bpb} |"
    schemes = list(dict.fromkeys(p["scheme"] for p in points))
    by = {scheme: [p for p in points if p["scheme"] == scheme] for scheme in schemes}
    yield "\nBits a weight at equal KL, and beside the records' scheme\n"
    yield "| KL | " + " | ".join(schemes) + " |"
    yield "|---|" + "---|" * len(schemes)
    for kl in KLS:
        base = bits_at(by.get("records", []), kl)
        cells = []
        for scheme in schemes:
            bits = bits_at(by[scheme], kl)
            beside = f" ({bits / base - 1:+.1%})" if bits and base else ""
            cells.append(f"{bits:.3f}{beside}" if bits else "-")
        yield f"| {kl} | " + " | ".join(cells) + " |"


def plot(result: dict[str, Any], path: Path) -> None:
    """Draw bpb lost and KL over bytes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), dpi=130, layout="constrained")
    left, right = figure.subplots(1, 2)
    colors = ["#999999", "#56b4e9", "#d55e00", "#cc79a7", "#e69f00", "#0072b2", "#009e73"]
    schemes = dict.fromkeys(p["scheme"] for p in result["points"])
    for scheme, color in zip(schemes, colors, strict=False):
        some = sorted(
            (p for p in result["points"] if p["scheme"] == scheme), key=lambda p: p["bytes"]
        )
        size = [p["bytes"] / 1e6 for p in some]
        right.plot(size, [p["kl"] for p in some], "o-", color=color, label=scheme, markersize=4)
        lost = [max(p["bpb"] - result["bpb_float"], 1e-5) for p in some if "bpb" in p]
        if lost:
            left.plot(size, lost, "o-", color=color, label=scheme, markersize=4)
    for axes, what in ((left, "bpb lost by export, held-out text"), (right, "KL, nats a token")):
        axes.set_yscale("log")
        axes.set_xlabel("bytes of the weights, millions")
        axes.set_title(what, loc="left", fontsize=11)
        axes.grid(True, color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path)


@click.command(help=__doc__)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--val", "val_spec", default="stdlib:val", show_default=True)
@click.option("--val-bytes", default=300_000, show_default=True)
@click.option("--only", multiple=True, type=click.Choice([*OWN, "classic"]), help="Some of them.")
@click.option("--bits", multiple=True, type=float, default=BITS, show_default=True)
@click.option("--tune", default=TUNE, show_default=True, help="Updates after each part.")
@click.option("--show", is_flag=True, help="Run nothing, print the tables of what is there.")
@click.option("--plot", "plot_path", type=click.Path(path_type=Path), help="A .png to draw.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path))
def main(
    run: Path,
    val_spec: str,
    val_bytes: int,
    only: tuple[str, ...],
    bits: tuple[float, ...],
    tune: int,
    show: bool,
    plot_path: Path | None,
    output: Path,
) -> None:
    """Measure all schemes at all sizes and print the tables."""
    if not show:
        with tempfile.TemporaryDirectory() as folder:
            held_out = excerpt(val_spec, val_bytes, Path(folder) / "val.jsonl")
            bench = Bench(run, held_out, only, bits, tune)
            result: dict[str, Any] = {
                "weights": bench.weights,
                "bpb_float": score(bench.source, bench.held_out).bpb,
                "torch": torch.__version__,
                "points": [],
            }
            if only and output.exists():  # the other schemes' points stay
                result = json.loads(output.read_text())
            for point in chain(own(bench), classic(bench)):
                click.echo(json.dumps(point), err=True)
                result["points"].append(point)
                write_text(output, json.dumps(result, indent=1) + "\n")
    result = json.loads(output.read_text())
    click.echo("\n".join(report(result)))
    if plot_path is not None:
        plot(result, plot_path)


if __name__ == "__main__":
    main()
