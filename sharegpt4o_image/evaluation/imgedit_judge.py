# SPDX-License-Identifier: Apache-2.0
"""Source picture, edited picture, instruction -> a judge's text, over the OpenAI API, as ImgEdit's scripts ask for it.

One user message: the template with the instruction, the source, the edited picture, both as the bytes of their files.
A text without a score is asked for again; the last one is kept, and counts as what the parsers make of it.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.asking import Asking, EndpointFault, Question, ask_all
from sharegpt4o_image.evaluation.imgedit_items import UGE_TYPE
from sharegpt4o_image.evaluation.imgedit_judgement import BOTH, Edit, Judgement, JudgeSettings, read_text
from sharegpt4o_image.evaluation.imgedit_parsers import OFFICIAL, PARSERS, parse_answer
from sharegpt4o_image.evaluation.verdict_store import VerdictStore
from sharegpt4o_image.schema import SourceImage, content_id
from sharegpt4o_image.synthesis.answers import InvalidAnswer
from sharegpt4o_image.synthesis.blobs import BlobStore
from sharegpt4o_image.synthesis.config import SynthesisConfig
from sharegpt4o_image.synthesis.journal import Answer, printable
from sharegpt4o_image.synthesis.pictures import UnreadablePicture, open_picture
from sharegpt4o_image.synthesis.requests import CHAT, TeacherRequest

RUN_FOLDER = "judging"  # of the journal, below the folder of the results
STORE_NAME = "judgements"

_MIN_UNREADABLE_IN_A_ROW = 3  # after which a run that stopped is said to have stopped for it (our choice)
_QUOTED_CHARACTERS = 60

_MIME = {"MPO": "jpeg"}  # where Pillow has a name of its own: JPEG files of cameras that hold a preview, too


@dataclass
class Judging:
    """What came of it: the judgements, and why there are no others.

    Args:
        judgements (`dict`): item and repeat -> judgement.
        unanswered (`dict`): item and repeat -> why it is left for the next invocation.
        unreadable (`dict`): item -> why its pictures cannot be shown.
        asking ([`Asking`], *optional*): what was asked now.
    """

    judgements: dict[tuple[str, int], Judgement] = field(default_factory=dict)
    unanswered: dict[tuple[str, int], str] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    asking: Asking = field(default_factory=Asking)


def judge_edits(
    edits: Sequence[Edit],
    settings: JudgeSettings,
    folder: Path,
    on_progress: Callable[[int], None] = lambda num_done: None,
) -> Judging:
    """Have all edits judged; what `folder` holds of earlier invocations is not asked again.

    `on_progress` is called with the number of judgements that are settled, or left for the next invocation.
    """
    config = settings.config()
    with VerdictStore(folder / "verdicts", STORE_NAME) as store:
        judge = _Judge(settings, config, store)
        if next(judge.open_edits(edits), None) is None:
            return judge.done  # which needs no endpoint
        try:
            judge.done.asking = ask_all(
                lambda blobs: judge.questions(edits, blobs),
                folder / RUN_FOLDER,
                config,
                "text",
                settings.budget_usd,
                lambda: on_progress(len(judge.done.judgements) + len(judge.done.unanswered)),
            )
        except EndpointFault as stop:
            if judge.num_unreadable_in_a_row < _MIN_UNREADABLE_IN_A_ROW:
                raise
            raise UserError(judge.describe_fault()) from stop
    return judge.done


def find_questions(edits: Sequence[Edit], settings: JudgeSettings, folder: Path) -> Judging:
    """What is known without asking; what is left to ask is `unanswered`."""
    with ExitStack() as stack:
        verdicts = folder / "verdicts"
        if not verdicts.is_dir():  # nothing is judged yet, and nothing is to be written
            verdicts = Path(stack.enter_context(TemporaryDirectory()))
        judge = _Judge(settings, settings.config(), stack.enter_context(VerdictStore(verdicts, STORE_NAME)))
        for edit, repeat, _, _ in judge.open_edits(edits):
            judge.done.unanswered[edit.key, repeat] = "not asked yet"
    return judge.done


class _Judge:
    """Makes the questions of a run and takes their answers."""

    def __init__(self, settings: JudgeSettings, config: SynthesisConfig, store: VerdictStore) -> None:
        self.done = Judging()
        self.num_unreadable_in_a_row = 0
        self._settings = settings
        self._config = config
        self._store = store
        self._looks: dict[tuple[Path, str], SourceImage] = {}  # path and sha256 -> format and size
        self._last: dict[str, Judgement] = {}  # key of a question -> the last answer that could not be read
        self._last_unreadable: Judgement | None = None

    # ------------------------------------------------------------------ questions

    def questions(self, edits: Sequence[Edit], blobs: BlobStore) -> Iterator[Question[Judgement]]:
        """One by one; the pictures of a question are read when it is asked."""
        for edit, repeat, key, pictures in self.open_edits(edits):
            for path, picture in zip((edit.source, edit.edited), pictures, strict=True):
                if blobs.write(path.read_bytes()) != picture.sha256:
                    raise UserError(f"{path} changed while it was read; run the same command again")
            yield self._question(edit, repeat, key, pictures)

    def open_edits(self, edits: Sequence[Edit]) -> Iterator[tuple[Edit, int, str, tuple[SourceImage, SourceImage]]]:
        """Edit, number of the repeat, key and pictures of what has no judgement yet; the others are taken as done."""
        for repeat in range(self._settings.repeats):
            for edit in edits:
                if edit.key in self.done.unreadable:
                    continue
                try:
                    pictures = self._look_at(edit.source), self._look_at(edit.edited)
                except UnreadablePicture as fault:
                    self.done.unreadable[edit.key] = str(fault)
                    continue
                key = self._key(edit, repeat, pictures)
                if not self._find_judgement(edit, repeat, key):
                    yield edit, repeat, key, pictures

    def _look_at(self, path: Path) -> SourceImage:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UnreadablePicture(f"{path.name} cannot be read: {error.strerror}") from error
        sha256 = hashlib.sha256(data).hexdigest()
        if (path, sha256) not in self._looks:
            try:
                image = open_picture(data)
            except UnreadablePicture as fault:
                raise UnreadablePicture(f"{path.name} cannot be read as a picture: {fault}") from fault
            self._looks[path, sha256] = SourceImage(
                id=sha256,
                sha256=sha256,
                format=_MIME.get(str(image.format), str(image.format).lower()),
                width=image.width,
                height=image.height,
                origin="benchmark",
            )
        return self._looks[path, sha256]

    def _key(self, edit: Edit, repeat: int, pictures: tuple[SourceImage, SourceImage]) -> str:
        return content_id(
            stage="judge",
            model=self._settings.model,
            parameters=self._settings.params,
            template=edit.template_sha256,
            prompt=edit.instruction,
            pictures=[picture.sha256 for picture in pictures],
            repeat=repeat,
        )

    def _find_judgement(self, edit: Edit, repeat: int, key: str) -> bool:
        """Whether an earlier invocation settled it; a text that its parser could not read is settled for it alone."""
        found = self._store.find(key)
        if found is None:
            return False
        kept = Judgement(**{**found, "item": edit.key, "repeat": repeat, "edit_type": edit.edit_type})
        is_settled = kept.text is None or kept.parser == self._settings.parser or not self._fault_of(edit, kept.text)
        if is_settled:
            self.done.judgements[edit.key, repeat] = kept
        return is_settled

    def _question(
        self, edit: Edit, repeat: int, key: str, pictures: tuple[SourceImage, SourceImage]
    ) -> Question[Judgement]:
        source, edited = pictures
        nothing = Judgement(
            item=edit.key,
            repeat=repeat,
            edit_type=edit.edit_type,
            status="refused",
            text=None,
            reason="",
            parser=self._settings.parser,
            model=self._settings.model,
            served_model=None,
            system_fingerprint=None,
            answered_at=None,
            source_sha256=source.sha256,
            edited_sha256=edited.sha256,
            template_sha256=edit.template_sha256,
        )

        def parse(answer: Answer) -> Judgement:
            return self._read(edit, key, nothing, answer)

        def keep(judgement: Judgement) -> None:
            self._last.pop(key, None)
            self.done.judgements[edit.key, repeat] = judgement
            self._store.keep(key, asdict(judgement))

        def refuse(reason: str) -> None:
            keep(_with(self._last.get(key, nothing), reason=reason))

        def leave(reason: str) -> None:
            self.done.unanswered[edit.key, repeat] = reason

        message = {"role": "user", "content": edit.message}
        body = {"model": self._settings.model, "messages": [message], **self._settings.params}
        request = TeacherRequest(key, "judge", self._settings.model, CHAT, body, parse, pictures)
        return Question(request, keep, refuse, leave)

    # ------------------------------------------------------------------ answers

    def _read(self, edit: Edit, key: str, nothing: Judgement, answer: Answer) -> Judgement:
        """The judgement in an answer; raises [`InvalidAnswer`] where it is to be asked for again."""
        text, fault = read_text(answer)
        judgement = _with(
            nothing,
            status="unreadable",
            text=text,
            served_model=answer.served_model,
            system_fingerprint=_string(answer.body.get("system_fingerprint")),
            answered_at=answer.ended_at,
        )
        fault = fault or self._fault_of(edit, text)
        if not fault:
            self.num_unreadable_in_a_row = 0
            return _with(judgement, status="read")
        if text:
            self.num_unreadable_in_a_row += 1
            self._last[key] = self._last_unreadable = _with(judgement, reason=fault)
        raise InvalidAnswer(fault)

    def _fault_of(self, edit: Edit, text: str) -> str:
        """Why a text cannot be read by what has to read it; nothing has to read those of UGE."""
        if edit.edit_type == UGE_TYPE:
            return ""
        parsers = PARSERS if self._settings.parser == BOTH else (self._settings.parser,)
        answers = {parser: parse_answer(text, parser, edit.edit_type) for parser in parsers}
        return next((f"{name}: {parsed.reason}" for name, parsed in answers.items() if parsed.score is None), "")

    def describe_fault(self) -> str:
        """One sentence on a judge whose answers nobody can read."""
        assert self._last_unreadable is not None
        said = printable((self._last_unreadable.text or "")[:_QUOTED_CHARACTERS])
        relaxed = "" if self._settings.parser == OFFICIAL else ", or accept less with --parser official"
        again = "run the same command again to go on, or " if self.done.judgements else ""
        return (
            f"{self._settings.model} does not answer in the form, or the language, that the templates ask for: its "
            f"last {self.num_unreadable_in_a_row} answers could not be read ({self._last_unreadable.reason}), and the "
            f"last one begins with '{said}'; {again}name another judge with --judge{relaxed}"
        )


def _with(judgement: Judgement, **changes: Any) -> Judgement:
    return Judgement(**{**asdict(judgement), **changes})


def _string(value: object) -> str | None:
    return value if isinstance(value, str) else None


def texts_of(judging: Judging, keys: Mapping[str, Any], repeat: int) -> dict[str, str]:
    """`result.json` of one repeat: item -> text, in the order of `keys`; what has no text is left out."""
    found = {key: judging.judgements.get((key, repeat)) for key in keys}
    return {key: kept.text for key, kept in found.items() if kept is not None and kept.text is not None}
