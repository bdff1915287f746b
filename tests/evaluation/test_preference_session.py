# SPDX-License-Identifier: Apache-2.0
"""Each rater has an order of their own, the same after a restart; what was clicked is stored, once, and survives."""

import dataclasses
import json
import random
import resource
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from PIL import Image
from small_study import read_votes, write_study

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.preference_key import unseal
from sharegpt4o_image.evaluation.preference_pairs import StudyOptions, build_study, model_pairs
from sharegpt4o_image.evaluation.preference_prompts import Prompt, parse_models, read_prompts
from sharegpt4o_image.evaluation.preference_report import report
from sharegpt4o_image.evaluation.preference_session import (
    PreferenceSession,
    Ticket,
    check_rater,
    rater_order,
    read_study,
)
from sharegpt4o_image.evaluation.preference_votes import check_votes


@pytest.fixture
def study(tmp_path: Path) -> Path:
    write_study(tmp_path / "study")
    return tmp_path / "study"


@pytest.fixture
def session(study):
    session = PreferenceSession(read_study(study))
    yield session
    session.close()


# --------------------------------------------------------------------------- order and sides


@pytest.mark.parametrize("num_pairs", [1, 2, 7, 20])
@pytest.mark.parametrize("repeats", [0.0, 0.1, 0.5, 1.0])
def test_all_pairs_in_the_raters_order_with_balanced_sides(tmp_path, num_pairs, repeats):
    pairs = {pair["pair"] for pair in write_study(tmp_path / "study", num_pairs, repeats=repeats)}
    study = read_study(tmp_path / "study")
    for rater in ("ann", "bob", "cleo"):
        order = rater_order(study, rater)
        once, again = order[:num_pairs], order[num_pairs:]
        assert {showing.pair.name for showing in once} == pairs
        sides = {(showing.pair.block, showing.shown_left) for showing in once}
        num_left = sum(side == "first" for _, side in sides)
        assert len(sides) == (num_pairs + 1) // 2  # both pairs of a block alike
        assert num_left in (len(sides) // 2, (len(sides) + 1) // 2)
        assert len(again) == round(repeats * num_pairs)
        places = {showing.pair.name: place for place, showing in enumerate(once)}
        for place, repeat in enumerate(again, start=num_pairs):
            shown = once[places[repeat.pair.name]]
            assert (repeat.is_repeat, repeat.left, repeat.right) == (True, shown.right, shown.left)
            if repeats <= 0.5:
                assert place - places[repeat.pair.name] > num_pairs // 2


def test_raters_have_different_orders_and_sides(study):
    orders = [rater_order(read_study(study), f"rater {number}") for number in range(40)]
    assert len({tuple(showing.pair.name for showing in order) for order in orders}) == 40
    lefts = [{one.pair.name: one.shown_left for one in order if not one.is_repeat} for order in orders]
    num_first = [sum(left[name] == "first" for left in lefts) for name in lefts[0]]
    assert all(8 <= count <= 32 for count in num_first)  # 20 of 40 expected; p < 0.001 for all 20 together
    repeated = {one.pair.name for order in orders for one in order if one.is_repeat}
    assert len(repeated) > 15


def test_the_order_stays_as_it_was(study):
    """Whoever is half-way would get other repeats, and sides that are not balanced."""
    study = read_study(study)
    numbers = {pair.name: number for number, pair in enumerate(study.pairs)}
    order = rater_order(study, "ann")
    assert [numbers[showing.pair.name] for showing in order] == [
        19,
        10,
        1,
        8,
        18,
        15,
        14,
        9,
        5,
        6,
        12,
        3,
        2,
        13,
        7,
        16,
        17,
        11,
        0,
        4,
        8,
        18,
    ]
    assert "".join(showing.shown_left[0] for showing in order) == "sffsssssfsffffsssfffff"


def test_an_answer_names_the_picture_that_stood_there(study):
    for showing in rater_order(read_study(study), "ann"):
        for answer, picture in (("left", showing.left), ("right", showing.right)):
            winner = showing.winner(answer)
            assert getattr(showing.pair, winner) == picture
            assert showing.answer(winner) == answer
        assert showing.winner("tie") == showing.answer("tie") == "tie"


# --------------------------------------------------------------------------- votes


def test_a_vote_is_a_line(study, session):
    ticket = session.enter("  Ann \t Smith ")
    showing = session.showing(ticket)
    later = session.vote(ticket, "right")
    [vote] = read_votes(study)
    assert vote.pop("at")[:2] == "20"
    assert 0 <= vote.pop("seconds") < 5
    assert vote == {
        "pair": showing.pair.name,
        "rater": "Ann Smith",
        "winner": "second" if showing.shown_left == "first" else "first",
        "shown_left": showing.shown_left,
        "is_repeat": False,
    }
    assert (later.position, later.answer) == (1, None)


def test_a_vote_sent_again_is_stored_once(study, session):
    ticket = session.enter("ann")
    assert session.vote(ticket, "left") == session.vote(ticket, "left") == session.vote(ticket, "right")
    other_window = session.enter("ann")
    session.vote(session.enter("ann"), "tie")
    assert session.vote(other_window, "left").position == 2
    assert [vote["winner"] for vote in read_votes(study)][1:] == ["tie"]
    assert len(read_votes(study)) == 2


def test_the_last_vote_can_be_changed(study, session):
    first = session.enter("ann")
    second = session.vote(first, "left")
    again = session.back(second)
    assert again == dataclasses.replace(first, answer="left")
    assert session.enter("ann") == second  # who goes back and leaves has not lost the vote
    assert session.vote(again, "tie") == second
    assert session.vote(again, "right") == second  # the page is older than the change
    assert session.vote(session.back(second), "tie") == second  # the same answer is no other vote
    assert [vote["winner"] for vote in read_votes(study)] == [session.showing(first).winner("left"), "tie"]
    assert session.back(first) == dataclasses.replace(first, answer="tie")


def test_all_the_way_and_back_from_the_end(study, session):
    ticket = session.enter("ann")
    for place in range(session.num_showings()):
        assert ticket.position == place
        ticket = session.vote(ticket, ("left", "tie", "right")[place % 3])
    assert session.num_showings() == 22
    assert (session.showing(ticket), ticket.pair) == (None, None)
    assert session.back(ticket).position == 21
    assert session.enter("ann") == ticket
    with pytest.raises(UserError, match="reload"):
        session.vote(ticket, "left")
    assert len(read_votes(study)) == session.num_votes == 22


@pytest.mark.parametrize(
    "update",
    [
        {"position": "0"},
        {"position": True},
        {"position": 1},
        {"position": 10**9},
        {"pair": "0123"},
        {"answer": ["left"]},
        {"rater": 3},
        {"more": 1},
    ],
)
def test_a_ticket_of_another_page_is_refused(study, session, update):
    sent = json.dumps(json.loads(session.enter("ann").to_json()) | update)
    with pytest.raises(UserError, match="reload"):
        session.vote(Ticket.from_json(sent), "left")
    for text in ("", "[]", "3", "{}", "null"):
        with pytest.raises(UserError, match="reload"):
            Ticket.from_json(text)
    assert read_votes(study) == []


@pytest.mark.parametrize("answer", ["both_bad", "first", "", "Left"])
def test_an_answer_that_is_not_offered_is_refused(study, session, answer):
    with pytest.raises(UserError, match="reload"):
        session.vote(session.enter("ann"), answer)
    assert read_votes(study) == []


def test_both_bad_where_the_study_allows_it(tmp_path):
    write_study(tmp_path, 2, allows_both_bad=True)
    session = PreferenceSession(read_study(tmp_path))
    ticket = session.vote(session.enter("ann"), "both_bad")
    assert session.back(ticket).answer == "both_bad"
    session.close()
    assert read_votes(tmp_path)[0]["winner"] == "both_bad"


@pytest.mark.parametrize("name", ["", " \t", "x" * 65, "a\x00b", "a\u200bb", "\u202eann", "\ud800", "a\x1b[31m"])
def test_a_name_that_is_none(name):
    with pytest.raises(UserError, match="1 to 64"):
        check_rater(name)


@pytest.mark.parametrize("name", ["Ann", "x" * 64, "../../key.json", "Zoë 李", '"<b>', "=1+1"])
def test_a_name_is_only_ever_text(study, session, name):
    before = sorted(path.name for path in study.rglob("*"))
    session.vote(session.enter(name), "left")
    assert read_votes(study)[0]["rater"] == name
    assert sorted(path.name for path in study.rglob("*")) == before


def test_raters_at_once_in_many_threads(study, session):
    def rate(number: int) -> None:
        """Two windows of each of eight raters."""
        rng = random.Random(number)
        ticket = session.enter(f"rater {number % 8}")
        while session.showing(ticket) is not None:
            ticket = session.vote(ticket, rng.choice(("left", "tie", "right")))

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(rate, range(16)))
    votes = read_votes(study)
    places = {(vote["rater"], vote["pair"], vote["is_repeat"]) for vote in votes}
    assert len(votes) == len(places) == 8 * 22


@pytest.mark.parametrize("again", ["ann smith", "ANN  Smith ", "Ann Smith"])
def test_names_that_differ_in_case_and_blanks_are_one_rater(study, session, again):
    later = session.vote(session.enter("Ann Smith"), "left")
    assert session.enter(again) == later


def test_a_name_in_another_case_goes_on_after_a_restart(study):
    with _opened(study) as session:
        later = session.vote(session.enter("Ann"), "left")
    with _opened(study) as session:
        assert session.enter("ANN") == later


def test_composed_and_decomposed_letters_are_one_name():
    assert check_rater("Zoe\u0308") == check_rater("Zo\u00eb") == "Zo\u00eb"


def test_a_vote_is_refused_where_the_file_of_votes_was_replaced(study, session):
    ticket = session.vote(session.enter("ann"), "left")
    path = study / "votes.jsonl"
    path.rename(study / "moved")
    for replaced in (False, True):
        if replaced:
            path.write_bytes((study / "moved").read_bytes())  # as an editor does that saves
        with pytest.raises(UserError, match="could not be stored"):
            session.vote(ticket, "left")
    (study / "moved").replace(path)
    session.vote(ticket, "left")
    assert len(read_votes(study)) == 2


# --------------------------------------------------------------------------- restarts


def _opened(study: Path) -> closing:
    return closing(PreferenceSession(read_study(study)))


def test_a_restart_goes_on(study):
    with _opened(study) as session:
        expected = session.vote(session.vote(session.enter("ann"), "left"), "right")
    with _opened(study) as session:
        assert session.enter("ann") == expected
        assert session.enter("bob").position == 0
        assert session.vote(expected, "tie").position == 3  # of a page that was open all the time
        assert session.num_votes == 3
    assert [vote["seconds"] is None for vote in read_votes(study)] == [False, False, False]


@pytest.mark.parametrize("cut", [1, 2, 30])
def test_a_line_that_was_being_written_is_taken_off(study, cut):
    with _opened(study) as session:
        session.vote(session.vote(session.enter("ann"), "left"), "right")
    path = study / "votes.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    with _opened(study) as session:
        assert session.enter("ann").position == (2 if cut == 1 else 1)  # without its line feed, a vote is a vote
        session.vote(session.enter("ann"), "tie")
    assert len(read_votes(study)) == (3 if cut == 1 else 2)
    assert path.read_bytes().startswith(whole[: whole.index(b"\n") + 1])


def test_one_server_a_study(study):
    with _opened(study), pytest.raises(UserError, match="another process is serving"):
        PreferenceSession(read_study(study))
    with _opened(study):
        pass


def test_damaged_votes_are_named_and_left_alone(study):
    path = study / "votes.jsonl"
    path.write_text('{"pair": "x"}\n{}\n')
    for _ in range(2):  # the lock is given back
        with pytest.raises(UserError, match="line 1, is no vote"):
            PreferenceSession(read_study(study))
    assert path.read_text() == '{"pair": "x"}\n{}\n'


def test_votes_that_cannot_be_opened(study):
    (study / "votes.jsonl").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*votes\.jsonl: Is a directory"):
        PreferenceSession(read_study(study))


def test_a_full_disk_stores_no_part_of_a_vote(study, session):
    ticket = session.vote(session.enter("ann"), "left")
    size = (study / "votes.jsonl").stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 40, limits[1]))
    try:
        with pytest.raises(UserError, match="could not be stored"):
            session.vote(ticket, "right")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (study / "votes.jsonl").stat().st_size == size
    assert session.enter("ann") == ticket
    assert session.vote(ticket, "right").position == 2
    assert len(read_votes(study)) == 2


# --------------------------------------------------------------------------- studies


def test_the_key_is_not_needed(study):
    (study / "key.json").unlink()
    with _opened(study) as session:
        session.vote(session.enter("ann"), "left")


@pytest.mark.parametrize(
    ("name", "old", "new", "named"),
    [
        ("study.json", '"format": 1', '"format": 2', "its format is 2"),
        ("study.json", '"num_pairs": 20', '"num_pairs": 21', "20 of 21 pairs"),
        ("study.json", '"criteria"', '"crit"', "criteria"),
        ("study.json", "{", "[", "Expecting"),
        ("pairs.jsonl", '"first": "', '"first": "../key.json', "is no name of a picture"),
        ("pairs.jsonl", '"first": "', '"first": "0000', "No such file"),
        ("pairs.jsonl", '"prompt"', '"text"', "prompt"),
    ],
)
def test_a_study_that_is_none(study, name, old, new, named):
    text = (study / name).read_text()
    (study / name).write_text(text.replace(old, new, 1))
    with pytest.raises(UserError, match=f"is no finished study .*{named}"):
        read_study(study)


def test_a_folder_without_study(tmp_path):
    with pytest.raises(UserError, match="preference build"):
        read_study(tmp_path)


def test_a_damaged_picture_is_named(study):
    picture = next((study / "pictures").iterdir())
    picture.write_bytes(b"no picture")
    with pytest.raises(UserError, match=picture.name):
        read_study(study)


def test_votes_find_their_models(tmp_path):
    """Raters who always prefer the red model's picture, wherever it stands, are read as such once unsealed."""
    for model, colour in (("red-model", (200, 0, 0)), ("blue-model", (0, 0, 200))):
        (tmp_path / model).mkdir()
        for number in range(9):
            Image.new("RGB", (32, 32), colour).save(tmp_path / model / f"p{number}.png")
    rows = [{"prompt_id": f"p{number}", "prompt": f"prompt {number}"} for number in range(9)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    models = parse_models([f"{name}={tmp_path / name}" for name in ("red-model", "blue-model")])
    prompts = read_prompts(tmp_path / "prompts.jsonl")
    study = tmp_path / "study"
    build_study(study, prompts, models, model_pairs(list(models), []), StudyOptions(height=32, repeats=0.3))
    with _opened(study) as session:
        for rater in ("ann", "bob"):
            ticket = session.enter(rater)
            while (showing := session.showing(ticket)) is not None:
                with Image.open(study / "pictures" / showing.left.name) as left:
                    ticket = session.vote(ticket, "left" if left.getpixel((0, 0))[0] > 100 else "right")
    unsealed = unseal(study)
    assert len(unsealed.rows) == 2 * (9 + 3)
    assert {row[row["winner"]] for row in unsealed.rows} == {"red-model"}
    assert len({row["winner"] for row in unsealed.rows}) == 2
    assert sum(row["is_repeat"] == "true" for row in unsealed.rows) == 6


def test_each_rater_sees_each_model_on_the_left_in_half_of_its_pairs(tmp_path):
    """So one who always takes the left picture makes no model win: for every rater by themselves, exactly."""
    folders = {}
    for number, model in enumerate(("one", "two", "three")):
        folders[model] = tmp_path / model
        folders[model].mkdir()
        for prompt in range(8):
            Image.new("RGB", (8, 8), (80 * number, prompt, 0)).save(folders[model] / f"{prompt}.png")
    prompts = [Prompt(str(number), f"prompt {number}") for number in range(8)]
    study = tmp_path / "study"
    build_study(
        study, prompts, folders, model_pairs(list(folders), []), StudyOptions(height=16, num_checks=2, repeats=0)
    )
    raters = [f"rater {number}" for number in range(6)]
    with _opened(study) as session:
        for rater in raters:
            ticket = session.enter(rater)
            while session.showing(ticket) is not None:
                ticket = session.vote(ticket, "left")
    unsealed = unseal(study)
    votes = check_votes(list(enumerate(unsealed.rows, start=1)), "votes")
    for rater in raters:
        numbers = report([vote for vote in votes if vote.rater == rater])
        assert {(pair["win"], pair["tie"], pair["loss"]) for pair in numbers["pairs"].values()} == {(4, 0, 4)}
        assert numbers["bradley_terry"]["ratings"] == pytest.approx([1000] * 3)
        assert numbers["side_bias_left"]["share"] == 1
        assert unsealed.checks[rater] == (1, 2)
    assert len({tuple(vote.model_a for vote in votes if vote.rater == rater) for rater in raters}) == 6
