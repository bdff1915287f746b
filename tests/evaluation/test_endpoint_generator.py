# SPDX-License-Identifier: Apache-2.0
"""Pictures of a benchmark over real HTTP: faults are waited out, refusals named, and nothing is paid twice."""

import base64
import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

import numpy as np
import pytest
from PIL import Image
from starlette.responses import JSONResponse
from synthesis.loopback_teacher import LoopbackTeacher

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.drawing import PictureRequest, claim_folder, missing_pictures, save_picture
from sharegpt4o_image.evaluation.endpoint_generator import EndpointGenerator
from sharegpt4o_image.offline_teacher.perception import perceive
from sharegpt4o_image.synthesis.config import Price

MODEL = "offline-painter-1"
PROMPTS = ("a red circle", "a blue square", "a green triangle", "a yellow star")
KEY = "sk-test-0123456789"

BLOCKED = JSONResponse({"error": {"message": "not allowed", "code": "moderation_blocked"}}, 400)
BUSY = JSONResponse({"error": {"message": "slow down", "code": "rate_limit_exceeded"}}, 429, {"retry-after-ms": "20"})
OOPS = JSONResponse({"error": {"message": "oops"}}, 500)


def answer(data):
    return JSONResponse({"created": 1, "data": [{"b64_json": base64.b64encode(data).decode()}], "usage": {}})


def encode(picture, form="PNG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


BROKEN = answer(encode(Image.effect_noise((64, 64), 50))[:-900])


def requests_for(prompts, num_pictures=1):
    return [
        PictureRequest(f"{number:05}/samples/{picture:04}.png", prompt, seed=100 * number + picture)
        for number, prompt in enumerate(prompts)
        for picture in range(num_pictures)
    ]


def draw(generator, requests, folder):
    """As `draw_pictures` does: only what is missing, each saved as soon as it is there."""
    return dict(
        generator.draw(missing_pictures(folder, requests), lambda r, picture: save_picture(folder, r.path, picture))
    )


def read(folder, request):
    with Image.open(folder / request.path) as picture:
        return picture.convert("RGB")


def shape_on(picture):
    [found] = perceive(picture).objects
    return f"{found.color} {found.shape}"


def requests_written(run_dir):
    with closing(sqlite3.connect(run_dir / "journal.sqlite")) as journal:
        return [json.loads(text) for [text] in journal.execute("SELECT request FROM attempts")]


def faults(by_number):
    """Answers instead of the teacher's own, by the number of the request."""
    return lambda number, path: by_number.get(number)


# ------------------------------------------------------------------ drawing


def test_faults_are_waited_out_and_a_second_run_pays_nothing(tmp_path):
    requests = requests_for(PROMPTS, num_pictures=4)
    run_dir, folder = tmp_path / "drawing", tmp_path / "images"
    by_number = {1: BUSY, 3: OOPS, 4: OOPS, 6: BROKEN, 9: BLOCKED}
    with LoopbackTeacher(fault=faults(by_number)) as teacher:
        generator = EndpointGenerator(teacher.base_url, MODEL, run_dir, size="128x128", num_workers=1)
        reasons = draw(generator, requests, folder)
        assert list(reasons.values()) == ["refused by moderation: 400 moderation_blocked: not allowed"]
        assert teacher.num_requests == len(requests) + 4  # the block is one of them
        assert sum(teacher.served.values()) == len(requests) - 1
        assert len(teacher.served) == 4  # the same body four times
        drawn = [request for request in requests if request.path not in reasons]
        for request in drawn:
            assert f"a {shape_on(read(folder, request))}" == request.prompt
            assert read(folder, request).size == (128, 128)

        before = teacher.num_requests
        assert draw(generator, requests, folder) == reasons
        for request in drawn[:3]:  # pictures that somebody removed come out of the journal
            (folder / request.path).unlink()
        again = EndpointGenerator(teacher.base_url, MODEL, run_dir, size="128x128")
        assert draw(again, requests, folder) == reasons
        assert missing_pictures(folder, drawn) == []
        assert teacher.num_requests == before


def test_many_at_a_time_get_their_own_pictures(tmp_path):
    requests = requests_for(PROMPTS * 5)
    with LoopbackTeacher(delay_seconds=0.002) as teacher:
        generator = EndpointGenerator(teacher.base_url, MODEL, tmp_path / "drawing", size="128x128")
        assert draw(generator, requests, tmp_path / "images") == {}
    assert all(f"a {shape_on(read(tmp_path / 'images', one))}" == one.prompt for one in requests)


def test_a_picture_is_kept_as_soon_as_it_is_there(tmp_path):
    seen = []
    with LoopbackTeacher() as teacher:
        generator = EndpointGenerator(teacher.base_url, MODEL, tmp_path / "drawing", num_workers=1)
        generator.draw(requests_for(PROMPTS), lambda request, picture: seen.append(sum(teacher.served.values())))
    assert seen == [1, 2, 3, 4]


def test_a_picture_that_never_comes_whole_is_named_and_the_others_are_drawn(tmp_path):
    requests = requests_for(PROMPTS)
    with LoopbackTeacher(fault=faults({2: BROKEN, 3: BROKEN, 4: BROKEN})) as teacher:
        generator = EndpointGenerator(teacher.base_url, MODEL, tmp_path / "drawing", num_workers=1)
        reasons = draw(generator, requests, tmp_path / "images")
        assert list(reasons) == [requests[1].path]
        assert reasons[requests[1].path].startswith("not drawn: the picture cannot be read")
        assert "3 answers" in reasons[requests[1].path]
        assert draw(generator, requests, tmp_path / "images") == {}  # one more chance, and now it is whole


def test_what_a_server_never_manages_is_left_for_the_next_run(tmp_path):
    requests = requests_for(PROMPTS)
    with LoopbackTeacher(fault=faults({2: OOPS, 3: OOPS})) as teacher:
        generator = EndpointGenerator(teacher.base_url, MODEL, tmp_path / "drawing", num_workers=1, max_attempts=2)
        reasons = draw(generator, requests, tmp_path / "images")
        assert reasons == {requests[1].path: "not drawn yet: 500 : oops"}
        assert draw(generator, requests, tmp_path / "images") == {}
        assert sum(teacher.served.values()) == len(requests)


def test_an_endpoint_that_only_refuses_stops_the_run(tmp_path):
    refusal = JSONResponse({"error": {"message": "no such size", "code": "invalid_value"}}, 400)
    with LoopbackTeacher(fault=lambda number, path: refusal) as teacher:
        generator = EndpointGenerator(teacher.base_url, MODEL, tmp_path / "drawing", num_workers=1)
        with pytest.raises(UserError, match="no such size"):
            draw(generator, requests_for(PROMPTS * 10), tmp_path / "images")
        assert teacher.num_requests < 10


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "CMYK"])
def test_whatever_format_comes_a_png_can_be_written(tmp_path, form):
    colors = Image.new("CMYK", (32, 32), (0, 200, 200, 0)) if form == "CMYK" else Image.new("RGB", (32, 32), "red")
    data = encode(colors, "JPEG" if form == "CMYK" else form)
    with LoopbackTeacher(fault=lambda number, path: answer(data)) as teacher:
        generator = EndpointGenerator(teacher.base_url, MODEL, tmp_path / "drawing")
        requests = requests_for(PROMPTS[:1])
        assert draw(generator, requests, tmp_path / "images") == {}
    red, green, blue = read(tmp_path / "images", requests[0]).getpixel((16, 16))
    assert red > 200 > 100 > max(green, blue)


def test_transparency_stays(tmp_path):
    data = encode(Image.new("RGBA", (32, 32), (255, 0, 0, 0)))
    with LoopbackTeacher(fault=lambda number, path: answer(data)) as teacher:
        generator = EndpointGenerator(teacher.base_url, MODEL, tmp_path / "drawing")
        kept = []
        generator.draw(requests_for(PROMPTS[:1]), lambda request, picture: kept.append(picture))
    assert kept[0].getpixel((0, 0)) == (255, 0, 0, 0)


def test_the_offline_teacher_draws_without_an_address(tmp_path):
    requests = requests_for(PROMPTS)
    generator = EndpointGenerator(None, MODEL, tmp_path / "drawing")
    assert draw(generator, requests, tmp_path / "images") == {}
    assert all(f"a {shape_on(read(tmp_path / 'images', one))}" == one.prompt for one in requests)
    with pytest.raises(UserError, match="the offline teacher has no model 'other'"):
        draw(EndpointGenerator(None, "other", tmp_path / "x"), requests, tmp_path / "y")


# ------------------------------------------------------------------ edits


def test_sources_go_as_pictures_and_come_back_edited(tmp_path):
    drawn = requests_for(PROMPTS[:1])
    generator = EndpointGenerator(None, MODEL, tmp_path / "drawing", size="128x128")
    draw(generator, drawn, tmp_path / "images")
    source = read(tmp_path / "images", drawn[0])
    source.save(tmp_path / "source.webp", lossless=True)
    source.save(tmp_path / "source.jpg", quality=95)
    edits = [
        PictureRequest("edited/picture.png", "make the circle blue", 0, (source,)),
        PictureRequest("edited/file.png", "make the circle blue", 1, (tmp_path / "images" / drawn[0].path,)),
        PictureRequest("edited/webp.png", "make the circle blue", 2, (tmp_path / "source.webp",)),
        PictureRequest("edited/jpeg.png", "make the circle blue", 3, (tmp_path / "source.jpg",)),
        PictureRequest("edited/gone.png", "make the circle blue", 4, (tmp_path / "nowhere.png",)),
        PictureRequest("edited/junk.png", "make the circle blue", 5, (tmp_path / "junk.png",)),
    ]
    (tmp_path / "junk.png").write_bytes(b"<html>")
    with LoopbackTeacher() as teacher:
        generator = EndpointGenerator(teacher.base_url, MODEL, tmp_path / "editing")
        reasons = draw(generator, edits, tmp_path / "edited")
        assert reasons == {
            "edited/gone.png": "its source nowhere.png cannot be read (No such file or directory)",
            "edited/junk.png": "its source junk.png is no whole PNG, JPEG, WEBP, GIF picture",
        }
        assert teacher.num_requests == 4
        assert draw(generator, edits, tmp_path / "edited") == reasons
        assert teacher.num_requests == 4
    for edit in edits[:4]:
        assert shape_on(read(tmp_path / "edited", edit)) == "blue circle"
    written = requests_written(tmp_path / "editing")
    assert all(request["route"] == "/images/edits" for request in written)
    assert all(set(request["body"]) == {"model", "prompt", "n"} for request in written)
    pictures = [sha256 for request in written for sha256 in request["pictures"]]
    sent = [(tmp_path / "editing" / "blobs" / sha256[:2] / sha256).read_bytes() for sha256 in pictures]
    files = [tmp_path / "images" / drawn[0].path, tmp_path / "source.jpg"]
    assert all(file.read_bytes() in sent for file in files)  # as they are
    assert {data[:4] for data in sent} == {b"\x89PNG", b"\xff\xd8\xff\xe0"}


def test_sources_lie_upright(tmp_path):
    generator = EndpointGenerator(None, MODEL, tmp_path / "drawing", size="128x128")
    draw(generator, requests_for(["a red circle at the top"]), tmp_path / "images")
    source = read(tmp_path / "images", requests_for([""])[0])
    exif = source.getexif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    source.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    edit = PictureRequest("edited.png", "make the circle blue", 0, (tmp_path / "turned.png",))
    assert draw(EndpointGenerator(None, MODEL, tmp_path / "editing"), [edit], tmp_path) == {}
    [[before], [after]] = (perceive(one).objects for one in (source, read(tmp_path, edit)))
    assert after.color == "blue"
    assert np.abs(np.subtract(before.box, after.box)).max() <= 2
    [sent] = requests_written(tmp_path / "editing")
    [sha256] = sent["pictures"]
    sent = Image.open(tmp_path / "editing" / "blobs" / sha256[:2] / sha256)
    assert 0x0112 not in sent.getexif()  # not left to the endpoint, which may not know of it
    assert np.array_equal(np.asarray(sent), np.asarray(source))


def test_another_source_or_seed_is_another_request(tmp_path):
    with LoopbackTeacher() as teacher:
        generator = EndpointGenerator(teacher.base_url, MODEL, tmp_path / "editing")
        for color, seed in (("red", 0), ("red", 0), ("blue", 0), ("blue", 1)):
            edit = PictureRequest("edited.png", "add a star", seed, (Image.new("RGB", (64, 64), color),))
            generator.draw([edit], lambda request, picture: None)
        assert teacher.num_requests == 3


# ------------------------------------------------------------------ identity, money, interruptions


def test_the_identity_names_no_secret_and_says_that_seeds_are_not_sent(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    generator = EndpointGenerator(
        "https://Api.Example.com:8443/v1?token=secret", "painter-9", tmp_path, size="512x512"
    )
    assert generator.identity == {
        "model": "painter-9",
        "endpoint": "api.example.com",
        "image_params": {"size": "512x512"},
        "sends_seed": False,
    }
    assert EndpointGenerator(None, MODEL, tmp_path).identity["endpoint"] == "offline teacher"
    assert EndpointGenerator(None, MODEL, tmp_path).identity["image_params"] == {}
    claim_folder(tmp_path / "images", {**generator.identity, "seed": 42})
    with pytest.raises(UserError, match="the address must not carry a user name"):
        EndpointGenerator("https://user:pass@example.com/v1", MODEL, tmp_path)


def test_keys_reach_the_endpoint_and_no_file(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    echo = JSONResponse({"error": {"message": f"{KEY} may not", "code": "moderation_blocked"}}, 400)
    with LoopbackTeacher(fault=faults({2: echo})) as teacher:
        generator = EndpointGenerator(teacher.base_url, MODEL, tmp_path / "drawing", num_workers=1)
        [reason] = draw(generator, requests_for(PROMPTS), tmp_path / "images").values()
        assert teacher.keys_seen == {f"Bearer {KEY}"}
    assert reason == "refused by moderation: 400 moderation_blocked: [secret] may not"
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert not any(KEY.encode() in path.read_bytes() for path in files)


def test_a_budget_needs_a_price_and_ends_the_run_in_a_sentence(tmp_path):
    requests = requests_for(PROMPTS, num_pictures=4)
    run_dir, folder = tmp_path / "drawing", tmp_path / "images"
    with pytest.raises(UserError, match="--budget needs the price of some-painter"):
        EndpointGenerator("http://localhost:1/v1", "some-painter", run_dir, budget_usd=1.0).draw(requests, print)
    price = {MODEL: Price(output=1000.0)}
    with LoopbackTeacher() as teacher:
        poor = EndpointGenerator(teacher.base_url, MODEL, run_dir, 0.5, "128x128", prices=price, num_workers=1)
        with pytest.raises(UserError, match=r"budget of 0\.50 USD.*(\d+) of 16 pictures were drawn and are kept, run"):
            draw(poor, requests, folder)
        num_drawn = len(requests) - len(missing_pictures(folder, requests))
        assert 0 < num_drawn == sum(teacher.served.values()) < 16
        assert teacher.tokens["output"] * 1000 / 1e6 <= 0.5
        rich = EndpointGenerator(teacher.base_url, MODEL, run_dir, 300.0, "128x128", prices=price)
        assert draw(rich, requests, folder) == {}
        assert sum(teacher.served.values()) == 16


SCRIPT = """
import sys
from pathlib import Path
from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.drawing import PictureRequest, save_picture
from sharegpt4o_image.evaluation.endpoint_generator import EndpointGenerator

folder = Path(sys.argv[2])
requests = [PictureRequest(f"{n:04}.png", "a red circle", n) for n in range(30)]
generator = EndpointGenerator(sys.argv[1], "offline-painter-1", folder / "drawing", size="64x64", num_workers=2)
try:
    generator.draw(requests, lambda r, picture: save_picture(folder / "images", r.path, picture))
except UserError as error:
    print(error, flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_is_stopped_or_killed_goes_on(tmp_path, number):
    images = tmp_path / "images"
    requests = [PictureRequest(f"{n:04}.png", "a red circle", n) for n in range(30)]
    with LoopbackTeacher(delay_seconds=0.02) as teacher:
        command = [sys.executable, "-c", SCRIPT, teacher.base_url, str(tmp_path)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            while sum(teacher.delivered.values()) < 5:
                assert process.poll() is None
                time.sleep(0.005)
            process.send_signal(number)
            told = process.communicate(timeout=60)[0]
        drawn = {path: path.stat().st_mtime_ns for path in images.glob("*.png")}
        paid = sum(teacher.served.values())
        assert 3 <= len(drawn) <= paid < 30
        if number == signal.SIGINT:
            kept = f"{paid} of 30 pictures were drawn and are kept"
            assert told == f"stopped; {kept}, run the same command again for the rest\n"
            assert paid == len(drawn)  # requests in flight were waited for
        generator = EndpointGenerator(teacher.base_url, MODEL, tmp_path / "drawing", size="64x64")
        assert draw(generator, requests, images) == {}
        assert missing_pictures(images, requests) == []
        assert all(path.stat().st_mtime_ns == before for path, before in drawn.items())
        lost_in_flight = 2 if number == signal.SIGKILL else 0
        assert 30 <= sum(teacher.served.values()) <= 30 + lost_in_flight
