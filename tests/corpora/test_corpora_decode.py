"""Shards to documents: what was written comes back, and official shards are read by their rules."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from tokgolf import cli
from tokgolf.corpora import open_corpus
from tokgolf.tokenizers import Tokenizer, build_tokenizer, save_tokenizer

TEXTS = [f"a tiny document, {i}. " * (i + 1) for i in range(9)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return build_tokenizer("bpe", [text.encode() for text in TEXTS], 266)


def official(path: Path, tokens: list[int]) -> None:
    """A shard as the challenge's scripts write one."""
    head = struct.pack("<3i", 20240520, 1, len(tokens)).ljust(1024, b"\0")
    path.write_bytes(head + np.array(tokens, "<u2").tobytes())


def decoded(folder: Path, *shards: Path) -> list[bytes]:
    output = folder / "back.jsonl"
    command = ["corpus", "decode", *map(str, shards), "--tokenizer", str(folder / "t.tok")]
    assert cli.run([*command, "-o", str(output)]) == 0
    return [document.data for document in open_corpus(str(output))]


def test_exported_shards_are_the_challenges_and_decode_to_their_documents(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    save_tokenizer(tokenizer, tmp_path / "t.tok")
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    (tmp_path / "c.jsonl").write_text(lines)
    export = ["corpus", "export", str(tmp_path / "c.jsonl"), "--tokenizer", str(tmp_path / "t.tok")]
    shards = tmp_path / "shards"
    assert cli.run([*export, "--prefix", "fineweb_val", "-o", str(shards)]) == 0
    (path,) = shards.glob("fineweb_val_*.bin")  # as the challenge's loader finds and reads it
    header = np.fromfile(path, dtype="<i4", count=256)
    body = np.fromfile(path, dtype="<u2", offset=1024)
    assert header[:3].tolist() == [20240520, 1, len(body)]
    parts = [[tokenizer.bos_id, *tokenizer.encode(text.encode())] for text in TEXTS]
    assert body.tolist() == [token for part in parts for token in part]
    assert decoded(tmp_path, path) == [text.encode() for text in TEXTS]


def test_a_document_may_reach_over_the_end_of_official_shards(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    save_tokenizer(tokenizer, tmp_path / "t.tok")
    parts = [[tokenizer.bos_id, *tokenizer.encode(text.encode())] for text in TEXTS]
    stream = [int(token) for part in parts for token in part]
    for cut in (1, 7, len(stream) // 2, sum(map(len, parts[:4])), len(stream) - 1):
        official(tmp_path / "a.bin", stream[:cut])
        official(tmp_path / "b.bin", stream[cut:])
        found = decoded(tmp_path, tmp_path / "a.bin", tmp_path / "b.bin")
        assert found == [text.encode() for text in TEXTS]


def test_shards_of_another_tokenizer_and_other_encodings_are_told(
    tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_tokenizer(tokenizer, tmp_path / "t.tok")
    command = ["corpus", "decode", str(tmp_path / "a.bin"), "--tokenizer", str(tmp_path / "t.tok")]
    command += ["-o", str(tmp_path / "x.jsonl")]
    bos = tokenizer.bos_id
    for tokens, message in (([bos, 300], "holds id 300"), ([5, bos], "BOS is 256")):
        official(tmp_path / "a.bin", tokens)
        assert cli.run(command) == 1 and message in capsys.readouterr().err
        assert not (tmp_path / "x.jsonl").exists()
    official(tmp_path / "a.bin", [bos, *b"tiny", bos])
    assert cli.run([*command, "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["other_tokens"] == 1 and "number 0 the first" in err
