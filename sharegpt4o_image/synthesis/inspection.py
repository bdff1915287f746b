# SPDX-License-Identifier: Apache-2.0
"""A finished picture -> a record, or the reason why it is none: the gates of `gates.py` in their order."""

import asyncio
import hashlib
from dataclasses import dataclass
from pathlib import Path

from sharegpt4o_image.schema import GeneratedImage, content_id
from sharegpt4o_image.synthesis.config import Gates, SynthesisConfig
from sharegpt4o_image.synthesis.gates import (
    DuplicateIndex,
    Signature,
    find_blank,
    find_lack_of_change,
)
from sharegpt4o_image.synthesis.images import facts_of
from sharegpt4o_image.synthesis.journal import Journal
from sharegpt4o_image.synthesis.judging import plan_judgement
from sharegpt4o_image.synthesis.pictures import UnreadablePicture, open_picture
from sharegpt4o_image.synthesis.scheduler import Dispatcher, Unfinished
from sharegpt4o_image.synthesis.taxonomy import Taxonomy


@dataclass(frozen=True)
class Verdict:
    """What the gates say: a picture, with the judge's opinion if there is one, and why it is refused if it is."""

    image: GeneratedImage
    reason: str | None
    thumbnail: bytes


def gates_id(gates: Gates) -> str:
    """The hash of everything that the gates decide by; a sample decided by others is decided anew."""
    lists = [_digest(Path(path)) for path in gates.benchmark_prompts]
    return content_id(gates=gates.model_dump(exclude={"benchmark_prompts"}), lists=lists)


def _digest(path: Path) -> str:
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)).hexdigest()


class Inspector:
    """Holds every picture against the gates.

    Args:
        journal ([`Journal`]): whose records a picture may repeat.
        item_gates (`str`): the hash of the gates; records that were decided by others do not count yet.
    """

    def __init__(self, journal: Journal, config: SynthesisConfig, taxonomy: Taxonomy, item_gates: str):
        self._journal = journal
        self._config = config
        self._scopes = {edit.task: edit.scope for edit in taxonomy.edits}
        self._index = DuplicateIndex()
        if self._searches_duplicates:
            for item, sha256, phash, thumbnail in journal.iter_signatures(item_gates):
                self._index.add(item, sha256, Signature(phash, thumbnail))

    @property
    def _searches_duplicates(self) -> bool:
        return self._config.gates.exact_duplicates or self._config.gates.similar_within is not None

    async def inspect(self, item: str, image: GeneratedImage, dispatcher: Dispatcher) -> Verdict:
        """Ask the cheap gates first, the judge last; raises what [`Dispatcher.obtain`] raises."""
        signature = facts_of(self._journal.blobs, image.sha256).signature
        reason = await self._find_fault(image) or self._find_duplicate(item, image, signature)
        judge = self._config.gates.judge
        if reason is None and judge is not None:
            opinion = await dispatcher.obtain(plan_judgement(self._config, judge, image))
            image = image.model_copy(update={"judgement": opinion.model_dump() | {"model": judge.model}})
            if opinion.score < judge.threshold:
                reason = f"the judge gives it {opinion.score} of 10, below {judge.threshold}"
            reason = reason or self._find_duplicate(item, image, signature)  # another one may have come meanwhile
        if reason is None and self._searches_duplicates:
            self._index.add(item, image.sha256, signature)
        return Verdict(image, reason, signature.thumbnail)

    async def _find_fault(self, image: GeneratedImage) -> str | None:
        """What the pixels say."""
        if image.sources:
            return await asyncio.to_thread(self._compare, image)
        return facts_of(self._journal.blobs, image.sha256).blank if self._config.gates.blank else None

    def _compare(self, image: GeneratedImage) -> str | None:
        """Whether an edit left nothing, changed nothing, or changed too much."""
        gates, blobs = self._config.gates, self._journal.blobs
        try:
            picture = open_picture(blobs.read(image.sha256))
            source = open_picture(blobs.read(image.sources[0].sha256))
        except UnreadablePicture as fault:
            raise Unfinished(f"a picture of the run is damaged: {fault}") from fault
        if gates.blank and (reason := find_blank(picture, source)) is not None:
            return reason
        scope = self._scopes.get(image.prompt.topic.edit_task or "", "any")
        return find_lack_of_change(source, picture, scope) if gates.change else None

    def _find_duplicate(self, item: str, image: GeneratedImage, signature: Signature) -> str | None:
        gates = self._config.gates
        if gates.exact_duplicates and (other := self._index.find_exact(image.sha256)) not in (None, item):
            return f"the run has the very same picture already ({other})"
        if gates.similar_within is None:
            return None
        if (other := self._index.find_similar(signature, gates.similar_within)) not in (None, item):
            return f"the run has a picture that looks the same ({other})"
        return None
