# SPDX-License-Identifier: Apache-2.0
"""The offline teacher through the client that also reaches real teachers."""

import json
import socket
import subprocess
import sys
from typing import Any

import httpx2
import openai
import pytest
from openai.types import ImagesResponse
from PIL import Image
from teacher_client import ask, chat, data_url, edit, generate, json_format, opened, png, refusal, scene

from sharegpt4o_image.offline_teacher.perception import perceive
from sharegpt4o_image.offline_teacher.protocol import CHAT_MODEL, IMAGE_MODEL, MAX_BODY_BYTES
from sharegpt4o_image.offline_teacher.renderer import render

PROMPT_SCHEMA = {
    "type": "object",
    "properties": {"prompt": {"type": "string"}},
    "required": ["prompt"],
    "additionalProperties": False,
}


# --------------------------------------------------------------------------- models


def test_models() -> None:
    models = ask(lambda client: client.models.list()).data
    assert [model.id for model in models] == [CHAT_MODEL, IMAGE_MODEL]
    assert ask(lambda client: client.models.retrieve(IMAGE_MODEL)).id == IMAGE_MODEL


def test_unknown_model() -> None:
    for question in (
        lambda client: client.models.retrieve("gpt-image-1"),
        lambda client: client.images.generate(model="gpt-image-1", prompt="a red circle"),
        lambda client: client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "hi"}]),
    ):
        error = refusal(question)
        assert (error.status_code, error.code, error.param) == (404, "model_not_found", "model")


def test_unknown_path_and_method() -> None:
    error = refusal(lambda client: client.get("/embeddings", cast_to=httpx2.Response))
    assert error.status_code == 404
    assert "Invalid URL (GET /v1/embeddings)" in str(error)
    assert refusal(lambda client: client.get("/images/edits", cast_to=httpx2.Response)).status_code == 405


# --------------------------------------------------------------------------- generations


def test_picture_shows_what_the_prompt_asks_for() -> None:
    [image] = generate("two purple stars on a mint background, dim light")
    seen = perceive(image).scene
    assert image.size == (256, 256)
    assert [(item.color, item.shape) for item in seen.objects] == [("purple", "star")] * 2
    assert (seen.background, seen.lighting) == ("mint", "dim light")


def test_same_request_same_bytes_and_pictures_of_one_request_differ() -> None:
    request: dict[str, Any] = {"prompt": "a red circle on a gray background", "n": 3, "size": "128x128"}
    first, again = generate(**request), generate(**request)
    assert [image.tobytes() for image in first] == [image.tobytes() for image in again]
    assert len({image.tobytes() for image in generate("a red circle", n=10)}) > 1


def test_prompt_without_known_words_still_gives_a_picture() -> None:
    [image] = generate("Ein Gedicht über das Meer")
    assert perceive(image).scene.objects


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_size_and_format(output_format: str) -> None:
    [image] = generate("a blue heart", size="96x96", output_format=output_format)
    assert (image.format, image.size) == (output_format.upper(), (96, 96))


def test_usage_and_request_id() -> None:
    response = ask(
        lambda client: client.images.with_raw_response.generate(model=IMAGE_MODEL, prompt="a red circle", n=2)
    )
    usage = response.parse().usage
    assert response.headers["x-request-id"].startswith("req_")
    assert usage is not None
    assert usage.output_tokens == 2 * 256  # 256 x 256 pixels, a token for 16 x 16
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens


@pytest.mark.parametrize(
    ("params", "param", "code"),
    [
        ({"prompt": ""}, "prompt", "missing_required_parameter"),
        ({"prompt": "x" * 32_001}, "prompt", "string_above_max_length"),
        ({"n": 0}, "n", "integer_below_min_value"),
        ({"n": 11}, "n", "integer_above_max_value"),
        ({"size": "1024x1536"}, "size", "invalid_value"),
        ({"size": "32x32"}, "size", "invalid_value"),
        ({"size": "large"}, "size", "invalid_value"),
        ({"quality": "hd"}, "quality", "invalid_value"),
        ({"background": "transparent"}, "background", "invalid_value"),
        ({"style": "vivid"}, "style", "unknown_parameter"),
        ({"extra_body": {"seed": 1}}, "seed", "unknown_parameter"),
    ],
)
def test_bad_generation_is_a_400(params: dict[str, Any], param: str, code: str) -> None:
    request = {"model": IMAGE_MODEL, "prompt": "a red circle", **params}
    error = refusal(lambda client: client.images.generate(**request))
    assert (error.status_code, error.type, error.param, error.code) == (400, "invalid_request_error", param, code)


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"\xff", b'{"n": NaN}', b'{"a":' * 100_000])
def test_body_that_is_no_json_object(body: bytes) -> None:
    error = refusal(lambda client: client.post("/images/generations", cast_to=httpx2.Response, content=body))
    assert error.status_code == 400


@pytest.mark.parametrize(
    "body",
    [
        b'{"model": "offline-writer-1", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"model": "\\ud800", "messages": []}',
    ],
)
def test_half_a_surrogate_pair_is_no_text(body: bytes) -> None:
    error = refusal(lambda client: client.post("/chat/completions", cast_to=httpx2.Response, content=body))
    assert error.status_code in (400, 404)


def test_too_large_a_body_is_a_413() -> None:
    body = b" " * (MAX_BODY_BYTES + 1)
    error = refusal(lambda client: client.post("/chat/completions", cast_to=httpx2.Response, content=body))
    assert error.status_code == 413


def test_fault_of_the_teacher_is_a_500(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sharegpt4o_image.offline_teacher.app.generate_images", lambda body: 1 / 0)
    error = refusal(lambda client: client.images.generate(model=IMAGE_MODEL, prompt="a red circle"))
    assert (error.status_code, error.type) == (500, "server_error")


# --------------------------------------------------------------------------- edits


def test_edit_changes_what_it_names_and_keeps_the_rest() -> None:
    before = scene(("red", "circle", 0.25, 0.5), ("blue", "star", 0.75, 0.5))
    edited = edit(png(render(before, 192)), "make the red circle green")
    after = perceive(edited).scene
    assert edited.size == (192, 192)
    assert [(item.color, item.shape, item.x) for item in after.objects] == [
        ("green", "circle", 0.25),
        ("blue", "star", 0.75),
    ]
    assert after.background == "gray"


def test_edit_is_deterministic() -> None:
    source = png(render(scene(("red", "circle", 0.25, 0.5)), 96))
    assert edit(source, "add a blue heart").tobytes() == edit(source, "add a blue heart").tobytes()


def test_edit_of_several_images_combines_their_objects() -> None:
    first = png(render(scene(("red", "circle", 0.25, 0.5), background="navy"), 128))
    second = png(render(scene(("yellow", "star", 0.5, 0.5), background="white"), 128))
    third = png(render(scene(("pink", "heart", 0.5, 0.5), background="white"), 128))
    after = perceive(edit([first, second, third], "combine the pictures")).scene
    assert {(item.color, item.shape) for item in after.objects} == {
        ("red", "circle"),
        ("yellow", "star"),
        ("pink", "heart"),
    }
    assert after.background == "navy"


def test_edit_with_a_mask_leaves_the_rest_untouched() -> None:
    source = render(scene(("red", "circle", 0.25, 0.5), ("blue", "star", 0.75, 0.5)), 128)
    mask = Image.new("RGBA", source.size, (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, 64, 128))  # the left half may change
    edited = edit(png(source), "change the background to navy", mask=png(mask))
    right = (64, 0, 128, 128)
    assert edited.crop(right).tobytes() == source.crop(right).tobytes()
    assert edited.getpixel((2, 2)) == (20, 28, 84)


def test_edit_of_a_picture_that_is_not_square_keeps_its_size() -> None:
    source = render(scene(("red", "circle", 0.5, 0.5)), 128).resize((160, 96))
    assert edit(png(source), "make the background navy").size == (160, 96)
    assert edit(png(source), "make the background navy", size="64x64").size == (64, 64)


def refused_edit(image: Any, prompt: str = "make it navy", **params: Any) -> openai.APIStatusError:
    return refusal(lambda client: client.images.edit(model=IMAGE_MODEL, image=image, prompt=prompt, **params))


def test_bad_edits_are_400s() -> None:
    source = png(render(scene(("red", "circle", 0.5, 0.5)), 64))
    assert refused_edit(b"not a picture").code == "invalid_image_file"
    assert refused_edit(source[:200]).code == "invalid_image_file"
    assert refused_edit(source, "").code == "missing_required_parameter"
    assert refused_edit([source] * 17).code == "array_above_max_length"
    assert refused_edit(png(Image.new("L", (4097, 1)))).code == "image_too_large"
    assert refused_edit(source, n=11).code == "integer_above_max_value"
    small_mask = png(Image.new("RGBA", (32, 32)))
    assert refused_edit(source, mask=small_mask).param == "mask"
    assert "alpha" in str(refused_edit(source, mask=png(Image.new("RGB", (64, 64)))))


def test_edit_without_image_or_form() -> None:
    fields = {"model": IMAGE_MODEL, "prompt": "make it navy"}
    headers: Any = {"headers": {"Content-Type": "multipart/form-data"}}
    files = [("markup", ("a.png", b"x"))]
    error = refusal(
        lambda c: c.post("/images/edits", cast_to=httpx2.Response, body=fields, files=files, options=headers)
    )
    assert error.param == "markup"
    error = refusal(lambda c: c.post("/images/edits", cast_to=httpx2.Response, body=fields))
    assert (error.code, error.param) == ("missing_required_parameter", "images")


# --------------------------------------------------------------------------- edits as JSON


def edit_json(**body: Any) -> ImagesResponse:
    request = {"model": IMAGE_MODEL, "prompt": "make the red circle green", **body}
    return ask(lambda client: client.post("/images/edits", cast_to=ImagesResponse, body=request))


def url_of(image: Image.Image) -> str:
    return str(data_url(image)["image_url"]["url"])


def test_edit_as_json_is_the_edit_as_a_form() -> None:
    source = render(scene(("red", "circle", 0.25, 0.5), ("blue", "star", 0.75, 0.5)), 128)
    mask = Image.new("RGBA", source.size, (0, 0, 0, 0))
    answer = edit_json(images=[{"image_url": url_of(source)}], mask={"image_url": url_of(mask)}, size="64x64")
    by_form = edit(png(source), "make the red circle green", mask=png(mask), size="64x64")
    assert opened(answer.data[0].b64_json).tobytes() == by_form.tobytes()


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "images"),
        ({"images": "x"}, "images"),
        ({"images": [3]}, "images[0]"),
        ({"images": [{}]}, "images[0]"),
        ({"images": [{"image_url": "data:image/png;base64,AAAA", "file_id": "file-1"}]}, "images[0]"),
        ({"images": [{"image_url": "https://example.com/a.png"}]}, "images[0].image_url"),
        ({"images": [{"image_url": "data:image/png;base64,é"}]}, "images[0].image_url"),
        ({"images": [{"image_url": "data:image/png;base64,AAAA"}]}, "image"),
        ({"images": [{"file_id": "file-1"}]}, "images[0].file_id"),
        ({"images": [{"image_url": "data:image/png;base64,AAAA"}], "mask": []}, "mask"),
        ({"images": [{"image_url": "data:image/png;base64,AAAA"}], "image": "x"}, "image"),
    ],
)
def test_bad_edit_as_json(body: dict[str, Any], param: str) -> None:
    request = {"model": IMAGE_MODEL, "prompt": "make it navy", **body}
    error = refusal(lambda client: client.post("/images/edits", cast_to=httpx2.Response, body=request))
    assert (error.status_code, error.param) == (404 if param.endswith("file_id") else 400, param)


# --------------------------------------------------------------------------- chat


def test_prompt_for_a_topic_in_the_schema_that_was_asked_for() -> None:
    topic = {"objects": ["red circle", "blue star"], "background": "gray background", "composition": "above"}
    text = chat(f"Write a prompt.\n{json.dumps(topic)}", response_format=json_format(PROMPT_SCHEMA))
    prompt = json.loads(text)["prompt"]
    assert prompt.startswith("a red circle above a blue star")
    assert "gray" in prompt


def test_topic_words_reach_the_picture() -> None:
    topic = {
        "objects": ["cyan heart"],
        "background": "black background",
        "style": "outline style",
        "lighting": "warm light",
        "camera": "close-up",
        "composition": "in the top left corner",
    }
    [image] = generate(chat(json.dumps(topic)))
    seen = perceive(image)
    [item] = seen.scene.objects
    assert (item.color, item.shape, item.size) == ("cyan", "heart", "large")
    assert max(item.x, item.y) <= 0.5
    assert (seen.style, seen.lighting, seen.background) == ("outline", "warm light", "black")


def test_instruction_is_about_what_the_picture_shows() -> None:
    schema = {
        "type": "object",
        "properties": {"instruction": {"type": "string"}, "is_applicable": {"type": "boolean"}},
        "required": ["instruction", "is_applicable"],
    }
    picture = render(scene(("orange", "cross", 0.25, 0.25), ("orange", "cross", 0.75, 0.75)), 128)
    task = {"source_prompt": "a red circle", "edit_task": "inpainting/replacement"}
    content = [{"type": "text", "text": json.dumps(task)}, data_url(picture)]
    reply = json.loads(chat(content, response_format=json_format(schema)))
    assert reply["is_applicable"] is True
    assert "two orange crosses" in reply["instruction"]
    unfit = [{"type": "text", "text": json.dumps({**task, "edit_task": "storyboarding"})}, data_url(picture)]
    assert json.loads(chat(unfit, response_format=json_format(schema))) == {"instruction": "", "is_applicable": False}


def test_plain_text_and_other_schemas() -> None:
    picture = render(scene(("orange", "cross", 0.25, 0.25)), 128)
    assert "an orange cross" in chat([{"type": "text", "text": "What is this?"}, data_url(picture)])
    assert "circle" in chat("Hello, who are you?")
    schema = {
        "type": "object",
        "properties": {
            "color": {"enum": ["blue", "orange"]},
            "parts": {"type": "array", "items": {"$ref": "#/$defs/part"}},
        },
        "$defs": {"part": {"type": "object", "properties": {"count": {"type": "integer"}}}},
    }
    text = chat([{"type": "text", "text": "Describe it."}, data_url(picture)], response_format=json_format(schema))
    assert json.loads(text) == {"color": "orange", "parts": [{"count": 1}]}
    assert "text" in json.loads(chat("a red circle", response_format={"type": "json_object"}))


@pytest.mark.parametrize(
    "text",
    [
        '{"objects": 3}',
        '{"objects": [null, {}]}',
        '{"edit_task": []}',
        '{"judge": null}',
        '{"document_type": {}}',
        '{"a":' * 2000 + '{"objects": ["red circle"]}',
    ],
)
def test_odd_tasks_are_answered(text: str) -> None:
    response = ask(
        lambda client: client.chat.completions.create(model=CHAT_MODEL, messages=[{"role": "user", "content": text}])
    )
    assert response.choices[0].finish_reason == "stop"


def test_chat_usage_and_length_limit() -> None:
    response = ask(
        lambda client: client.chat.completions.create(
            model=CHAT_MODEL, messages=[{"role": "user", "content": "a red circle"}], max_completion_tokens=2
        )
    )
    assert response.choices[0].finish_reason == "length"
    assert response.usage is not None
    assert response.usage.completion_tokens == 2


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "messages[0].content[0].type"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        ({"tools": []}, "tools"),
        ({"stream": True}, "stream"),
        ({"model": IMAGE_MODEL}, "model"),
        ({"model": ""}, "model"),
    ],
)
def test_bad_chat_is_a_400(params: dict[str, Any], param: str) -> None:
    body = {"model": CHAT_MODEL, "messages": [{"role": "user", "content": "hi"}], **params}
    error = refusal(lambda client: client.post("/chat/completions", cast_to=httpx2.Response, body=body))
    assert (error.status_code, error.param) == (400, param)


@pytest.mark.parametrize(
    "url", ["https://example.com/a.png", "data:image/png;base64,!!!", "data:image/png;base64,AAAA"]
)
def test_bad_picture_in_a_chat(url: str) -> None:
    content = [{"type": "image_url", "image_url": {"url": url}}]
    body = {"model": CHAT_MODEL, "messages": [{"role": "user", "content": content}]}
    error = refusal(lambda client: client.post("/chat/completions", cast_to=httpx2.Response, body=body))
    assert (error.status_code, error.param) == (400, "messages[0].content[0].image_url")


# --------------------------------------------------------------------------- on a port


def test_serving_on_a_port() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "sharegpt4o_image.offline_teacher", "--port", str(port)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=20)
            assert client.models.retrieve(IMAGE_MODEL).id == IMAGE_MODEL
        finally:
            process.terminate()
