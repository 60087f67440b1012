"""Hugging Face data sets, on local folders in the hub's layout; nothing touches the network."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tokgolf.corpora import SPLITS, Document, open_corpus, split_of
from tokgolf.corpora.hub import SHORT_NAMES, HubDataset, open_hub, parse_hub_spec
from tokgolf.errors import CorpusError


@pytest.fixture(autouse=True, scope="module")
def no_network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Offline, with every cache in a temporary folder, even if `datasets` is imported already."""
    home = str(tmp_path_factory.mktemp("hf"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", home)
        patch.setenv("HF_DATASETS_CACHE", home)
        patch.setenv("HF_HUB_OFFLINE", "1")
        import datasets
        import huggingface_hub.constants

        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", home)
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        yield


def write_rows(path: Path, *rows: Mapping[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_own_splits_are_used(tmp_path: Path) -> None:
    write_rows(tmp_path / "validation.jsonl", {"text": "held"}, {"text": "out é"})
    write_rows(tmp_path / "train.jsonl", *({"text": f"seen {n}"} for n in range(30)))
    seen = [Document(f"train#{n}", b"seen %d" % n) for n in range(30)]
    held = [Document("validation#0", b"held"), Document("validation#1", "out é".encode())]
    assert list(open_corpus(f"hf:{tmp_path}:train")) == seen
    assert list(open_corpus(f"hf:{tmp_path}:val")) == held
    assert list(open_corpus(f"hf:{tmp_path}")) == seen + held
    with pytest.raises(CorpusError, match="no test split; its own splits are train, validation"):
        list(open_corpus(f"hf:{tmp_path}:test"))


def test_undivided_data_set_is_split_by_its_own_ids(tmp_path: Path) -> None:
    rows = [{"text": f"text {n}", "id": f"urn:{n}"} for n in range(200)]
    write_rows(tmp_path / "data.jsonl", *rows)
    parts = [list(open_corpus(f"hf:{tmp_path}", split)) for split in SPLITS]
    for split, part in zip(SPLITS, parts, strict=True):
        assert part and {split_of(document.id) for document in part} == {split}
    assert {document.id for part in parts for document in part} == {row["id"] for row in rows}
    corpus = open_corpus(f"hf:{tmp_path}:val")
    assert list(corpus) == list(corpus)
    assert corpus.provenance == {"dataset": str(tmp_path)}


def test_challenge_export_is_split_by_position(tmp_path: Path) -> None:
    path = tmp_path / "datasets" / "docs_selected.jsonl"
    write_rows(path, *[{"text": "held"}] * 50_000, {"text": "seen"})
    challenge = SHORT_NAMES["fineweb-challenge"]
    local = HubDataset(name=str(tmp_path), data_files=challenge.data_files, challenge_split=True)
    assert [each.data for each in open_hub(local, "train", "local")] == [b"seen"]
    assert next(iter(open_hub(local, "val", "local"))).data == b"held"


def test_config_chooses_among_the_parts_of_a_data_set(tmp_path: Path) -> None:
    write_rows(tmp_path / "one" / "x.jsonl", {"text": "1"})
    write_rows(tmp_path / "two" / "x.jsonl", {"text": "2"})
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: one\n  data_files: one/*.jsonl\n"
        "- config_name: two\n  data_files: two/*.jsonl\n---\n",
        encoding="utf-8",
    )
    corpus = open_corpus(f"hf:{tmp_path}@two")
    assert [document.data for document in corpus] == [b"2"]
    assert corpus.provenance["config"] == "two"
    with pytest.raises(CorpusError, match=r"cannot be read by Hugging Face datasets: .*three"):
        list(open_corpus(f"hf:{tmp_path}@three"))


def test_text_must_be_a_string_column_which_can_be_chosen(tmp_path: Path) -> None:
    write_rows(tmp_path / "x.jsonl", {"body": "words", "n": 1})
    assert [each.data for each in open_corpus(f"hf:{tmp_path}", field="body")] == [b"words"]
    for field in ("text", "n"):
        message = (
            f"row 0 of its split train has no string column '{field}'; its columns are body, n"
        )
        with pytest.raises(CorpusError, match=message):
            list(open_corpus(f"hf:{tmp_path}", field=field))


def test_damaged_data_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b'{"text": "a"}\n{"te')
    with pytest.raises(CorpusError, match="cannot be read by Hugging Face datasets") as info:
        list(open_corpus(f"hf:{tmp_path}"))
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("name", ["fineweb:val", "fineweb-challenge:train", "hf:no/such", "hf:/no"])
def test_what_is_out_of_reach_says_what_to_do(name: str) -> None:
    message = f"corpus {name} cannot be read .*HF_HUB_OFFLINE, or HF_HOME .*hf download .*open DIR$"
    with pytest.raises(CorpusError, match=message):
        open_corpus(name).summary()


@pytest.mark.parametrize(
    ("spec", "name", "config"),
    [
        ("hf:HuggingFaceFW/fineweb@sample-10BT", "HuggingFaceFW/fineweb", "sample-10BT"),
        ("hf:wikitext", "wikitext", None),
    ],
)
def test_spec_is_name_and_config(spec: str, name: str, config: str | None) -> None:
    assert parse_hub_spec(spec) == HubDataset(name=name, config=config)


def test_folder_with_an_at_sign_is_a_folder(tmp_path: Path) -> None:
    write_rows(tmp_path / "a@b" / "x.jsonl", {"text": "x"})
    assert parse_hub_spec(f"hf:{tmp_path}/a@b").config is None
