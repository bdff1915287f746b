# SPDX-License-Identifier: Apache-2.0
"""The registry: that it agrees with the openai package and the offline teacher, and what it refuses."""

import asyncio
import io
import itertools
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any, get_args

import openai
import pytest
from openai.types.image_model import ImageModel
from PIL import Image
from pydantic import ValidationError

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.synthesis.client import open_clients
from sharegpt4o_image.synthesis.config import (
    ChatParams,
    EditParams,
    GenerationParams,
    PhotoSet,
    Price,
    SynthesisConfig,
)
from sharegpt4o_image.synthesis.teachers import Purpose, Teacher, Teachers, check_teachers, load_teachers

TEACHERS = load_teachers(None)
TODAY = date(2026, 11, 25)
ALIVE = {"prompt_model": "offline-writer-1", "image_model": "gpt-image-2"}
MODELS_OF: dict[Purpose, Any] = {"chat": ChatParams, "generation": GenerationParams, "edit": EditParams}


def check(today: date = TODAY, teachers: Teachers = TEACHERS, **keys: Any) -> list[str]:
    return check_teachers(SynthesisConfig.model_validate({**ALIVE, **keys}), teachers, today)


def refusal(today: date = TODAY, teachers: Teachers = TEACHERS, **keys: Any) -> str:
    with pytest.raises(UserError) as caught:
        check(today, teachers, **keys)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def known(model: str) -> Teacher:
    teacher = TEACHERS.find(model)
    assert teacher is not None
    return teacher


# --------------------------------------------------------------------------- the entries


def test_image_models_are_those_of_the_openai_package() -> None:
    names = [name for teacher in TEACHERS.teachers if teacher.endpoint == "images" for name in teacher.names]
    assert set(names) == {*get_args(ImageModel), "offline-painter-1"}


def test_every_parameter_is_one_that_a_configuration_can_ask_for() -> None:
    for teacher, purpose in itertools.product(TEACHERS.teachers, MODELS_OF):
        for name, accepted in teacher.params_for(purpose).items():
            bounds = [bound for bound in (accepted.minimum, accepted.maximum) if bound is not None]
            for value in (*accepted.words, *bounds):
                assert MODELS_OF[purpose].model_validate({name: value}).sent() == {name: value}


def test_replacements_are_known_and_live() -> None:
    for teacher in TEACHERS.teachers:
        for name in teacher.replaced_by:
            assert known(name).shutdown_date is None
            assert known(name).endpoint == teacher.endpoint


def test_teachers_of_the_paper() -> None:
    used = [teacher.id for teacher in TEACHERS.teachers if teacher.used_in_paper]
    assert used == ["gpt-image-1", "gemini-2.5-pro"]
    assert known("gpt-image-1").shutdown_date == date(2026, 10, 23)
    assert known("gpt-image-2").price == Price(text_input=5, image_input=8, output=30)
    assert known("gemini-2.5-pro").price is None


# --------------------------------------------------------------------------- against the offline teacher


def candidates(purpose: Purpose) -> Iterator[dict[str, Any]]:
    """Values of every parameter that the configuration lets through."""
    words = {"auto", "none", "minimal", "low", "medium", "high", "xhigh", "max", "opaque", "transparent"}
    sizes = {"63x63", "64x64", "65x65", "128x64", "256x256", "1024x1024", "1025x1025", "1536x1024", "big"}
    values = [*sorted(words | sizes), "png", "jpeg", "webp", 0, 1, 2, 100, 16_384, 16_385]
    for name, value in itertools.product(MODELS_OF[purpose].model_fields, values):
        try:
            params = MODELS_OF[purpose].model_validate({name: value}).sent()
        except ValidationError:
            continue
        if params == {name: value}:
            yield params


def test_offline_entries_say_what_the_offline_teacher_accepts() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "white").save(buffer, "png")
    source = ("source.png", buffer.getvalue(), "image/png")

    async def is_accepted(images: openai.AsyncOpenAI, purpose: Purpose, params: dict[str, Any]) -> bool:
        try:
            if purpose == "chat":
                message: Any = [{"role": "user", "content": "hello"}]
                await images.chat.completions.create(model="offline-writer-1", messages=message, **params)
            elif purpose == "generation":
                small = {"size": "64x64", **params}
                await images.images.generate(model="offline-painter-1", prompt="a red circle", **small)
            else:
                await images.images.edit(model="offline-painter-1", image=source, prompt="add a red circle", **params)
        except openai.BadRequestError:
            return False
        return True

    async def compare() -> int:
        count = 0
        async with open_clients(SynthesisConfig()) as clients:
            for purpose in MODELS_OF:
                teacher = known("offline-writer-1" if purpose == "chat" else "offline-painter-1")
                for params in candidates(purpose):
                    [(name, value)] = params.items()
                    expected = teacher.find_fault(purpose, name, value) is None
                    assert await is_accepted(clients.images, purpose, params) == expected, (purpose, params)
                    count += 1
        return count

    assert asyncio.run(compare()) > 60


# --------------------------------------------------------------------------- parameters


def test_the_offline_run_passes() -> None:
    assert check_teachers(SynthesisConfig(), TEACHERS, TODAY) == []


@pytest.mark.parametrize(
    "size", ["auto", "1024x1024", "16x16", "1536x864", "864x1536", "3840x2160", "2160x3840", "48x16"]
)
def test_free_sizes(size: str) -> None:
    assert check(image_params={"size": size}) == []


@pytest.mark.parametrize("size", ["1000x1000", "64x16", "3856x2160", "2176x2176", "1024", "0x0", "1024x1024x3"])
def test_sizes_that_are_refused(size: str) -> None:
    message = refusal(image_params={"size": size})
    assert message.startswith("image_params.size: gpt-image-2 does not accept")
    assert "3840x2160" in message


def test_fixed_sizes() -> None:
    assert refusal(image_model="gpt-image-2.6-flare") == (
        "image_params.size: gpt-image-2.6-flare does not accept '256x256'; "
        "it accepts auto, 1024x1024, 1536x1024, 1024x1536"
    )


def test_quality_depends_on_the_model_and_its_snapshots() -> None:
    best = {"size": "1024x1024", "quality": "max"}
    for model in ("gpt-image-2.5-flare", "gpt-image-2.5-sunburst-2026-09-08"):
        assert check(image_model=model, image_params=best) == []
    for model in ("gpt-image-2", "gpt-image-2-2026-04-21", "gpt-image-2.6-flare"):
        assert "auto, low, medium, high" in refusal(image_model=model, image_params=best)


def test_input_fidelity() -> None:
    standard = {"image_params": {"size": "auto"}}
    for model in ("gpt-image-2", "gpt-image-2-2026-04-21", "chatgpt-image-latest"):
        message = refusal(image_model=model, edit_params={"input_fidelity": "low"}, **standard)
        assert message.startswith("edit_params.input_fidelity: ")
        assert "leave it out" in message
    assert "accepts low" in refusal(image_model="gpt-image-1-mini", edit_params={"input_fidelity": "high"}, **standard)
    [warning] = check(image_model="gpt-image-1.5", edit_params={"input_fidelity": "high"}, **standard)
    assert "2026-12-01" in warning


def test_parameters_that_do_not_go_together() -> None:
    see_through = {"background": "transparent"}
    for good in (
        see_through,
        {**see_through, "output_format": "webp"},
        {"output_format": "jpeg", "output_compression": 80},
    ):
        assert check(image_params=good) == []
    assert "png or webp" in refusal(image_params={**see_through, "output_format": "jpeg"})
    assert "jpeg or webp" in refusal(image_params={"output_compression": 80})
    assert refusal(edit_params={"output_compression": 80}).startswith("edit_params.output_compression: ")


def test_chat_parameters() -> None:
    gemini = {"prompt_model": "gemini-3.8-flash"}
    assert check(**gemini, prompt_params={"reasoning_effort": "low", "max_completion_tokens": 10**6}) == []
    assert refusal(**gemini, prompt_params={"reasoning_effort": "none"}).startswith("prompt_params.reasoning_effort: ")
    assert "from 1 to 16384" in refusal(prompt_params={"max_completion_tokens": 16_385})


def test_only_what_will_be_sent_is_checked(tmp_path: Path) -> None:
    bad = {"output_compression": 80}
    assert check(num_edits=0, edit_params=bad) == []
    photos = PhotoSet(path=str(tmp_path))
    described = {"num_topics": 0, "num_edits": 0, "num_described": 5, "photos": photos}
    original = {**described, "image_first_target": "original"}
    assert check(**original, image_params=bad) == []
    assert check(**original, image_model="gpt-image-1") == []
    refusal(**described, image_params=bad)


# --------------------------------------------------------------------------- models


def test_wrong_endpoint() -> None:
    assert refusal(image_model="gemini-3.8-flash") == (
        "image_model: gemini-3.8-flash writes text; name a model that makes pictures"
    )
    assert refusal(prompt_model="gpt-image-2").startswith("prompt_model: gpt-image-2 makes pictures")
    assert refusal(gates={"judge": {"model": "gpt-image-2"}}).startswith("gates.judge.model: ")


def test_dead_models() -> None:
    message = refusal(image_model="gpt-image-1")
    assert "was shut down on 2026-10-23; name gpt-image-2.5-sunburst or gpt-image-2.5-flare instead" in message
    assert "name another model" in refusal(image_model="dall-e-3")


def test_dying_models() -> None:
    dying = {"image_model": "gpt-image-1.5", "image_params": {"size": "auto"}}
    assert check(date(2026, 10, 31), **dying) == []
    for today, num_days in ((date(2026, 11, 1), 30), (date(2026, 11, 30), 1)):
        [warning] = check(today, **dying)
        assert f"2026-12-01, in {num_days} days" in warning
        assert "gpt-image-2.6-sunburst or gpt-image-2.6-flare" in warning
    assert "was shut down" in refusal(date(2026, 12, 1), **dying)


def test_silent_rerouting_is_warned_of_at_any_time() -> None:
    [warning] = check(date(2026, 1, 1), prompt_model="gemini-2.5-pro")
    assert "gemini-3.8-flash answers under its name" in warning
    assert "gemini-3.8-flash" in refusal(date(2026, 12, 1), prompt_model="gemini-2.5-pro")


def test_unknown_models_are_let_through_with_a_warning() -> None:
    warnings = check(prompt_model="my-writer", image_model="my-painter", image_params={"size": "17x19"})
    assert [warning.split(":")[0] for warning in warnings] == [
        "the registry does not know my-writer",
        "the registry does not know my-painter",
    ]


# --------------------------------------------------------------------------- a file of one's own


def own_file(tmp_path: Path, text: str) -> str:
    path = tmp_path / "teachers.yaml"
    path.write_text(text)
    return str(path)


def test_own_entries_add_and_replace(tmp_path: Path) -> None:
    path = own_file(
        tmp_path,
        "teachers:\n"
        "  - {id: my-painter, endpoint: images, generation_params: {size: [auto]}, evidence: ours}\n"
        "  - {id: gpt-image-1, endpoint: images, generation_params: {size: [512x512]}, evidence: our server}\n"
        "  - {id: gpt-image-2-2026-04-21, endpoint: images, price: {output: 1}, evidence: ours}\n",
    )
    teachers = load_teachers(path)
    assert check(teachers=teachers, image_model="my-painter", num_edits=0, image_params={"size": "auto"}) == []
    assert check(teachers=teachers, image_model="gpt-image-1", num_edits=0, image_params={"size": "512x512"}) == []
    assert "accepts auto" in refusal(teachers=teachers, image_model="my-painter", image_params={"size": "64x64"})
    snapshot, newest = teachers.find("gpt-image-2-2026-04-21"), teachers.find("gpt-image-2")
    assert snapshot is not None
    assert newest is not None
    assert (snapshot.evidence, newest.price) == ("ours", known("gpt-image-2").price)
    assert len(teachers.teachers) == len(TEACHERS.teachers) + 2


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        ("{id: a, endpoint: video, evidence: x}", "endpoint"),
        ("{id: a, endpoint: chat, evidence: x, prize: 3}", "prize"),
        ("{id: a, endpoint: chat, evidence: x, shutdown_date: soon}", "shutdown_date"),
        ("{id: a, endpoint: chat, evidence: x, chat_params: {temperature: []}}", "a list of words, or a minimum"),
        ("{id: a, snapshots: [a], endpoint: chat, evidence: x}", "'a' is listed twice"),
        ("{id: a, endpoint: chat}", "evidence"),
    ],
)
def test_faults_of_a_file_name_the_line(tmp_path: Path, entry: str, complaint: str) -> None:
    path = own_file(tmp_path, f"teachers:\n  - {entry}\n")
    with pytest.raises(UserError, match=complaint) as caught:
        load_teachers(path)
    assert f"{path}, line 2" in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        load_teachers(str(tmp_path / "none.yaml"))


def test_price_of_the_configuration_goes_first() -> None:
    own = Price(text_input=1, output=2)
    config = SynthesisConfig.model_validate({"prices": {"gpt-image-2": own, "my-writer": own}})
    assert TEACHERS.price_of("gpt-image-2", config) == TEACHERS.price_of("my-writer", config) == own
    assert TEACHERS.price_of("gpt-image-2-2026-04-21", config) == known("gpt-image-2").price
    assert TEACHERS.price_of("gemini-3.8-flash", config) is None
    assert TEACHERS.price_of("nobody", config) is None
    assert TEACHERS.price_of("offline-painter-1", config) == Price()
