# SPDX-License-Identifier: Apache-2.0
"""The four pipelines, each through the real client and the offline teacher."""

import io
import json
from pathlib import Path

import pytest
from datasets import load_dataset
from PIL import Image

from sharegpt4o_image.builders.packer import pack
from sharegpt4o_image.builders.run_source import RunSource
from sharegpt4o_image.errors import UserError
from sharegpt4o_image.schema import Record
from sharegpt4o_image.synthesis.config import Gates, Judge, PhotoSet, SynthesisConfig
from sharegpt4o_image.synthesis.records import iter_records, iter_rejected_records
from sharegpt4o_image.synthesis.run import synthesize

PHOTOGRAPHS = Path(__file__).parents[1] / "data" / "photographs"
NOTHING = SynthesisConfig(num_topics=0, num_edits=0)
PHOTOS = PhotoSet(path=str(PHOTOGRAPHS / "manifest.jsonl"))
NUM_PHOTOS = sum(1 for line in (PHOTOGRAPHS / "manifest.jsonl").read_text(encoding="utf-8").splitlines() if line)


def config(**changes: object) -> SynthesisConfig:
    return SynthesisConfig.model_validate({**NOTHING.model_dump(), **changes})


def records_of(run_dir: Path, run_config: SynthesisConfig) -> list[Record]:
    summary = synthesize(run_dir, run_config)
    assert summary.unfinished == {}
    return list(iter_records(run_dir))


def opened(record: Record) -> Image.Image:
    return Image.open(io.BytesIO(record.output_image.bytes))


# --------------------------------------------------------------------------- documents


def test_documents_have_text_first_and_a_look_second(tmp_path: Path) -> None:
    records = records_of(tmp_path / "run", config(num_documents=10))
    assert {record.pipeline for record in records} == {"document"}
    types = {record.document_type for record in records}
    assert types == {"Slide", "Paper", "Document", "Infographic/Chart", "Poster"}
    for record in records:
        assert record.task == "text_to_image"
        assert record.template_version == "document_layout.v1"
        assert record.usage is not None
        assert set(record.usage["prompt"]) == {"content", "layout"}
        assert record.input_prompt.count('"') >= 4  # the title and at least a line
    assert len({record.input_prompt for record in records}) == 10


# --------------------------------------------------------------------------- image-first


def test_image_first_describes_a_photograph_and_draws_it_anew(tmp_path: Path) -> None:
    records = records_of(tmp_path / "run", config(num_described=NUM_PHOTOS, photos=PHOTOS))
    assert len(records) == NUM_PHOTOS
    licenses = [json.loads(line)["license"] for line in (PHOTOGRAPHS / "manifest.jsonl").read_text().splitlines()]
    for record, terms in zip(records, licenses, strict=True):
        assert (record.pipeline, record.task, record.input_image) == ("image_first", "text_to_image", [])
        assert record.source_license == terms
        assert record.source_origin
        assert record.source_id
        assert record.image_model == "offline-painter-1"
        assert record.license == "cc-by-nc-4.0"
        assert opened(record).size == (256, 256)


def test_image_first_may_publish_the_original(tmp_path: Path) -> None:
    anew = config(num_described=NUM_PHOTOS, photos=PHOTOS)
    synthesize(tmp_path / "run", anew)
    original = anew.model_copy(update={"image_first_target": "original"})
    summary = synthesize(tmp_path / "run", original)
    assert summary.new_attempts == 0  # the descriptions are there already
    rows = [record for record in iter_records(tmp_path / "run") if record.image_model is None]
    names = [json.loads(line)["file_name"] for line in (PHOTOGRAPHS / "manifest.jsonl").read_text().splitlines()]
    assert [row.output_image.bytes for row in rows] == [(PHOTOGRAPHS / name).read_bytes() for name in names]
    for row in rows:
        assert row.license == row.source_license
        assert row.image_params == {"target": "original"}


def test_photo_folder_with_faults_rejects_those_and_says_why(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    photo = next(PHOTOGRAPHS.glob("*.jpg"))
    (folder / "a.jpg").write_bytes(photo.read_bytes())
    (folder / "b.jpg").symlink_to(tmp_path / "gone.jpg")
    (folder / "c.jpg").write_bytes(photo.read_bytes()[:500])
    (folder / "d.jpg").write_bytes(b"")
    photos = PhotoSet(path=str(folder), license="cc0-1.0", origin="my folder")
    summary = synthesize(tmp_path / "run", config(num_described=4, photos=photos))
    assert summary.status.records == 1
    assert len(summary.status.rejected) == 3
    assert summary.unfinished == {}
    [record] = iter_records(tmp_path / "run")
    assert (record.source_origin, record.source_license) == ("my folder", "cc0-1.0")


# --------------------------------------------------------------------------- editing


def test_edits_of_photographs(tmp_path: Path) -> None:
    wanted = config(num_edits=2 * NUM_PHOTOS, edit_sources="photos", photos=PHOTOS)
    summary = synthesize(tmp_path / "run", wanted)
    records = list(iter_records(tmp_path / "run"))
    assert summary.unfinished == {}
    assert len(records) >= NUM_PHOTOS  # some tasks cannot be applied to a photograph
    originals = {path.read_bytes() for path in PHOTOGRAPHS.glob("*.jpg")}
    for record in records:
        assert [image.bytes in originals for image in record.input_image] == [True]
        assert record.source_license
        assert record.source_license != "cc-by-nc-4.0"
        assert list(opened(record).size) == record.output_image_resolution


def test_edits_in_a_row_start_from_one_another(tmp_path: Path) -> None:
    records = records_of(tmp_path / "run", config(num_topics=4, num_edits=12, edit_turns=3))
    edits = [record for record in records if record.pipeline == "editing"]
    by_id = {record.id: record for record in records}
    depth = {record.id: 0 for record in records if record.pipeline == "prompt_first"}
    for edit in sorted(edits, key=lambda edit: edit.created_at or ""):
        assert edit.source_id is not None
        assert edit.input_image[0].bytes == by_id[edit.source_id].output_image.bytes
        depth[edit.id] = depth[edit.source_id] + 1
    counts = [sum(value == level for value in depth.values()) for level in range(4)]
    assert counts[:2] == [4, 4]
    assert counts[3] >= 1
    assert len(edits) + len(list(iter_rejected_records(tmp_path / "run"))) <= 12


def test_some_edits_take_two_sources(tmp_path: Path) -> None:
    records = records_of(tmp_path / "run", config(num_topics=8, num_edits=8, two_source_share=0.6))
    pictures = {record.id: record.output_image.bytes for record in records if record.task == "text_to_image"}
    doubles = [record for record in records if len(record.input_image) == 2]
    assert 2 <= len(doubles) <= 7
    for record in doubles:
        assert record.source_id is not None
        assert [pictures[name] for name in record.source_id.split("; ")] == [f.bytes for f in record.input_image]
        assert record.template_version == "edit_two_sources.v1"


def test_a_task_may_start_from_a_control_picture(tmp_path: Path) -> None:
    taxonomy = tmp_path / "taxonomy.yaml"
    taxonomy.write_text(
        "extends: offline\nname: control\nedits:\n"
        "- {category: structured generation and conditional control, task: element manipulation,"
        " prepare: change the background to black}\n",
        encoding="utf-8",
    )
    records = records_of(tmp_path / "run", config(num_topics=3, num_edits=3, taxonomy=str(taxonomy)))
    edits = [record for record in records if record.pipeline == "editing"]
    assert edits
    pictures = {record.output_sha256 for record in records if record.task == "text_to_image"}
    for edit in edits:
        image = Image.open(io.BytesIO(edit.input_image[0].bytes)).convert("RGB")
        assert image.getpixel((2, 2)) == (20, 20, 20) or sum(image.getpixel((2, 2))) < 120  # type: ignore[arg-type]
        assert edit.source_origin == "synthesized"
        assert edit.source_id not in pictures


def test_edits_need_sources(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="edits start from records"):
        config(num_edits=3)
    with pytest.raises(ValueError, match="photos is missing"):
        config(num_described=3)
    with pytest.raises(UserError, match="nowhere"):
        synthesize(tmp_path / "run", config(num_described=3, photos=PhotoSet(path=str(tmp_path / "nowhere"))))


# --------------------------------------------------------------------------- gates


def gated(**gates: object) -> SynthesisConfig:
    return config(num_topics=30, gates=Gates.model_validate(gates))


def test_a_judge_rejects_and_a_new_threshold_costs_nothing(tmp_path: Path) -> None:
    strict = gated(judge=Judge(model="offline-writer-1", threshold=10))
    first = synthesize(tmp_path / "run", strict).status
    records = list(iter_records(tmp_path / "run"))
    lenient = gated(judge=Judge(model="offline-writer-1", threshold=0))
    second = synthesize(tmp_path / "run", lenient)
    assert second.new_attempts == 0
    assert second.status.records == 30
    assert first.records == len(records)
    assert first.records + sum(first.rejected.values()) == 30
    assert second.status.rejected == {}


def test_refused_pictures_can_be_published_as_negatives(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    originals = sorted(PHOTOGRAPHS.glob("*.jpg"))
    for path in originals:
        (folder / path.name).write_bytes(path.read_bytes())
    Image.open(originals[0]).save(folder / "smaller.webp", quality=60)
    wanted = config(
        num_described=NUM_PHOTOS + 1,
        photos=PhotoSet(path=str(folder)),
        image_first_target="original",
        gates={"exact_duplicates": True, "similar_within": 4},
    )
    status = synthesize(tmp_path / "run", wanted).status
    rejections = list(iter_rejected_records(tmp_path / "run"))
    assert (status.records, len(rejections)) == (NUM_PHOTOS, 1)
    for record in rejections:
        assert "looks the same" in record.reject_reason
    pack(RunSource(tmp_path / "run", is_rejected=True), tmp_path / "negatives")
    rows = load_dataset(str(tmp_path / "negatives"), "text_to_image", split="train")
    assert rows["reject_reason"][:] == [record.reject_reason for record in rejections]
    assert "Every row here is a negative" in (tmp_path / "negatives" / "README.md").read_text(encoding="utf-8")


def test_instructions_of_a_benchmark_cost_no_edit(tmp_path: Path) -> None:
    edited = config(num_topics=6, num_edits=6)
    instructions = [record.input_prompt for record in records_of(tmp_path / "free", edited)][6:]
    benchmark = tmp_path / "benchmark.txt"
    benchmark.write_text("\n".join(instructions) + "\n", encoding="utf-8")
    wanted = edited.model_copy(update={"gates": Gates(benchmark_prompts=[str(benchmark)])})
    summary = synthesize(tmp_path / "run", wanted)
    assert summary.status.by_task == {"text_to_image": 6}
    assert summary.status.rejected == {"the prompt repeats a benchmark prompt": 6}


def test_the_same_photograph_twice_is_paid_once(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in "abcdef":
        (folder / f"{name}.jpg").write_bytes((PHOTOGRAPHS / "cat.jpg").read_bytes())
    summary = synthesize(tmp_path / "run", config(num_described=6, photos=PhotoSet(path=str(folder))))
    assert summary.status.by_status == {"ok": 2}
    assert summary.status.records == 1


def test_prompts_of_a_benchmark_cost_no_picture(tmp_path: Path) -> None:
    prompts = [record.input_prompt for record in records_of(tmp_path / "free", gated())]
    benchmark = tmp_path / "benchmark.txt"
    benchmark.write_text("\n".join(prompts[:4]) + "\n", encoding="utf-8")
    summary = synthesize(tmp_path / "run", gated(benchmark_prompts=[str(benchmark)]))
    assert summary.status.records == 26
    assert summary.status.attempts == 30 + 26
    assert all("repeats a benchmark prompt" in reason for reason in summary.status.rejected)
