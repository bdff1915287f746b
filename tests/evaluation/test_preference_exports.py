# SPDX-License-Identifier: Apache-2.0
"""Files for Argilla and Label Studio name no model and take any text as text; answers come back as the same votes.

The shapes of the settings, records and results are those that argilla 2.8.0 and label-studio-sdk 2.1.2 read and write.
"""

import base64
import json
from contextlib import closing
from xml.etree import ElementTree

import pytest
from PIL import Image

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation import preference_session
from sharegpt4o_image.evaluation.preference_exports import export_argilla, export_label_studio, read_study
from sharegpt4o_image.evaluation.preference_imports import import_votes
from sharegpt4o_image.evaluation.preference_key import unseal
from sharegpt4o_image.evaluation.preference_pairs import StudyOptions, build_study
from sharegpt4o_image.evaluation.preference_prompts import Prompt
from sharegpt4o_image.evaluation.preference_session import PreferenceSession

TEXT = '<img src=x onerror="alert(1)"> & **stars** ]]> $left "q" é 🎈\nhttp://127.0.0.1/'
CRITERIA = 'Better & <b>clearer</b>, "$left"?'
NUM_PROMPTS = 10


@pytest.fixture
def study(tmp_path):
    """Ten prompts, two models, every other prompt with a source; three of the ten are shown again."""
    models = {"secret-one": tmp_path / "one", "secret-two": tmp_path / "two"}
    prompts = []
    for number, folder in enumerate(models.values()):
        folder.mkdir()
        for prompt in range(NUM_PROMPTS):
            Image.new("RGB", (20, 20), (200 * number, prompt, 0)).save(folder / f"{prompt}.png")
    Image.new("RGB", (20, 20), "green").save(tmp_path / "source.png")
    for prompt in range(NUM_PROMPTS):
        prompts.append(Prompt(str(prompt), f"{prompt} {TEXT}", tmp_path / "source.png" if prompt % 2 else None))
    options = StudyOptions(height=16, repeats=0.3, criteria=CRITERIA, num_checks=1)
    build_study(tmp_path / "study", prompts, models, [("secret-one", "secret-two")], options)
    return tmp_path / "study"


def picture_of(study, uri):
    """The name of the picture of the study that a data URI holds."""
    head, _, data = uri.partition(",")
    assert head == "data:image/png;base64"
    (name,) = [
        path.name
        for path in (study / "pictures").iterdir()
        if path.read_bytes() == base64.b64decode(data, validate=True)
    ]
    return name


def assert_blind(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    assert not any(b"secret" in path.read_bytes() for path in files)


def test_argilla_gets_every_pair_and_the_repeats_with_sides_swapped(study, tmp_path):
    folder = tmp_path / "argilla"
    count = export_argilla(study, folder)
    _, items = read_study(study)
    records = json.loads((folder / "records.json").read_text(encoding="utf-8"))
    assert count == len(records) == len(items) == 11 + 3
    sides_of = {}
    for item, record in zip(items, records, strict=True):
        fields = record["fields"]
        assert record["id"] == item.item_id
        assert fields["prompt"] == item.prompt
        assert fields["prompt"].endswith(TEXT)
        assert ("source" in fields) == (item.source is not None)
        sides = [picture_of(study, fields[side]) for side in ("left", "right")]
        assert sides == (sides_of[item.pair][::-1] if item.is_repeat else [item.left, item.right])
        sides_of.setdefault(item.pair, sides)
    assert sum(item.is_repeat for item in items) == 3
    assert_blind(folder)


def test_argilla_settings_show_text_as_text_and_ask_one_question(study, tmp_path):
    folder = tmp_path / "argilla"
    export_argilla(study, folder)
    settings = json.loads((folder / ".argilla" / "settings.json").read_text())
    assert [(field["name"], field["settings"]["type"], field["required"]) for field in settings["fields"]] == [
        ("prompt", "text", True),
        ("source", "image", False),
        ("left", "image", True),
        ("right", "image", True),
    ]
    assert settings["fields"][0]["settings"]["use_markdown"] is False
    (question,) = settings["questions"]
    assert question["settings"]["type"] == "label_selection"
    assert [option["value"] for option in question["settings"]["options"]] == ["left", "tie", "right"]
    assert settings["guidelines"] == CRITERIA
    assert json.loads((folder / ".argilla" / "dataset.json").read_text())["distribution"]["min_submitted"] == 3


def test_label_studio_gets_tasks_and_the_pairwise_template(study, tmp_path):
    folder = tmp_path / "label-studio"
    export_label_studio(study, folder)
    tasks = json.loads((folder / "tasks.json").read_text(encoding="utf-8"))
    _, items = read_study(study)
    for item, task in zip(items, tasks, strict=True):
        assert task["data"]["prompt"] == item.prompt
        assert task["data"]["criteria"] == CRITERIA
        assert [picture_of(study, task["data"][side]) for side in ("left", "right")] == [item.left, item.right]
        assert task["data"]["source"].startswith("data:image/png;base64,")
    view = ElementTree.parse(folder / "labeling_config.xml").getroot()
    fields = {
        element.get("name"): element.get("value") for element in view.iter() if element.get("value", "")[:1] == "$"
    }
    assert set(fields.values()) <= {f"${name}" for name in tasks[0]["data"]}
    pairwise = view.find("Pairwise")
    assert pairwise is not None
    assert all(fields[name] == f"${name}" for name in pairwise.get("toName", "").split(","))
    assert [choice.get("value") for choice in view.iter("Choice")] == ["tie"]
    assert "<b>" not in (folder / "labeling_config.xml").read_text()
    assert_blind(folder)


def test_label_studio_can_be_pointed_to_the_pictures(study, tmp_path, run):
    code, out, _ = run(
        "preference",
        "export",
        study,
        "--to",
        "label-studio",
        "-o",
        "ls",
        "--picture-url",
        "/data/local-files/?d=pictures/",
    )
    assert (code, "14 items for label-studio in ls" in out) == (0, True)
    tasks = json.loads((tmp_path / "ls" / "tasks.json").read_text())
    address, _, name = tasks[0]["data"]["left"].partition("=pictures/")
    assert address == "/data/local-files/?d"
    assert (study / "pictures" / name).is_file()
    code, _, err = run("preference", "export", study, "--to", "argilla", "-o", "a", "--picture-url", "x")
    assert (code, "--picture-url is for Label Studio" in err) == (2, True)
    code, _, err = run("preference", "export", study, "--to", "label-studio", "-o", "ls")
    assert (code, "ls is not empty" in err) == (2, True)
    code, _, err = run("preference", "export", tmp_path, "--to", "label-studio", "-o", "b")
    assert (code, "is no finished study" in err) == (2, True)


def test_both_bad_is_offered_where_the_study_allows_it(study, tmp_path):
    shown = json.loads((study / "study.json").read_text())
    (study / "study.json").write_text(json.dumps(shown | {"allows_both_bad": True}))
    export_label_studio(study, tmp_path / "ls")
    view = ElementTree.parse(tmp_path / "ls" / "labeling_config.xml").getroot()
    assert [choice.get("value") for choice in view.iter("Choice")] == ["tie", "both_bad"]
    export_argilla(study, tmp_path / "a")
    (question,) = json.loads((tmp_path / "a" / ".argilla" / "settings.json").read_text())["questions"]
    assert len(question["settings"]["options"]) == 4


# ------------------------------------------------------------------ answers


def label_studio_answers(tasks, answers, rater=7):
    """The tasks as Label Studio exports them, the answers in its own shapes."""

    def result(answer):
        if answer in ("left", "right"):
            return {
                "from_name": "preference",
                "to_name": "preference",
                "type": "pairwise",
                "value": {"selected": answer},
            }
        return {"from_name": "neither", "to_name": "prompt", "type": "choices", "value": {"choices": [answer]}}

    common = {"completed_by": rater, "was_cancelled": False, "lead_time": 3.5, "created_at": "2026-12-01T10:00:00Z"}
    return [
        {"id": number, "data": task["data"], "annotations": [common | {"result": [result(answer)]}]}
        for number, (task, answer) in enumerate(zip(tasks, answers, strict=True))
    ]


def argilla_answers(records, answers, rater="3b0c"):
    return [
        record | {"responses": {"preference": [{"value": answer, "user_id": rater}]}}
        for record, answer in zip(records, answers, strict=True)
    ]


@pytest.mark.parametrize("tool", ["argilla", "label-studio"])
def test_a_rater_who_sees_through_the_blinding_wins_every_vote_for_one_model(study, tmp_path, tool):
    """By the pixels of the pictures in the export, on whatever side they stand."""
    folder = tmp_path / "out"
    (export_argilla if tool == "argilla" else export_label_studio)(study, folder)
    key = json.loads((study / "key.json").read_text())
    exported = json.loads((folder / ("records.json" if tool == "argilla" else "tasks.json")).read_text())
    shown = [row["fields"] if tool == "argilla" else row["data"] for row in exported]

    def chosen(fields):
        models = [key["pictures"][picture_of(study, fields[side])]["model"] for side in ("left", "right")]
        return "tie" if models[0] == models[1] else ("left", "right")[models.index("secret-one")]

    answers = [chosen(fields) for fields in shown]
    assert {"left", "right", "tie"} == set(answers)
    to_answers = argilla_answers if tool == "argilla" else label_studio_answers
    path = tmp_path / "answers.json"
    path.write_text(json.dumps(to_answers(exported, answers)))
    assert import_votes(study, path, tool).added == 14
    again = import_votes(study, path, tool)
    assert (again.added, again.known) == (0, 14)
    unsealed = unseal(study)
    repeated = [item.pair for item in read_study(study)[1] if item.is_repeat]
    num_repeats = sum("degraded" not in key["pairs"][pair] for pair in repeated)
    assert len(unsealed.rows) == NUM_PROMPTS + num_repeats
    assert sum(row["is_repeat"] == "true" for row in unsealed.rows) == num_repeats
    for row in unsealed.rows:
        assert row[row["winner"]] == "secret-one"
        assert row["rater"] == ("argilla-3b0c" if tool == "argilla" else "label-studio-7")
    assert {row["model_a"] for row in unsealed.rows} == {"secret-one", "secret-two"}
    assert unsealed.checks == {unsealed.rows[0]["rater"]: (0, 14 - len(unsealed.rows))}


def test_answers_that_are_none_are_named(study, tmp_path, run):
    export_label_studio(study, tmp_path / "ls")
    tasks = json.loads((tmp_path / "ls" / "tasks.json").read_text())[:5]
    rows = label_studio_answers(tasks, ["left", "tie", "left", "right", "left"])
    rows[0]["annotations"][0]["result"] *= 2
    rows[1]["annotations"][0]["was_cancelled"] = True
    rows[2]["data"]["item"] = "of another study"
    rows[3]["annotations"][0]["completed_by"] = {"id": 9, "email": "someone@example.org"}
    (tmp_path / "a.json").write_text(json.dumps(rows))
    with (study / "votes.jsonl").open("w") as file:
        file.write('{"pair": "torn')
    code, out, _ = run("preference", "import", study, "a.json", "--from", "label-studio")
    assert code == 0
    assert "2 votes added, 0 were there already." in out
    assert f"item {tasks[0]['data']['item']}, rater label-studio-7: no answer, or more than one" in out
    assert out.count("no answer, or more than one") == 2
    assert "item of another study, rater label-studio-7: not of this study" in out
    lines = (study / "votes.jsonl").read_text().splitlines()
    assert [json.loads(line)["rater"] for line in lines] == ["label-studio-9", "label-studio-7"]
    assert "example.org" not in (study / "votes.jsonl").read_text()


def test_files_that_are_no_exports_are_named(study, tmp_path):
    for text in ("{", '{"a": 1}', "[1]", '[{"id": 1}]', "3"):
        (tmp_path / "a.json").write_text(text)
        for tool in ("argilla", "label-studio"):
            with pytest.raises(UserError, match=f"is no JSON export of {tool}"):
                import_votes(study, tmp_path / "a.json", tool)
    with pytest.raises(UserError, match="cannot read"):
        import_votes(study, tmp_path / "none.json", "argilla")


def test_answers_of_another_shape_are_named(study, tmp_path):
    """As of a question with several labels: a list is no answer of ours."""
    export_argilla(study, tmp_path / "a")
    records = json.loads((tmp_path / "a" / "records.json").read_text())
    rows = argilla_answers(records, [["left"], {}, None, *["tie"] * (len(records) - 3)])
    rows[3]["id"] = ["left"]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    imported = import_votes(study, tmp_path / "a.json", "argilla")
    assert (imported.added, len(imported.left_out)) == (len(records) - 4, 4)
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="is no JSON export of argilla"):
        import_votes(study, tmp_path / "deep.json", "argilla")


def test_nothing_is_imported_while_the_study_is_served(study, tmp_path):
    export_argilla(study, tmp_path / "a")
    records = json.loads((tmp_path / "a" / "records.json").read_text())
    (tmp_path / "a.json").write_text(json.dumps(argilla_answers(records, ["tie"] * len(records))))
    served = PreferenceSession(preference_session.read_study(study))
    with closing(served), pytest.raises(UserError, match="another process is serving"):
        import_votes(study, tmp_path / "a.json", "argilla")
    assert (study / "votes.jsonl").read_bytes() == b""
    assert import_votes(study, tmp_path / "a.json", "argilla").added == len(records)
