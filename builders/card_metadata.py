# SPDX-License-Identifier: Apache-2.0
"""Counts -> the YAML at the top of a data set's README; and its sections on columns, terms, ethics and limits."""

import json
import re
from collections import Counter
from typing import Any

import yaml
from datasets import DatasetInfo, Features, Image, Json, List, SplitInfo
from datasets.info import DatasetInfosDict
from datasets.splits import SplitDict
from huggingface_hub import DatasetCardData

from sharegpt4o_image.builders.card_counts import CardFacts, RowCounts, SplitCounts
from sharegpt4o_image.builders.card_text import bullets, code, count_table, join_words, limited, ranked, table
from sharegpt4o_image.builders.pack_plan import NEGATIVES
from sharegpt4o_image.schema import RejectedRecord, published_features

UPSTREAM = "FreedomIntelligence/ShareGPT-4o-Image"
PAPER_TITLE = "ShareGPT-4o-Image: Aligning Multimodal Models with GPT-4o-Level Image Generation"
CITATION = (
    f"@article{{chen2025sharegpt4oimage, title={{{PAPER_TITLE}}}, "
    "journal={arXiv preprint arXiv:2506.18095}, year={2025}}"
)

COLUMNS = {
    "id": "hash of the request that made the row",
    "task": "`text_to_image` or `text_and_image_to_image`",
    "input_prompt": "the prompt, or the edit instruction",
    "input_image": "source pictures of an edit; empty for text-to-image",
    "output_image": "the picture",
    "output_image_resolution": "width and height of `output_image`, in pixels",
    "input_image_resolution": "width and height of the (first) source picture",
    "pipeline": "`prompt_first`, `image_first`, `document` or `editing`",
    "objects": "what the topic asked to be shown",
    "background": "background of the topic",
    "style": "style of the topic",
    "lighting": "lighting of the topic",
    "camera": "camera of the topic",
    "composition": "composition of the topic",
    "document_type": "kind of document, for document pictures",
    "edit_category": "category of the edit task",
    "edit_task": "what kind of edit was asked for",
    "prompt_model": "model asked for the prompt, or for the description of a photograph",
    "image_model": "model asked for the picture; null for a photograph that is published as it is",
    "served_model": "model that the answer to the prompt request named; picture answers name none",
    "template_version": "version of the prompt template",
    "image_params": "parameters of the image request",
    "source_id": "id of the source picture",
    "source_origin": "where the source picture comes from",
    "source_license": "licence of the source picture",
    "output_sha256": "sha256 of the bytes of `output_image`",
    "output_phash": "perceptual hash of `output_image`",
    "usage": "tokens that the service counted",
    "cost_usd": "cost of prompt and picture, in US dollars",
    "created_at": "when the picture was made; of a photograph, when it was described",
    "origin": "`synthesized`, or `upstream_release` for a row of the original ShareGPT-4o-Image",
    "license": "licence of the row",
    "reject_reason": "why a quality gate refused the picture",
    "label_objects": "what a model saw in the picture",
    "label_style": "style, as that model saw it",
    "label_lighting": "lighting, as that model saw it",
    "label_camera": "camera, as that model saw it",
    "label_composition": "composition, as that model saw it",
    "label_document_type": "kind of document, as that model saw it",
    "label_edit_category": "category of the edit, as that model saw it",
    "label_edit_task": "kind of edit, as that model saw it",
    "label_model": "model that gave the labels; null where the row has none",
    "label_confidence": "how sure that model was of each label, from 0 to 1",
}

# Names of licences that the Hub knows and that data and models like these are published under; it refuses a card with
# any other one, unless that says `other`.
HUB_LICENSES = frozenset(
    ("apache-2.0", "mit", "cc", "cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0",
     "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-3.0",
     "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cdla-sharing-1.0",
     "cdla-permissive-1.0", "cdla-permissive-2.0", "odc-by", "odbl", "pddl", "unlicense", "openrail", "unknown")
)  # fmt: skip

_TASK_CATEGORIES = {"text_to_image": "text-to-image", "text_and_image_to_image": "image-to-image"}
_SOURCES = {"synthesized": "original", "upstream_release": f"extended|{UPSTREAM}"}


def render_metadata(facts: CardFacts) -> str:
    """The YAML without its fences."""
    num_rows = sum(counts.num_rows for splits in facts.splits.values() for counts in splits.values())
    origins = sorted(facts.rows.values.get("origin", Counter()) | facts.negatives.values.get("origin", Counter()))
    is_made = num_rows > facts.rows.num_photographs + facts.negatives.num_photographs
    tasks = [task for task in _TASK_CATEGORIES if any(name.startswith(task) for name in facts.splits)]
    card = DatasetCardData(
        language=["en"],  # the templates of the prompts, and the prompts of the upstream release
        pretty_name=facts.title,
        task_categories=[_TASK_CATEGORIES[task] for task in tasks] or None,
        size_categories=size_category(num_rows),
        annotations_creators=["machine-generated"],
        source_datasets=[_SOURCES[origin] for origin in origins] or None,
        tags=[
            *(["synthetic"] if is_made else []),
            "image-generation",
            *(["image-editing"] if "text_and_image_to_image" in tasks else []),
        ],
    )
    for name, value in license_fields(only_license(facts)).items():
        card[name] = value
    card["configs"] = [
        {
            "config_name": name,
            # `datasets` finds what it has prepared of a folder by the name and this YAML: other rows must show in it
            "description": f"sha256 of its files: {' '.join(counts.sha256 for counts in splits.values())}",
            "data_files": [{"split": split, "path": f"{name}/{split}-*.parquet"} for split in splits],
            **({"default": True} if index == 0 else {}),
        }
        for index, (name, splits) in enumerate(facts.splits.items())
    ]
    infos = {name: _dataset_info(facts, name, splits) for name, splits in facts.splits.items()}
    DatasetInfosDict(infos).to_dataset_card_data(card)
    return yaml.safe_dump(card.to_dict(), sort_keys=False, allow_unicode=True).rstrip()


def features_of(facts: CardFacts, config: str) -> Features:
    """The columns of a configuration."""
    return published_features(RejectedRecord if config.endswith(NEGATIVES) else facts.row)


def only_license(facts: CardFacts) -> str | None:
    """The licence that every row names, those of negatives included."""
    counts = facts.rows.values.get("license", Counter()) + facts.negatives.values.get("license", Counter())
    is_one = len(counts) == 1 and counts.total() == facts.rows.num_rows + facts.negatives.num_rows
    return next(iter(counts)) if is_one else None


def size_category(num_rows: int) -> str:
    """The Hub's name for a number of rows.

    >>> size_category(999), size_category(92_256)
    ('n<1K', '10K<n<100K')
    """
    limits = (("n<1K", 10**3), ("1K<n<10K", 10**4), ("10K<n<100K", 10**5), ("100K<n<1M", 10**6), ("1M<n<10M", 10**7))
    return next((name for name, limit in limits if num_rows < limit), "n>10M")


def license_fields(stated: str | None) -> dict[str, str]:
    """`license` as the Hub wants it; one that it does not know goes by `license_name`.

    >>> license_fields("CC-BY-4.0"), license_fields("DeepSeek Model License")
    ({'license': 'cc-by-4.0'}, {'license': 'other', 'license_name': 'deepseek-model-license'})
    """
    if stated is None:
        return {}
    if stated.lower() in HUB_LICENSES:
        return {"license": stated.lower()}
    name = re.sub(r"[^a-z0-9.]+", "-", stated.lower()).strip("-.")
    return {"license": "other", "license_name": name or "other"}


def _dataset_info(facts: CardFacts, config: str, splits: dict[str, SplitCounts]) -> DatasetInfo:
    infos = SplitDict()
    for split, counts in splits.items():
        infos.add(SplitInfo(split, num_bytes=counts.num_bytes, num_examples=counts.num_rows))
    return DatasetInfo(
        features=features_of(facts, config),
        splits=infos,
        dataset_name=facts.title,
        download_size=sum(counts.file_bytes for counts in splits.values()),
        dataset_size=sum(counts.num_bytes for counts in splits.values()),
    )


# ------------------------------------------------------------------ columns, terms, ethics, limits


def describe_columns(facts: CardFacts) -> str:
    """The table of columns, and in what negatives differ."""
    negatives = [name for name in facts.splits if name.endswith(NEGATIVES)]
    parts = [_columns_table(features_of(facts, ""))]
    if negatives and facts.row is not RejectedRecord:
        extra = features_of(facts, negatives[0]).keys() - features_of(facts, "").keys()
        missing = [name for name in features_of(facts, "") if name not in features_of(facts, negatives[0])]
        names = join_words([f"`{name}` ({COLUMNS[name]})" for name in sorted(extra)])
        without = f", and no {join_words([f'`{name}`' for name in missing])}" if missing else ""
        has = "has" if len(negatives) == 1 else "have"
        parts.append(f"{join_words([f'`{name}`' for name in negatives])} {has} {names} besides{without}.")
    return "\n\n".join(parts)


def _columns_table(features: Features) -> str:
    rows = ((f"`{name}`", _type_name(feature), COLUMNS[name]) for name, feature in features.items())
    return table(("Column", "Type", "What it holds"), rows)


def _type_name(feature: Any) -> str:
    if isinstance(feature, List):
        return f"list of {_type_name(feature.feature)}"
    if isinstance(feature, dict):
        return f"{_type_name(next(iter(feature.values())))} by name"
    return {Image: "image", Json: "JSON"}.get(type(feature)) or feature.dtype


def describe_licenses(everything: RowCounts) -> str:
    """The licences that the rows name."""
    pairs = [(*json.loads(pair), count) for pair, count in ranked(everything.licenses)]
    if not any(name for _, name, _ in pairs):
        return "The rows name no licence. Whoever publishes this data has to choose one that the terms below allow."
    lines = limited([(code(origin), code(name) if name else "none stated", count) for origin, name, count in pairs])
    parts = [
        "The column `license` states the licence of each row.",
        table(("Origin (`origin`)", "Licence (`license`)", "Rows"), lines),
    ]
    if source_licenses := everything.values.get("source_license"):
        parts.append(count_table("Licence of the source pictures (`source_license`)", source_licenses))
    return "\n\n".join(parts)


def describe_terms(everything: RowCounts) -> str:
    """Whose terms apply besides the licence."""
    values, parts = everything.values, []
    if values.get("image_model") or values.get("prompt_model"):
        parts.append(
            "The terms of the services behind the models named above apply besides the licence. Several services "
            "forbid using their output to develop competing models, which binds the holder of the account and may "
            "bind you. Read their terms before you train on this data or publish it."
        )
    if "upstream_release" in values.get("origin", ()):
        parts.append(
            f"The licence of {UPSTREAM} is not known. The terms of OpenAI and of Google apply to what their services "
            "made for it, and restrict using it to develop competing models. Read them before you train on this data "
            "or publish it."
        )
    if values.get("source_origin"):
        parts.append("A source picture may have terms of its own: see `source_origin` and `source_license`.")
    return "\n\n".join(parts)


def describe_ethics(everything: RowCounts) -> str:
    """What to mind about the people, documents and habits that the pictures show."""
    is_upstream = "upstream_release" in everything.values.get("origin", ())
    pipelines = everything.values.get("pipeline", Counter())
    return bullets(
        everything.num_rows > everything.num_photographs
        and "Where a topic shows people, the recipe describes them in words that are meant to spread over ethnicity, "
        "age and the like. Neither prompts nor pictures were filtered for bias afterwards, so what the models lean "
        "towards is in the data.",
        (everything.num_photographs or everything.num_photo_edits)
        and "Photographs may show real people and places, and are as they came. An edit of a photograph may show a "
        "real person as they never were.",
        (is_upstream or pipelines["document"])
        and "Documents are meant to be generic and fictional. Names and figures in them are made up; if they are true "
        "of somebody, that is chance.",
        "The authors of the paper release their data for academic research. Do not use this data to deceive, to "
        "imitate a living person or artist, or where a mistaken picture does harm.",
    )


def describe_limits(facts: CardFacts, everything: RowCounts) -> str:
    """What the pictures are not."""
    which = "Pictures that a model made" if everything.num_photographs else "The pictures"
    return bullets(
        f"{which} are synthetic and carry the biases of the models that made them: who and what is shown, how often, "
        "and how. They are evidence of nothing; people and places in them may resemble real ones."
        if everything.num_rows > everything.num_photographs
        else "What the photographs show, and how often, follows from how they were collected.",
        "Packing checks files, not meaning: a picture need not show what its text says.",
        _marks_of_origin(facts),
    )


def _marks_of_origin(facts: CardFacts) -> str:
    if facts.encoding is not None:
        return (
            "Every picture was encoded anew: signed records of origin that a service put into its files (C2PA) are "
            "gone, and what was written into the pixels, as watermarks are, may have suffered."
        )
    return (
        "Packing encoded no picture anew: marks of origin (C2PA, watermarks) that the files had are still in them. "
        "Which files had any was not looked at."
    )
