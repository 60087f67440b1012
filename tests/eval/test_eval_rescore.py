"""A bare score has the very numbers of the one with its checks, by every protocol."""

from pathlib import Path

import pytest
import score_support as support

from tokgolf.artifact.export import encode_artifact
from tokgolf.corpora import read_shard, write_shard
from tokgolf.errors import ScoreError
from tokgolf.eval.adapt import adapt_config
from tokgolf.eval.official import token_stream
from tokgolf.eval.protocol import Protocol
from tokgolf.eval.rescore import rescore, rescore_shards
from tokgolf.eval.score import score
from tokgolf.quantize.rows import QuantConfig

ARTIFACT = encode_artifact(support.source_of(), QuantConfig(method="nearest"))
PROTOCOLS = [
    Protocol(),
    Protocol(stride=4),
    Protocol(context="stream", window=24, stride=8),
    Protocol(adapt=adapt_config("lora", {"chunk": 4, "rank": 2})),
    Protocol(mode="official", context="stream"),
    Protocol(mode="official", context="stream", window=8, stride=2),
]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_it_is_the_same_to_the_bit(protocol: Protocol) -> None:
    full = score(ARTIFACT, support.CORPUS, protocol)
    bare = rescore(ARTIFACT, support.TEXTS, full.protocol.as_dict())
    assert (bare.val_loss, bare.val_bpb) == (full.nats_per_token, full.bpb)
    assert (bare.tokens, bare.bytes) == (full.tokens, full.bytes)
    assert (bare.documents, bare.sha256) == (len(full.nats), full.corpus_sha256)


@pytest.mark.parametrize("protocol", [PROTOCOLS[0], PROTOCOLS[4]])
def test_shards_of_the_text_score_the_same(protocol: Protocol, tmp_path: Path) -> None:
    full = score(ARTIFACT, support.CORPUS, protocol)
    tokenizer = ARTIFACT.tokenizer
    tokens = [t for text in support.TEXTS for t in (tokenizer.bos_id, *tokenizer.encode(text))]
    if protocol.mode == "official":
        tokens = token_stream(tokenizer, support.TEXTS).tokens.tolist()
    write_shard(
        tmp_path / "v.bin", tokens, fingerprint="f", corpus_sha256="c", byte_count=1, documents=4
    )
    shard = read_shard(tmp_path / "v.bin")
    bare = rescore_shards(ARTIFACT, shard, full.protocol.as_dict())
    assert (bare.val_loss, bare.val_bpb) == (full.nats_per_token, full.bpb)
    with pytest.raises(ScoreError, match="take its own shards"):
        rescore_shards(ARTIFACT, shard[1:], full.protocol.as_dict())
