"""The ledger: rows that sum, only the code that runs, and a fresh process that proves it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tokgolf
from tokgolf.artifact import container
from tokgolf.artifact.checkpoint import FloatModel, write_checkpoint
from tokgolf.artifact.encode import encode
from tokgolf.artifact.export import encode_artifact
from tokgolf.artifact.load import Artifact
from tokgolf.artifact.sizes import sizes_of, whole
from tokgolf.codesize import code_bytes, code_script, source, stripped
from tokgolf.config import TrunkConfig
from tokgolf.device import resolve_device
from tokgolf.errors import ArtifactError, CapError, ConfigError
from tokgolf.heads import ADDONS, HEADS, Stored, head_config
from tokgolf.inspection import inspect_path
from tokgolf.ledger import Ledger, ledger_of
from tokgolf.model import build_model, head_shape
from tokgolf.quantize import FARTHEST, LARGEST, Quantized
from tokgolf.quantize.rows import QuantConfig
from tokgolf.tokenizers import Tokenizer, build_tokenizer, save_tokenizer

TRUNK = TrunkConfig(layers=1, d_model=16, heads=2, kv_heads=1, mlp_hidden=16, sequence_length=16)
TEXT = b"the cat sat on the mat; the dog sat on the log. " * 20
OPTIONS: dict[str, dict[str, Any]] = {
    "factorized": {"name": "factorized", "rank": 6},
}
CASES = {name: OPTIONS.get(name, {"name": name}) for name in HEADS} | {
    "bigram-hash": {"name": "tied", "add": {"bigram-hash": {"buckets": 64, "dim": 4}}},
    "every add-on on vq": {
        "name": "vq",
        "add": {**{name: {} for name in ADDONS}, "bigram-hash": {"buckets": 64, "dim": 4}},
    },
}
ROOT = str(Path(tokgolf.__file__).parent.parent)


def make(case: str, kind: str = "byte") -> FloatModel:
    torch.manual_seed(0)
    sizes = {"byte": None, "bpe": 270, "unigram": 259}
    tokenizer: Tokenizer = build_tokenizer(kind, [TEXT], sizes[kind])
    shape = head_shape(tokenizer, TRUNK)
    head = head_config(CASES[case])
    model = build_model(TRUNK, head, shape, torch.arange(shape.vocab_size)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    return FloatModel(tokenizer=tokenizer, model=model, trunk=TRUNK, head=head, state={})


def encoded(case: str, kind: str = "byte") -> Artifact:
    return encode_artifact(make(case, kind), QuantConfig(method="nearest"))


@pytest.fixture(scope="module")
def tied_bpe() -> Artifact:
    return encoded("tied", "bpe")


# Sums.


@pytest.mark.parametrize("case", CASES)
def test_rows_sum_to_the_file_exactly(case: str, tmp_path: Path) -> None:
    artifact = encoded(case)
    ledger, (_, sections) = artifact.ledger, container.unpack(artifact.data)
    (tmp_path / "m.golf").write_bytes(artifact.data)
    rows = dict(ledger.rows)
    assert len(rows) == len(ledger.rows)
    assert sum(rows.values()) == ledger.full
    assert ledger.full - rows["code"] == os.stat(tmp_path / "m.golf").st_size
    assert all(size > 0 for size in rows.values())
    assert rows["tokenizer"] == len(sections["tokenizer"])
    assert rows["header"] + rows["checksum"] == len(artifact.data) - sum(
        map(len, sections.values())
    )


@pytest.mark.parametrize("case", CASES)
def test_the_tensors_are_all_that_is_stored_and_sum_to_their_rows(case: str) -> None:
    artifact = encoded(case)
    ledger, stored = artifact.ledger, artifact.model.stored()
    assert [t.name for t in ledger.tensors] == [s.name for s in stored]
    assert [t.shape for t in ledger.tensors] == [tuple(s.tensor.shape) for s in stored]
    sums: dict[str, int] = {}
    for tensor in ledger.tensors:
        for component, size in (
            (tensor.component, tensor.coded), ("steps", tensor.steps), ("classes", tensor.classes)
        ):  # fmt: skip
            sums[component] = sums.get(component, 0) + size
        assert tensor.bits == 8 * tensor.bytes / tensor.weights
    rows = dict(ledger.rows)
    assert {name: size for name, size in sums.items() if size}.items() <= rows.items()
    others = set(rows) - set(sums)
    assert others <= {"code", "tokenizer", "frequency tables", "lanes", "header", "checksum"}


@pytest.mark.parametrize(
    ("case", "components"),
    [
        ("tied", {"head: tied table"}),
        ("untied", {"head: input table", "head: output table"}),
        ("factorized", {"head: tied table", "head: other"}),
        ("vq", {"head: input table", "head: output table", "head: codes"}),
        ("bigram-hash", {"head: tied table", "add-on: bigram-hash"}),
    ],
)
def test_components_say_what_a_tensor_is_for(case: str, components: set[str]) -> None:
    found = {t.component for t in encoded(case).ledger.tensors}
    trunk = {"attention query", "attention key", "attention value", "attention out"}
    trunk |= {"mlp up", "mlp out"}
    assert found == components | {f"trunk: {name}" for name in trunk} | {"vectors"}


def test_a_tensor_of_more_surprise_is_given_more_bytes() -> None:
    source = make("untied")
    with torch.no_grad():  # of equal spread, but for half of the rows all zero
        dict(source.model.named_parameters())["head.output"][::2] = 0
    sizes = {
        t.name: t.coded
        for t in encode_artifact(source, QuantConfig(method="nearest")).ledger.tensors
    }
    assert 0.2 < sizes["head.output"] / sizes["head.input"] < 0.8


@pytest.mark.parametrize("trellis", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_the_ideal_lengths_are_the_stream_but_for_its_lanes(case: str, trellis: bool) -> None:
    stored, rng = make(case).model.stored(), np.random.default_rng(0)

    def codes(tensor: Stored) -> Quantized:
        shape = tensor.tensor.numel() // tensor.tensor.shape[-1], tensor.tensor.shape[-1]
        spread = np.exp2(rng.normal(2, 1, (shape[0], 1)) + rng.normal(0, 1, shape[1]))
        values = rng.normal(0, spread).clip(-LARGEST, LARGEST).astype(np.int16)
        if tensor.kind == "vector":
            return Quantized(values, 0x3F80)
        far = (rng.integers(-FARTHEST, FARTHEST + 1, n).astype(np.int8) for n in shape)
        return Quantized(values, 0x3F80, *far)

    sections = encode(stored, codes, trellis)
    sizes = sizes_of(stored, sections, trellis)
    spent = sum(tensor.coded + tensor.steps + tensor.classes for tensor in sizes.tensors)
    assert spent + sizes.tables + sizes.lanes == sum(map(len, sections.values()))
    assert 0 < sizes.lanes <= 6  # four of the one lane, and what integers lose
    for size, tensor in zip(sizes.tensors, stored, strict=True):
        assert size.step == (None if tensor.kind == "codes" else 1.0)


@given(
    st.lists(st.floats(0, 1e9), min_size=1, max_size=30).filter(lambda parts: sum(parts) > 0),
    st.integers(0, 10_000_000),
)
def test_whole_parts_sum_and_are_within_one_of_their_share(parts: list[float], total: int) -> None:
    sizes = whole(parts, total)
    assert sum(sizes) == total
    for part, size in zip(parts, sizes, strict=True):
        assert abs(size - part / sum(parts) * total) < 1 + 1e-6
    assert whole([1.0, 1.0, 2.0], 5) == [1, 1, 3]


@pytest.mark.parametrize("kind", ["byte", "bpe", "unigram"])
def test_the_accountings_differ_by_what_they_say(kind: str) -> None:
    artifact = encoded("tied", kind)
    ledger = ledger_of(artifact)
    asset = len(artifact.tokenizer.asset())
    assert ledger.official == ledger.full - asset
    assert dict(ledger.rows)["tokenizer"] == asset
    assert ledger.code == code_bytes(ledger.modules)
    packed, plain, script = ledger.code
    assert dict(ledger.rows)["code"] == packed < script < plain
    assert script == len(code_script(ledger.modules)) < 1.25 * packed + 600
    original = len(artifact.tokenizer.original_file())
    assert ledger.raw == plain + len(artifact.data) - asset + original


def test_code_bytes_grow_with_modules_and_do_not_depend_on_comments() -> None:
    bare = "class A:\n    x: int = 1\n\n    def f(self, a, b=2):\n        return a + b"
    dressed = (
        '"""Text."""\n# note\nclass A:\n    """Text."""\n    x: int = 1\n    "of x"\n'
        '    def f(self, a: int, b: int = 2) -> int:\n        """Text."""\n        return a + b\n'
    )
    assert stripped(dressed) == bare
    assert stripped('def f(): "only a docstring"') == "def f():\n    pass"
    assert stripped('class E(Exception):\n    "text"') == "class E(Exception):\n    pass"
    few = code_bytes(("tokgolf.errors",))
    more = code_bytes(("tokgolf.errors", "tokgolf.hashing"))
    assert all(0 < a < b for a, b in zip(few, more, strict=True))


# The cap.


def test_the_cap_holds_the_full_accounting_to_the_byte(tied_bpe: Artifact) -> None:
    ledger = tied_bpe.ledger
    ledger.check_cap(ledger.full)
    with pytest.raises(CapError) as caught:
        ledger.check_cap(ledger.full - 1)
    message = str(caught.value)
    largest, size = max(ledger.rows, key=lambda row: row[1])
    assert f"is {ledger.full:,} bytes" in message and f"cap of {ledger.full - 1:,}" in message
    assert " 1 over" in message and f"largest: {largest} {size:,}." in message


# Which code.


def head_modules(ledger: Ledger) -> set[str]:
    prefix = "tokgolf.heads."
    return {name.removeprefix(prefix) for name in ledger.modules if name.startswith(prefix)}


@pytest.mark.parametrize(
    ("case", "modules"),
    [
        ("tied", {"base", "tied"}),
        ("untied", {"base", "untied", "tied"}),
        ("bigram-hash", {"base", "bigram_hash", "tied"}),
        (
            "every add-on on vq",
            {
                "base",
                "bigram_hash",
                "bigram_logits",
                "canonical_mask",
                "unigram_bias",
                "vq",
                "tied",
            },
        ),
    ],
)
def test_only_the_heads_in_use_are_paid_for(case: str, modules: set[str]) -> None:
    assert head_modules(encoded(case).ledger) == modules


def test_only_the_tokenizer_in_use_is_paid_for() -> None:
    for kind, others in (("byte", {"bpe", "unigram"}), ("bpe", {"unigram", "byte"})):
        modules = set(encoded("tied", kind).ledger.modules)
        assert f"tokgolf.tokenizers.{kind}" in modules
        assert not modules & {f"tokgolf.tokenizers.{other}" for other in others}
        assert not modules & {"tokgolf.tokenizers.build", "tokgolf.tokenizers.pack"}


def test_the_decoders_files_are_paid_for_and_the_writers_are_not(tied_bpe: Artifact) -> None:
    modules = set(tied_bpe.ledger.modules)
    assert {
        "tokgolf", "tokgolf.artifact.container", "tokgolf.artifact.load", "tokgolf.artifact.rans",
        "tokgolf.artifact.weights", "tokgolf.eval.scorer", "tokgolf.model", "tokgolf.quantize",
    } <= modules  # fmt: skip
    rest = "training cli corpora ledger codesize cost inspection treemap quantize.rows"
    rest += " artifact.export artifact.encode artifact.sizes"
    prefixes = tuple(f"tokgolf.{name}" for name in rest.split())
    assert not [name for name in modules if name.startswith(prefixes)]


SCORE = """
import json, sys
from tokgolf.artifact.load import load_artifact
from tokgolf.eval.scorer import document_nats
import torch
torch.set_num_threads(1)
artifact = load_artifact(sys.argv[1])
documents = [b"the cat sat", b"", b"on the log. " * 5]
nats = [n.tolist() for _, n in document_nats(artifact.model, artifact.tokenizer, documents)]
print(json.dumps({"modules": sorted(sys.modules), "nats": nats,
                  "file": sys.modules["tokgolf.model"].__file__}))
"""


def fresh_process(path: Path, root: Path | str = ROOT, before: str = "") -> dict[str, Any]:
    """Load and score the artifact at `path` in a new interpreter that sees the modules in `root`,
    and runs `before` first."""
    # The engine that is always there: another gives the same ids and is not paid for.
    environment = {
        **os.environ,
        "PYTHONPATH": str(root),
        "PYTHONDONTWRITEBYTECODE": "1",
        "TOKGOLF_ENGINE": "tokenizers",
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", before + SCORE, str(path)],
        env=environment, cwd=path.parent, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        ("tied", "bpe"),
        ("every add-on on vq", "byte"),
        ("every add-on on vq", "bpe"),
        ("factorized", "unigram"),
    ],
)
def test_a_process_that_scores_loads_the_ledgers_modules_and_no_others(
    case: str, kind: str, tmp_path: Path
) -> None:
    artifact = encoded(case, kind)
    path = tmp_path / "model.golf"
    path.write_bytes(artifact.data)
    loaded = fresh_process(path)["modules"]
    ours = {name for name in loaded if name.split(".")[0] == "tokgolf"}
    assert ours == set(artifact.ledger.modules)
    foreign = {name.split(".")[0] for name in loaded}
    assert not foreign & {"datasets", "zstandard", "pyppmd", "click", "rich", "pyarrow"}
    engines = {"byte": set(), "bpe": {"tokenizers"}, "unigram": {"sentencepiece"}}
    assert foreign & {"tokenizers", "sentencepiece"} == engines[kind]


def test_the_stripped_source_of_the_ledger_scores_the_same(
    tied_bpe: Artifact, tmp_path: Path
) -> None:
    path = tmp_path / "model.golf"
    path.write_bytes(tied_bpe.data)
    names = tied_bpe.ledger.modules
    for name in names:
        package = any(other.startswith(f"{name}.") for other in names)
        file = tmp_path.joinpath("bare", *name.split("."), "__init__.py")
        file = file if package else file.parent.with_suffix(".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(stripped(source(name) or ""))
    bare, full = fresh_process(path, tmp_path / "bare"), fresh_process(path)
    assert str(tmp_path) in bare["file"] and str(tmp_path) not in full["file"]
    assert bare["nats"] == full["nats"]
    assert np.isfinite(np.concatenate(full["nats"])).all()


def test_the_code_as_a_script_scores_the_same_without_any_other_file_of_ours(
    tied_bpe: Artifact, tmp_path: Path
) -> None:
    path = tmp_path / "model.golf"
    path.write_bytes(tied_bpe.data)
    (tmp_path / "run.py").write_text(code_script(tied_bpe.ledger.modules))
    before = "exec(open('run.py').read())\n"
    alone, full = fresh_process(path, tmp_path / "none", before), fresh_process(path)
    assert alone["file"] == "tokgolf.model"
    ours = {name for name in alone["modules"] if name.split(".")[0] == "tokgolf"}
    assert ours == set(tied_bpe.ledger.modules)
    assert alone["nats"] == full["nats"]


# What `tokgolf inspect` says, and devices.


def test_inspect_tells_the_ledger_of_an_artifact(tied_bpe: Artifact, tmp_path: Path) -> None:
    path = tmp_path / "model.golf"
    path.write_bytes(tied_bpe.data)
    facts, ledger = inspect_path(path), tied_bpe.ledger
    assert list(facts["ledger"].items()) == list(ledger.rows)
    assert (facts["full"], facts["official"], facts["raw"]) == (
        ledger.full, ledger.official, ledger.raw,
    )  # fmt: skip
    assert (facts["artifact_bytes"], facts["file_bytes"]) == (ledger.full, len(tied_bpe.data))
    assert facts["asset_bytes"] == len(tied_bpe.tokenizer.asset())
    assert facts["code"]["packed"] == facts["ledger"]["code"]
    assert facts["modules"] == list(ledger.modules)
    for component, weights in facts["weights"].items():
        own = [t for t in facts["tensors"] if t["component"] == component]
        assert sum(t["weights"] for t in own) == weights
        assert sum(t["coded"] for t in own) == facts["ledger"][component]
    assert (facts["head"], facts["vocab_size"]) == ("tied", 270)
    assert facts["sha256"] == tied_bpe.sha256
    json.dumps(facts)


def test_inspect_tells_the_facts_of_a_tokenizer_and_a_run(tmp_path: Path) -> None:
    source = make("untied", "bpe")
    save_tokenizer(source.tokenizer, tmp_path / "tokenizer.tok")
    facts = inspect_path(tmp_path / "tokenizer.tok")
    assert (facts["kind"], facts["vocab_size"]) == ("bpe", 270)
    assert facts["asset_bytes"] == (tmp_path / "tokenizer.tok").stat().st_size
    assert facts["fingerprint"] == source.tokenizer.fingerprint
    state = {
        "step": 7, "seconds": 2, "loss": 3.5, "finished": False,
        "tokenizer": source.tokenizer.fingerprint,
        "corpus": {"name": "tiny:train", "sha256": "0" * 64, "bytes": len(TEXT)},
        "config": {"trunk": vars(TRUNK), "head": CASES["untied"]},
    }  # fmt: skip
    tensors = {f"model.{name}": tensor for name, tensor in source.model.state_dict().items()}
    write_checkpoint(tmp_path, tensors, state)
    run = inspect_path(tmp_path)
    assert (run["steps"], run["seconds"], run["finished"]) == (7, 2.0, False)
    assert (run["corpus"], run["head"], run["vocab_size"]) == ("tiny:train", "untied", 270)
    assert run["head_params"] == 2 * 270 * 16
    assert run["params"] == run["head_params"] + TRUNK.num_params()
    json.dumps([facts, run])


def test_inspect_of_something_else_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "x.golf").write_bytes(b"no artifact")
    with pytest.raises(ArtifactError, match="x.golf: not a .golf artifact"):
        inspect_path(tmp_path / "x.golf")
    with pytest.raises(ArtifactError, match="holds no checkpoint"):
        inspect_path(tmp_path)


def test_auto_takes_cuda_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert resolve_device("auto") == "cuda" and resolve_device("cuda:0") == "cuda:0"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == "cpu" and resolve_device("cpu") == "cpu"
    with pytest.raises(ConfigError, match="no CUDA device; use --device cpu"):
        resolve_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ConfigError, match="there is no device 'cuda:7' here; .* below 1"):
        resolve_device("cuda:7")


def test_an_unknown_device_is_named() -> None:
    for device in ("toaster", "mps", "meta"):
        with pytest.raises(ConfigError, match=f"there is no device '{device}' here; use auto, cpu"):
            resolve_device(device)
