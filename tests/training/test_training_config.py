"""The run's config: defaults are the baseline, recipes have names, nonsense is refused."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from tokgolf.config import TrunkConfig, from_dict, to_dict
from tokgolf.errors import ConfigError
from tokgolf.heads import HeadShape, head_config
from tokgolf.heads.tied import TiedConfig
from tokgolf.training import RunConfig, read_recipe, recipe_names, run_config
from tokgolf.training.averages import AverageConfig
from tokgolf.training.optimizers import OptimizerConfig
from tokgolf.training.qat import QatConfig

every_recipe = pytest.mark.parametrize("name", recipe_names())


def test_the_defaults_are_the_challenges_baseline() -> None:
    config = RunConfig()
    assert config.trunk == TrunkConfig(
        layers=9,
        d_model=512,
        heads=8,
        kv_heads=4,
        mlp_hidden=1024,
        sequence_length=1024,
        rope_base=10_000.0,
        qk_gain=1.5,
    )
    assert (config.batch_tokens, config.steps, config.warmdown_steps) == (524_288, 20_000, 1_200)
    assert (config.minutes, config.warmdown_fraction, config.warmdown_to) == (None, 0.0, 0.0)
    assert (config.micro_batch_tokens, config.seed) == (131_072, 1337)
    assert (config.checkpoint_minutes, config.max_gradient) == (5.0, 1e6)
    shape = HeadShape(vocab_size=1024, d_model=512, bos_id=256)
    head = head_config(config.head)
    assert config.trunk.num_params() + head.num_params(shape) == 17_059_912


def test_what_is_off_has_its_usual_values_for_whoever_turns_it_on() -> None:
    assert AverageConfig() == AverageConfig(ema=0.0, swa_from=1.0, swa_every=10)
    assert QatConfig() == QatConfig(start=1.0, bits=3.3, every=16, method="trellis")


def test_the_baseline_recipe_is_the_defaults_but_for_its_time() -> None:
    baseline = run_config("baseline", {})
    assert baseline.minutes == 10.0
    assert head_config(baseline.head) == head_config(RunConfig().head) == TiedConfig(softcap=30.0)
    assert dataclasses.replace(baseline, minutes=None, head=RunConfig().head) == RunConfig()


def test_the_shipped_recipes_are_baseline_and_cpu() -> None:
    assert {"baseline", "cpu", "modern"} <= set(recipe_names())
    assert recipe_names() == sorted(recipe_names())


@every_recipe
def test_each_recipe_builds_and_comes_back_from_its_own_toml(name: str, tmp_path: Path) -> None:
    config = run_config(name, {})
    head_config(config.head)
    path = tmp_path / "config.toml"
    path.write_bytes(tomli_w.dumps(to_dict(config)).encode())
    assert run_config(str(path), {}) == config


def test_overrides_go_over_the_recipe_and_leave_the_rest() -> None:
    plain = run_config("cpu", {})
    changed = run_config("cpu", {"trunk": {"layers": 2}, "steps": 7})
    assert (changed.trunk.layers, changed.steps) == (2, 7)
    assert dataclasses.replace(changed, trunk=plain.trunk, steps=plain.steps) == plain


def test_an_override_may_be_a_built_part() -> None:
    trunk = TrunkConfig(layers=2, sequence_length=256)
    assert run_config("cpu", {"trunk": trunk}).trunk == trunk


def test_an_option_of_the_recipes_own_head_leaves_its_other_options(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text('[head]\nname = "factorized"\nrank = 8\nsoftcap = 15.0\n')
    changed = run_config(str(path), {"head": {"rank": 4}})
    assert changed.head == {"name": "factorized", "rank": 4, "softcap": 15.0}
    same = run_config(str(path), {"head": {"name": "factorized"}})
    assert same.head == {"name": "factorized", "rank": 8, "softcap": 15.0}


def test_another_head_drops_the_options_of_the_recipes_head(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text('[head]\nname = "factorized"\nrank = 8\n')
    assert run_config(str(path), {"head": {"name": "tied"}}).head == {"name": "tied"}


def test_what_is_wrong_in_the_recipe_is_said_of_the_recipe(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    for text, message in (
        ("qat = 1", f"recipe {path}.qat is 1; it is a table"),
        ("head = 3", f"recipe {path}.head is 3; it must be of type dict"),
        ("[trunk]\nlayer = 2", f"recipe {path}.trunk: unknown key 'layer'"),
        ("[head]\nsoftcap = 15.0", f"recipe {path} names no head; choose one with --head: tied, "),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=re.escape(message)):
            run_config(str(path), {"steps": 7})
    path.write_text("steps = 3")
    with pytest.raises(ConfigError, match="names no head; choose one with --head"):
        run_config(str(path), {"head": {"add": {}}})
    assert run_config(str(path), {"head": {"name": "vq"}}).head == {"name": "vq"}


def test_a_folder_is_no_recipe_and_a_runs_own_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{tmp_path} is a folder, no recipe; name a file in it"):
        read_recipe(str(tmp_path))
    (tmp_path / "config.toml").touch()
    with pytest.raises(ConfigError, match=f"the recipe of this run is {tmp_path}/config.toml"):
        read_recipe(str(tmp_path))


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="no recipe or file 'basline'; did you mean 'baseline'"):
        read_recipe("basline")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"stepz": 5}, "unknown key 'stepz'; did you mean 'steps'"),
        ({"trunk": {"layer": 5}}, "unknown key 'layer'; did you mean 'layers'"),
        ({"optimizer": {"lr_tide": 1.0}}, "unknown key 'lr_tide'; did you mean 'lr_tied'"),
        ({"steps": 2.5}, "steps is 2.5; it must be of type int"),
        ({"steps": 0}, "steps is 0; it must be greater than 0"),
        ({"minutes": 0.0}, "minutes is 0.0; it must be greater than 0"),
        ({"minutes": float("nan")}, "minutes is nan"),
        ({"batch_tokens": 0}, "batch_tokens is 0"),
        ({"checkpoint_minutes": -1.0}, "checkpoint_minutes is -1.0"),
        ({"seed": -1}, "seed is -1; it must be from 0 to 9,223,372,036,854,775,807"),
        ({"seed": 1 << 63}, "seed is 9223372036854775808; it must be from 0 to"),
        ({"optimizer": {"lr_vector": 1e39}}, "lr_vector is 1e+39; it must be at most 1e+38"),
        ({"qat": 1}, "--set qat=1: qat is a table; set its keys, as in qat.start=1"),
        ({"head": "vq"}, "--set head=vq: head is a table; set its keys, as in head.name=vq"),
        ({"nonsense": 3}, "--set nonsense=3: unknown key 'nonsense'; did you mean "),
        ({"trunk": {"layers": "x"}}, "--set trunk.layers is 'x'; it must be of type int"),
        ({"warmdown_steps": -1}, "warmdown_steps is -1; it cannot be negative"),
        ({"warmdown_fraction": 1.5}, "warmdown_fraction is 1.5; it must be between 0 and 1"),
        ({"warmdown_steps": 5}, "warmdown_steps is 5 and warmdown_fraction 0.6; set one of them"),
        ({"precision": "fp16"}, "precision is 'fp16'"),
        ({"compile": "of"}, "compile is 'of'; did you mean 'off'"),
        ({"batch_tokens": 8193}, "batch_tokens 8193 must be a multiple"),
        ({"micro_batch_tokens": 3 * 256}, "multiple of micro_batch_tokens 768"),
        ({"trunk": {"sequence_length": 100}}, "both of trunk.sequence_length 100"),
    ],
)
def test_nonsense_is_refused_with_the_reason(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        run_config("cpu", overrides)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (RunConfig, {"precision": "fp16"}, "precision is 'fp16'; did you mean 'bf16'?"),
        (RunConfig, {"compile": "offf"}, "compile is 'offf'; did you mean 'off'?"),
        (RunConfig, {"steps": 4.5}, "steps is 4.5; it must be of type int"),
        (RunConfig, {"steps": "5"}, "steps is '5'; it must be of type int"),
        (RunConfig, {"minutes": "5"}, "minutes is '5'; it must be of type float"),
        (RunConfig, {"trunk": {"layers": 3}}, "it is a table: set its keys, such as layers"),
        (OptimizerConfig, {"muon_coefficients": "exact"}, "muon_coefficients is 'exact'"),
        (OptimizerConfig, {"muon_iterations": True}, "muon_iterations is True; it must be of type"),
        (AverageConfig, {"swa_every": 2.5}, "swa_every is 2.5; it must be of type int"),
        (QatConfig, {"start": None}, "start is None; it must be of type float"),
        (QatConfig, {"method": "best"}, "method is 'best'"),
    ],
)
def test_a_config_made_directly_checks_its_types(
    cls: type[Any], values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        cls(**values)


def test_an_integer_is_a_float_in_a_config_made_directly() -> None:
    minutes = RunConfig(minutes=5).minutes
    assert minutes == 5 and type(minutes) is float


def test_a_micro_batch_larger_than_the_batch_is_the_batch() -> None:
    config = from_dict(RunConfig, {"batch_tokens": 1024}, "test")
    assert config.micro_batch_tokens > config.batch_tokens


def test_a_config_does_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        RunConfig().steps = 3  # type: ignore[misc]


def test_a_batch_has_an_end() -> None:
    with pytest.raises(ConfigError, match="batch_tokens is 100,000,000,000; at most 67,108,864"):
        RunConfig(batch_tokens=100_000_000_000, micro_batch_tokens=1 << 20)
