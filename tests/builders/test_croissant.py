# SPDX-License-Identifier: Apache-2.0
"""Croissant metadata of packed folders, as mlcroissant reads them: valid, true, and enough to read the rows."""

import hashlib
import io
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import mlcroissant
import pytest
from picture_records import ListSource, make_record

from sharegpt4o_image.builders.croissant import validate_croissant, write_croissant
from sharegpt4o_image.builders.packer import pack
from sharegpt4o_image.errors import UserError
from sharegpt4o_image.schema import LabelConfidence, LabelledRecord, Record, RejectedRecord, published_features


def _labelled(index: int) -> LabelledRecord:
    record = make_record(index).model_copy(update={"license": "cc-by-4.0"})
    confidence = LabelConfidence(objects=0.5, style=0.25)
    return LabelledRecord(**dict(record), label_objects=["cat", "dog"], label_model="m", label_confidence=confidence)


RECORDS = [_labelled(index) for index in range(8)]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("croissant") / "set"
    pack(ListSource(RECORDS, row=LabelledRecord), folder, splits={"test": 0.4})
    write_croissant(folder, "org/name")
    return folder


@pytest.fixture
def folder(packed: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(packed, tmp_path / "set"))


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)


def _content(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "croissant.json").read_text(encoding="utf-8"))
    return content


def _records(folder: Path, config: str, **filters: str) -> dict[str, dict[str, Any]]:
    """Id -> values of a row, as mlcroissant gives them."""
    dataset = mlcroissant.Dataset(jsonld=folder / "croissant.json")
    wanted = {f"{config}/{name}": value for name, value in filters.items()}
    rows = [
        {name.removeprefix(f"{config}/"): _plain(value) for name, value in row.items()}
        for row in dataset.records(config, filters=wanted or None)
    ]
    return {row["id"]: row for row in rows}


def _plain(value: Any) -> Any:
    """Text, which mlcroissant gives as bytes, as text."""
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return value.decode() if isinstance(value, bytes) else value


def test_mlcroissant_finds_neither_errors_nor_warnings(packed: Path) -> None:
    validate_croissant(packed / "croissant.json")
    issues = mlcroissant.Dataset(jsonld=packed / "croissant.json").metadata.ctx.issues
    assert (issues.errors, issues.warnings) == (set(), set())


def test_files_are_listed_with_size_and_checksum(packed: Path) -> None:
    files = {entry["@id"]: entry for entry in _content(packed)["distribution"] if entry["@type"] == "cr:FileObject"}
    assert sorted(files) == sorted(path.relative_to(packed).as_posix() for path in packed.rglob("*.parquet"))
    for name, entry in files.items():
        data = (packed / entry["contentUrl"]).read_bytes()
        assert entry["contentUrl"] == name
        assert entry["contentSize"] == f"{len(data)} B"
        assert entry["sha256"] == hashlib.sha256(data).hexdigest()


def test_every_column_is_a_field(packed: Path) -> None:
    record_sets = {record_set["@id"]: record_set for record_set in _content(packed)["recordSet"]}
    fields = {field["name"]: field for field in record_sets["text_to_image"]["field"]}
    assert list(fields) == ["split", *published_features(LabelledRecord)]
    assert fields["cost_usd"]["dataType"] == "sc:Float"
    assert fields["image_params"]["dataType"] == "sc:Text"
    assert (fields["output_image_resolution"]["isArray"], fields["output_image_resolution"]["arrayShape"]) == (
        True,
        "2",
    )
    assert fields["input_image"]["dataType"] == fields["output_image"]["dataType"] == "sc:ImageObject"


def test_the_rows_can_be_read_from_the_folder(packed: Path) -> None:
    rows = _records(packed, "text_and_image_to_image")
    edits = {record.id: record for record in RECORDS if record.task == "text_and_image_to_image"}
    assert rows.keys() == edits.keys()
    for key, row in rows.items():
        edit = edits[key]
        assert row["input_prompt"] == edit.input_prompt
        assert row["objects"] == edit.objects
        assert row["label_objects"] == ["cat", "dog"]
        assert row["cost_usd"] == edit.cost_usd
        assert row["background"] is None
        assert json.loads(row["usage"]) == edit.usage
        assert row["output_image_resolution"] == edit.output_image_resolution
        assert {name.split("/")[-1]: value for name, value in row["label_confidence"].items() if value} == {
            "objects": 0.5,
            "style": 0.25,
        }
        assert _pixels(row["output_image"]) == _pixels_of(edit.output_image.bytes)
        assert [_pixels(image) for image in row["input_image"]] == [_pixels_of(edit.input_image[0].bytes)]


def _pixels(image: Any) -> bytes:
    return bytes(image.convert("RGB").tobytes())


def _pixels_of(data: bytes) -> bytes:
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        return _pixels(image)


def test_splits_can_be_told_apart_and_asked_for(packed: Path) -> None:
    rows = _records(packed, "text_to_image")
    splits = {split: {key for key, row in rows.items() if row["split"] == split} for split in ("train", "test")}
    assert splits["train"] | splits["test"] == rows.keys()
    assert splits["train"]
    assert splits["test"]
    assert _records(packed, "text_to_image", split="test").keys() == splits["test"]


def test_terms_dates_and_responsible_use_are_stated(packed: Path) -> None:
    content = _content(packed)
    assert content["name"] == "set"
    assert content["license"] == "https://choosealicense.com/licenses/cc-by-4.0/"
    assert content["url"] == "https://huggingface.co/datasets/org/name"
    assert content["creator"]["name"] == "org"
    assert content["datePublished"] == "2026-11-08T00:00:00Z"
    wanted = (
        "dataCollection", "dataBiases", "dataLimitations", "personalSensitiveInformation", "dataUseCases",
        "dataSocialImpact", "hasSyntheticData",
    )  # fmt: skip
    assert all(content[f"rai:{name}"] for name in wanted)


def test_what_is_not_known_is_left_out(tmp_path: Path) -> None:
    records = [make_record(index).model_copy(update={"created_at": None}) for index in range(2)]
    pack(ListSource(records), tmp_path / "set")
    content = _content(tmp_path / "set")
    assert not {"license", "url", "creator", "datePublished"} & content.keys()
    validate_croissant(tmp_path / "set" / "croissant.json")


def test_a_date_that_is_none_is_left_out(tmp_path: Path) -> None:
    pack(ListSource([make_record(0).model_copy(update={"created_at": "zebra"})]), tmp_path / "set")
    assert "datePublished" not in _content(tmp_path / "set")


def test_negatives_and_rejections_are_covered(tmp_path: Path) -> None:
    negative = RejectedRecord(**dict(make_record(4)), reject_reason="blurry")
    broken: Record = make_record(2).model_copy(update={"output_sha256": "0" * 64})
    pack(ListSource([make_record(0), broken], [negative]), tmp_path / "set", includes_negatives=True)
    assert _records(tmp_path / "set", "text_to_image_negatives")[negative.id]["reject_reason"] == "blurry"
    ids = [entry["@id"] for entry in _content(tmp_path / "set")["distribution"]]
    assert "rejections.parquet" in ids


def test_the_same_folder_gives_the_same_file(folder: Path) -> None:
    before = (folder / "croissant.json").read_bytes()
    write_croissant(folder, "org/name")
    assert (folder / "croissant.json").read_bytes() == before


def test_a_broken_file_is_one_sentence(folder: Path) -> None:
    path = folder / "croissant.json"
    content = _content(folder)
    del content["distribution"][0]["includes"]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"is not valid Croissant metadata .*includes.*; pack the data set again"):
        validate_croissant(path)
    path.write_text("{")
    with pytest.raises(UserError, match="is not valid Croissant metadata"):
        validate_croissant(path)


def test_a_file_that_changed_is_noticed_by_its_size_and_checksum(folder: Path) -> None:
    shard = next(folder.glob("text_to_image/train-*.parquet"))
    before = {entry["@id"]: entry for entry in _content(folder)["distribution"]}
    pack(ListSource([make_record(20)]), folder.parent / "other")
    shutil.copy(next((folder.parent / "other").glob("text_to_image/*.parquet")), shard)
    write_croissant(folder)
    after = {entry["@id"]: entry for entry in _content(folder)["distribution"]}
    changed = [name for name, entry in after.items() if entry != before[name]]
    assert changed == [shard.relative_to(folder).as_posix()]


@pytest.mark.parametrize(
    ("breaks", "message"),
    [
        (lambda folder: (folder / "README.md").unlink(), "is no data set that"),
        (lambda folder: (folder / "README.md").write_text("no metadata"), "is no data set that"),
        (lambda folder: shutil.rmtree(folder / "text_to_image"), "lacks files of the split train"),
        (lambda folder: next(folder.glob("*/*.parquet")).write_bytes(b"PAR1"), "cannot be read as Parquet"),
    ],
)
def test_a_folder_that_is_no_data_set_is_refused(folder: Path, breaks: Any, message: str) -> None:
    breaks(folder)
    with pytest.raises(UserError, match=message):
        write_croissant(folder)


def test_photographs_are_not_called_synthetic(folder: Path) -> None:
    content = _content(folder)
    assert "made by image-generation models" not in content["description"]
    assert "Pictures that a model made are synthetic and evidence of nothing." in content["rai:dataLimitations"]
    assert (
        "pictures of synthesized rows without image_model, are photographs" in content["rai:syntheticDataExplanation"]
    )
    assert "may show real ones" in content["rai:personalSensitiveInformation"][0]
