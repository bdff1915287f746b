# SPDX-License-Identifier: Apache-2.0
"""Every kind of answer and failure, through the real client over canned HTTP answers."""

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import openai
import pytest
from PIL import Image

from sharegpt4o_image.schema import GeneratedImage, Prompt, Topic
from sharegpt4o_image.synthesis.client import Clients
from sharegpt4o_image.synthesis.config import Price, SynthesisConfig
from sharegpt4o_image.synthesis.images import plan_image
from sharegpt4o_image.synthesis.journal import Journal, Stage
from sharegpt4o_image.synthesis.ledger import Ledger
from sharegpt4o_image.synthesis.prompts import plan_prompt
from sharegpt4o_image.synthesis.scheduler import (
    Bookkeeper,
    DirectTransport,
    Dispatcher,
    EndOfBudget,
    EndpointAtFault,
    Rejected,
    RejectedByAnswer,
    StopRun,
    Unfinished,
    run_workers,
)

Product = TypeVar("Product")
Reply = httpx2.Response | Exception

CONFIG = SynthesisConfig(max_attempts=3, max_asks=3, num_workers=1)
TOPIC = Topic(id="topic", pipeline="prompt_first", objects=["red circle"])
OTHER_TOPIC = Topic(id="other topic", pipeline="prompt_first", objects=["blue square"])
PROMPT = Prompt(id="p", topic=TOPIC, text="a red circle", prompt_model="w", template_version="prompt_first.v1")

NOW = {"retry-after-ms": "1"}  # a refusal that asks for hardly any patience


def chat_reply(content: str, **choice: Any) -> httpx2.Response:
    message = {"role": "assistant", "content": content, "refusal": choice.pop("refusal", None)}
    body = {
        "model": "writer-2026-11-01",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop", **choice}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10},
    }
    return httpx2.Response(200, json=body, headers={"x-request-id": "req_chat"})


def picture(side: int = 256) -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((side, side)).save(buffer, "PNG")
    return buffer.getvalue()


def image_reply(data: bytes | str) -> httpx2.Response:
    encoded = data if isinstance(data, str) else base64.b64encode(data).decode()
    usage = {"input_tokens": 30, "input_tokens_details": {"text_tokens": 10, "image_tokens": 20}, "output_tokens": 40}
    return httpx2.Response(200, json={"created": 1, "data": [{"b64_json": encoded}], "usage": usage})


def refusal(status: int, code: str | None = None, **headers: str) -> httpx2.Response:
    body = {"error": {"message": f"refused {code}", "type": "some_error", "param": None, "code": code}}
    return httpx2.Response(status, json=body, headers={"x-request-id": "req_refused", **NOW, **headers})


class Desk:
    """A dispatcher over a queue of answers, in a run directory of its own."""

    def __init__(
        self,
        run_dir: Path,
        replies: list[Reply],
        config: SynthesisConfig = CONFIG,
        budget_usd: float | None = None,
        assumed_usd: dict[Stage, float] | None = None,
    ):
        self.replies = list(replies)
        self.num_requests = 0
        self.config = config
        self.stop = asyncio.Event()
        self.journal = Journal.create_or_resume(run_dir)
        transport = httpx2.MockTransport(self._answer)
        self.client = openai.AsyncOpenAI(
            base_url="http://teacher/v1",
            api_key="k",
            max_retries=0,
            http_client=httpx2.AsyncClient(transport=transport),
        )
        self.ledger = Ledger(self.journal, budget_usd, self.stop, assumed_usd)
        books = Bookkeeper(self.journal, self.ledger, config.prices)
        direct = DirectTransport(Clients(self.client, self.client), books, config, self.stop)
        self.dispatcher = Dispatcher(self.journal, config, lambda request: direct)

    def _answer(self, request: httpx2.Request) -> httpx2.Response:
        self.num_requests += 1
        reply = self.replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply

    async def prompt(self, topic: Topic = TOPIC) -> Prompt:
        return await self.dispatcher.obtain(plan_prompt(self.config, topic))

    async def image(self, prompt: Prompt = PROMPT) -> GeneratedImage:
        return await self.dispatcher.obtain(plan_image(self.config, self.journal.blobs, prompt))

    @property
    def statuses(self) -> dict[str, int]:
        return dict(self.journal.count_attempts())


@asynccontextmanager
async def desk_at(
    run_dir: Path, *replies: Reply, config: SynthesisConfig = CONFIG, **ledger: Any
) -> AsyncIterator[Desk]:
    desk = Desk(run_dir, list(replies), config, **ledger)
    try:
        yield desk
    finally:
        desk.journal.close()
        await desk.client.close()


def at_desk(
    tmp_path: Path, *replies: Reply, config: SynthesisConfig = CONFIG, **ledger: Any
) -> Callable[[Callable[[Desk], Any]], Any]:
    """Run an async test function at a desk with these answers."""

    def run(test: Callable[[Desk], Any]) -> None:
        async def talk() -> None:
            async with desk_at(tmp_path / "run", *replies, config=config, **ledger) as desk:
                await test(desk)

        asyncio.run(talk())

    return run


# --------------------------------------------------------------------------- answers


def test_answer_is_journalled_with_its_cost(tmp_path: Path) -> None:
    price = {CONFIG.prompt_model: Price(text_input=5.0, output=30.0)}

    @at_desk(tmp_path, chat_reply('{"prompt": " a red circle "}'), config=CONFIG.model_copy(update={"prices": price}))
    async def check(desk: Desk) -> None:
        prompt = await desk.prompt()
        assert prompt.text == "a red circle"
        assert prompt.served_model == "writer-2026-11-01"
        assert prompt.cost_usd == pytest.approx((100 * 5 + 10 * 30) / 1e6)
        assert desk.journal.spent_usd() == prompt.cost_usd
        assert await desk.prompt() == prompt  # from the journal
        assert desk.num_requests == 1


def test_image_cost_counts_each_kind_of_token(tmp_path: Path) -> None:
    price = {CONFIG.image_model: Price(text_input=5.0, image_input=8.0, output=30.0)}

    @at_desk(tmp_path, image_reply(picture()), config=CONFIG.model_copy(update={"prices": price}))
    async def check(desk: Desk) -> None:
        image = await desk.image()
        assert image.cost_usd == pytest.approx((10 * 5 + 20 * 8 + 40 * 30) / 1e6)
        assert desk.journal.blobs.read(image.sha256) == picture()


def test_fenced_json_is_read(tmp_path: Path) -> None:
    @at_desk(tmp_path, chat_reply('```json\n{"prompt": "a red circle"}\n```'))
    async def check(desk: Desk) -> None:
        assert (await desk.prompt()).text == "a red circle"


USELESS_CHATS = [
    chat_reply("no JSON"),
    chat_reply('{"prompt": ""}'),
    chat_reply('{"prompt": "   "}'),
    chat_reply('{"text": "a red circle"}'),
    chat_reply('{"prompt": "a red', finish_reason="length"),
    httpx2.Response(200, json={"choices": []}),
    httpx2.Response(200, json={"choices": [{"message": None}]}),
    httpx2.Response(200, text="<html>login</html>"),
    httpx2.Response(200, json=["list"]),
    httpx2.Response(200, json={"error": {"message": "overloaded"}}),
    httpx2.Response(200, text='{"choices": [{"message": {"content": "\\ud800"}}]}'),
]


@pytest.mark.parametrize("reply", USELESS_CHATS)
def test_useless_chat_answer_is_kept_and_asked_again(tmp_path: Path, reply: httpx2.Response) -> None:
    @at_desk(tmp_path, reply, chat_reply('{"prompt": "a red circle"}'))
    async def check(desk: Desk) -> None:
        assert (await desk.prompt()).text == "a red circle"
        assert desk.statuses == {"invalid": 1, "ok": 1}


USELESS_IMAGES = [
    image_reply(picture()[:300]),
    image_reply(picture(64)),  # not the size that was asked for
    image_reply(b"GIF89a"),
    image_reply("====="),
    image_reply(base64.b64encode(picture()).decode()[:-3]),
    httpx2.Response(200, json={"data": []}),
    httpx2.Response(200, json={"data": [{"url": "http://elsewhere"}]}),
    httpx2.Response(200, json={"created": 1}),
    image_reply("\u00e9"),
]


@pytest.mark.parametrize("usage", ["much", [1], {"input_tokens": "7"}, {"input_tokens_details": 3}])
def test_odd_token_counts_cost_no_answer(tmp_path: Path, usage: object) -> None:
    body = json.loads(image_reply(picture()).content) | {"usage": usage, "model": ["odd"]}

    @at_desk(tmp_path, httpx2.Response(200, json=body))
    async def check(desk: Desk) -> None:
        assert (await desk.image()).width == 256
        assert desk.statuses == {"ok": 1}


@pytest.mark.parametrize("reply", USELESS_IMAGES)
def test_useless_image_answer_is_kept_and_asked_again(tmp_path: Path, reply: httpx2.Response) -> None:
    @at_desk(tmp_path, reply, image_reply(picture()))
    async def check(desk: Desk) -> None:
        assert (await desk.image()).width == 256
        assert desk.statuses == {"invalid": 1, "ok": 1}


def test_truncated_answer_is_kept_as_it_came(tmp_path: Path) -> None:
    reply = image_reply("AAAAA")

    @at_desk(tmp_path, reply, image_reply(picture()))
    async def check(desk: Desk) -> None:
        await desk.image()
        kept = [path.read_bytes() for path in desk.journal.blobs.folder.rglob("*") if path.is_file()]
        assert sorted(kept, key=len) == sorted([reply.content, picture()], key=len)


def test_useless_answers_are_asked_for_at_most_three_times_in_all(tmp_path: Path) -> None:
    for max_asks, num_new in ((2, 2), (3, 1), (3, 1)):  # one more chance in every run: the endpoint may be mended
        config = CONFIG.model_copy(update={"max_asks": max_asks})

        async def check(desk: Desk, num_new: int = num_new) -> None:
            with pytest.raises(Unfinished):  # this endpoint has not been seen to work yet
                await desk.prompt()
            assert desk.num_requests == num_new

        at_desk(tmp_path, *[chat_reply("no")] * 5, config=config)(check)


def test_useless_answers_reject_an_item_where_others_are_answered(tmp_path: Path) -> None:
    good, bad = chat_reply('{"prompt": "a red circle"}'), chat_reply("no")

    @at_desk(tmp_path, good, bad, bad, bad)
    async def check(desk: Desk) -> None:
        await desk.prompt()
        with pytest.raises(Rejected, match=r"does not fit.*3 answers"):
            await desk.prompt(OTHER_TOPIC)
        assert desk.statuses == {"ok": 1, "invalid": 3}


def test_every_run_asks_once_more_where_others_are_answered_and_no_more(tmp_path: Path) -> None:
    """Rejections may have been taken back, for the endpoint was at fault."""
    good, bad = chat_reply('{"prompt": "a red circle"}'), chat_reply("no")

    for number, num_bad in enumerate((3, 1, 1)):

        @at_desk(tmp_path, good, *[bad] * num_bad)
        async def check(desk: Desk, number: int = number, num_bad: int = num_bad) -> None:
            await desk.prompt(OTHER_TOPIC.model_copy(update={"id": f"other {number}"}))
            for _ in range(3):
                with pytest.raises(Rejected, match=" answers"):
                    await desk.prompt()
            assert desk.num_requests == 1 + num_bad

    @at_desk(tmp_path, good, good)
    async def end(desk: Desk) -> None:
        await desk.prompt(OTHER_TOPIC)
        assert (await desk.prompt()).text == "a red circle"


def test_an_endpoint_that_says_nothing_useful_stops_the_run(tmp_path: Path) -> None:
    good, bad = chat_reply('{"prompt": "a red circle"}'), chat_reply("no")

    @at_desk(tmp_path, good, *[bad] * 20)
    async def check(desk: Desk) -> None:
        await desk.prompt()
        for number in range(2):
            with pytest.raises(Rejected):
                await desk.prompt(OTHER_TOPIC.model_copy(update={"id": f"other {number}"}))
        with pytest.raises(StopRun, match="9 answers in a row were of no use"):
            await desk.prompt(OTHER_TOPIC)
        assert desk.num_requests == 10


BLOCKS = [
    refusal(400, "moderation_blocked"),
    refusal(400, "content_policy_violation"),
    chat_reply("", refusal="I cannot help with that"),
    chat_reply("", finish_reason="content_filter"),
]


@pytest.mark.parametrize("reply", BLOCKS)
def test_moderation_is_final(tmp_path: Path, reply: httpx2.Response) -> None:
    @at_desk(tmp_path, reply)
    async def check(desk: Desk) -> None:
        for _ in range(2):  # the second time from the journal
            with pytest.raises(Rejected):
                await desk.prompt()
        assert desk.num_requests == 1
        assert desk.statuses == {"blocked": 1}


# --------------------------------------------------------------------------- failures


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504])
def test_passing_refusals_are_waited_out(tmp_path: Path, status: int) -> None:
    kind = "lost" if status in (502, 504) else "retry"  # a gateway does not know whether the teacher answered

    @at_desk(tmp_path, refusal(status), refusal(status), chat_reply('{"prompt": "a red circle"}'))
    async def check(desk: Desk) -> None:
        await desk.prompt()
        assert desk.statuses == {kind: 2, "ok": 1}


ERRORS_IN_200 = [
    ({"code": "rate_limit_exceeded", "message": "slow down"}, {"retry": 1, "ok": 1}),
    ({"code": 429, "message": "slow down"}, {"retry": 1, "ok": 1}),
    ({"code": "moderation_blocked", "message": "no"}, {"blocked": 1}),
    ({"code": "insufficient_quota", "message": "no money"}, {"quota": 1}),
    ({"code": "strange", "message": "?"}, {"invalid": 1, "ok": 1}),
]


@pytest.mark.parametrize(("error", "statuses"), ERRORS_IN_200)
def test_an_error_with_the_status_200_is_what_it_says(
    tmp_path: Path, error: dict[str, object], statuses: dict[str, int]
) -> None:
    @at_desk(tmp_path, httpx2.Response(200, json={"error": error}), chat_reply('{"prompt": "a red circle"}'))
    async def check(desk: Desk) -> None:
        with suppress(Rejected, StopRun):
            await desk.prompt()
        assert desk.statuses == statuses


def test_two_that_want_the_same_share_one_answer(tmp_path: Path) -> None:
    @at_desk(tmp_path, chat_reply('{"prompt": "a red circle"}'))
    async def check(desk: Desk) -> None:
        prompts = await asyncio.gather(*(desk.prompt() for _ in range(5)))
        assert len({prompt.id for prompt in prompts}) == 1
        assert desk.num_requests == 1
        assert desk.statuses == {"ok": 1}


def test_a_picture_with_a_broken_exif_block_is_kept_and_asked_again(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the orientation
    buffer = io.BytesIO()
    Image.linear_gradient("L").save(buffer, "JPEG", exif=exif)
    broken = buffer.getvalue().replace(b"Exif\0\0MM", b"Exif\0\0XX").replace(b"Exif\0\0II", b"Exif\0\0XX")

    @at_desk(tmp_path, image_reply(broken), image_reply(picture()))
    async def check(desk: Desk) -> None:
        await desk.image()
        assert desk.statuses == {"invalid": 1, "ok": 1}


def test_an_answer_that_trickles_in_is_lost_in_time(tmp_path: Path) -> None:
    class Trickle(httpx2.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            for _ in range(100):
                await asyncio.sleep(0.05)
                yield b" "

    config = CONFIG.model_copy(update={"timeout_seconds": 0.3})
    trickle = httpx2.Response(200, stream=Trickle())

    @at_desk(tmp_path, trickle, chat_reply('{"prompt": "a red circle"}'), config=config)
    async def check(desk: Desk) -> None:
        await asyncio.wait_for(desk.prompt(), 4)
        assert desk.statuses == {"lost": 1, "ok": 1}


def test_an_endpoint_that_fails_in_the_middle_takes_its_rejections_back(tmp_path: Path) -> None:
    @at_desk(tmp_path, image_reply(picture()), *[refusal(400, "strange")] * 9)
    async def check(desk: Desk) -> None:
        await desk.image()
        doubts = []
        for number in range(8):
            with pytest.raises(RejectedByAnswer) as caught:
                await desk.image(PROMPT.model_copy(update={"id": str(number)}))
            doubts.append(caught.value.doubt)
        with pytest.raises(EndpointAtFault) as fault:
            await desk.image(PROMPT.model_copy(update={"id": "ninth"}))
        assert doubts == [fault.value.doubt] * 8


def test_a_judge_at_fault_is_not_taken_for_the_writer(tmp_path: Path) -> None:
    """Both answer on the chat route; the writer works."""

    @at_desk(tmp_path, chat_reply('{"prompt": "a red circle"}'), *[refusal(400, "strange")] * 3)
    async def check(desk: Desk) -> None:
        await desk.prompt()
        other = desk.config.model_copy(update={"prompt_model": "judge"})
        for _ in range(2):
            with pytest.raises(Unfinished):
                await desk.dispatcher.obtain(plan_prompt(other, TOPIC))
        with pytest.raises(EndpointAtFault):
            await desk.dispatcher.obtain(plan_prompt(other, TOPIC))


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (httpx2.ConnectError("refused"), "retry"),
        (httpx2.ConnectTimeout("no answer"), "retry"),
        (httpx2.ReadTimeout("too slow"), "lost"),
        (httpx2.RemoteProtocolError("peer closed the connection"), "lost"),
        (httpx2.ReadError("reset"), "lost"),
    ],
)
def test_broken_connections_are_lost_unless_nothing_was_sent(tmp_path: Path, error: Exception, status: str) -> None:
    @at_desk(tmp_path, error, chat_reply('{"prompt": "a red circle"}'))
    async def check(desk: Desk) -> None:
        await desk.prompt()
        assert desk.statuses == {status: 1, "ok": 1}


def test_patience_ends_and_the_next_run_asks_again(tmp_path: Path) -> None:
    @at_desk(tmp_path, *[refusal(500)] * 3)
    async def check(desk: Desk) -> None:
        with pytest.raises(Unfinished):
            await desk.prompt()

    @at_desk(tmp_path, chat_reply('{"prompt": "a red circle"}'))
    async def check_again(desk: Desk) -> None:
        await desk.prompt()
        assert desk.statuses == {"retry": 3, "ok": 1}


def test_run_stops_when_nothing_gets_through(tmp_path: Path) -> None:
    @at_desk(
        tmp_path, *[refusal(503)] * 9, config=CONFIG.model_copy(update={"patience_seconds": 0.002, "max_attempts": 9})
    )
    async def check(desk: Desk) -> None:
        with pytest.raises(StopRun, match=r"no request was answered for .* 503"):
            await desk.prompt()


def test_being_asked_to_wait_does_not_count_as_a_failure(tmp_path: Path) -> None:
    @at_desk(tmp_path, *[refusal(429)] * 4, chat_reply('{"prompt": "a red circle"}'))
    async def check(desk: Desk) -> None:
        await desk.prompt()
        assert desk.statuses == {"retry": 4, "ok": 1}


def test_a_wait_beyond_the_patience_stops_the_run(tmp_path: Path) -> None:
    slow = refusal(429)
    del slow.headers["retry-after-ms"]
    slow.headers["retry-after"] = "90000"

    @at_desk(tmp_path, slow)
    async def check(desk: Desk) -> None:
        with pytest.raises(StopRun, match="asks to wait 90000 s"):
            await desk.prompt()


@pytest.mark.parametrize(
    ("reply", "status"),
    [
        (refusal(429, "insufficient_quota"), "quota"),
        (refusal(402), "quota"),
        (refusal(401, "invalid_api_key"), "retry"),
        (refusal(403), "retry"),
        (refusal(404, "model_not_found"), "retry"),
    ],
)
def test_hopeless_refusals_stop_the_run(tmp_path: Path, reply: httpx2.Response, status: str) -> None:
    @at_desk(tmp_path, reply)
    async def check(desk: Desk) -> None:
        with pytest.raises(StopRun):
            await desk.prompt()
        assert desk.statuses == {status: 1}


def test_bad_request_rejects_the_item_where_others_are_answered(tmp_path: Path) -> None:
    @at_desk(tmp_path, image_reply(picture()), refusal(400, "invalid_value"))
    async def check(desk: Desk) -> None:
        await desk.image()
        with pytest.raises(Rejected, match="invalid_value"):
            await desk.image(PROMPT.model_copy(update={"id": "other"}))
        assert desk.statuses == {"ok": 1, "invalid": 1}


def test_an_endpoint_that_refuses_everything_stops_the_run_and_rejects_nothing(tmp_path: Path) -> None:
    @at_desk(tmp_path, *[refusal(400, "invalid_value")] * 3)
    async def check(desk: Desk) -> None:
        for number in range(2):
            with pytest.raises(Unfinished, match="invalid_value"):
                await desk.image(PROMPT.model_copy(update={"id": str(number)}))
        with pytest.raises(StopRun, match=r"answers nothing on /images/generations but: .*invalid_value"):
            await desk.image()


# --------------------------------------------------------------------------- money

PRICES = {CONFIG.image_model: Price(output=10_000.0)}  # 0.40 USD for the 40 tokens of a picture


def test_a_budget_is_not_exceeded(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"prices": PRICES, "num_workers": 8})

    @at_desk(tmp_path, *[image_reply(picture())] * 9, config=config, budget_usd=1.5)
    async def check(desk: Desk) -> None:
        prompts = [PROMPT.model_copy(update={"id": str(number)}) for number in range(9)]
        results = await asyncio.gather(*map(desk.image, prompts), return_exceptions=True)
        # 0.40, 0.80, 1.20 USD; the next one might cost 0.60 with the margin.
        assert desk.num_requests == 3
        assert desk.journal.spent_usd() == pytest.approx(1.2)
        assert desk.journal.reserved_usd() == 0
        assert sum(isinstance(result, EndOfBudget) for result in results) == 6


def test_a_lost_first_answer_does_not_eat_the_budget(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"prices": PRICES})
    replies = (httpx2.Response(200, text="<html>"), image_reply(picture()))

    @at_desk(tmp_path, *replies, config=config, budget_usd=20.0, assumed_usd={"image": 0.5})
    async def check(desk: Desk) -> None:
        await desk.image()
        assert desk.journal.reserved_usd() == pytest.approx(0.75)  # half as much again as was assumed
        assert desk.ledger.left_usd == pytest.approx(20.0 - 0.75 - 0.4)


def test_what_is_assumed_to_cost_too_much_is_not_even_tried(tmp_path: Path) -> None:
    @at_desk(tmp_path, config=CONFIG.model_copy(update={"prices": PRICES}), budget_usd=0.5, assumed_usd={"image": 0.4})
    async def check(desk: Desk) -> None:
        with pytest.raises(EndOfBudget, match=r"may cost 0\.6000"):
            await desk.image()
        assert desk.num_requests == 0


def test_an_answer_without_token_counts_leaves_its_reservation(tmp_path: Path) -> None:
    body = json.loads(image_reply(picture()).content)
    del body["usage"]
    config = CONFIG.model_copy(update={"prices": PRICES})

    @at_desk(tmp_path, httpx2.Response(200, json=body), config=config, budget_usd=20.0, assumed_usd={"image": 0.4})
    async def check(desk: Desk) -> None:
        await desk.image()
        assert (desk.journal.spent_usd(), desk.journal.reserved_usd()) == (0, pytest.approx(0.6))


def test_useless_answers_cost_what_they_say(tmp_path: Path) -> None:
    @at_desk(
        tmp_path, image_reply("AAAAA"), image_reply(picture()), config=CONFIG.model_copy(update={"prices": PRICES})
    )
    async def check(desk: Desk) -> None:
        await desk.image()
        assert desk.statuses == {"invalid": 1, "ok": 1}
        assert desk.journal.spent_usd() == pytest.approx(0.8)


def test_what_is_lost_stays_reserved_in_this_run_and_the_next(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"prices": PRICES})
    replies = (image_reply(picture()), httpx2.ReadTimeout("too slow"), image_reply(picture()))

    @at_desk(tmp_path, *replies, config=config, budget_usd=2.1)
    async def check(desk: Desk) -> None:
        await desk.image()
        await desk.image(PROMPT.model_copy(update={"id": "other"}))
        assert desk.statuses == {"ok": 2, "lost": 1}
        assert desk.journal.reserved_usd() == pytest.approx(0.6)

    @at_desk(tmp_path, config=config, budget_usd=2.1)
    async def check_again(desk: Desk) -> None:
        assert desk.ledger.left_usd == pytest.approx(2.1 - 0.8 - 0.6)
        await desk.image()  # from the journal
        desk.replies.append(image_reply(picture()))
        await desk.image(PROMPT.model_copy(update={"id": "third"}))
        with pytest.raises(EndOfBudget, match=r"1.2000 are spent and 0.6000 may have been"):
            await desk.image(PROMPT.model_copy(update={"id": "fourth"}))
        assert desk.num_requests == 1


def test_retry_after_is_obeyed(tmp_path: Path) -> None:
    slow = refusal(429)
    slow.headers["retry-after-ms"] = "150"

    @at_desk(tmp_path, slow, chat_reply('{"prompt": "a red circle"}'))
    async def check(desk: Desk) -> None:
        started = asyncio.get_running_loop().time()
        await desk.prompt()
        assert asyncio.get_running_loop().time() - started >= 0.15


def test_stopping_ends_a_wait(tmp_path: Path) -> None:
    slow = refusal(429)
    slow.headers["retry-after-ms"] = "60000"

    @at_desk(tmp_path, slow)
    async def check(desk: Desk) -> None:
        asyncio.get_running_loop().call_later(0.05, desk.stop.set)
        with pytest.raises(Unfinished, match="stopped"):
            await asyncio.wait_for(desk.prompt(), 5)


# --------------------------------------------------------------------------- workers


def test_jobs_are_drawn_when_a_worker_is_free() -> None:
    running = most_at_once = 0
    drawn: list[int] = []
    done: list[int] = []

    def jobs() -> Iterator[int]:
        for job in range(50):
            drawn.append(job)
            assert len(drawn) - len(done) <= 4
            yield job

    async def work(job: int) -> None:
        nonlocal running, most_at_once
        running += 1
        most_at_once = max(most_at_once, running)
        await asyncio.sleep(0)
        running -= 1
        done.append(job)

    asyncio.run(run_workers(jobs(), work, 4, asyncio.Event()))
    assert sorted(done) == list(range(50))
    assert most_at_once == 4


def test_a_fault_of_the_plan_lets_the_jobs_in_work_end() -> None:
    ended: list[int] = []

    def jobs() -> Iterator[int]:
        yield from range(4)
        raise OSError("the list of photographs broke off")

    async def work(job: int) -> None:
        await asyncio.sleep(0.01 * job)
        ended.append(job)

    with pytest.raises(OSError, match="broke off"):
        asyncio.run(run_workers(jobs(), work, 3, asyncio.Event()))
    assert sorted(ended) == [0, 1, 2, 3]


def test_stopping_ends_jobs_in_work_and_begins_no_other() -> None:
    begun: list[int] = []
    ended: list[int] = []

    async def main() -> None:
        stop = asyncio.Event()

        async def work(job: int) -> None:
            begun.append(job)
            if job == 5:
                stop.set()
            await asyncio.sleep(0.01)
            ended.append(job)

        await run_workers(range(100), work, 3, stop)

    asyncio.run(main())
    assert begun == ended
    assert len(begun) < 10


def test_journalled_request_holds_no_picture(tmp_path: Path) -> None:
    @at_desk(tmp_path, image_reply(picture()))
    async def check(desk: Desk) -> None:
        await desk.image()
        [(request, answer)] = desk.journal._connection.execute("SELECT request, answer FROM attempts").fetchall()
        body = {"model": CONFIG.image_model, "prompt": "a red circle", "n": 1, "size": "256x256"}
        assert json.loads(request) == {"route": "/images/generations", "body": body, "pictures": []}
        assert json.loads(answer)["data"] == []
