"""The comparison of trained tokenizers: one job, in this process and in processes of its own."""

import importlib.util
import multiprocessing
import sys
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tokgolf.corpora import write_jsonl
from tokgolf.corpora.corpus import Document

PATH = Path(__file__).resolve().parents[1] / "benchmarks" / "trained_tokenizers.py"
TRUNK = {
    "layers": 1, "d_model": 16, "heads": 2, "kv_heads": 1, "mlp_hidden": 16, "sequence_length": 16,
}  # fmt: skip


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    path = list(sys.path)
    spec = importlib.util.spec_from_file_location("trained_tokenizers", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["trained_tokenizers"] = module  # its dataclass looks itself up there
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("RAYON_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS"):
        monkeypatch.setenv(name, "1")  # a job sets them: undone after the test
    for name, start in (("train", 0), ("val", 1000)):
        texts = [f"Document {i} of a few words, number {i * i}. " * 5 for i in range(40)]
        documents = [
            Document(id=str(start + i), data=f"{name} {text}".encode())
            for i, text in enumerate(texts)
        ]
        write_jsonl(tmp_path / f"{name}.jsonl", documents)
    return tmp_path


def job_of(script: ModuleType, folder: Path, **changes: Any) -> Any:
    overrides = {"trunk": TRUNK, "steps": 3, "compile": "off", "precision": "fp32"}
    values = {
        "variant": "none",
        "vocab_size": 270,
        "seeds": (1, 2),
        "recipe": "cpu",
        "overrides": {**overrides, "batch_tokens": 64, "micro_batch_tokens": 64},
        "device": "cpu",
        "threads": 1,
        "folder": folder,
    }
    return script.Job(**{**values, **changes})


def rows_of(script: ModuleType, job: Any) -> list[dict[str, Any]]:
    receiving, sending = multiprocessing.Pipe(duplex=False)
    with receiving, sending:
        script.run_job(job, sending)
        rows = []
        while receiving.poll():
            rows.append(receiving.recv())
    return rows


def test_a_job_tokenizes_once_and_leaves_nothing(
    script: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, found = script.train, []

    def train(config: Any, tokenizer: Any, corpus: Any, run: Path, **options: Any) -> Any:
        found.append(sorted(path.name for path in run.glob("tokens/*")))
        return real(config, tokenizer, corpus, run, **options)

    monkeypatch.setattr(script, "train", train)
    rows = rows_of(script, job_of(script, folder))
    assert [row["seed"] for row in rows] == [1, 2]
    assert found[0] == [] and "train.complete" in found[1]
    assert list((folder / "runs").iterdir()) == []
    (alone,) = rows_of(script, job_of(script, folder, seeds=(2,)))
    assert alone == rows[1]  # with tokens of its own it is the same run
    assert rows[0]["bpb"] != rows[1]["bpb"]


def test_a_run_that_fails_is_reported_and_the_next_one_goes_on(
    script: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = script.train

    def train(config: Any, *rest: Any, **options: Any) -> Any:
        if config.seed == 1:
            raise RuntimeError("out of memory")
        return real(config, *rest, **options)

    monkeypatch.setattr(script, "train", train)
    bad, good = rows_of(script, job_of(script, folder))
    assert bad["seed"] == 1 and bad["error"] == "RuntimeError: out of memory"
    assert good["seed"] == 2 and good["bpb"] > 0


class FakeProcess:
    """Stands for a process that reports one seed and dies."""

    exitcode = -9

    def __init__(self, target: Any, args: tuple[Any, Connection], daemon: bool) -> None:
        self.job, self.sending = args

    def start(self) -> None:
        self.sending.send({"seed": self.job.seeds[0], "bpb": 1.0})

    def join(self) -> None:
        pass


def test_a_process_that_dies_is_reported_for_the_seeds_it_owes(
    script: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = multiprocessing.get_context("spawn")
    monkeypatch.setattr(context, "Process", FakeProcess)
    monkeypatch.setattr(script.multiprocessing, "get_context", lambda method: context)
    rows: list[dict[str, Any]] = []
    jobs = [job_of(script, folder, variant=name) for name in ("a", "b", "c")]
    script.run_jobs(jobs, 2, rows.append)
    assert [row["seed"] for row in rows if "error" not in row] == [1, 1, 1]
    failed = [row for row in rows if "error" in row]
    assert sorted(row["variant"] for row in failed) == ["a", "b", "c"]
    assert {(row["seed"], row["error"]) for row in failed} == {
        (2, "its process ended with status -9")
    }
