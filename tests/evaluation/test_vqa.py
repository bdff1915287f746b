# SPDX-License-Identifier: Apache-2.0
"""The three VQA implementations: a tiny model with random weights, real processes, an endpoint over real HTTP."""

import json
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
import uvicorn
from PIL import Image
from starlette.requests import Request
from starlette.responses import JSONResponse
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation import mplug_worker
from sharegpt4o_image.evaluation.vqa import VqaAnswer, VqaQuestion, yes_or_no
from sharegpt4o_image.evaluation.vqa_endpoint import EndpointSettings, VqaEndpoint
from sharegpt4o_image.evaluation.vqa_transformers import TransformersVqa, spelling_ids
from sharegpt4o_image.evaluation.vqa_worker import VqaWorker
from sharegpt4o_image.synthesis.config import Price

TEXTS = ("Is there a cat?", "Is the <image></s> red?", "Are there two dogs " * 6, "Two?", "Is it a photo?")


def make_questions(texts=TEXTS, num_pictures=1):
    crops = [Image.new("RGB", (40, 40), (90 * index, 200 - 40 * index, 30)) for index in range(num_pictures)]
    return [
        VqaQuestion(f"key-{picture}-{number}", "item", picture, number, crop, text)
        for picture, crop in enumerate(crops, start=1)
        for number, text in enumerate(texts, start=1)
    ]


def answers_of(vqa, questions):
    """key -> answer, and what is left."""
    kept = {}
    left = vqa.answer(iter(questions), lambda question, answer: kept.update({question.key: answer}))
    return kept, left


@pytest.mark.parametrize(
    ("text", "word"),
    [("yes", "yes"), ("Yes, there is.", "yes"), ("NO.", "no"), (' "No"', "no"), ("**Yes**", "yes")]
    + [(text, None) for text in ("", "Oui", "nothing", "yesterday", "I think yes", "not really")],
)
def test_a_text_that_begins_with_the_word_is_the_word(text, word):
    assert yes_or_no(text) == word


# ------------------------------------------------------------------ a model in this process


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    """A LLaVA of two layers with random weights; its tokenizer has yes and no in most spellings."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<image>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(["yes no Yes No Answer yes or no."] * 20, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    layers = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(image_size=32, patch_size=8, projection_dim=16, **layers),
            text_config=LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=2, **layers),
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.5)
    template = (
        "{% for m in messages %}USER: {% for c in m['content'] %}{% if c['type'] == 'image' %}<image>"
        "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %} ASSISTANT:"
    )
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )
    folder = tmp_path_factory.mktemp("vqa") / "tiny-llava"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder, model.eval(), processor


def test_the_likelier_word_of_the_first_position_is_the_answer(tiny_model):
    """Against the model's own logits, one question at a time, its spellings looked up by hand."""
    folder, model, processor = tiny_model
    questions = make_questions(num_pictures=3)
    kept, left = answers_of(TransformersVqa(str(folder), "cpu", batch_size=4), questions)
    assert (left.reasons, left.stopped) == ({}, None)
    ids = {word: set() for word in ("yes", "no")}
    for word, spelling in [(w, p + s) for w in ids for s in (w, w.capitalize(), w.upper()) for p in ("", " ")]:
        tokens = processor.tokenizer(spelling)["input_ids"]
        if len(tokens) == 1:
            ids[word].add(tokens[0])
    assert min(map(len, ids.values())) >= 3
    for question in questions:
        if "<image>" in question.text:
            continue
        text = f"USER: <image>{question.text} Answer yes or no. ASSISTANT:"
        inputs = processor(text=text, images=question.crop, return_tensors="pt")
        logits = model(**inputs).logits[0, -1].detach().double().softmax(dim=0)
        yes, no = (float(logits[list(ids[word])].sum()) for word in ("yes", "no"))
        answer = kept[question.key]
        assert answer.details["p_yes"] == pytest.approx(yes / (yes + no), abs=1e-5)
        assert answer.text == ("yes" if yes > no else "no")
        assert answer.raw == processor.tokenizer.decode(int(logits.argmax()))
        assert answer.model == "tiny-llava"
    assert {answer.text for answer in kept.values()} == {"yes", "no"}


def test_special_tokens_of_a_question_are_text(tiny_model):
    folder, model, processor = tiny_model
    kept, _ = answers_of(TransformersVqa(str(folder), "cpu"), make_questions(("Is <image> red?", "Is <s> red?</s>")))
    assert len(kept) == 2
    text = "USER: <image>Is <s> red?</s> Answer yes or no. ASSISTANT:"
    inputs = processor(text=text, images=make_questions()[0].crop, return_tensors="pt")
    logits = model(**inputs).logits[0, -1].detach()
    yes, no = (logits[spelling_ids(processor.tokenizer, word)].exp().sum() for word in ("yes", "no"))
    assert abs(kept["key-1-2"].details["p_yes"] - float(yes / (yes + no))) > 1e-3


def test_two_folders_with_other_weights_have_other_identities(tiny_model, tmp_path):
    folder, _, processor = tiny_model
    torch.manual_seed(1)
    other = LlavaForConditionalGeneration(LlavaForConditionalGeneration.from_pretrained(folder).config)
    other.save_pretrained(tmp_path / "tiny-llava")
    processor.save_pretrained(tmp_path / "tiny-llava")
    identities = [TransformersVqa(str(path), "cpu").identity for path in (folder, folder, tmp_path / "tiny-llava")]
    assert identities[0] == identities[1] != identities[2]
    assert str(folder) not in json.dumps(identities)


def test_models_that_cannot_answer_are_refused(tiny_model, tmp_path):
    with pytest.raises(UserError, match=r"the VQA model .*nowhere cannot be loaded; give --vqa"):
        TransformersVqa(str(tmp_path / "nowhere"), "cpu")
    folder = shutil.copytree(tiny_model[0], tmp_path / "llava")
    (folder / "model.safetensors").write_bytes(b"no weights at all")
    vqa = TransformersVqa(str(folder), "cpu")
    with pytest.raises(UserError, match="llava cannot be loaded; give --vqa"):
        vqa.answer(make_questions(), lambda question, answer: None)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="it has no chat template"):  # before anything is drawn
        TransformersVqa(str(folder), "cpu")
    for path in folder.glob("*processor_config.json"):
        path.unlink()
    with pytest.raises(UserError, match="llava cannot be loaded; give --vqa"):
        TransformersVqa(str(folder), "cpu")


def test_a_missing_torchvision_is_said_with_its_remedy(tiny_model, monkeypatch):
    fault = ImportError("Qwen2VLVideoProcessor requires the Torchvision library but it was not found")
    monkeypatch.setattr("transformers.AutoProcessor.from_pretrained", Mock(side_effect=fault))
    with pytest.raises(UserError, match=r"cannot be loaded; its processor needs torchvision: pip install torchvision"):
        TransformersVqa(str(tiny_model[0]), "cpu")


def test_a_tokenizer_without_the_word_is_refused(tiny_model):
    tokenizer = tiny_model[2].tokenizer
    assert len(spelling_ids(tokenizer, "yes")) >= 3
    bytes_only = Tokenizer(models.BPE())
    with pytest.raises(UserError, match="no single token for 'yes'"):
        spelling_ids(PreTrainedTokenizerFast(tokenizer_object=bytes_only), "yes")


# ------------------------------------------------------------------ worker processes

WORKER = """
    import json, os, sys, time
    from pathlib import Path
    from PIL import Image
    here = Path(sys.argv[1])
    with (here / "starts").open("a") as file: file.write(".")
    starts = len((here / "starts").read_text())
    for number, line in enumerate(sys.stdin, start=1):
        asked = json.loads(line)
        with (here / "asked").open("a") as file: file.write(line)
        said = {**asked, "answer": "yes" if Image.open(asked["image_path"]).getpixel((0, 0))[0] > 50 else "no"}
        said["model"] = "somebody/vqa"
        FAULT
        print(json.dumps(said), flush=True)
"""


def worker_of(folder, fault="pass", **options):
    script = folder / "a worker.py"
    script.write_text(textwrap.dedent(WORKER).replace("FAULT", fault))
    return VqaWorker(f"{sys.executable} '{script}' '{folder}'", **options)


def test_a_worker_sees_the_pictures_and_answers_the_questions(tmp_path):
    questions = make_questions(num_pictures=3)
    kept, _ = answers_of(worker_of(tmp_path), questions)
    assert [kept[question.key].text for question in questions] == ["no"] * 5 + ["yes"] * 10
    assert {answer.model for answer in kept.values()} == {"somebody/vqa"}
    asked = [json.loads(line) for line in (tmp_path / "asked").read_text().splitlines()]
    assert [tuple(line) for line in asked[:1]] == [("item_id", "picture", "proposition_id", "image_path", "question")]
    assert [(line["picture"], line["proposition_id"], line["question"]) for line in asked] == [
        (question.picture, question.number, question.text) for question in questions
    ]
    assert len({line["image_path"] for line in asked}) == 3
    assert not any(Path(line["image_path"]).exists() for line in asked)
    assert (tmp_path / "starts").read_text() == "."


@pytest.mark.parametrize(
    "fault",
    [
        "if starts == 1 and number == 3: os.kill(os.getpid(), 9)",
        "if starts == 1 and number == 3: print('loading weights: 100 %', flush=True)",
        "if starts == 1 and number == 3: time.sleep(60)",
        "if starts == 1 and number == 3: said['proposition_id'] += 1",
    ],
    ids=["dies", "junk", "hangs", "other question"],
)
def test_a_worker_that_fails_once_is_started_anew_and_nothing_is_lost(fault, tmp_path):
    questions = make_questions(num_pictures=2)
    kept, _ = answers_of(worker_of(tmp_path, fault, timeout_seconds=3), questions)
    assert [kept[question.key].text for question in questions] == ["no"] * 5 + ["yes"] * 5
    assert (tmp_path / "starts").read_text() == ".."


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("sys.exit(1)", "the worker ended with exit code 1, twice, at question 3 on picture 1 of item"),
        ("print('x' * 500, flush=True)", "wrote 'x{120}', which is no JSON .* belongs on its stderr"),
        ("time.sleep(60)", "gave no answer within 2 s, twice"),
        ("said['item_id'] = 'b'", r"answered another question \(item_id\)"),
        ("del said['model']", "which is no JSON line with `answer` and `model`"),
        ("said['answer'] = True", "whose `answer` and `model` are not both texts"),
    ],
)
def test_a_worker_that_fails_twice_ends_the_run_and_its_stderr_is_shown(fault, sentence, tmp_path):
    kept = []
    fault = f"print('weights: /models/x', file=sys.stderr, flush=True); {fault}"
    vqa = worker_of(tmp_path, f"if asked['proposition_id'] == 3: {fault}", timeout_seconds=2)
    with pytest.raises(UserError, match=sentence) as caught:
        vqa.answer(make_questions(), lambda question, answer: kept.append(answer))
    assert len(kept) == 2
    assert "its stderr ends with:\nweights: /models/x" in str(caught.value)
    assert "run the same command again" in str(caught.value)


def test_a_question_that_fills_the_pipe_of_a_worker_that_never_reads_does_not_stop_the_clock():
    with pytest.raises(UserError, match=r"gave no answer within 0\.2 s, twice"):
        answers_of(VqaWorker("sleep 60", timeout_seconds=0.2), make_questions(("é" * 100_000,)))


def test_a_worker_and_its_children_end_with_the_run(tmp_path):
    child = "import subprocess; (here / 'child').write_text(str(subprocess.Popen(['sleep', '300']).pid))"
    with pytest.raises(ZeroDivisionError):
        worker_of(tmp_path, child).answer(make_questions(), lambda question, answer: 1 / 0)
    time.sleep(0.2)
    stat = Path(f"/proc/{(tmp_path / 'child').read_text()}/stat")
    assert not stat.exists() or stat.read_text().split()[2] == "Z"


def test_commands_that_cannot_be_started_are_named(tmp_path):
    with pytest.raises(UserError, match=r"the worker .*nowhere cannot be started \(No such file or directory\)"):
        VqaWorker(str(tmp_path / "nowhere")).answer(make_questions(), lambda question, answer: None)
    with pytest.raises(UserError, match="check its quotes"):
        VqaWorker("python 'x")
    with pytest.raises(UserError, match="is empty"):
        VqaWorker(" ")
    assert "secret" not in json.dumps(VqaWorker("python worker.py --key secret").identity)


def test_the_mplug_worker_speaks_the_protocol_with_a_stand_in_for_modelscope(tmp_path):
    """Its pipeline gets the picture and the question as they are; what libraries print is no answer."""
    package = tmp_path / "modelscope"
    (package / "utils").mkdir(parents=True)
    (package / "__init__.py").write_text("print('a library that prints')\n")
    (package / "utils" / "__init__.py").write_text("")
    (package / "utils" / "constant.py").write_text("class Tasks:\n    visual_question_answering = 'vqa'\n")
    (package / "pipelines.py").write_text(
        "def pipeline(task, model, device):\n"
        "    print('loading', task, model, device)\n"
        "    return lambda asked: {'text': f\"{asked['image'].size} {asked['image'].mode} {asked['question']}\"}\n"
    )
    script = tmp_path / "worker.sh"
    script.write_text(f"#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} {mplug_worker.__file__} --device cpu\n")
    script.chmod(0o755)
    kept, _ = answers_of(VqaWorker(str(script)), make_questions())
    assert kept["key-1-1"] == VqaAnswer(*["(40, 40) RGB Is there a cat?"] * 2, mplug_worker.MODEL)
    assert len(kept) == 5


def test_the_mplug_worker_loads_nothing_of_this_package():
    code = f"import runpy, sys; runpy.run_path({mplug_worker.__file__!r}, run_name='worker')"
    loaded = f"{code}; print([name for name in sys.modules if name.startswith(('sharegpt4o_image', 'torch', 'PIL'))])"
    ended = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"


# ------------------------------------------------------------------ an endpoint


class Endpoint:
    """Answers by the colour of the picture's first pixel; `fault` may answer instead."""

    def __init__(self, fault=None):
        self.fault = fault
        self.requests = []
        self.asked = Counter()
        self._lock = threading.Lock()

    def __enter__(self):
        config = uvicorn.Config(self._app, port=0, log_level="critical", lifespan="off", interface="asgi3")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.base_url = f"http://127.0.0.1:{port}/v1"
        return self

    def __exit__(self, *_):
        self._server.should_exit = True
        self._thread.join(timeout=10)

    async def _app(self, scope, receive, send):
        request = Request(scope, receive)
        response = JSONResponse({"id": "vlm"})
        if request.method == "POST":
            body = await request.json()
            text = body["messages"][0]["content"][0]["text"]
            with self._lock:
                self.requests.append(body)
                self.asked[text] += 1
            response = (self.fault and self.fault(text, self.asked[text])) or said("Yes." if "cat" in text else "No")
        await response(scope, receive, send)


def said(text, finish_reason="stop", **message):
    choice = {"message": {"role": "assistant", "content": text, **message}, "finish_reason": finish_reason}
    usage = {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100}
    return JSONResponse({"model": "vlm-2026", "choices": [choice], "usage": usage})


def endpoint_vqa(endpoint, folder, **settings):
    return VqaEndpoint(EndpointSettings(endpoint.base_url, "vlm", **settings), folder / "endpoints")


def test_an_endpoint_sees_question_and_picture_and_its_words_are_normalised(tmp_path):
    with Endpoint() as endpoint:
        kept, left = answers_of(endpoint_vqa(endpoint, tmp_path), make_questions(("Is there a cat?", "A dog?"), 2))
    assert {key: (answer.text, answer.raw) for key, answer in kept.items()} == {
        "key-1-1": ("yes", "Yes."),
        "key-1-2": ("no", "No"),
        "key-2-1": ("yes", "Yes."),
        "key-2-2": ("no", "No"),
    }
    assert kept["key-1-1"].model == "vlm"
    assert kept["key-1-1"].details["served_model"] == "vlm-2026"
    body = endpoint.requests[0]
    text, picture = body["messages"][0]["content"]
    assert text["text"] in ("Is there a cat? Answer yes or no.", "A dog? Answer yes or no.")
    assert picture["image_url"]["url"].startswith("data:image/png;base64,")
    assert set(body) == {"model", "messages", "max_completion_tokens"}
    assert left.notes["new_requests"] == 4


def test_faults_of_an_endpoint_are_retried_counted_and_named(tmp_path):
    def fault(text, times):
        answers = {
            "slow": [JSONResponse({"error": {"code": "rate_limit_exceeded"}}, 429, {"retry-after-ms": "30"})],
            "broken": [JSONResponse({"error": {"message": "oops"}}, 500)],
            "empty": [said(""), said(None)],
            "cut": [said("The picture shows", "length")],
            "refused": [said(None, refusal="I may not")] * 9,
            "filtered": [said("", "content_filter")] * 9,
            "always empty": [said("")] * 9,
            "odd": [said("I cannot tell")],
        }
        [left] = [answers[name] for name in answers if text.startswith(f"{name}:")] or [[]]
        return left[times - 1] if times <= len(left) else None

    names = ("fine", "slow", "broken", "empty", "cut", "refused", "filtered", "always empty", "odd", "last")
    questions = make_questions([f"{name}: is there a cat?" for name in names])
    with Endpoint(fault) as endpoint:
        vqa = endpoint_vqa(endpoint, tmp_path, temperature=0.0, num_workers=2)
        kept, left = answers_of(vqa, questions)
        asked = len(endpoint.requests)
        assert endpoint.requests[0]["temperature"] == 0
        again, _ = answers_of(
            endpoint_vqa(endpoint, tmp_path, temperature=0.0), [q for q in questions if q.key in kept]
        )
        assert len(endpoint.requests) == asked
    assert again == kept
    by_name = dict(zip(names, (question.key for question in questions), strict=True))
    assert {name: kept[key].text for name, key in by_name.items() if key in kept} == {
        **dict.fromkeys(("fine", "slow", "broken", "empty", "cut", "last"), "yes"),
        "odd": "I cannot tell",
    }
    assert left.reasons[by_name["refused"]] == "refused: I may not"
    assert left.reasons[by_name["filtered"]] == "refused: content filter"
    assert "the answer has no text" in left.reasons[by_name["always empty"]]
    assert set(left.reasons) | set(kept) == set(by_name.values())


def test_the_end_of_the_budget_leaves_questions_with_a_reason_and_a_second_run_pays_for_the_rest(tmp_path):
    price = Price(text_input=1000.0, output=0.0)  # one dollar an answer
    questions = make_questions([f"Is there a cat, number {number}?" for number in range(12)])
    with Endpoint() as endpoint:
        vqa = endpoint_vqa(endpoint, tmp_path, price=price, budget_usd=8.5, num_workers=1)
        assert vqa.usd_for(10) == pytest.approx(10.5)
        kept, left = answers_of(vqa, questions)
        assert 0 < len(kept) <= 8
        assert left.stopped.startswith("not asked: ")
        assert left.notes["spent_usd"] == pytest.approx(len(kept))
        rest, left = answers_of(endpoint_vqa(endpoint, tmp_path, price=price), questions)
        assert len(rest) == 12
        assert left.stopped is None
        assert max(endpoint.asked.values()) == 1


def test_a_budget_needs_a_price(tmp_path):
    settings = EndpointSettings("http://127.0.0.1:1/v1", "vlm", budget_usd=1.0)
    with pytest.raises(UserError, match="add --price-in and --price-out"):
        VqaEndpoint(settings, tmp_path)
    identity = VqaEndpoint(EndpointSettings("http://127.0.0.1:1/v1", "vlm"), tmp_path).identity
    assert identity["host"] == "127.0.0.1"
    assert VqaEndpoint(EndpointSettings("http://127.0.0.1:1/v1", "vlm"), tmp_path).usd_for(3) is None


def test_a_broken_key_is_one_sentence(tmp_path):
    refusal = JSONResponse({"error": {"message": "sk-secret"}}, 401)
    with Endpoint(lambda *_: refusal) as endpoint, pytest.raises(UserError, match="does not accept the key") as caught:
        answers_of(endpoint_vqa(endpoint, tmp_path), make_questions())
    assert "sk-secret" not in str(caught.value)
