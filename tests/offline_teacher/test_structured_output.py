# SPDX-License-Identifier: Apache-2.0
"""Any JSON schema is answered with JSON that fits, or refused."""

import json
import random
from typing import Any

import httpx2
import openai
import pytest
from teacher_client import ask, refusal

from sharegpt4o_image.offline_teacher.protocol import CHAT_MODEL, ApiError
from sharegpt4o_image.offline_teacher.structured_output import MAX_LEVELS, MAX_PARTS, shape_answer
from sharegpt4o_image.offline_teacher.writing import WrittenText

WRITTEN = WrittenText("an orange cross", {"prompt": "an orange cross", "score": 7})


def shape(schema: Any) -> Any:
    return json.loads(shape_answer(WRITTEN, schema))


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({}, "an orange cross"),
        ({"type": ["null", "integer"]}, 1),
        ({"type": ["null"]}, None),
        ({"type": "array", "items": {"type": "boolean"}}, [True]),
        ({"type": "array"}, ["an orange cross"]),
        ({"type": "object"}, {}),
        ({"properties": {"prompt": {"type": "string"}, "score": {"type": "integer"}}}, WRITTEN.fields),
        ({"anyOf": [{"type": "null"}, {"type": "string"}]}, None),
        ({"anyOf": []}, "an orange cross"),
        ({"enum": ["blue", "orange", 3]}, "orange"),
        ({"enum": [3, None]}, 3),
        ({"const": {"a": [1]}}, {"a": [1]}),
        ({"$ref": "#/$defs/a/b", "$defs": {"a": {"b": {"const": 5}}}}, 5),
    ],
)
def test_value_fits_the_schema(schema: Any, value: Any) -> None:
    assert shape(schema) == value


def chain(length: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(length):
        schema = {"type": "array", "items": schema}
    return schema


def doubling(length: int) -> dict[str, Any]:
    """A schema that is not recursive, but whose answer has 2^length parts."""
    names = [f"#/$defs/{i}" for i in range(length)]
    defs = {
        str(i): {"properties": {"left": {"$ref": names[i + 1]}, "right": {"$ref": names[i + 1]}}}
        for i in range(length - 1)
    }
    return {"$ref": names[0], "$defs": {**defs, str(length - 1): {"type": "string"}}}


@pytest.mark.parametrize(
    "schema",
    [
        {"anyOf": [3]},
        {"anyOf": 3},
        {"type": 3},
        {"type": "text"},
        {"type": []},
        {"type": [3]},
        {"type": [["string"]]},
        {"type": {"a": 1}},
        {"properties": [1]},
        {"properties": {"a": 1}},
        {"properties": {"a": True}},
        {"type": "array", "items": [{}]},
        {"enum": "orange"},
        {"$ref": 3},
        {"$ref": "https://example.com"},
        {"$ref": "#/$defs/a"},
        {"$ref": "#/$defs/a", "$defs": [1]},
        {"$ref": "#"},
        {"type": "array", "items": {"$ref": "#"}},
        {"$ref": "#/$defs/a", "$defs": {"a": {"properties": {"x": {"$ref": "#/$defs/a"}}}}},
        chain(MAX_LEVELS + 1),
        doubling(16),
    ],
)
def test_schema_that_cannot_be_filled_is_refused(schema: Any) -> None:
    with pytest.raises(ApiError) as caught:
        shape(schema)
    assert (caught.value.status, caught.value.code) == (400, "invalid_json_schema")


def test_bounds_are_where_they_are_said_to_be() -> None:
    assert shape(chain(MAX_LEVELS))
    parts = {str(i): {"type": "integer"} for i in range(MAX_PARTS)}
    with pytest.raises(ApiError):
        shape({"properties": parts})
    del parts["0"]
    assert len(shape({"properties": parts})) == MAX_PARTS - 1


@pytest.mark.parametrize("json_schema", [7, "x", [], [{}], None, {"schema": 7}, {"schema": [1]}, {"schema": None}])
def test_response_format_without_a_schema(json_schema: Any) -> None:
    body = {
        "model": CHAT_MODEL,
        "messages": [{"role": "user", "content": "hi"}],
        "response_format": {"type": "json_schema", "json_schema": json_schema},
    }
    error = refusal(lambda client: client.post("/chat/completions", cast_to=httpx2.Response, body=body))
    assert (error.status_code, error.param) == (400, "response_format.json_schema.schema")


# --------------------------------------------------------------------------- fuzz

KEYS = ("type", "properties", "items", "anyOf", "enum", "const", "$ref", "$defs", "required", "x")
ATOMS = (
    None, True, 0, 1.5, -7, "", "string", "object", "array", "null", "integer", "text", "#", "#/$defs/x",
    "#/properties/x", "#/anyOf/0", "\ud800", "é",
)  # fmt: skip


def random_json(rng: random.Random, depth: int) -> Any:
    kind = rng.random() if depth else 0.0
    if kind < 0.3:
        return rng.choice(ATOMS)
    size = rng.randint(0, 3)
    if kind < 0.5:
        return [random_json(rng, depth - 1) for _ in range(size)]
    return {rng.choice(KEYS): random_json(rng, depth - 1) for _ in range(size)}


def random_format(rng: random.Random) -> Any:
    if rng.random() < 0.1:
        return random_json(rng, 3)
    return {"type": "json_schema", "json_schema": {"schema": random_json(rng, 5)}}


def test_random_schemas_never_break_the_teacher() -> None:
    rng = random.Random(0)

    async def talk(client: openai.AsyncOpenAI) -> set[tuple[int, Any]]:
        outcomes: set[tuple[int, Any]] = set()
        for _ in range(400):
            messages = [{"role": "user", "content": "hi"}]
            body = {"model": CHAT_MODEL, "messages": messages, "response_format": random_format(rng)}
            content = json.dumps(body).encode()
            try:
                answer = await client.post("/chat/completions", cast_to=httpx2.Response, content=content)
                text = answer.json()["choices"][0]["message"]["content"]
                if body["response_format"]:
                    json.loads(text)
                outcomes.add((200, None))
            except openai.APIStatusError as error:
                outcomes.add((error.status_code, error.type))
        return outcomes

    assert ask(talk) == {(200, None), (400, "invalid_request_error")}
