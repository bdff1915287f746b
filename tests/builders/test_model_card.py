# SPDX-License-Identifier: Apache-2.0
"""The card of a checkpoint: valid for the Hub, and without a number that was not measured."""

import re
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from sharegpt4o_image.builders.model_card import (
    TEMPLATE,
    ModelCardFacts,
    Score,
    Sweep,
    Training,
    render_model_card,
)

FULL = ModelCardFacts(
    name="janus-4o",
    summary="Janus-Pro, tuned to draw and to edit.",
    path="org/janus-4o",
    base_model="deepseek-ai/Janus-Pro-7B",
    datasets=("org/sharegpt4o-image",),
    license="MIT",
    sampling={"guidance_scale": 5.0, "edit_freedom": 0.5},
    training=Training(
        commands=("sharegpt4o-image train --config a.yaml",),
        recipe={"learning_rate": 5e-6, "seed": 42, "optimizer": "adamw"},
        num_steps=2162,
        final_loss=4.5,
        hardware="8 x A800",
        minutes=360.0,
        loss_plot="loss_curve.svg",
    ),
    scores=(
        Score("GenEval, two objects", 0.92, (0.9, 0.94), 396, "sharegpt4o-image evaluate geneval"),
        Score("DPG", 83.5),
    ),
    scores_note="Drawn at temperature 1.",
    sweeps=(Sweep("guidance_scale", "share of right edits", ((1.0, 0.5), (1.5, 0.75))),),
    limits=("It draws 384 x 384 pixels.",),
)


def test_the_hub_library_reads_the_card() -> None:
    card = ModelCard(render_model_card(FULL))
    assert isinstance(card.data, ModelCardData)
    data = card.data.to_dict()
    assert data["base_model"] == "deepseek-ai/Janus-Pro-7B"
    assert data["datasets"] == ["org/sharegpt4o-image"]
    assert (data["license"], data["library_name"], data["pipeline_tag"]) == ("mit", "transformers", "any-to-any")
    assert ModelCard(str(card)).data.to_dict() == data


def test_what_was_measured_is_in_tables() -> None:
    text = render_model_card(FULL)
    assert 'from_pretrained("org/janus-4o", trust_remote_code=True)' in text
    assert "| `learning_rate` | `5e-06` |" in text
    assert "| steps | `2162` |" in text
    assert "| hardware | `8 x A800` |" in text
    assert (
        "| GenEval, two objects | 0.920 | 0.900 to 0.940 | 396 | `sharegpt4o-image evaluate geneval` |\n"
        "| DPG | 83.500 | not measured | not recorded | not recorded |"
    ) in text
    assert "| `guidance_scale` | 1 | 1.5 |\n| --- | --- | --- |\n| share of right edits | 0.500 | 0.750 |" in text
    assert "Defaults of the checkpoint: `guidance_scale` 5, `edit_freedom` 0.5." in text
    assert "- It draws 384 x 384 pixels." in text


def test_what_was_not_measured_is_said_to_be_so() -> None:
    text = render_model_card(ModelCardFacts(name="x", summary="A checkpoint."))
    body = ModelCard(text).text
    assert "How it was trained was not recorded." in body
    assert "It was not evaluated." in body
    assert "No licence is stated." in body
    prose = re.sub(r"```python.*?```", "", body, flags=re.DOTALL)
    assert not re.search(r"\d", prose)
    assert "None" not in prose
    assert "\n\n\n" not in text
    partly = render_model_card(ModelCardFacts(name="x", summary="A checkpoint.", training=Training(num_steps=7)))
    assert "| steps | `7` |\n| last training loss | not recorded |\n| hardware | not recorded |" in partly


def test_terms_follow_from_what_it_was_made_from() -> None:
    assert "The terms of `deepseek-ai/Janus-Pro-7B` apply besides." in render_model_card(FULL)
    assert "The terms of `org/sharegpt4o-image` apply besides, and those of the services" in render_model_card(FULL)
    nothing = render_model_card(ModelCardFacts(name="x", summary="From nothing.", training=Training(num_steps=7)))
    assert not re.search("services|base model|apply besides|other models", nothing)
    unknown = render_model_card(ModelCardFacts(name="x", summary="A checkpoint."))
    assert "What it was trained on is not recorded here" in unknown


def test_a_checkpoint_that_cannot_edit_does_not_show_how() -> None:
    text = render_model_card(ModelCardFacts(name="x", summary="A checkpoint.", can_edit=False))
    assert "image=picture" not in text
    assert "image-editing" not in ModelCard(text).data.to_dict()["tags"]


def test_text_from_outside_cannot_break_out() -> None:
    hostile = "a|b\n---\n`x` <script>"
    facts = ModelCardFacts(
        name=hostile,
        summary="A checkpoint.",
        license=hostile,
        training=Training(recipe={hostile: hostile}, hardware=hostile, commands=("a\nb",)),
        scores=(Score(hostile, 1.0, command=hostile),),
    )
    card = ModelCard(render_model_card(facts))
    assert card.data.to_dict()["license_name"] == "a-b-x-script"
    assert "<script" not in re.sub(r"```python.*?```", "", card.text, flags=re.DOTALL)
    assert not re.search(r"^---", card.text, flags=re.MULTILINE)
    for block in re.findall(r"(?:^\|.*\|\n)+", card.text, flags=re.MULTILINE):
        assert len({line.count("|") for line in block.splitlines()}) == 1


def test_the_template_at_the_root_is_the_packaged_one() -> None:
    assert (Path(__file__).parents[2] / "model_card.md").read_text() == TEMPLATE.read_text()
