"""Every reader of a file with sound samples of what it reads, and how a mutant of one ends.

A reader that promises to notice damage (`sealed`) must refuse every changed file. Of a forged
one, its hash right again, it may make something else, but only something sound: `read` checks
what it was given, and an `AssertionError` is a failure like any exception but the project's own.
"""

import binascii
import functools
import io
import json
import time
import zlib
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
import zstandard
from reliability_mutants import (
    damage,
    golf_forgery,
    golf_signed,
    json_forgery,
    source,
)

from tokgolf.artifact import container
from tokgolf.artifact.checkpoint import (
    FloatModel,
    exported,
    load_run,
    record_export,
    write_checkpoint,
)
from tokgolf.artifact.export import encode_artifact, read_plan
from tokgolf.artifact.load import decode_artifact
from tokgolf.config import TrunkConfig, to_dict
from tokgolf.corpora import (
    Document,
    document_digests,
    open_corpus,
    read_digests,
    read_shard,
    write_digests,
    write_jsonl,
    write_shard,
)
from tokgolf.errors import TokgolfError
from tokgolf.eval.compare import compare
from tokgolf.eval.exchange import read_exchange
from tokgolf.eval.proof import compress, decompress
from tokgolf.eval.saved import read_score
from tokgolf.heads import ADDONS, HEADS, head_config, head_to_dict
from tokgolf.model import build_model, head_shape
from tokgolf.quantize.rows import QuantConfig
from tokgolf.sealed import read_sealed, sealed
from tokgolf.tokenizers import Tokenizer, build_tokenizer, from_asset
from tokgolf.tokenizers.foreign import foreign_asset
from tokgolf.training import run_config

TRUNK = TrunkConfig(layers=1, d_model=4, heads=1, kv_heads=1, mlp_hidden=4, sequence_length=8)
WORDS = b"the cat sat under a yellow table; some other animals slept on wooden benches near it. "
TEXT = WORDS * 8
LINES = [WORDS[n:] + WORDS[:n] for n in range(0, len(WORDS), 3)]
KINDS = ("byte", "bpe", "unigram", "sentencepiece", "greedy", "shortest", "foreign")
OPTIONS: dict[str, dict[str, Any]] = {
    **{name: {"name": name} for name in HEADS},
    "factorized": {"name": "factorized", "rank": 2},
    "vq": {"name": "vq", "codes": 20, "residual_rank": 1},
    "product": {"name": "product", "codebooks": 2, "codes": 17, "residual_rank": 1},
    "hashed": {"name": "hashed", "buckets": 32, "residual_rank": 1},
    "composed": {"name": "composed", "delta_rank": 1},
    "adaptive": {"name": "adaptive", "divisor": 2},
    "every add-on": {
        "name": "tied",
        "add": {**{name: {} for name in ADDONS}, "bigram-hash": {"buckets": 64, "dim": 2}},
    },
}
Forge = Callable[[Any, bytes], tuple[str, bytes]]


@dataclass(frozen=True, kw_only=True)
class Reader:
    """`read` takes a file as it is, `read_signed` makes its hash right before; `share` is how
    many of 1,000 mutants are its own, `signed` how many of those are forged with a right hash."""

    samples: tuple[bytes, ...]
    read: Callable[[bytes], None]
    share: int
    signed: float = 0.0
    sealed: bool = False
    read_signed: Callable[[bytes], None] | None = None
    forge: Forge | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a mutant ended: "refused", or "read" when it was taken for a sound file."""

    what: str
    seconds: float


# --- samples


@functools.cache
def tokenizer_of(kind: str) -> Tokenizer:
    """A small tokenizer of each kind; the foreign one is of bytes after four special ids."""
    if kind == "foreign":
        config = {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3, "byte_offset": 4}
        layout = {"tokenizer_type": "pure_byte", "config": config, "vocab_size": 260}
        return from_asset(foreign_asset(json.dumps(layout).encode()))
    return build_tokenizer(kind, LINES, None if kind == "byte" else 262)


def float_model(head: str = "tied", kind: str = "byte", seed: int = 0) -> FloatModel:
    """A tiny model with a head and a tokenizer of a kind."""
    tokenizer = tokenizer_of(kind)
    shape, config = head_shape(tokenizer, TRUNK), head_config(OPTIONS[head])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(TRUNK, config, shape, torch.arange(shape.vocab_size)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0, 0.3)
    return FloatModel(tokenizer=tokenizer, model=model, trunk=TRUNK, head=config, state={})


def encoded(model: FloatModel) -> bytes:
    """The bytes of a model's artifact."""
    return encode_artifact(model, QuantConfig(method="nearest")).data


@functools.cache
def artifacts() -> tuple[bytes, ...]:
    """An artifact of every head, then one of every other kind of tokenizer."""
    heads = [encoded(float_model(head)) for head in OPTIONS]
    return (*heads, *(encoded(float_model("tied", kind)) for kind in KINDS[1:]))


def save_run(run: Path, model: FloatModel) -> None:
    """A run directory as training leaves it, as far as readers go."""
    state = {
        "step": 3, "seconds": 1.5, "compile_seconds": 0.0, "loss": 4.25, "untied": False,
        "finished": True, "tokenizer": model.tokenizer.fingerprint,
        "corpus": {"name": "tiny:train", "sha256": "0" * 64, "bytes": len(TEXT)},
        "config": {"trunk": to_dict(model.trunk), "head": head_to_dict(model.head)},
    }  # fmt: skip
    run.mkdir(exist_ok=True)
    (run / "tokenizer.tok").write_bytes(model.tokenizer.asset())
    tensors = {f"model.{name}": tensor for name, tensor in model.model.state_dict().items()}
    write_checkpoint(run, {**tensors, "adam.0.m": torch.zeros(3)}, state)


def parquet(documents: list[Document], **options: Any) -> bytes:
    """A table of documents as a file."""
    file = io.BytesIO()
    table = pyarrow.table({"text": [document.data.decode() for document in documents]})
    pyarrow.parquet.write_table(table, file, **options)
    return file.getvalue()


# --- what is checked of a file that was read


def read_artifact(data: bytes) -> None:
    """Decode; what comes back must be sound, usable, and in the one spelling of its bytes."""
    artifact = decode_artifact(data)
    header, sections = container.unpack(data)
    assert artifact.data == data == container.pack(header, sections)
    assert header["trunk"] == artifact.trunk.stored()
    assert header["head"] == head_to_dict(artifact.head)
    assert artifact.tokenizer.asset() == sections["tokenizer"]
    assert all(bool(tensor.isfinite().all()) for _, tensor, _ in artifact.model.stored())
    vocab = artifact.tokenizer.vocab_size
    tokens = torch.tensor([[0, vocab - 1, vocab // 2]])[:, : artifact.trunk.sequence_length]
    assert artifact.model.log_probs(tokens).shape == (*tokens.shape, vocab)


def read_asset(data: bytes) -> None:
    """Restore; it must encode, and give back what it encoded if it says that it does."""
    tokenizer = from_asset(data)
    assert tokenizer.asset() == data and 0 <= tokenizer.bos_id < tokenizer.vocab_size
    text = b"the cat \xff\x00 s\xc3\xa9t"
    decoded = tokenizer.decode(tokenizer.encode(text))
    assert decoded == text or not tokenizer.lossless


def bits_signed(data: bytes) -> bytes:
    """The checksum right again."""
    return data[:3] + binascii.crc_hqx(data[5:], 0).to_bytes(2, "little") + data[5:]


def asset_signed(data: bytes) -> bytes:
    """The checksum right again."""
    return data[:-4] + zlib.crc32(data[:-4]).to_bytes(4, "little")


# --- readers


def make_readers(folder: Path) -> dict[str, Reader]:
    """All readers; those of files work in `folder`."""
    run, scratch = folder / "run", folder / "scratch"
    scratch.mkdir()
    model = float_model("untied", "bpe")
    save_run(run, model)
    pointer, (weights,) = run / "checkpoints/latest.json", (run / "checkpoints").glob("*.safe*")
    sound = {path: path.read_bytes() for path in (pointer, weights, run / "tokenizer.tok")}
    fingerprint = model.tokenizer.fingerprint

    def in_run(path: Path, also_pointer: bool = False) -> Callable[[bytes], None]:
        def read(data: bytes) -> None:
            changes = {path: data}
            if also_pointer:
                values = read_sealed(pointer)
                text = sealed({**values, "sha256": sha256(data).hexdigest()})
                changes[pointer] = text.encode()
            try:
                for place, content in changes.items():
                    place.write_bytes(content)
                found = load_run(run)
                assert found.tokenizer.fingerprint == found.state["tokenizer"]
            finally:
                for place in changes:
                    place.write_bytes(sound[place])

        return read

    def tokenizer_signed(data: bytes) -> None:
        in_run(run / "tokenizer.tok")(asset_signed(data))

    def pointer_forgery(rng: Any, data: bytes) -> tuple[str, bytes]:
        values = json.loads(data)
        values.pop("seal")
        what, changed = json_forgery(rng, values)
        return what, (sealed(changed) if isinstance(changed, dict) else str(changed)).encode()

    shard, sidecar = scratch / "train_000000.bin", scratch / "train_000000.json"
    write_shard(
        shard, np.arange(300) % 262, fingerprint=fingerprint, corpus_sha256="c" * 64,
        byte_count=600, documents=3,
    )  # fmt: skip
    sound |= {path: path.read_bytes() for path in (shard, sidecar)}

    def in_shard(path: Path, also_sidecar: bool = False) -> Callable[[bytes], None]:
        def read(data: bytes) -> None:
            changes = {path: data}
            if also_sidecar:
                values = json.loads(sound[sidecar])
                values.pop("seal")
                text = sealed({**values, "sha256": sha256(data).hexdigest()})
                changes[sidecar] = text.encode()
            try:
                for place, content in changes.items():
                    place.write_bytes(content)
                assert len(read_shard(shard, fingerprint=fingerprint)) == 300
            finally:
                for place in changes:
                    place.write_bytes(sound[place])

        return read

    def official(data: bytes) -> None:
        path = scratch / "official_000000.bin"
        path.write_bytes(data)
        assert len(data) == 1024 + 2 * len(read_shard(path, fingerprint="x"))

    digests = scratch / "train_documents.npy"
    write_digests(digests, document_digests(Document(str(n), b"%d" % n) for n in range(40)))

    def digests_in(data: bytes) -> None:
        digests.write_bytes(data)
        found = read_digests(digests)
        assert found.ndim == 1 and bool((found[1:] > found[:-1]).all())

    def exports_in(data: bytes) -> None:
        (scratch / "exports.txt").write_bytes(data)
        assert all(len(line) == 64 for line in exported(scratch))

    record_export(scratch, "0a" * 32)
    record_export(scratch, "b1" * 32)
    exports = (scratch / "exports.txt").read_bytes()

    def corpus(name: str) -> Callable[[bytes], None]:
        def read(data: bytes) -> None:
            path = scratch / name
            path.write_bytes(data)
            assert open_corpus(str(path)).summary().documents > 0

        return read

    def recipe(data: bytes) -> None:
        path = scratch / "recipe.toml"
        path.write_bytes(data)
        run_config(str(path), {})

    def plan_in(data: bytes) -> None:
        path = scratch / "plan.json"
        path.write_bytes(data)
        assert all(step > 0 for step in read_plan(path).steps.values())

    def score_in(data: bytes) -> None:
        path = scratch / "score.json"
        path.write_bytes(data)
        found = read_score(path)
        assert np.isfinite(found.bits).all() and found.bits.shape == found.sizes.shape
        assert found.bpb >= 0 and found.sizes.sum() > 0 < found.tokens
        (comparison,) = compare([[found], [found]])
        json.dumps(comparison.as_dict(), allow_nan=False)

    def exchange_in(data: bytes) -> None:
        path = scratch / "points.json"
        path.write_bytes(data)
        for points in read_exchange([path]).curves.values():
            assert all(a[0] < b[0] and a[1] > b[1] for a, b in pairwise(points))

    def plan_forgery(rng: Any, data: bytes) -> tuple[str, bytes]:
        what, changed = json_forgery(rng, json.loads(data))
        return what, json.dumps(changed).encode()

    proved = [WORDS[:20], b"", b"\xff"]
    prover = decode_artifact(encoded(float_model()))

    def bits_in(data: bytes) -> None:
        assert decompress(prover, data) == proved

    plan = {
        "config": {"method": "nearest"},
        "steps": {"a": 0.5, "b": 2},
        "damage": {"a": 1.5, "b": 0.25},
    }
    score = {
        "bpb": 1.25, "tokens": 7, "bytes": 16, "documents": 2, "corpus": "web:val", "mode": "raw",
        "protocol": {"stride": 64, "adapt": {"kind": "lora"}}, "corpus_sha256": "c" * 64,
        "tokenizer": "t" * 64, "artifact_sha256": None, "artifact_bytes": 1000,
        "document_bits": [15.0, 5.0], "document_bytes": [12, 4],
    }  # fmt: skip
    points = {"points": [{"scheme": "a", "bytes": n, "bpb": 9.5 - n} for n in (3, 5, 8)]}
    documents = [Document(str(n), TEXT[n:]) for n in range(9)]
    for name in ("c.jsonl", "c.jsonl.zst"):
        write_jsonl(scratch / name, documents)
    jsonl, jsonl_zst = ((scratch / name).read_bytes() for name in ("c.jsonl", "c.jsonl.zst"))
    tables = tuple(parquet(documents, **kind) for kind in ({}, {"compression": "zstd"}))
    txt_zst = zstandard.ZstdCompressor(write_checksum=True).compress(TEXT)
    config = b'steps = 5\nseed = 1\n[trunk]\nlayers = 2\nrope_base = 1e4\n[head]\nname = "tied"\n'
    assets = tuple(tokenizer_of(kind).asset() for kind in KINDS)
    return {
        "artifact": Reader(
            samples=artifacts(), read=read_artifact, share=700, signed=0.06, sealed=True,
            read_signed=lambda data: read_artifact(golf_signed(data)),
            forge=lambda rng, data: golf_forgery(rng, data, artifacts()),
        ),
        "tokenizer": Reader(
            samples=assets, read=read_asset, share=80, signed=0.3, sealed=True,
            read_signed=lambda data: read_asset(asset_signed(data)),
        ),
        "checkpoint pointer": Reader(
            samples=(sound[pointer],), read=in_run(pointer), share=30, signed=0.5, sealed=True,
            read_signed=in_run(pointer), forge=pointer_forgery,
        ),
        "checkpoint tensors": Reader(
            samples=(sound[weights],), read=in_run(weights), share=30, signed=0.5, sealed=True,
            read_signed=in_run(weights, also_pointer=True),
        ),
        "a run's tokenizer": Reader(
            samples=(sound[run / "tokenizer.tok"],), read=in_run(run / "tokenizer.tok"), share=10,
            signed=0.5, sealed=True, read_signed=tokenizer_signed,
        ),
        "shard": Reader(
            samples=(sound[shard],), read=in_shard(shard), share=30, signed=0.3, sealed=True,
            read_signed=in_shard(shard, also_sidecar=True),
        ),
        "sidecar": Reader(
            samples=(sound[sidecar],), read=in_shard(sidecar), share=30, signed=0.5, sealed=True,
            read_signed=in_shard(sidecar), forge=pointer_forgery,
        ),
        "official shard": Reader(samples=(sound[shard],), read=official, share=10),
        "digests": Reader(
            samples=(digests.read_bytes(),), read=digests_in, share=20, signed=0.5, sealed=True,
            read_signed=lambda data: digests_in(data[:-32] + sha256(data[:-32]).digest()),
        ),
        "exports": Reader(samples=(exports,), read=exports_in, share=10),
        "plan": Reader(
            samples=(json.dumps(plan).encode(),), read=plan_in, share=10, signed=0.7,
            read_signed=plan_in, forge=plan_forgery,
        ),
        "bits": Reader(
            samples=(compress(prover, proved)[0],), read=bits_in, share=10, signed=0.3,
            sealed=True, read_signed=lambda data: bits_in(bits_signed(data)),
        ),
        "score": Reader(
            samples=(json.dumps(score).encode(),), read=score_in, share=10, signed=0.7,
            read_signed=score_in, forge=plan_forgery,
        ),
        "exchange": Reader(
            samples=(json.dumps(points).encode(),), read=exchange_in, share=10, signed=0.7,
            read_signed=exchange_in, forge=plan_forgery,
        ),
        "recipe": Reader(samples=(config,), read=recipe, share=10),
        "jsonl": Reader(samples=(jsonl,), read=corpus("m.jsonl"), share=10),
        "jsonl.zst": Reader(samples=(jsonl_zst,), read=corpus("m.jsonl.zst"), share=10),
        "txt.zst": Reader(samples=(txt_zst,), read=corpus("m.txt.zst"), share=10),
        "parquet": Reader(samples=tables, read=corpus("m.parquet"), share=10),
        "txt": Reader(samples=(TEXT,), read=corpus("m.txt"), share=10),
    }  # fmt: skip


# --- running


def mutant(reader: Reader, name: str, seed: int, number: int) -> tuple[str, bool, bytes]:
    """What was done, whether its hash is to be made right, and the file."""
    rng = source(seed, name, number)
    data = rng.choice(reader.samples)
    signed = rng.random() < reader.signed
    if signed and reader.forge is not None and rng.random() < 0.7:
        what, data = reader.forge(rng, data)
    else:
        what, data = damage(rng, data, reader.samples)
    return what, signed, data


def outcome(reader: Reader, data: bytes, signed: bool) -> Outcome:
    """Read one mutant. Anything raised but a `TokgolfError` on one line goes through."""
    read = reader.read_signed if signed and reader.read_signed else reader.read
    began = time.process_time()
    try:
        with redirect_stderr(io.StringIO()):
            read(data)
    except TokgolfError as error:
        assert "\n" not in str(error), f"more than a line: {error}"
        return Outcome(what="refused", seconds=time.process_time() - began)
    assert signed or not reader.sealed or data in reader.samples, "damage went unnoticed"
    return Outcome(what="read", seconds=time.process_time() - began)
