"""The errors that tokgolf raises on purpose.

Every message is one line that says what is wrong, the numbers on both sides, and what to do
about it. The command line prints the line and exits with 1; anything that is not a
`TokgolfError` (or an `OSError`, which the command line words itself) is a bug.
"""


class TokgolfError(Exception):
    """Base of every error that a user can cause and can mend."""


class ConfigError(TokgolfError):
    """An option, recipe or configuration value that cannot be used."""


class CorpusError(TokgolfError):
    """Documents that are missing, empty, damaged or not disjoint."""


class TokenizerError(TokgolfError):
    """A tokenizer that cannot be built, read or used here."""


class TrainingError(TokgolfError):
    """A training run that must stop: an untrained tensor, a NaN, a bad checkpoint."""


class Interrupted(TrainingError):
    """A training run that Ctrl-C stopped; its checkpoint is usable."""


class OtherRankError(TrainingError):
    """One of several processes that train together ends as another failed, which says why."""


class ArtifactError(TokgolfError):
    """An artifact or checkpoint file that is damaged, foreign or inconsistent."""


class CapError(TokgolfError):
    """An artifact that does not fit under the byte cap."""


class ScoreError(TokgolfError):
    """A score that cannot be trusted, with the invariant that failed."""
