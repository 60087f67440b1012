"""A fuzz target over every reader: alone from a seed, or under a coverage fuzzer.

    python tests/reliability/fuzz_target.py --mutants 100000 --seed 1
    python tests/reliability/fuzz_target.py --mutants 1000 --reader artifact
    python tests/reliability/fuzz_target.py --reader artifact --number 17
    python tests/reliability/fuzz_target.py --atheris CORPUS_FOLDER

The third reads one mutant again, as a failure names it. The last needs the package `atheris`, which
tokgolf does not install: the first byte of an input chooses the reader and whether its hash
is made right, the rest is the file; CORPUS_FOLDER, if empty, is filled with the sound samples.
Run from the root of a checkout.
"""

import argparse
import importlib
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from reliability_readers import Reader, make_readers, mutant, outcome

MOST_SECONDS = 1.0


def run_mutants(
    readers: dict[str, Reader], total: int, seed: int, *, keep_going: bool = False
) -> tuple[Counter[tuple[str, str]], list[str]]:
    """Read `total` mutants, shared out among the readers; how they ended, and the failures."""
    shares = sum(reader.share for reader in readers.values())
    counts: Counter[tuple[str, str]] = Counter()
    failures: list[str] = []
    for name, reader in readers.items():
        for number in range(-(-total * reader.share // shares)):
            failure = one(name, reader, seed, number, counts)
            if failure:
                failures.append(failure)
                if not keep_going:
                    return counts, failures
    return counts, failures


def one(name: str, reader: Reader, seed: int, number: int, counts: Counter[tuple[str, str]]) -> str:
    """Read one mutant and count how it ended; what failed, or nothing."""
    what, signed, data = mutant(reader, name, seed, number)
    place = f"{name}, seed {seed}, number {number}: {what}{', signed' if signed else ''}"
    try:
        found = outcome(reader, data, signed)
    except BaseException as error:  # a library's panic is no Exception
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{place}: {traceback.format_exc()}"
    counts[name, found.what] += 1
    return f"{place}: {found.seconds:.2f} s" if found.seconds > MOST_SECONDS else ""


def main() -> int:
    """The command line; 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutants", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reader", help="Only this one; artifact, tokenizer, ...")
    parser.add_argument("--number", type=int, help="Only this mutant of --reader.")
    parser.add_argument("--atheris", metavar="CORPUS_FOLDER", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        readers = make_readers(Path(folder))
        if options.reader is not None:
            readers = {options.reader: readers[options.reader]}
        if options.atheris is not None:
            cover(readers, options.atheris)
        if options.number is not None:
            counts: Counter[tuple[str, str]] = Counter()
            ((name, reader),) = readers.items()
            failure = one(name, reader, options.seed, options.number, counts)
            failures = [failure] if failure else []
        else:
            counts, failures = run_mutants(readers, options.mutants, options.seed, keep_going=True)
    for (name, what), count in sorted(counts.items()):
        print(f"{name:<20}{what:<10}{count:>9,}")
    print(
        f"{sum(counts.values()):,} mutants in {time.perf_counter() - began:.0f} s, most memory",
        end=" ",
    )
    print(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MiB")
    print(*failures[:20], f"{len(failures)} failures", sep="\n")
    return bool(failures)


def cover(readers: dict[str, Reader], folder: Path) -> None:
    """Hand over to the coverage fuzzer; it never returns."""
    atheris: Any = importlib.import_module("atheris")
    names = list(readers)
    folder.mkdir(exist_ok=True)
    if not any(folder.iterdir()):
        for place, name in enumerate(names):
            for number, sample in enumerate(readers[name].samples):
                path = folder / f"{name.replace(' ', '-')}-{number}"
                path.write_bytes(bytes([2 * place + 1]) + sample)

    def target(data: bytes) -> None:
        if data:
            reader = readers[names[data[0] // 2 % len(names)]]
            outcome(reader, data[1:], signed=bool(data[0] & 1))

    atheris.instrument_all()
    atheris.Setup([sys.argv[0], str(folder)], target)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
