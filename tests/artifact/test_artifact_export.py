"""From a checkpoint to a .golf file and back: exact, repeatable, and proof against any damage."""

import json
import os
import re
import struct
import subprocess
import sys
import time
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from artifact_support import OPTIONS
from hypothesis import given, settings
from hypothesis import strategies as st

import tokgolf
from tokgolf.artifact import container
from tokgolf.artifact.checkpoint import FloatModel, load_run, read_checkpoint, write_checkpoint
from tokgolf.artifact.export import encode_artifact, export_run
from tokgolf.artifact.load import Artifact, decode_artifact, load_artifact
from tokgolf.config import TrunkConfig, to_dict
from tokgolf.errors import ArtifactError, CapError, TokenizerError, TokgolfError
from tokgolf.heads import head_config, head_to_dict
from tokgolf.ledger import ledger_of
from tokgolf.model import build_model, head_shape
from tokgolf.quantize.rows import QuantConfig, Rounder
from tokgolf.tokenizers import Tokenizer, build_tokenizer, save_tokenizer

TRUNK = TrunkConfig(layers=1, d_model=16, heads=2, kv_heads=1, mlp_hidden=16, sequence_length=16)
TEXT = b"the cat sat on the mat; the dog sat on the log. " * 20
CONFIG = QuantConfig(method="nearest")
LARGE = 10**9
every_head = pytest.mark.parametrize("head", OPTIONS)
CALIBRATED = [QuantConfig(), QuantConfig(method="gptq")]
calibrated = pytest.mark.parametrize("config", CALIBRATED, ids=["trellis", "gptq"])


def bpe(vocab_size: int) -> Tokenizer:
    return build_tokenizer("bpe", [TEXT], vocab_size)


def make(head: str = "tied", tokenizer: Tokenizer | None = None, seed: int = 0) -> FloatModel:
    torch.manual_seed(seed)
    tokenizer = tokenizer or build_tokenizer("byte", [], None)
    shape = head_shape(tokenizer, TRUNK)
    config = head_config(OPTIONS[head])
    model = build_model(TRUNK, config, shape, torch.arange(shape.vocab_size)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    return FloatModel(tokenizer=tokenizer, model=model, trunk=TRUNK, head=config, state={})


def save_run(run: Path, source: FloatModel, step: int = 3, **changes: Any) -> Path:
    """A run directory as training leaves it."""
    state = {
        "step": step, "seconds": 1.5, "loss": 4.2, "finished": True,
        "tokenizer": source.tokenizer.fingerprint,
        "corpus": {"name": "tiny:train", "sha256": "0" * 64, "bytes": len(TEXT)},
        "config": {"trunk": to_dict(source.trunk), "head": head_to_dict(source.head)},
    }  # fmt: skip
    tensors = {f"model.{name}": tensor for name, tensor in source.model.state_dict().items()}
    run.mkdir(exist_ok=True)
    save_tokenizer(source.tokenizer, run / "tokenizer.tok")
    write_checkpoint(run, {**tensors, "adam.0.m": torch.zeros(3)}, {**state, **changes})
    return run


@pytest.fixture(scope="module")
def small() -> Artifact:
    return encode_artifact(make(), CONFIG)


def tokens_for(source: FloatModel | Artifact) -> torch.Tensor:
    return (torch.arange(48).reshape(3, 16) ** 3 + 7) % source.tokenizer.vocab_size


# There and back.


@every_head
def test_what_is_read_back_is_the_quantized_model(head: str, tmp_path: Path) -> None:
    source = make(head, bpe(270))
    run, path = save_run(tmp_path / "run", source), tmp_path / "model.golf"
    ledger, plan = export_run(run, path, cap=10**6, config=CONFIG)
    artifact = load_artifact(path)
    assert ledger == artifact.ledger == ledger_of(artifact)
    assert artifact.data == path.read_bytes()
    assert artifact.sha256 == sha256(path.read_bytes()).hexdigest()
    assert (artifact.trunk, artifact.head) == (source.trunk, source.head)
    assert artifact.tokenizer.fingerprint == source.tokenizer.fingerprint
    rounder = Rounder(source.model, CONFIG)
    for name, step in plan.steps.items():
        rounder.restore(name, rounder.quantize(name, step))
    with torch.no_grad():
        expected = source.model.log_probs(tokens_for(source))
    log_probs = artifact.model.log_probs(tokens_for(artifact))
    assert torch.equal(log_probs, expected)
    assert not log_probs.requires_grad and not artifact.model.training
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(3, 16), rtol=0, atol=1e-5)
    assert float(log_probs.std()) > 0.1


FRESH = """
import sys, torch
torch.set_num_threads(1)
from tokgolf import load_artifact
for path in sys.argv[1:]:
    artifact = load_artifact(path)
    tokens = (torch.arange(48).reshape(3, 16) ** 3 + 7) % artifact.tokenizer.vocab_size
    sys.stdout.buffer.write(artifact.model.log_probs(tokens).numpy().tobytes())
"""


def test_a_fresh_process_gives_every_head_the_same_log_probs_to_the_bit(tmp_path: Path) -> None:
    expected, paths = b"", []
    for number, head in enumerate(OPTIONS):
        artifact = encode_artifact(make(head, bpe(270)), CONFIG)
        paths.append(tmp_path / f"{number}.golf")
        paths[-1].write_bytes(artifact.data)
        expected += artifact.model.log_probs(tokens_for(artifact)).numpy().tobytes()
    root = str(Path(tokgolf.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FRESH, *map(str, paths)],
        env={**os.environ, "PYTHONPATH": root}, cwd=tmp_path, capture_output=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    assert len(expected) == 4 * 48 * 270 * len(OPTIONS) and done.stdout == expected


@every_head
def test_the_same_checkpoint_gives_the_same_bytes(head: str, tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", make(head))
    for name in ("a.golf", "b.golf"):
        torch.manual_seed(ord(name[0]))  # the model is built anew, from other draws
        export_run(run, tmp_path / name, cap=10**6, config=CONFIG)
    assert (tmp_path / "a.golf").read_bytes() == (tmp_path / "b.golf").read_bytes()
    other = encode_artifact(make(head, seed=1), CONFIG)
    assert other.data != (tmp_path / "a.golf").read_bytes()


def test_decoding_does_not_depend_on_the_random_state() -> None:
    data = encode_artifact(make("factorized"), CONFIG).data
    torch.manual_seed(1)
    one = decode_artifact(data)
    torch.manual_seed(2)
    other = decode_artifact(data)
    assert torch.equal(one.model.log_probs(tokens_for(one)), other.model.log_probs(tokens_for(one)))


@calibrated
def test_without_tokens_to_calibrate_on_it_says_how_to_go_on(
    config: QuantConfig, tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError, match="calibration tokens .* use --method nearest"):
        encode_artifact(make(), config)
    run = save_run(tmp_path / "run", make())
    with pytest.raises(ArtifactError, match="no training tokens .* use --method nearest"):
        export_run(run, tmp_path / "x.golf", cap=10**6, config=config)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@calibrated
def test_calibrated_methods_are_deterministic_and_differ_from_rounding(config: QuantConfig) -> None:
    source = make("untied")
    batches = [tokens_for(source), tokens_for(source).flip(0, 1)]
    one, other = (encode_artifact(source, config, batches).data for _ in range(2))
    assert one == other != encode_artifact(source, CONFIG).data


# The cap.


def test_over_the_cap_nothing_is_written_and_an_older_file_stays(tmp_path: Path) -> None:
    run, path = save_run(tmp_path / "run", make()), tmp_path / "out" / "model.golf"
    path.parent.mkdir()
    with pytest.raises(CapError, match="under the cap of 1,000 bytes: code, tokenizer and frame"):
        export_run(run, path, cap=1000, config=CONFIG)
    four = replace(CONFIG, bits=4.0)
    with pytest.raises(CapError, match="under the cap of 1,000 bytes: code, tokenizer"):
        export_run(run, path, cap=1000, config=four)
    assert not list(path.parent.iterdir())
    full = export_run(run, path, cap=10**6, config=four)[0].full
    files = [path, path.with_name("model.golf.plan.json")]
    before = [file.read_bytes() for file in files]
    save_run(run, make("untied"))  # a larger model
    with pytest.raises(CapError, match=f"under the cap of {full:,} bytes"):
        export_run(run, path, cap=full, config=four)
    larger = export_run(run, tmp_path / "untied.golf", cap=10**6, config=four)[0].full
    assert larger > full
    with pytest.raises(CapError, match=f"is {larger:,} bytes .* 9 over the cap"):
        export_run(run, path, cap=larger - 9, config=four)
    assert sorted(path.parent.iterdir()) == files
    assert [file.read_bytes() for file in files] == before


# Checkpoints.


def test_a_checkpoint_comes_back_and_replaces_the_one_before_the_last(tmp_path: Path) -> None:
    save_run(tmp_path, make(), step=3)
    save_run(tmp_path, make(), step=7)
    save_run(tmp_path, make("untied", seed=5), step=12)
    *pointers, first, second = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert pointers == ["latest.json", "previous.json"]
    assert re.fullmatch(r"step-000007-\w{8}\.safetensors", first)
    assert re.fullmatch(r"step-000012-\w{8}\.safetensors", second)
    assert read_checkpoint(tmp_path, "previous.json")[1]["step"] == 7
    tensors, state = read_checkpoint(tmp_path)
    assert state["step"] == 12 and "adam.0.m" in tensors
    run, source = load_run(tmp_path), make("untied", seed=5)
    assert torch.equal(
        run.model.log_probs(tokens_for(run)), source.model.log_probs(tokens_for(run))
    )
    assert not any(parameter.requires_grad for parameter in run.model.parameters())


def test_a_folder_without_a_checkpoint_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="holds no checkpoint; make one with tokgolf train -o"):
        load_run(tmp_path)


def test_any_damage_to_the_tensors_file_is_refused(tmp_path: Path) -> None:
    save_run(tmp_path, make())
    (path,) = (tmp_path / "checkpoints").glob("step-000003-*.safetensors")
    data = path.read_bytes()
    for damaged in (b"", data[:-1], data + b"\0", bytes([data[0] ^ 1]) + data[1:]):
        path.write_bytes(damaged)
        with pytest.raises(ArtifactError, match="was damaged or edited"):
            load_run(tmp_path)
    path.unlink()
    with pytest.raises(ArtifactError, match="latest.json is damaged: FileNotFoundError"):
        load_run(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '"x"', '{"file": 3, "sha256": 1}', "\udcff"])
def test_a_damaged_pointer_is_refused(text: str, tmp_path: Path) -> None:
    save_run(tmp_path, make())
    pointer = tmp_path / "checkpoints" / "latest.json"
    pointer.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ArtifactError, match="latest.json is damaged"):
        load_run(tmp_path)


@pytest.mark.parametrize("key", ["tokenizer", "config"])
@pytest.mark.parametrize("value", [None, [], {}, 7, "x"])
def test_a_state_that_is_not_usable_is_refused(key: str, value: Any, tmp_path: Path) -> None:
    save_run(tmp_path, make(), **{key: value})
    with pytest.raises(ArtifactError, match="state is damaged|but the checkpoint was trained"):
        load_run(tmp_path)


def test_another_tokenizer_in_the_run_is_refused_with_both_fingerprints(tmp_path: Path) -> None:
    save_run(tmp_path, make(tokenizer=bpe(270)))
    other = build_tokenizer("bpe", [TEXT[::-1]], 270)
    save_tokenizer(other, tmp_path / "tokenizer.tok")
    with pytest.raises(ArtifactError, match="put the run's own tokenizer back") as caught:
        load_run(tmp_path)
    assert other.fingerprint[:16] in str(caught.value)
    assert bpe(270).fingerprint[:16] in str(caught.value)
    (tmp_path / "tokenizer.tok").write_bytes(b"TOK")
    with pytest.raises(TokenizerError, match="tokenizer.tok: tokenizer asset is cut short"):
        load_run(tmp_path)


def test_a_checkpoint_of_another_shape_than_its_config_is_refused(tmp_path: Path) -> None:
    config = {"trunk": {**to_dict(TRUNK), "mlp_hidden": 17}, "head": {"name": "tied"}}
    save_run(tmp_path, make(), config=config)
    with pytest.raises(ArtifactError, match="does not fit its config: size mismatch"):
        load_run(tmp_path)


@every_head
def test_weights_that_are_not_finite_are_named_at_export(head: str) -> None:
    source = make(head)
    for name, tensor, kind in source.model.stored():
        if kind != "codes":
            saved = tensor.detach().clone()
            tensor.detach().view(-1)[0] = float("nan")
            with pytest.raises(ArtifactError, match=f"^{name} has 1 of"):
                encode_artifact(source, CONFIG)
            tensor.detach().copy_(saved)


# Damage, and forgery: the hash made right again after the edit.


def test_every_truncation_of_a_file_is_refused(small: Artifact) -> None:
    for length in range(len(small.data)):
        with pytest.raises(ArtifactError):
            decode_artifact(small.data[:length])
    with pytest.raises(ArtifactError):
        decode_artifact(small.data + b"\0")


def test_every_flipped_bit_of_a_file_is_refused(small: Artifact) -> None:
    data = bytearray(small.data)
    missed = []
    for bit in range(8 * len(data)):
        data[bit // 8] ^= 1 << bit % 8
        try:
            decode_artifact(bytes(data))
            missed.append(bit)
        except ArtifactError:
            pass
        data[bit // 8] ^= 1 << bit % 8
    assert not missed and bytes(data) == small.data


def test_load_names_the_file(small: Artifact, tmp_path: Path) -> None:
    path = tmp_path / "broken.golf"
    path.write_bytes(small.data[:-1])
    with pytest.raises(ArtifactError, match="broken.golf: the artifact is"):
        load_artifact(path)
    path.write_bytes(repacked(small, {"trunk": {"layerz": 1}}))
    with pytest.raises(ArtifactError, match="broken.golf: artifact.trunk: unknown key 'layerz'"):
        load_artifact(path)
    with pytest.raises(FileNotFoundError):
        load_artifact(tmp_path / "none.golf")


def repacked(
    artifact: Artifact,
    header: dict[str, Any] | None = None,
    sections: dict[str, bytes] | None = None,
) -> bytes:
    """The artifact with some header keys and sections replaced, and a right hash."""
    old_header, old_sections = container.unpack(artifact.data)
    return container.pack({**old_header, **(header or {})}, {**old_sections, **(sections or {})})


def trunk(**changes: Any) -> dict[str, Any]:
    return {"trunk": {**TRUNK.stored(), **changes}}


def head(**values: Any) -> dict[str, Any]:
    return {"head": values}


NARROW = {"d_model": 2, "heads": 1, "kv_heads": 1, "mlp_hidden": 1}
FORGERIES: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown head": (head(name="tyed"), "did you mean 'tied'"),
    "a head without a name": (head(), "there is no head None"),
    "a head name that is a list": (head(name=[]), "there is no head"),
    "a head that is a list": ({"head": []}, "has .* for head"),
    "a trunk that is null": ({"trunk": None}, "has None for trunk"),
    "a header key too many": ({"extra": 1}, "header keys"),
    "an unknown option": (head(name="tied", rank=3), "unknown key 'rank'"),
    "another head's weights": (head(name="untied"), "."),
    "d_model 10**9": (trunk(d_model=LARGE), "at most"),
    "layers 10**9": (trunk(layers=LARGE), "at most"),
    "10**7 layers next to nothing wide": (trunk(layers=10**7, **NARROW), "10,000,000 layers"),
    "mlp_hidden 10**9": (trunk(mlp_hidden=LARGE), "at most"),
    "a window of 10**9": (trunk(sequence_length=LARGE), "at most"),
    "a window of 2**27, narrow": (trunk(sequence_length=1 << 27, **NARROW), "at most"),
    "10**400 layers": (trunk(layers=10**400), "at most"),
    "a base of 10**400": (trunk(rope_base=10**400), "no float"),
    "no layers": (trunk(layers=0), "layers is 0"),
    "-1 layers": (trunk(layers=-1), "layers is -1"),
    "two layers": (trunk(layers=2), "."),
    "layers in words": (trunk(layers="2"), "must be of type int"),
    "layers of true": (trunk(layers=True), "must be of type int"),
    "layers of 1.0": (trunk(layers=1.0), "must be of type int"),
    "an option that is off": (trunk(smear=False), "does not spell out"),
    "heads that do not split": (trunk(heads=3), "does not split"),
    "rank 10**9": (head(name="factorized", rank=LARGE), "at most"),
    "codes 10**9": (head(name="vq", codes=LARGE), "greater than the vocabulary"),
    "residual 10**9": (head(name="vq", residual_rank=LARGE), "at most"),
    "buckets 10**9": (head(name="tied", add={"bigram-hash": {"buckets": LARGE}}), "at most"),
    "hashes 10**7": (head(name="hashed", hashes=10**7, buckets=1000), "hashes is"),
    "codebooks 2000": (head(name="product", codebooks=2000, codes=100), "codebooks is"),
    "mixtures 10**6": (head(name="mixture", mixtures=10**6), "mixtures is"),
    "ngrams 256": (head(name="composed", ngrams=256, features=40000), "ngrams is"),
    "cuts 1000": (head(name="adaptive", cuts=[*range(1, 1001)]), "1,000 entries"),
    "divisor 10**1000": (head(name="adaptive", divisor=10**1000), "divisor is"),
    "dim 10**6": (
        head(name="tied", add={"bigram-hash": {"dim": 10**6, "signs": True}}), "dim is",
    ),
    "an add-on that is a head": (head(name="tied", add={"tied": {}}), "there is no add-on"),
    "an add-on that is a number": (head(name="tied", add={"bigram-hash": 3}), "as a table"),
    "a negative softcap": (head(name="tied", softcap=-1), "softcap"),
}  # fmt: skip


@pytest.mark.parametrize("case", FORGERIES)
def test_a_forged_header_is_refused_at_once(case: str, small: Artifact) -> None:
    changes, message = FORGERIES[case]
    data = repacked(small, changes)
    began = time.perf_counter()
    with pytest.raises(TokgolfError, match=message) as caught:
        decode_artifact(data)
    assert time.perf_counter() - began < 2
    assert "\n" not in str(caught.value)


def test_sections_missing_added_or_in_another_order_are_refused(small: Artifact) -> None:
    header, sections = container.unpack(small.data)
    assert decode_artifact(container.pack(header, sections)).data == small.data
    for name in sections:
        fewer = {key: data for key, data in sections.items() if key != name}
        data = sections[name]
        for wrong in (fewer, {**fewer, f"{name}x": data}, {**fewer, name: data}):
            if list(wrong) != list(sections):
                with pytest.raises(ArtifactError, match="this format has"):
                    decode_artifact(container.pack(header, wrong))
    with pytest.raises(ArtifactError, match="this format has"):
        decode_artifact(container.pack(header, {**sections, "extra": b""}))


def test_a_border_between_sections_that_is_moved_is_refused(small: Artifact) -> None:
    _, sections = container.unpack(small.data)
    names = list(sections)
    for left, right in zip(names, names[1:], strict=False):
        both = sections[left] + sections[right]
        for cut in (len(sections[left]) - 1, len(sections[left]) + 1):
            if 0 <= cut <= len(both):
                with pytest.raises(TokgolfError):
                    decode_artifact(repacked(small, {}, {left: both[:cut], right: both[cut:]}))


@pytest.mark.parametrize("vocab_size", [258, 262, 274])
def test_a_tokenizer_of_another_size_is_refused(small: Artifact, vocab_size: int) -> None:
    with pytest.raises(ArtifactError):
        decode_artifact(repacked(small, {}, {"tokenizer": bpe(vocab_size).asset()}))
    larger = encode_artifact(make(tokenizer=bpe(270)), CONFIG)
    with pytest.raises(ArtifactError):
        decode_artifact(repacked(larger, {}, {"tokenizer": bpe(vocab_size).asset()}))


def test_a_section_of_nothing_or_of_zeros_is_refused(small: Artifact) -> None:
    _, sections = container.unpack(small.data)
    for name, data in sections.items():
        for wrong in {b"\0" * max(1, len(data)), data + b"\0", data[:-1]} - {data}:
            with pytest.raises(TokgolfError):
                decode_artifact(repacked(small, {}, {name: wrong}))


def test_codes_beyond_their_codebook_are_refused() -> None:
    artifact = encode_artifact(make("vq"), CONFIG)
    _, sections = container.unpack(artifact.data)
    packed = sections["packed"]
    assert packed[0] == 7
    with pytest.raises(ArtifactError, match="codes do not fit its codebook"):
        wrong = packed[:1] + b"\xff" * (len(packed) - 1)  # code 127 of 70
        decode_artifact(repacked(artifact, {}, {"packed": wrong}))


def resigned(data: bytes) -> bytes:
    """`data`, its last 32 bytes made the hash of the rest."""
    return data[:-32] + sha256(data[:-32]).digest()


@settings(max_examples=150, deadline=None)
@given(
    edits=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=6)
)
def test_random_bytes_under_a_right_hash_give_a_model_or_one_error(
    small: Artifact, edits: list[tuple[int, int]]
) -> None:
    data = bytearray(small.data)
    for place, value in edits:
        data[place % (len(data) - 32)] = value
    outcome(resigned(bytes(data)))


@settings(max_examples=150, deadline=None)
@given(place=st.integers(0, 10**6), value=st.integers(0, 255), extra=st.binary(max_size=3))
def test_random_header_bytes_under_a_right_hash_give_a_model_or_one_error(
    small: Artifact, place: int, value: int, extra: bytes
) -> None:
    length = struct.unpack_from("<I", small.data, 8)[0]
    at = 16 + place % length
    text = small.data[16:at] + bytes([value]) + extra + small.data[at + 1 : 16 + length]
    frame = small.data[:8] + struct.pack("<I", len(text)) + small.data[12:16]
    outcome(resigned(frame + text + small.data[16 + length :]))


def outcome(data: bytes) -> None:
    """A model that can be used, or a `TokgolfError` on one line; anything else fails the test."""
    try:
        artifact = decode_artifact(data)
    except TokgolfError as error:
        assert "\n" not in str(error)
        return
    assert all(bool(tensor.isfinite().all()) for _, tensor, _ in artifact.model.stored())
    assert json.dumps(to_dict(artifact.trunk), allow_nan=False)
