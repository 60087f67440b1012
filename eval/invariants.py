"""The six invariants of a score, gathered while it is taken: what a referee would check.

    (a) the bytes scored are the documents' own, and nats a token, bpb and bytes a token agree
    (b) every document comes back exactly from its tokens
    (c) the documents scored are the corpus', in its order, and none was trained on
    (d) probabilities sum to one where sampled, and the nats are of those probabilities
    (e) changing a target or anything after it leaves what was predicted up to it unchanged
    (f) each target is scored once, and no weight or buffer changes before or while scoring

Each is a class of its own with `results()`, by name: True if it holds, None if it could not be
checked; and `evidence()`, the numbers that it saw. They see the documents, their tokens and every
ln p that nats are taken from, and trust nothing else that a scorer says. Memory does not grow with
the corpus.
"""

import math
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tokgolf.corpora import CorpusSummary, framed
from tokgolf.eval.scorer import Encoder, Nats, Observer
from tokgolf.model import LanguageModel
from tokgolf.tokenizers.base import Ids

Results = dict[str, bool | None]
Scorer = Callable[[Encoder, Iterable[bytes], Observer], Iterator[tuple[bytes, Nats]]]
"""A protocol at work: `document_nats` with its options settled."""

SUM_TOLERANCE = 1e-5
SAMPLES = 4  # positions of a chunk whose probabilities are summed
MIDDLE_GROUPS = 2  # text probed between the first and the last


class TrueBytes:
    """(a): for every document, the bytes that its tokens stand for are its own number of bytes."""

    def __init__(self) -> None:
        self.of_documents = self.of_tokens = self.scored = 0
        self.tail = 0  # bytes that a protocol leaves out and says so
        self.unnormalised: int | None = None  # of documents whose text is changed first
        self.equal = True

    def counted(self, of_document: int, of_tokens: int) -> None:
        """The bytes of the next document, counted on it and on its tokens."""
        self.equal &= of_document == of_tokens
        self.of_documents += of_document
        self.of_tokens += of_tokens

    def results(self, *, nats_per_token: float, bpb: float, targets: int) -> Results:
        """Of the score as it is published."""
        found = nats_per_token / (math.log(2) * bpb)
        expected = (self.of_tokens - self.tail) / targets
        return {
            "bytes_are_the_documents": self.equal and self.scored == self.of_documents - self.tail,
            "bytes_per_token_agree": math.isclose(found, expected, rel_tol=1e-9),
        }

    def evidence(self) -> dict[str, Any]:
        """Bytes as counted on documents, on tokens and by the scorer."""
        return {
            "document_bytes": self.of_documents,
            "token_bytes": self.of_tokens,
            "scored_bytes": self.scored,
            "tail_bytes": self.tail,
            "unnormalised_bytes": self.unnormalised,
        }


class ExactDecoding:
    """(b): decode(encode(document)) is the document."""

    def __init__(self) -> None:
        self.documents = self.different = 0

    def compared(self, equal: bool) -> None:
        """Whether the next document came back."""
        self.documents += 1
        self.different += not equal

    def results(self) -> Results:
        """Whether all were equal."""
        return {"documents_decode_exactly": self.different == 0}

    def evidence(self) -> dict[str, Any]:
        """How many were compared."""
        return {"documents_decoded": self.documents, "documents_different": self.different}


class SameDocuments:
    """(c): what is scored is what a pass over the corpus counted and hashed before.

    That none was trained on is checked before anything is scored (`check_disjoint`).
    """

    def __init__(self, corpus: CorpusSummary, train_documents: int | None) -> None:
        self.corpus = corpus
        self.train_documents = train_documents
        self.documents = 0
        self.digest = sha256()
        self.first: str | None = None

    def seen(self, data: bytes) -> bytes:
        """The next document, which is given back."""
        self.documents += 1
        self.digest.update(framed(data))
        self.first = self.first or sha256(data).hexdigest()
        return data

    def results(self) -> Results:
        """Whether count and hash are the corpus'."""
        same = self.documents == self.corpus.documents
        return {
            "documents_in_order": same and self.digest.hexdigest() == self.corpus.sha256,
            "train_disjoint": None if self.train_documents is None else True,
        }

    def evidence(self) -> dict[str, Any]:
        """Counts and hashes."""
        return {
            "documents_scored": self.documents,
            "documents_of_corpus": self.corpus.documents,
            "documents_sha256": self.digest.hexdigest(),
            "first_document_sha256": self.first,
            "train_documents": self.train_documents,
        }


class SumsToOne:
    """(d), the first half: p summed in fp64 at some positions of every chunk."""

    def __init__(self) -> None:
        self.random = random.Random(0)
        self.positions = 0
        self.worst = 0.0

    def observed(self, log_probs: torch.Tensor) -> None:
        """ln p of some positions, (n, vocab)."""
        last = len(log_probs) - 1
        sample = {0, last, *(self.random.randint(0, last) for _ in range(SAMPLES - 2))}
        sums = log_probs[sorted(sample)].double().exp().sum(1)
        worst = float((sums - 1).abs().max())
        self.positions += len(sample)
        # A NaN stays.
        self.worst = worst if math.isnan(worst) else max(self.worst, worst)

    def results(self) -> Results:
        """Whether all sums were near enough to one."""
        return {"probabilities_sum_to_one": self.positions > 0 and self.worst < SUM_TOLERANCE}

    def evidence(self) -> dict[str, Any]:
        """The largest difference from one."""
        return {"sums_checked": self.positions, "largest_sum_error": self.worst}


class OnceEach:
    """(f), the first half, and (d), the second: a count for every target, and its own nats.

    What is counted are the targets that ln p were made for. The nats that the scorer gives back
    must be, bit for bit, those of the document's tokens in these ln p.
    """

    def __init__(self) -> None:
        self.lengths: deque[int] = deque()  # targets of each document not yet given back
        self.base = 0  # the number of the first of these
        self.tokens: NDArray[np.int64] = np.zeros(0, np.int64)
        self.counts: NDArray[np.uint32] = np.zeros(0, np.uint32)
        self.nats: Nats = np.zeros(0)
        self.targets = 0
        self.once = self.equal = True

    def expect(self, targets: Sequence[Ids]) -> None:
        """The targets of the next documents."""
        self.lengths.extend(map(len, targets))
        self.tokens = np.concatenate([self.tokens, *targets]).astype(np.int64)
        more = len(self.tokens) - len(self.counts)
        self.counts = np.concatenate([self.counts, np.zeros(more, np.uint32)])
        self.nats = np.concatenate([self.nats, np.full(more, np.nan)])

    def observed(self, numbers: NDArray[np.int64], log_probs: torch.Tensor) -> None:
        """The numbers of targets and their ln p, (n,) and (n, vocab)."""
        at = numbers - self.base
        known = (at >= 0) & (at < len(self.tokens))
        if len(at) != len(log_probs) or not known.all():
            self.once = False  # of a document that is done, or not begun
            return
        np.add.at(self.counts, at, 1)
        targets = torch.from_numpy(self.tokens[at]).to(log_probs.device)
        self.nats[at] = -log_probs.gather(1, targets[:, None])[:, 0].double().cpu().numpy()

    def scored(self, nats: Nats) -> None:
        """The nats of the next document, as the scorer gives them."""
        count = self.lengths.popleft() if self.lengths else -1
        if count != len(nats):
            self.once = False
        count = max(count, 0)
        self.once &= bool((self.counts[:count] == 1).all())
        self.equal &= np.array_equal(self.nats[:count], nats)
        self.targets += len(nats)
        self.base += count
        self.tokens = self.tokens[count:]
        self.counts, self.nats = self.counts[count:], self.nats[count:]

    def results(self) -> Results:
        """Whether every count was one."""
        return {"each_token_scored_once": self.once and not self.lengths}

    def own_nats(self) -> Results:
        """Whether the nats were those of the distributions."""
        return {"nats_are_the_distributions": self.equal}

    def evidence(self) -> dict[str, Any]:
        """How many."""
        return {"targets_counted": self.targets}


class Causality:
    """(e): real text is scored again, by the same protocol, with tokens changed.

    The text is cut into groups a little longer than a window; the first, the last and some chosen
    by chance between are kept. In each, at two targets, first the target is changed and then all
    that comes after it: the distribution at the target and the nats of all targets before it
    must be the same bits.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        length: int,
        scored: Callable[[int], int] = lambda targets: targets,
    ) -> None:
        """Groups have up to `length` targets, of which the scorer scores the first `scored`."""
        self.vocab, self.bos_id = model.head.shape.vocab_size, model.head.shape.bos_id
        self.limit, self.scored = length, scored
        self.random = random.Random(0)
        self.group: list[Ids] = []
        self.room = self.limit
        self.groups = 0
        self.kept: dict[int, list[Ids]] = {}
        self.flips = 0
        self.target_flips = self.future_flips = True
        self.moved = False

    def encoded(self, ids: Ids) -> None:
        """The tokens of the next document."""
        start = 0
        while True:
            part = ids[start : start + self.room - 1]
            self.group.append(part)
            self.room -= len(part) + 1
            start += len(part)
            if self.room < 2:
                self._close()
            if start >= len(ids):
                return

    def _close(self) -> None:
        """Keep the group if it is the first or drawn (a reservoir); the last one is kept later."""
        middle = [number for number in self.kept if number]
        if not self.groups:
            self.kept[0] = [ids.copy() for ids in self.group]
        elif len(middle) < MIDDLE_GROUPS:
            self.kept[self.groups] = [ids.copy() for ids in self.group]
        elif (place := self.random.randrange(self.groups)) < MIDDLE_GROUPS:
            del self.kept[middle[place]]
            self.kept[self.groups] = [ids.copy() for ids in self.group]
        self.last = self.group
        self.groups += 1
        self.group, self.room = [], self.limit

    def probe(self, score: Scorer) -> None:
        """Score the groups that were kept, as they are and changed."""
        if sum(map(len, self.group)) or not self.groups:
            self._close()
        self.kept[self.groups - 1] = self.last
        for number in sorted(self.kept):
            self._probe_group(score, self.kept[number])

    def _probe_group(self, score: Scorer, group: list[Ids]) -> None:
        ends = np.cumsum([len(ids) + 1 for ids in group])
        # Of tokens: a closing BOS stays.
        places = np.setdiff1d(np.arange(self.scored(int(ends[-1]))), ends - 1)
        if not len(places):
            return
        half = (len(places) + 1) // 2
        chosen = {
            int(self.random.choice(part)) for part in (places[:half], places[half:]) if len(part)
        }
        before, laws = self._score(score, group, chosen)
        for target in sorted(chosen):
            later = places[places > target]
            for changed, future in ((np.array([target]), False), (later, True)):
                if not len(changed):
                    continue
                after, again = self._score(score, self._changed(group, ends, changed), {target})
                self.flips += 1
                upto = target + future
                same = np.array_equal(before[:upto], after[:upto], equal_nan=True)
                same = same and torch.equal(laws[target], again[target])
                self.moved |= not np.array_equal(before[target + 1 :], after[target + 1 :])
                if future:
                    self.future_flips &= same
                else:
                    self.target_flips &= same

    def _changed(self, group: list[Ids], ends: Any, places: Any) -> list[Ids]:
        """The group with another token at each of these targets."""
        text = np.concatenate([part for ids in group for part in (ids, [0])]).astype(np.int64)
        text[places] = (text[places] + 1) % self.vocab
        text[places] = np.where(
            text[places] == self.bos_id, (self.bos_id + 1) % self.vocab, text[places]
        )
        return [part[:-1].astype(group[0].dtype) for part in np.split(text, ends[:-1])]

    def _score(
        self, score: Scorer, group: list[Ids], chosen: set[int]
    ) -> tuple[Nats, dict[int, torch.Tensor]]:
        """Nats of all targets of a group, and ln p at those chosen."""
        laws: dict[int, torch.Tensor] = {}

        def observe(numbers: NDArray[np.int64], log_probs: torch.Tensor) -> None:
            for target in chosen & set(numbers.tolist()):
                laws[target] = log_probs[int((numbers == target).argmax())].clone()

        scored = score(Replay(self.bos_id, group), map(Replay.name, range(len(group))), observe)
        nats = np.concatenate([values for _, values in scored])
        return nats, {target: laws.get(target, torch.zeros(0)) for target in chosen}

    def results(self) -> Results:
        """Whether nothing looked ahead; None if what is changed never changes anything at all."""
        target, future = self.target_flips, self.future_flips
        if not self.moved and target and future:
            return {"causal": None, "causal_target_flips": None, "causal_future_flips": None}
        return {
            "causal": target and future,
            "causal_target_flips": target,
            "causal_future_flips": future,
        }

    def evidence(self) -> dict[str, Any]:
        """How many times text was changed."""
        return {"flips": self.flips, "groups_probed": len(self.kept), "groups": self.groups}


class Replay:
    """An encoder of documents that are tokens already."""

    def __init__(self, bos_id: int, documents: list[Ids]) -> None:
        self.bos_id = bos_id
        self.documents = documents

    @staticmethod
    def name(number: int) -> bytes:
        """What stands for a document."""
        return b"%d" % number

    def encode_batch(self, batch: Sequence[bytes]) -> list[Ids]:
        """The tokens of each document named."""
        return [self.documents[int(name)] for name in batch]


class Unchanged:
    """(f), the second half: every parameter and buffer is the same before and after, and, if there
    is an artifact, the same as in a model decoded from its bytes anew."""

    def __init__(self, model: LanguageModel, decoded: LanguageModel | None) -> None:
        self.model = model
        self.before = state_hash(model)
        self.decoded = None if decoded is None else state_hash(decoded)

    def results(self) -> Results:
        """Whether the hashes are equal."""
        return {
            "state_unchanged": state_hash(self.model) == self.before,
            "state_is_the_artifacts": None if self.decoded is None else self.decoded == self.before,
        }

    def evidence(self) -> dict[str, Any]:
        """The hash before scoring."""
        return {"state_sha256": self.before}


def state_hash(model: LanguageModel) -> str:
    """SHA-256 of all stored tensors, parameters and buffers: names, types, shapes and bytes."""
    tensors = {name: tensor for name, tensor, _ in model.stored()}
    tensors |= dict(model.named_parameters()) | dict(model.named_buffers())
    digest = sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
