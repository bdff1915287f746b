# SPDX-License-Identifier: Apache-2.0
"""Votes are read with their sides, and what is wrong with a file is said with line and field."""

import json

import pytest

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.preference_votes import Vote, first_votes, read_votes, second_votes

HEAD = "prompt_id,rater,model_a,model_b,winner"


def write(folder, *lines, head=HEAD, name="votes.csv"):
    path = folder / name
    path.write_text("\n".join([head, *lines]) + "\n", encoding="utf-8")
    return path


def test_csv_and_jsonl_give_the_same_votes(tmp_path):
    table = write(tmp_path, "1,r,x,y,model_a,yes,2026", "2,r,y,x,both_bad,,", head=HEAD + ",is_repeat,created_at")
    # The first line is a repeat of the third, whatever their order in the file.
    table.write_text(table.read_text() + "1,r,y,x,tie,false,2026\n")
    rows = [
        {"prompt_id": 1, "rater": "r", "model_a": "x", "model_b": "y", "winner": "model_a", "is_repeat": True},
        {"prompt_id": "2", "rater": "r", "model_a": "y", "model_b": "x", "winner": "both_bad"},
        {"prompt_id": "1", "rater": "r", "model_a": "y", "model_b": "x", "winner": "tie", "is_repeat": False},
    ]
    lines = tmp_path / "votes.jsonl"
    lines.write_text("\n" + "\n".join(map(json.dumps, rows)))
    expected = [
        Vote("1", "r", "x", "y", "model_a", True, 2),
        Vote("2", "r", "y", "x", "both_bad", False, 3),
        Vote("1", "r", "y", "x", "tie", False, 4),
    ]
    assert read_votes(table) == read_votes(lines) == expected
    assert first_votes(expected) == {("r", vote.item): vote for vote in expected[1:]}


@pytest.mark.parametrize(
    ("winner", "left", "undone"), [("model_a", 1, 0), ("model_b", 0, 1), ("tie", 0.5, 0.5), ("both_bad", 0.5, 0.5)]
)
def test_sides_are_undone(winner, left, undone):
    vote = Vote("1", "r", "y", "x", winner)  # the first model by name stands on the right
    assert vote.pair == ("x", "y")
    assert (vote.left_score, vote.score) == (left, undone)
    assert Vote("1", "r", "x", "y", winner).score == left


@pytest.mark.parametrize(
    ("spelling", "winner"),
    [("tie (bothbad)", "both_bad"), ("bothbad", "both_bad"), ("Tie", "tie"), ("Model_A", "model_a")],
)
def test_winners_are_read_in_the_spellings_of_lmarena(tmp_path, spelling, winner):
    assert read_votes(write(tmp_path, f"1,r,x,y,{spelling}"))[0].winner == winner


def test_byte_order_mark_and_blanks_around_values(tmp_path):
    path = tmp_path / "votes.csv"
    path.write_bytes(b"\xef\xbb\xbf" + HEAD.encode() + b"\r\n1, r ,x,y, tie\r\n")
    assert read_votes(path) == [Vote("1", "r", "x", "y", "tie", line=2)]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ["1,r,x,y,model_a", "2,r,x,y,left"],
            "line 3: winner is 'left'; it is one of model_a, model_b, tie, both_bad",
        ),
        (["1,,x,y,tie"], "line 2: rater is empty"),
        (["1,r,x,NaN,tie"], "line 2: model_b is 'NaN'"),
        (["1,r,x,x,tie"], "line 2: model_a and model_b are both 'x'"),
        (["1,r,x,y"], "line 2: winner is empty"),
        (["1,r,x,y,tie,more"], "line 2: more values than columns"),
        (['1,r,x,"y,tie'], "not readable as CSV"),
        ([], "has no votes"),
    ],
)
def test_faults_of_a_csv_are_named(tmp_path, lines, message):
    with pytest.raises(UserError, match=r"votes\.csv") as error:
        read_votes(write(tmp_path, *lines))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt_id": NaN, "rater": "r", "model_a": "x", "model_b": "y", "winner": "tie"}', "prompt_id is nan"),
        ('{"prompt_id": 1, "rater": null, "model_a": "x", "model_b": "y", "winner": "tie"}', "rater is empty"),
        ('{"prompt_id": 1, "rater": "r", "model_a": ["x"], "model_b": "y", "winner": "tie"}', "model_a is ['x']"),
        ('{"prompt_id": 1', "no JSON"),
        ("[1]", "no JSON object"),
    ],
)
def test_faults_of_a_jsonl_are_named(tmp_path, line, message):
    good = '{"prompt_id": 0, "rater": "r", "model_a": "x", "model_b": "y", "winner": "tie"}'
    path = write(tmp_path, line, head=good, name="votes.jsonl")
    with pytest.raises(UserError) as error:
        read_votes(path)
    assert f"{path}, line 2: {message}" in str(error.value)


def test_a_missing_column_a_missing_file_another_format_and_other_bytes_are_named(tmp_path):
    with pytest.raises(UserError, match="line 1: no column winner"):
        read_votes(write(tmp_path, "1,r,x,y", head="prompt_id,rater,model_a,model_b"))
    with pytest.raises(UserError, match="No such file"):
        read_votes(tmp_path / "none.csv")
    with pytest.raises(UserError, match=r"neither a \.csv nor a \.jsonl"):
        read_votes(tmp_path / "votes.xlsx")
    (tmp_path / "latin.csv").write_bytes(HEAD.encode() + b"\n1,r\xe9,x,y,tie\n")
    with pytest.raises(UserError, match="not UTF-8"):
        read_votes(tmp_path / "latin.csv")


def test_a_second_vote_without_a_mark_is_an_error_where_marks_are_kept(tmp_path):
    twice = ["1,r,x,y,tie,", "1,s,x,y,tie,", "2,r,x,y,tie,", "1,r,y,x,model_a,"]  # sides swapped: the same item
    path = write(tmp_path, *twice, head=HEAD + ",is_repeat")
    with pytest.raises(UserError, match=r"line 5: prompt 1, x against y, rater r was voted on in line 2 already"):
        read_votes(path)
    path = write(tmp_path, *(line[:-1] for line in twice))
    assert [vote.line for vote in second_votes(read_votes(path))] == [5]


def test_marks_are_checked(tmp_path):
    with pytest.raises(UserError, match="line 2: is_repeat is set, but prompt 1, x against y, rater r has no first"):
        read_votes(write(tmp_path, "1,r,x,y,tie,true", head=HEAD + ",is_repeat"))
    row = {"prompt_id": 1, "rater": "r", "model_a": "x", "model_b": "y", "winner": "tie"}
    for value in ({}, [], {"a": 1}, 2):
        (tmp_path / "marks.jsonl").write_text(json.dumps(row | {"is_repeat": value}) + "\n")
        with pytest.raises(UserError) as error:
            read_votes(tmp_path / "marks.jsonl")
        assert f"line 1: is_repeat is {value!r}; it is true or false" in str(error.value)
    for value in (None, False, 0, 0.0, "no", ""):
        (tmp_path / "marks.jsonl").write_text(json.dumps(row | {"is_repeat": value}) + "\n")
        assert not read_votes(tmp_path / "marks.jsonl")[0].is_repeat
    with pytest.raises(UserError, match="line 2: is_repeat is 'maybe'"):
        read_votes(write(tmp_path, "1,r,x,y,tie,maybe", head=HEAD + ",is_repeat"))
