"""A run's directory: who trains in it, from what on, that it is that run, and its metrics.

Only the lead writes, and only when everything has been checked.
"""

import contextlib
import errno
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tomli_w

from tokgolf.artifact.checkpoint import Checkpoint, holds_checkpoint, read_sound_checkpoint
from tokgolf.config import flat, read_toml
from tokgolf.corpora.disjoint import Digests, write_digests
from tokgolf.errors import ConfigError, TrainingError
from tokgolf.files import write_bytes, write_text
from tokgolf.locks import locked
from tokgolf.tokenizers import Tokenizer
from tokgolf.training.guards import listed

LOCK_FILE = ".training"
MAY_CHANGE = ("steps", "minutes", "checkpoint_minutes", "max_gradient")  # when a run is resumed


class RunDirectory:
    """A run's directory, which is locked from `hold` until `lock` is closed."""

    def __init__(self, path: Path, say: Callable[[str], None], lock: contextlib.ExitStack) -> None:
        self.path, self.say = path, say
        self._lock = lock
        self._is_held = False

    def hold(self) -> None:
        """Let no other process train here. Raises `TrainingError` if one does."""
        if self._is_held:
            return
        try:
            self._is_held = self._lock.enter_context(locked(self.path / LOCK_FILE, wait=False))
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK):
                raise
            self._is_held = True
            self.say(
                f"lock      the file system of {self.path} has no locks: train it by one command "
                "at a time"
            )
        if not self._is_held:
            raise TrainingError(
                f"another process is training {self.path}; wait until it has ended, or choose "
                "another -o"
            )

    def checkpoint(self, *, resume: bool) -> Checkpoint | None:
        """The checkpoint to go on from, if any.

        Raises `TrainingError` for a run that is not to be gone on with, `ArtifactError` for damage.
        """
        if not resume:
            self._check_empty()
            return None
        if not holds_checkpoint(self.path):
            self.say(f"resume    {self.path} holds no checkpoint yet: the run starts")
            return None
        return read_sound_checkpoint(self.path, self.say)

    def begin(
        self, tokenizer: Tokenizer, digests: Digests, state: dict[str, Any]
    ) -> dict[str, Any]:
        """Write what is known before the first step of a run that starts. Returns its `state`."""
        self.hold()
        self._check_empty()  # it may have been trained by another process meanwhile
        begun = self.path / "config.toml"
        if begun.is_file():
            with contextlib.suppress(ConfigError):  # damaged, and about to be written anew
                if differ := _differences({"config": read_toml(begun)}, state):
                    self.say(
                        f"run       {self.path} was begun with {listed([*differ.values()])}, and "
                        "starts anew"
                    )
        self._write(tokenizer, digests, state)
        return state

    def go_on(
        self, before: dict[str, Any], tokenizer: Tokenizer, digests: Digests, state: dict[str, Any]
    ) -> dict[str, Any]:
        """The same of a run that goes on from a checkpoint with the state `before`, which has what
        was decided at its start. Raises `TrainingError` if it is another run."""
        with self.damage_named():
            _check_same_run(self.path, before, state)
            state = {**state, "afresh": [*before.get("afresh", [])]}
        self.hold()
        self._write(tokenizer, digests, state)
        return state

    def _write(self, tokenizer: Tokenizer, digests: Digests, state: dict[str, Any]) -> None:
        corpus = state["corpus"]
        write_bytes(self.path / "tokenizer.tok", tokenizer.asset())
        write_digests(self.path / "train_documents.npy", digests)
        # A recipe that repeats this run; the corpus is no part of a recipe, hence the comment.
        origin = f"# {corpus['name']}, {corpus['bytes']:,} bytes, SHA-256 {corpus['sha256']}\n"
        write_text(self.path / "config.toml", origin + tomli_w.dumps(state["config"]))

    def say_changes(self, before: dict[str, Any], now: dict[str, Any]) -> None:
        """What may change in a resumed run: whoever forgets an option should know."""
        if differ := _differences(before, now):
            changes = ", ".join(differ.values())
            self.say(f"resume    with other options than the run had: {changes}")
        before = now | before  # older checkpoints know less
        if _order_of_sums(before) != _order_of_sums(now):
            self.say(
                f"resume    processes {before['processes']} (now {now['processes']}), tokens at a "
                f"time {before['tokens_at_once']:,} (now {now['tokens_at_once']:,}): gradients are "
                "summed in another order, so that losses differ by rounding"
            )

    @contextlib.contextmanager
    def damage_named(self) -> Iterator[None]:
        """Turn what a checkpoint without the right keys, types or shapes raises into one error."""
        try:
            yield
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            reason = " ".join(f"{error!r}".split())[:200]
            raise TrainingError(
                f"the checkpoint in {self.path} cannot be resumed from: {reason}; start again in "
                "another -o"
            ) from error

    def metrics(self, step: int) -> Callable[[dict[str, Any]], None]:
        """What appends a line to `metrics.jsonl`; first, those that a run resumed at `step` will
        repeat are dropped."""
        path = self.path / "metrics.jsonl"
        kept = []
        if path.is_file():
            for line in path.read_text("utf-8", errors="replace").splitlines():
                # a line cut short when the run was killed, or damaged
                with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
                    values = json.loads(line)
                    if values["step"] <= step:
                        kept.append(values)
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))

        def append(values: dict[str, Any]) -> None:
            try:
                with open(path, "a", encoding="utf-8") as file:
                    file.write(json.dumps(values) + "\n")
            except OSError as error:  # a full disk's has no name
                raise OSError(error.errno, error.strerror, str(path)) from error

        return append

    def _check_empty(self) -> None:
        if holds_checkpoint(self.path):
            raise TrainingError(f"{self.path} already holds a run; use --resume, or another -o")


def _differences(before: dict[str, Any], now: dict[str, Any]) -> dict[str, str]:
    """What is another in a resumed run's config, by key."""
    theirs, ours = flat(before["config"]), flat(now["config"])
    return {
        key: f"{key} {theirs.get(key, 'unset')} (now {ours.get(key, 'unset')})"
        for key in sorted(theirs.keys() | ours.keys())
        if theirs.get(key) != ours.get(key)
    }


def _order_of_sums(state: dict[str, Any]) -> tuple[int, int]:
    """What is the same of two runs that sum in the same order: each process sums its micro-batches,
    then all sum theirs, which with one micro-batch each is as one process has it."""
    processes, at_once = state["processes"], state["tokens_at_once"]
    return (1 if processes * at_once == state["config"]["batch_tokens"] else processes), at_once


def _check_same_run(run: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """A resumed run must be the same run but for what `MAY_CHANGE` names, and no budget that is
    spent."""
    if before["tokenizer"] != now["tokenizer"]:
        raise TrainingError(
            f"{run} was trained with tokenizer {before['tokenizer'][:16]}, this one is "
            f"{now['tokenizer'][:16]}; resume with the run's own tokenizer.tok"
        )
    if before["corpus"]["sha256"] != now["corpus"]["sha256"]:
        raise TrainingError(
            f"{run} was trained on {before['corpus']['name']} "
            f"({before['corpus']['sha256'][:16]}), this is {now['corpus']['name']} "
            f"({now['corpus']['sha256'][:16]}); resume with the same corpus"
        )
    changed = [line for key, line in _differences(before, now).items() if key not in MAY_CHANGE]
    if changed:
        raise TrainingError(
            f"{run} was started with {listed(changed)}; resume with the run's own config.toml as "
            "--recipe, or start another -o"
        )
    if now["config"]["steps"] < before["step"]:
        raise TrainingError(
            f"{run} has done {before['step']:,} steps, and is to end after "
            f"{now['config']['steps']:,}; resume with as many --steps or more, or export it"
        )
