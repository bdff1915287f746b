# SPDX-License-Identifier: Apache-2.0
"""Questions of any kind to an endpoint: who hears what, and what an endpoint that breaks down leaves."""

from collections import Counter

import pytest
from loopback_judge import MODEL, LoopbackJudge
from starlette.responses import JSONResponse

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.asking import EndpointFault, Question, ask_all, endpoint_config
from sharegpt4o_image.synthesis.answers import InvalidAnswer
from sharegpt4o_image.synthesis.requests import CHAT, TeacherRequest


def word_of(answer):
    text = answer.body["choices"][0]["message"]["content"]
    if "no" in text:
        raise InvalidAnswer(f"it says {text}")
    return text


class Listener:
    def __init__(self):
        self.answers, self.refusals, self.unfinished = {}, {}, {}

    def question(self, text):
        body = {"model": MODEL, "messages": [{"role": "user", "content": [{"type": "text", "text": text}]}]}
        request = TeacherRequest(f"key of {text}", "judge", MODEL, CHAT, body, word_of)
        return Question(
            request,
            lambda product: self.answers.update({text: product}),
            lambda reason: self.refusals.update({text: reason}),
            lambda reason: self.unfinished.update({text: reason}),
        )


def ask(judge, folder, texts, **settings):
    listener = Listener()
    config = endpoint_config(judge.base_url, MODEL, **{"num_workers": 1, "max_asks": 2, **settings})
    try:
        asking = ask_all(lambda blobs: map(listener.question, texts), folder, config, "text")
    except UserError as error:
        return listener, str(error)
    return listener, asking


def echo(asked):
    return asked.text.split()[0]


def test_answers_refusals_and_what_is_left(tmp_path):
    def says(asked):
        if "blocked" in asked.text:
            return JSONResponse({"error": {"message": "unsafe", "code": "content_policy_violation"}}, 400)
        if "down" in asked.text:
            return JSONResponse({"error": {"message": "down"}}, 500)
        return echo(asked)

    with LoopbackJudge(says) as judge:
        texts = ["yes 1", "no 2", "blocked 3", "down 4", "yes 5"]
        listener, asking = ask(judge, tmp_path / "run", texts, max_attempts=2)
    assert listener.answers == {"yes 1": "yes", "yes 5": "yes"}
    assert listener.refusals.keys() == {"no 2", "blocked 3"}
    assert listener.refusals["no 2"] == "it says no (2 answers)"
    assert "unsafe" in listener.refusals["blocked 3"]
    assert listener.unfinished.keys() == {"down 4"}
    assert (asking.num_questions, asking.num_answered, asking.num_refused) == (5, 2, 2)
    assert sum(asking.unfinished.values()) == 1
    assert not asking.is_complete


def test_an_endpoint_that_breaks_down_refuses_nothing(tmp_path):
    with LoopbackJudge(lambda asked: "no" if asked.number > 2 else "yes") as judge:
        texts = ["a", "b", *(f"later {number}" for number in range(10))]
        listener, fault = ask(judge, tmp_path / "run", texts)
        assert "answers in a row were of no use" in fault
        assert listener.answers.keys() == {"a", "b"}
        assert listener.refusals == {}
        judge.says = lambda asked: "yes"
        listener, asking = ask(judge, tmp_path / "run", texts)
    assert len(listener.answers) == 12
    assert asking.is_complete


def test_the_last_refusals_are_told_at_the_end(tmp_path):
    with LoopbackJudge(echo) as judge:
        listener, asking = ask(judge, tmp_path / "run", ["yes 1", "no 2", "no 3"])
    assert listener.refusals.keys() == {"no 2", "no 3"}
    assert asking.is_complete


def test_an_endpoint_that_never_answers_is_an_error(tmp_path):
    with LoopbackJudge(lambda asked: "no") as judge:
        for _ in range(3):  # it never did, so it is not the questions that are at fault
            listener, fault = ask(judge, tmp_path / "run", ["a", "b", "c", "d"])
            assert "the teacher answers nothing on /chat/completions but: it says no" in fault
            assert listener.refusals == {}


def test_what_is_left_and_has_no_answer_is_refused_in_the_end(tmp_path):
    def says(asked):  # as servers do that count no tokens
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": echo(asked)}}
        return JSONResponse({"model": MODEL, "choices": [choice]})

    useless = [f"no {number}" for number in range(12)]
    faults = []
    with LoopbackJudge(says) as judge:
        listener, _ = ask(judge, tmp_path / "run", ["yes", *useless], max_asks=1)
        assert (listener.answers, listener.refusals) == ({"yes": "yes"}, {})
        for _ in range(3):  # without "yes", as a caller asks no more for what it knows
            listener, asking = ask(judge, tmp_path / "run", useless, max_asks=1)
            if not isinstance(asking, str):
                break
            faults.append(asking)
            assert listener.refusals == {}
    assert len(faults) <= 1
    assert asking.is_complete
    assert asking.num_questions == 12
    assert listener.refusals.keys() == set(useless)
    assert max(Counter(asked.text for asked in judge.asked).values()) <= 3


def test_what_was_given_up_is_not_refused_while_others_get_no_answer(tmp_path):
    texts = [f"later {number}" for number in range(20)]
    with LoopbackJudge(lambda asked: "yes" if asked.text == "yes" else "no") as judge:
        for _ in range(2):
            listener, fault = ask(judge, tmp_path / "run", ["yes", *texts], max_asks=1)
            assert "the run stopped" in fault
            assert listener.refusals == {}
        judge.says = lambda asked: "yes"
        listener, asking = ask(judge, tmp_path / "run", texts)
    assert asking.is_complete
    assert len(listener.answers) == 20


def test_only_useless_answers_are_the_endpoints_fault(tmp_path):
    config = endpoint_config("http://127.0.0.1:9/v1", MODEL)
    with pytest.raises(UserError) as stop:
        ask_all(lambda blobs: [Listener().question("a")], tmp_path / "run", config, "text")
    assert not isinstance(stop.value, EndpointFault)


@pytest.mark.parametrize("url", ["ftp://x", "http://user:pw@host/v1"])
def test_an_address_that_cannot_be_asked(url):
    with pytest.raises(UserError, match="base_url"):
        endpoint_config(url, MODEL)
