"""Building SentencePiece BPE: trained by `sentencepiece`, made lossless, packed by us.

Unlike a stock model it keeps every byte: the identity normaliser, no added or removed spaces,
and spaces that stay spaces, so that U+2581 is a character like any other. Its ids are ours: the
bytes, BOS, the merges, then characters beyond ASCII. An ASCII character has no piece: it is its
byte, where a stock model has an id for either.
"""

import io
from collections import Counter
from collections.abc import Iterable

from tokgolf.errors import TokenizerError
from tokgolf.tokenizers.asset import Extras, wrap
from tokgolf.tokenizers.base import BOS_ID, MIN_VOCAB_SIZE
from tokgolf.tokenizers.build import (
    _COVERAGE,
    _check_supported,
    _covered_beyond_ascii,
    _sentences,
)
from tokgolf.tokenizers.pack_sentencepiece import pack_model
from tokgolf.tokenizers.sentencepiece_bpe import BYTE, CHARACTER, UNKNOWN, WHOLE, Model


def build_sentencepiece_bpe(
    documents: Iterable[bytes], vocab_size: int, extras: Extras | None = None
) -> bytes:
    """The asset of a lossless SentencePiece BPE of exactly `vocab_size` ids.

    All of every document is used but the characters that SentencePiece reserves (they always
    have their bytes). At most half of what is learned are single characters, the most frequent
    ones, and those that SentencePiece's coverage of 99.95% leaves out are bytes. Raises
    `TokenizerError` if the documents support fewer ids.
    """
    sentences = [sentence for document in documents for sentence in _sentences(document)]
    characters: Counter[str] = Counter()
    for sentence in sentences:
        characters.update(sentence)
    learned = vocab_size - MIN_VOCAB_SIZE
    # The trainer counts up to 128 ASCII characters that are no ids here.
    size = vocab_size + 128 + _covered_beyond_ascii(characters)
    pieces = _train(sentences, size) if sentences else []
    merges = [piece for piece in pieces if len(piece) > 1]
    ascii_characters = [piece for piece in pieces if len(piece) == 1 and piece < "\x80"]
    beyond = [piece for piece in pieces if len(piece) == 1 and piece >= "\x80"]
    if len(beyond) > learned // 2:
        known = {*ascii_characters, *beyond[: learned // 2]}
        merges = [piece for piece in merges if known.issuperset(piece)]
        beyond = beyond[: max(learned // 2, learned - len(merges))]
    _check_supported(vocab_size, MIN_VOCAB_SIZE + len(merges) + len(beyond))
    entries = [(BYTE, f"<0x{byte:02X}>") for byte in range(256)]
    entries += [(UNKNOWN, "<unk>")]  # in the place of BOS: with all bytes, nothing is unknown
    entries += [(WHOLE, piece) for piece in merges[: learned - len(beyond)]]
    entries += [(CHARACTER, piece) for piece in beyond]
    model = Model(
        flags=frozenset(),
        bos_id=BOS_ID,
        normalizer="identity",
        table=b"",
        pieces=[(sort, piece.encode(), -float(n)) for n, (sort, piece) in enumerate(entries)],
    )
    return wrap("sentencepiece", pack_model(model), extras)


def _train(sentences: list[str], size: int) -> list[str]:
    """Train on all sentences for about `size` pieces: merges in order, then characters by count."""
    import sentencepiece

    file = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=file,
            model_type="bpe",
            vocab_size=size,
            hard_vocab_limit=False,  # too few are an error of ours, with better words
            character_coverage=_COVERAGE,
            byte_fallback=True,
            split_digits=True,  # as the public records have it; costs tokens, not bits per byte
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            max_sentence_length=1 << 30,  # the default drops every sentence over 4,192 bytes
            num_threads=1,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise TokenizerError(
            f"sentencepiece cannot learn {size} pieces from {len(sentences)} texts ({error}); "
            "use more text or another --vocab-size"
        ) from error
    trained = sentencepiece.SentencePieceProcessor(model_proto=file.getvalue())
    return [
        trained.id_to_piece(index).replace("\u2581", " ")
        for index in range(trained.get_piece_size())
        if not trained.is_byte(index) and not trained.is_unknown(index)
    ]
