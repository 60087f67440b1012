"""The example of a head outside tokgolf: the shared suite's main checks hold for it, and its file
is charged to the artifact."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import test_heads_suite as suite
import torch
from heads_support import randomised

from tokgolf import build_tokenizer
from tokgolf.codesize import closure, code_bytes
from tokgolf.heads import HEADS, Head
from tokgolf.ledger import scoring_modules

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"

CHECKS: list[Callable[..., None]] = [
    suite.test_nll_is_minus_log_probs_for_all_targets,
    suite.test_nll_of_a_row_does_not_depend_on_other_targets_or_their_order,
    suite.test_the_first_loss_is_the_initial_loss,
    suite.test_a_small_model_overfits_64_tokens_down_to_the_floor,
    suite.test_a_state_dict_gives_the_same_scores_in_a_fresh_module,
]


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`gain` and its case, as long as a test runs."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setitem(HEADS, "gain", "my_head:GainConfig")
    monkeypatch.setitem(suite.CASES, "gain", {"name": "gain"})
    monkeypatch.setitem(suite.CASES, "gain with all", {"name": "gain", "add": suite.EVERY_ADDON})
    torch.manual_seed(0)
    yield
    sys.modules.pop("my_head", None)


both = pytest.mark.parametrize("case", ["gain", "gain with all"])


@both
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_example_passes_the_shared_suite(
    check: Callable[..., None], case: str, request: pytest.FixtureRequest
) -> None:
    names = check.__code__.co_varnames[: check.__code__.co_argcount]
    known = {"case": case, "softcap": 30.0}
    check(**{name: known[name] for name in names})


@both
@pytest.mark.parametrize("make", [randomised, suite.trained, suite.rounded])
def test_its_probabilities_sum_to_one(case: str, make: Callable[[Head], Head]) -> None:
    suite.test_probabilities_sum_to_one(case, 30.0, make)


@both
def test_its_loss_is_a_dense_softmax_s(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    suite.test_loss_and_its_gradients_agree_with_a_dense_softmax(case, 30.0, 1 << 20, monkeypatch)


@both
@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_its_tensors_move(case: str, kind: str) -> None:
    suite.test_every_trainable_tensor_moves_within_three_steps(case, kind)


def test_its_counts_are_those_of_what_it_builds() -> None:
    config, head = suite.config_of("gain"), suite.built("gain")
    assert config.num_params(suite.SHAPE) == sum(p.numel() for p in head.parameters())
    assert {name for name, _, _ in head.stored()} == {"table", "gain"}


def test_its_file_is_paid_for_like_a_head_of_the_house() -> None:
    tokenizer = build_tokenizer("byte", [], None)
    with_own = scoring_modules(suite.small_model(suite.built("gain")), tokenizer)
    with_tied = scoring_modules(suite.small_model(suite.built("tied")), tokenizer)
    assert "my_head" in with_own and "my_head" not in with_tied
    source = (EXAMPLES / "my_head.py").read_text("utf-8")
    without = tuple(name for name in with_own if name != "my_head")
    assert code_bytes(with_own).plain == code_bytes(without).plain + len(source.encode())
    assert code_bytes(with_own).packed > code_bytes(without).packed
    assert closure(["torch.nn", "tokgolf.errors"]) == ("tokgolf", "tokgolf.errors")
