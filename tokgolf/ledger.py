"""The byte ledger: every byte that a scored model needs, by component and by tensor.

Three accountings (facts: openai/parameter-golf counts code and compressed weights, but not the
tokenizer):

    official   code + weights: what the challenge counts
    full       official + tokenizer asset: the default, and the one held against a cap
    raw        unpacked source + weights + the tokenizer as its library's own file

"Code" is that of the modules which reading the artifact and scoring with it import, stripped and
packed (`codesize` has the other conventions). A coded stream holds all tensors together: each is
given its ideal length, the sum of -log2 of the frequencies that its symbols were coded with, in
whole bytes by largest remainder; what the stream has more is the row "lanes". So the rows sum
to the file's length exactly. Reading an artifact does without this module, so it costs no byte.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from tokgolf.artifact import container
from tokgolf.codesize import CodeBytes, closure, code_bytes, own_modules
from tokgolf.errors import CapError

if TYPE_CHECKING:
    from tokgolf.artifact.load import Artifact
    from tokgolf.model import LanguageModel
    from tokgolf.tokenizers import Tokenizer

ENTRY_MODULES = ("tokgolf.artifact.load", "tokgolf.eval.scorer")
# Components that are no tensor's numbers, in the order of the rows before and after those.
BEFORE = ("code", "tokenizer")
AFTER = ("vectors", "steps", "classes", "frequency tables", "lanes", "header", "checksum")


class TensorBytes(NamedTuple):
    """What a stored tensor takes: `coded` bytes of its numbers, and those of steps and classes.

    `step` is the tensor's own, before the factors of rows and columns; None for codes.
    """

    name: str
    kind: str
    component: str
    shape: tuple[int, ...]
    weights: int
    step: float | None
    coded: int
    steps: int
    classes: int

    @property
    def bytes(self) -> int:
        """All of it."""
        return self.coded + self.steps + self.classes

    @property
    def bits(self) -> float:
        """All of it, in bits a weight."""
        return 8 * self.bytes / self.weights


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """Rows (component, bytes) of the full accounting, and the totals of all three.

    The rows of tables, matrices, vectors and codes are the sums of `tensors` by component; steps
    and classes are that of their side information.
    """

    rows: tuple[tuple[str, int], ...]
    tensors: tuple[TensorBytes, ...]
    official: int
    full: int
    raw: int
    code: CodeBytes
    modules: tuple[str, ...]

    @property
    def bits(self) -> float:
        """All that the file has of weights, in bits for each weight that is not a code."""
        beside = sum(dict(self.rows).get(name, 0) for name in (*BEFORE, "header", "checksum"))
        numbers = sum(tensor.weights for tensor in self.tensors if tensor.kind != "codes")
        return 8 * (self.full - beside) / max(1, numbers)

    def check_cap(self, cap: int) -> None:
        """Raise `CapError`, naming the largest component and a way out, if `full` is over."""
        if self.full > cap:
            name, size = max(self.rows, key=lambda row: row[1])
            raise CapError(
                f"artifact is {self.full:,} bytes in the full accounting, {self.full - cap:,} "
                f"over the cap of {cap:,}; largest: {name} {size:,}. Try fewer --bits, a smaller "
                "trunk or vocabulary, or a head that stores less"
            )


def ledger_of(artifact: "Artifact", beside: Iterable[str] = ()) -> Ledger:
    """The ledger of an artifact; the rows but for the code sum to the file's length.

    `beside` are modules that a way of scoring needs beside those of the plain one.
    """
    from tokgolf.artifact.sizes import sizes_of

    header, sections = container.unpack(artifact.data)
    asset = sections.pop("tokenizer")
    sizes = sizes_of(artifact.model.stored(), sections, header["quantizer"] == "trellis")
    components = components_of(artifact.model)
    tensors = tuple(
        TensorBytes(
            name=stored.name,
            kind=stored.kind,
            component=components[stored.name],
            shape=tuple(stored.tensor.shape),
            weights=stored.tensor.numel(),
            step=size.step,
            coded=size.coded,
            steps=size.steps,
            classes=size.classes,
        )
        for stored, size in zip(artifact.model.stored(), sizes.tensors, strict=True)
    )
    frame = len(artifact.data) - len(asset) - sum(map(len, sections.values()))
    own = scoring_modules(artifact.model, artifact.tokenizer)
    modules = closure([*own, *beside])
    ledger = ledger_from(
        tensors,
        {
            "tokenizer": len(asset),
            "frequency tables": sizes.tables,
            "lanes": sizes.lanes,
            "header": frame - container.DIGEST_BYTES,
            "checksum": container.DIGEST_BYTES,
        },
        modules,
        original_file=len(artifact.tokenizer.original_file()),
    )
    assert ledger.full == ledger.code.packed + len(artifact.data)
    return ledger


def ledger_from(
    tensors: Iterable[TensorBytes],
    others: dict[str, int],
    modules: tuple[str, ...],
    *,
    original_file: int,
) -> Ledger:
    """The ledger of these tensors and of the components that are no tensor's, code aside."""
    tensors = tuple(tensors)
    code = code_bytes(modules)
    sums = {"code": code.packed, **others}
    for tensor in tensors:
        sums[tensor.component] = sums.get(tensor.component, 0) + tensor.coded
        sums["steps"] = sums.get("steps", 0) + tensor.steps
        sums["classes"] = sums.get("classes", 0) + tensor.classes
    between = sorted(set(sums) - set(BEFORE) - set(AFTER), key=_place)
    rows = tuple((name, sums[name]) for name in (*BEFORE, *between, *AFTER) if sums.get(name))
    full = sum(size for _, size in rows)
    weights = full - sums["code"] - sums["tokenizer"]
    return Ledger(
        rows=rows,
        tensors=tensors,
        official=full - sums["tokenizer"],
        full=full,
        raw=code.plain + weights + original_file,
        code=code,
        modules=modules,
    )


def _place(component: str) -> tuple[int, str]:
    """Heads before add-ons before the trunk, each in the order of the alphabet."""
    return ("head", "add-on", "trunk").index(component.partition(":")[0]), component


def components_of(model: "LanguageModel") -> dict[str, str]:
    """The component of every stored tensor, by its full name.

    "trunk.blocks.3.mlp.up.weight" -> "trunk: mlp up"; a head's table is told by the end of the
    vocabulary it serves, which its optimizer group says, and an add-on's by the add-on.
    """
    roles = {name: role for role, group in model.param_groups() for name in group}
    found = {}
    for name, _, kind in model.stored():
        parts = name.split(".")
        role = roles.get(name)
        if kind == "vector":
            found[name] = "vectors"
        elif parts[0] == "trunk":
            found[name] = f"trunk: {' '.join(parts[1:][-3:-1] or parts[1:])}"
        elif parts[1] == "addons":
            found[name] = f"add-on: {parts[2]}"
        elif kind == "codes":
            found[name] = "head: codes"
        elif role in ("tied", "input", "output"):
            found[name] = f"head: {role} table"
        else:
            found[name] = "head: other"
    return found


def scoring_modules(model: "LanguageModel", tokenizer: "Tokenizer") -> tuple[str, ...]:
    """Names of the modules that scoring an artifact with these imports: tokgolf's, and that of a
    head or an add-on which was registered from outside it."""
    parts = {type(part).__module__ for part in model.modules()}
    ends = {type(part).__module__ for part in (model.head, *model.head.addons.values())}
    return closure(
        [*ENTRY_MODULES, *parts, *model.head.modules_needed(), *own_modules(tokenizer)],
        foreign=[name for name in ends if not name.startswith("tokgolf.")],
    )
