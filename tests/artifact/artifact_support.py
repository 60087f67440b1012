"""What the tests of artifacts share: every head, and every add-on at once, at a small size."""

from typing import Any

from tokgolf.heads import ADDONS, HEADS

OPTIONS: dict[str, dict[str, Any]] = {
    **{name: {"name": name} for name in HEADS},
    "factorized": {"name": "factorized", "rank": 6},
    "vq": {"name": "vq", "codes": 70, "residual_rank": 3},
    "every add-on": {
        "name": "tied",
        "add": {**{name: {} for name in ADDONS}, "bigram-hash": {"buckets": 64, "dim": 4}},
    },
}
