"""Adaptive search: which cell of a grid to run next, by Optuna's TPE, asked and told.

Needs the extra `tokgolf[search]`. Nothing but the cells is kept: a search that goes on is told of
those that have ended.
"""

import itertools
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from tokgolf.sweep.cells import Cell
from tokgolf.sweep.engines import extra_module
from tokgolf.sweep.spec import Settings, SweepSpec

ASKS = 100
"""Times that the sampler may name a cell that is known before the first unknown one is taken."""


class Search:
    """The cells that a search has chosen, and what is known of them.

    `id_of` gives the id of the cell with these settings.
    """

    def __init__(
        self, spec: SweepSpec, id_of: Callable[[Settings], str], known: Mapping[str, Cell]
    ) -> None:
        self.optuna = extra_module("optuna", "search")
        self.optuna.logging.set_verbosity(self.optuna.logging.WARNING)
        self.config = spec.search
        axes = {name: values for name, values in spec.flat_axes().items() if len(values) > 1}
        fixed = {name: values[0] for name, values in spec.flat_axes().items() if len(values) == 1}
        self.settings: dict[str, Settings] = {}
        self.places: dict[str, dict[str, int]] = {}
        for places in itertools.product(*(range(len(values)) for values in axes.values())):
            place = dict(zip(axes, places, strict=True))
            chosen = {name: axes[name][index] for name, index in place.items()}
            settings = spec.settled({**fixed, **chosen})
            cell = id_of(settings)
            self.settings.setdefault(cell, settings)
            self.places.setdefault(cell, place)
        self.by_place = {tuple(place.values()): cell for cell, place in self.places.items()}
        self.distributions = {name: self._distribution(values) for name, values in axes.items()}
        self.id_of, self.axes, self.fixed, self.spec = id_of, axes, fixed, spec
        self.flying: dict[str, Any] = {}
        self.chosen = [cell for cell in known if cell in self.settings]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the constant liar is experimental
            sampler = self.optuna.samplers.TPESampler(
                seed=self.config.seed + len(self.chosen), constant_liar=True
            )
        self.study = self.optuna.create_study(sampler=sampler)
        self.told: set[str] = set()

    def _distribution(self, values: list[Any]) -> Any:
        """Over places in a list: in order if its values are rising numbers, else without."""
        kinds = self.optuna.distributions
        numbers = all(type(value) in (int, float) for value in values)
        if numbers and values == sorted(values):
            return kinds.IntDistribution(0, len(values) - 1)
        return kinds.CategoricalDistribution(range(len(values)))

    def value(self, cell: Cell) -> float | None:
        """What is minimised."""
        return cell.bpb if self.config.metric == "bpb" else cell.bpb_before_export

    def _tell(self, cell: Cell, trial: Any) -> None:
        """Tell the study how a cell ended; one that it did not ask for if `trial` is None."""
        value = self.value(cell)
        state = self.optuna.trial.TrialState.FAIL if value is None else None
        if trial is not None:
            self.study.tell(trial, value, state=state)
        else:
            self.study.add_trial(
                self.optuna.trial.create_trial(
                    params=self.places[cell.id],
                    distributions=self.distributions,
                    value=value,
                    state=state or self.optuna.trial.TrialState.COMPLETE,
                )
            )

    def next(self, cells: Mapping[str, Cell]) -> str | None:
        """The id of a cell to run next, given those known; None if there are enough."""
        ended = [cell for cell in self.chosen if cells[cell].status in ("done", "failed")]
        for cell in ended:
            if cell not in self.told:
                self._tell(cells[cell], self.flying.pop(cell, None))
                self.told.add(cell)
        if len(self.chosen) >= min(self.config.trials, len(self.settings)):
            return None
        for _ in range(ASKS):
            trial = self.study.ask(self.distributions)
            chosen = {name: self.axes[name][index] for name, index in trial.params.items()}
            cell = self.id_of(self.spec.settled({**self.fixed, **chosen}))
            if cell not in self.chosen:
                break
            self._tell(cells[cell], trial)
        else:
            cell = next(cell for cell in self.settings if cell not in self.chosen)
            self.study.enqueue_trial(self.places[cell])
            trial = self.study.ask(self.distributions)
        self.flying[cell] = trial
        self.chosen.append(cell)
        return cell
