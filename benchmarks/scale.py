"""How fast two processes on CPU cores train one model, beside one process, in turn.

    python benchmarks/scale.py --rounds 5 -o scale_cpu.json

A round is one short run of each; the model and the batch are the same, each process has one
thread, and a run's rate is that of its second half, by its own `metrics.jsonl`. The ratio is the
median of the rounds' ratios: 2 would be perfect on two idle cores. On a busy machine two processes
also get twice the processor time, so the load is in the file. It tries gloo on one machine: GPUs
exchange gradients another way, and it says nothing about them.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

# The repository's root is searched first, so that a checkout runs uninstalled; a script's folder
# last, or the benchmark tokenizers.py would pass for a library.
HERE = Path(__file__).resolve().parent
sys.path = [p for p in sys.path if Path(p or ".").resolve() != HERE]
sys.path = [str(HERE.parent), *sys.path, str(HERE)]

import click  # noqa: E402

SETTINGS = ("precision=fp32", "compile=off", "batch_tokens=8192", "micro_batch_tokens=4096")


def rate(processes: int, tokenizer: Path, text: Path, run: Path, steps: int) -> float:
    """Tokens per second of the second half of a run."""
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *("--nproc-per-node", str(processes), "-m", "tokgolf", "train"),
        *("--recipe", "cpu", "--device", "cpu", "--steps", str(steps)),
        *(part for value in SETTINGS for part in ("--set", value)),
        *("--tokenizer", str(tokenizer), "--corpus", str(text), "-o", str(run)),
    ]
    places = os.pathsep.join(sys.path)  # torchrun's children find this checkout too
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": places}
    subprocess.run(command, check=True, capture_output=True, env=environment, timeout=600)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    half = next(line for line in lines if line["step"] >= steps // 2)
    last = lines[-1]
    return float((last["tokens"] - half["tokens"]) / (last["seconds"] - half["seconds"]))


@click.command()
@click.option("--rounds", default=5, show_default=True)
@click.option("--steps", default=40, show_default=True, help="Of each run; a multiple of 20.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="A JSON file of every round.")
def main(rounds: int, steps: int, output: Path | None) -> None:
    """Print tokens per second of one and of two processes, and their ratio."""
    from tokgolf.files import write_text
    from tokgolf.tokenizers import build_tokenizer, save_tokenizer

    load = [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory() as folder:
        tokenizer, text = Path(folder) / "byte.tok", Path(folder) / "text.txt"
        save_tokenizer(build_tokenizer("byte", [], None), tokenizer)
        sources = sorted(Path(os.__file__).parent.glob("*.py"))[:50]
        text.write_bytes(b"".join(path.read_bytes() for path in sources))
        found = [
            [rate(n, tokenizer, text, Path(folder) / f"{n}-{turn}", steps) for n in (1, 2)]
            for turn in range(rounds)
        ]
    load.append(os.getloadavg()[0])
    one, two = (statistics.median(column) for column in zip(*found, strict=True))
    ratios = [pair[1] / pair[0] for pair in found]
    click.echo(f"one process    {one:,.0f} tokens/s")
    click.echo(f"two processes  {two:,.0f} tokens/s")
    among = f"({min(ratios):.2f} to {max(ratios):.2f})"
    click.echo(f"ratio          {statistics.median(ratios):.2f} {among}")
    if output is not None:
        report = {
            "tokens_per_second": [dict(zip(("one", "two"), pair, strict=True)) for pair in found],
            "ratio": statistics.median(ratios),
            "steps": steps,
            "cores": os.cpu_count(),
            "load_before_and_after": load,
        }
        write_text(output, json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
