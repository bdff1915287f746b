# SPDX-License-Identifier: Apache-2.0
"""The question file of DPG-Bench is read as the official loader reads it, and its faults are named."""

import csv
from pathlib import Path

import pandas
import pytest

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation import dpg_questions
from sharegpt4o_image.evaluation.dpg_questions import (
    Item,
    Question,
    missing_parents,
    read_questions,
    repeated_questions,
)

DATA = Path(__file__).parents[1] / "data" / "evaluation" / "dpg"
HEADER = "item_id,text,proposition_id,dependency,tuple,question_natural_language"
GOOD = ["a,two cats,1,0,entity - whole (cat),Is there a cat?", 'a,two cats,2,"1, 0","other - count (cat, ==2)",Two?']


def write(folder, *rows, header=HEADER, encoding="utf-8"):
    path = folder / "questions.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding=encoding)
    return path


CATS = Item(
    "a",
    "two cats",
    (
        Question(1, (0,), "entity", "entity - whole", "Is there a cat?"),
        Question(2, (1, 0), "other", "other - count", "Two?"),
    ),
)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_rows_become_items(tmp_path, encoding):
    assert read_questions(write(tmp_path, *GOOD, encoding=encoding)) == [CATS]


def test_blank_lines_are_skipped_and_other_columns_ignored(tmp_path):
    path = write(tmp_path, "", *(f"{row},more" for row in GOOD), "", header=HEADER + ",keywords")
    assert read_questions(path) == [CATS]


@pytest.mark.parametrize(
    ("cell", "level_1", "level_2"),
    [
        ("entity - whole (cat)", "entity", "entity - whole"),
        ("global - (photo)", "global", "global -"),
        (" relation-non-spatial(a - b)", "relation", "relation-non-spatial"),
        ("global", "global", "global"),
    ],
)
def test_categories_come_from_the_tuple(tmp_path, cell, level_1, level_2):
    [item] = read_questions(write(tmp_path, f"a,t,1,0,{cell},Q?"))
    assert (item.questions[0].level_1, item.questions[0].level_2) == (level_1, level_2)


def test_dropping_the_first_row_leaves_a_child_without_its_parent(tmp_path):
    path = write(tmp_path, *GOOD)
    [item] = read_questions(path, first_row="drop")
    assert item.questions == CATS.questions[1:]
    assert missing_parents([item]) == {"a": "question 2 depends on 1, not in the question file"}
    assert missing_parents([CATS]) == {}
    assert read_questions(write(tmp_path, GOOD[0]), first_row="drop") == []


def test_a_first_row_that_no_one_can_read_is_skipped_where_the_official_loader_skips_it(tmp_path):
    path = write(tmp_path, "x,x,x,x,x,x", *GOOD)
    assert read_questions(path, first_row="drop") == [CATS]
    with pytest.raises(UserError, match="--first-row drop"):
        read_questions(path)


def test_a_number_of_thousands_of_digits_is_named(tmp_path):
    path = tmp_path / "q.csv"
    path.write_text(f"{','.join(dpg_questions.COLUMNS_READ)}\na,text,{'9' * 5000},0,global - (a),Q?\n")
    with pytest.raises(UserError, match="line 2, item 'a': `proposition_id` is '999"):
        read_questions(path)


def test_a_header_that_is_there_twice_is_no_question(tmp_path):
    path = write(tmp_path, HEADER, *GOOD)
    assert read_questions(path) == read_questions(path, first_row="drop") == [CATS]


def test_of_questions_with_one_number_the_last_counts_in_the_place_of_the_first(tmp_path):
    """As in the official loader, which fills a dict."""
    again = "a,two cats,1,0,other - text (x),Which cat?"
    [item] = read_questions(write(tmp_path, *GOOD, again))
    assert item.questions == (Question(1, (0,), "other", "other - text", "Which cat?"), CATS.questions[1])
    assert repeated_questions([item, CATS]) == {"a": "question 1 is there more than once; the last one counts"}


def test_numbers_that_pandas_wrote_as_floating_ones_are_read(tmp_path):
    floating = ["a,two cats,1.0,0.0,entity - whole (cat),Is there a cat?"]
    floating += ['a,two cats,2.0,"1.0, 0","other - count (cat, ==2)",Two?']
    assert read_questions(write(tmp_path, *floating)) == [CATS]


@pytest.mark.parametrize(
    "cell",
    ['Is "it" red?', '"Is ""it"" red?"', 'Is it "red"?', '"Is" "it" red?', '"Is it, "red"?', 'a "b', '""', "Ünicode"],
)
def test_quotes_are_read_as_pandas_reads_them(cell, tmp_path):
    path = write(tmp_path, f"a,t,1,0,entity (x),{cell}")
    try:
        expected = pandas.read_csv(path, keep_default_na=False).question_natural_language[0]
    except pandas.errors.ParserError:
        with pytest.raises(UserError, match="a quote is not closed"):
            read_questions(path)
    else:
        assert read_questions(path)[0].questions[0].text == expected


def test_the_conformance_file_is_read_whole():
    items = read_questions(DATA / "questions.csv")
    with (DATA / "questions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    flat = [(item.id, str(q.number), q.text) for item in items for q in item.questions]
    assert flat == [(row["item_id"], row["proposition_id"], row["question_natural_language"]) for row in rows]
    assert (len(items), len(flat)) == (40, 491)
    assert missing_parents(items) == {}
    assert items == read_questions(DATA / "questions_dummy_first_row.csv", first_row="drop")


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([], "there are no questions below the header"),
        (["a,t,one,0,entity (x),Q?"], "line 2, item 'a': `proposition_id` is 'one'"),
        (["a,t,1.5,0,entity (x),Q?"], "line 2, item 'a': `proposition_id` is '1.5'"),
        (["a,t,1,,entity (x),Q?"], "line 2, item 'a': `dependency` is ''"),
        ([GOOD[0], 'a,t,2,"1;0",entity (x),Q?'], "line 3, item 'a': `dependency` is '1;0'"),
        (["a,t,1,0,(x),Q?"], "line 2, item 'a': `tuple` names no category"),
        ([GOOD[0], "b,t,1,0,entity (x),Q?", GOOD[1]], "line 4, item 'a': the rows of this item are not in one block"),
        ([",t,1,0,entity (x),Q?"], "line 2: `item_id` is empty"),
        (["a,t,1,0,entity (x)"], "line 2 (item 'a'): has 5 fields, the header 6"),
        (["a,t,1,0,entity (x, y),Q?"], "line 2 (item 'a'): has 7 fields, the header 6"),
        (['a,"t', 'u",1,0,entity (x),Q?', "", "a,t,x,0,entity (x),Q?"], "line 5, item 'a': `proposition_id` is 'x'"),
        (['a,t,1,0,entity (x),"Q?'], "line 2: is not valid CSV (a quote is not closed)"),
        (["a,t,one,0,entity (x),Q?", *GOOD], "The official loader skips this row; --first-row drop does so, too"),
        (["a,t,1,0.5,entity (x),Q?"], "`dependency` is '0.5'"),
    ],
)
def test_faults_are_named_with_file_line_and_item(rows, sentence, tmp_path):
    path = write(tmp_path, *rows)
    with pytest.raises(UserError) as caught:
        read_questions(path)
    assert sentence in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("header", "sentence"),
    [
        ("item_id,text,proposition_id,dependency,question_natural_language", r"lacks the columns \['tuple'\]"),
        (HEADER + ",text", "a column is there twice"),
    ],
)
def test_a_wrong_header_is_named(header, sentence, tmp_path):
    with pytest.raises(UserError, match=sentence):
        read_questions(write(tmp_path, *GOOD, header=header))


def test_an_empty_file_lacks_every_column(tmp_path):
    (tmp_path / "questions.csv").write_text("")
    with pytest.raises(UserError, match="lacks the columns"):
        read_questions(tmp_path / "questions.csv")


def test_other_encodings_and_missing_files_are_named(tmp_path):
    with pytest.raises(UserError, match="is not UTF-8"):
        read_questions(write(tmp_path, "é,t,1,0,entity (x),Q?", encoding="latin-1"))
    with pytest.raises(UserError, match="cannot be read"):
        read_questions(tmp_path / "none.csv")
