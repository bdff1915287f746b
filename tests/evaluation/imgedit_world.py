# SPDX-License-Identifier: Apache-2.0
"""Small ImgEdit files for tests: items, templates, source and edited pictures of the scene world."""

import json
from pathlib import Path

from loopback_judge import MODEL, template_of

from sharegpt4o_image.evaluation.imgedit_parsers import LABELS
from sharegpt4o_image.evaluation.scene_benchmark import edit_items, source_picture

TYPES = tuple(LABELS)


class World:
    """`num_items` items, of the nine types in turn, below `folder`; the edited pictures are the sources."""

    def __init__(self, folder: Path, num_items: int = 6) -> None:
        self.folder = folder
        self.items, self.templates = folder / "basic_edit.json", folder / "prompts.json"
        self.origins, self.images, self.output = folder / "origins", folder / "edited", folder / "out"
        self.keys = [str(1000 - index) for index in range(num_items)]
        (self.origins / "human").mkdir(parents=True)
        self.images.mkdir()
        scenes = edit_items(-(-num_items // 3), seed=0)
        entries = {}
        for index, (key, scene) in enumerate(zip(self.keys, scenes, strict=False)):
            name, kind = (f"human/{key}.jpg", "JPEG") if index % 2 else (f"{key}.png", "PNG")
            picture = source_picture(scene)
            picture.save(self.origins / name, kind)
            picture.transpose(0).save(self.images / f"{key}.png")
            entries[key] = {"id": name, "prompt": scene.instruction, "edit_type": TYPES[index % len(TYPES)]}
        self.entries = entries
        self.items.write_text(json.dumps(entries))
        self.templates.write_text(json.dumps({name: template_of(name) for name in TYPES}))

    def command(self, base_url: str, *more: object, images: bool = True) -> list[str]:
        """What is typed to judge the edited pictures."""
        options = ["--items", self.items, "--origins", self.origins, "--templates", self.templates]
        options += ["--judge", MODEL, "--judge-url", base_url, "-o", self.output]
        options += ["--images", self.images] if images else []
        return [str(option) for option in ("evaluate", "imgedit", *options, *more)]

    def result(self, name: str = "result.json") -> dict[str, str]:
        """What the official scripts would read."""
        return dict(json.loads((self.output / "imgedit" / name).read_text()))

    def judgements(self) -> dict[tuple[str, int], dict]:
        """Item and repeat -> row of `judgements.jsonl`."""
        lines = (self.output / "imgedit" / "judgements.jsonl").read_text().removesuffix("\n").split("\n")
        return {(row["item"], row["repeat"]): row for row in map(json.loads, lines)}

    def record(self, name: str = "imgedit") -> dict:
        """The file of scores."""
        return dict(json.loads((self.output / name / "scores" / f"{name}.json").read_text()))
