"""What a sweep costs beside its cells: cells that do nothing, run by each engine.

Prints seconds in all and a cell, of planning alone (ids, folders) and of a whole sweep, and beside
them what as many bare calls in the same number of loky processes take.

    python benchmarks/sweep.py --cells 1000 --jobs 2
"""

import json
import sys
import tempfile
import time
from pathlib import Path

# The repository's root is searched first, so that a checkout runs uninstalled; a script's folder
# last, or the benchmark tokenizers.py would pass for a library.
HERE = Path(__file__).resolve().parent
sys.path = [p for p in sys.path if Path(p or ".").resolve() != HERE]
sys.path = [str(HERE.parent), *sys.path, str(HERE)]

import click  # noqa: E402
from joblib.externals.loky import ProcessPoolExecutor  # noqa: E402

from tokgolf.sweep.attempts import attempt  # noqa: E402


def nothing(store: str, cell: str) -> str:
    """A cell that is done at once."""
    return attempt(Path(store), cell, lambda store, cell, beat: {"bpb": 1.0})


@click.command(help=__doc__)
@click.option("--cells", default=1000, show_default=True)
@click.option("--jobs", default=2, show_default=True)
@click.option("--engine", "engines", multiple=True, default=["local"], show_default=True)
def main(cells: int, jobs: int, engines: tuple[str, ...]) -> None:
    """Run and time."""
    from tokgolf.sweep.plan import plan, read_texts
    from tokgolf.sweep.run import run_sweep
    from tokgolf.sweep.spec import EngineConfig, SweepSpec

    began = time.perf_counter()
    with ProcessPoolExecutor(max_workers=jobs) as pool:
        list(pool.map(abs, range(cells)))
    say("bare loky calls", began, cells)
    for engine in engines:
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            for name in ("train", "val"):
                (place / f"{name}.jsonl").write_text(json.dumps({"text": f"The {name} text."}))
            spec = SweepSpec(
                name="nothing",
                corpus=f"{folder}/train.jsonl",
                scored=f"{folder}/val.jsonl",
                cap="1MB",
                axes={"seed": [*range(cells)]},
                engine=EngineConfig(name=engine, jobs=jobs, threads=1),
            )
            began = time.perf_counter()
            plan(spec, read_texts(spec), "cpu")
            say(f"{engine}: planning", began, cells)
            began = time.perf_counter()
            result = run_sweep(
                spec, place / "runs", device="cpu", job=nothing, sound=lambda run: True
            )
            say(f"{engine}: the sweep", began, cells)
            assert all(cell.status == "done" for cell in result.cells)


def say(what: str, began: float, cells: int) -> None:
    """A line of the result."""
    seconds = time.perf_counter() - began
    click.echo(f"{what:24} {seconds:8.2f} s  {1000 * seconds / cells:8.2f} ms a cell")


if __name__ == "__main__":
    main()
