# SPDX-License-Identifier: Apache-2.0
"""A packed folder -> `croissant.json` beside its README: what the files are, what the columns mean, what to beware of.

Croissant 1.1 with the vocabulary of responsible AI (https://docs.mlcommons.org/croissant). Everything is read from the
folder, so that the same folder gives the same file.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from datasets import Features, Image, List
from huggingface_hub import metadata_load
from pyarrow import ArrowInvalid

from sharegpt4o_image.builders.card_metadata import CITATION, COLUMNS, UPSTREAM
from sharegpt4o_image.builders.packed_set import find_shards
from sharegpt4o_image.errors import UserError

CROISSANT = "croissant.json"

_SPECIFICATION = ["http://mlcommons.org/croissant/1.1", "http://mlcommons.org/croissant/RAI/1.0"]
_PARQUET = "application/x-parquet"
_HUB = "https://huggingface.co"

# The context that the specification gives; mlcroissant warns of any other.
_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "arrayShape": "cr:arrayShape",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "containedIn": "cr:containedIn",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "description": {"@container": "@language"},
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isArray": "cr:isArray",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "name": {"@container": "@language"},
    "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}

_RESPONSIBLE_AI = {
    "rai:dataCollection": (
        "The column pipeline says how a row was made. prompt_first: a topic is drawn from a taxonomy, a language "
        "model writes a prompt for it, and an image model draws the picture. image_first: a language model describes "
        "a photograph. document: a language model writes content and layout, and an image model draws the page. "
        "editing: a language model writes an instruction for a source picture, and an image model follows it. The "
        "columns of a row name the models, the template, the parameters and the date. Rows whose origin is "
        f"upstream_release were made by the authors of {UPSTREAM}, whose release names nothing of this row by row."
    ),
    "rai:dataCollectionType": ["Software Collection", "Web API"],
    "rai:dataPreprocessingProtocol": [
        "Every picture is decoded and compared with its size and checksum where they were recorded; what fails is in "
        "rejections.parquet. Whether pictures are as they were received or encoded anew is said in README.md."
    ],
    "rai:dataBiases": [
        "Pictures carry the biases of the models that made them: who and what is shown, how often, and how.",
        "Words for people are meant to spread over ethnicity, age and the like; nothing was filtered for bias "
        "afterwards.",
        "Prompts are in English.",
    ],
    "rai:dataLimitations": [
        "Pictures that a model made are synthetic and evidence of nothing.",
        "A picture need not show what its prompt asks for.",
        "Columns are null where a value was not recorded; columns that begin with label_ are guesses of a model.",
    ],
    "rai:personalSensitiveInformation": [
        "No data of persons was collected to make it. Synthetic people may resemble real ones. Photographs, which "
        "source_origin and a missing image_model tell of, may show real ones. Texts in pictures of documents are made "
        "up."
    ],
    "rai:dataUseCases": [
        "Training and evaluating models that generate pictures from text, or edit them as a text asks.",
        "Not for deceiving, for imitating a living person or artist, or where a mistaken picture does harm.",
    ],
    "rai:dataSocialImpact": (
        "Open data of this kind lets others study and build what closed services offer. Models trained on it can be "
        "misused to deceive, and hand on the biases of their teachers. The terms of the services that made the "
        "pictures may forbid some uses."
    ),
    "rai:hasSyntheticData": True,
    "rai:syntheticDataExplanation": (
        "Prompts and pictures were made by the models that the columns prompt_model and image_model name. Source "
        "photographs, and pictures of synthesized rows without image_model, are photographs. Rows of the upstream "
        "release name no model; the paper says GPT-4o image generation and Gemini 2.5 Pro."
    ),
}


def write_croissant(
    folder: Path,
    repo_id: str | None = None,
    version: str = "1.0.0",
    digests: Mapping[str, str] | None = None,
) -> Path:
    """Write `croissant.json`.

    Paths in it are relative to it, so it is right in the folder and in a repository of the same files.

    Reads: `README.md`, and every Parquet file that it names, once, for the checksum, if that is not known.
    Writes: `croissant.json` in `folder`.

    Args:
        folder (`Path`):
            A folder that `pack` wrote.
        repo_id (`str`, *optional*):
            The repository that it is published in.
        version (`str`, *optional*, defaults to `"1.0.0"`):
            Of the data set, as MAJOR.MINOR.PATCH.
        digests (`dict`, *optional*):
            Name of a file within the folder -> its sha256; files that are not named are read.
    """
    card, configs = _read_card(folder)
    content = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": _SPECIFICATION,
        "name": card.get("pretty_name") or folder.resolve().name,
        "description": "Pictures with the prompts, edit instructions or descriptions that belong to them.",
        **_terms(card, repo_id),
        "citeAs": CITATION,
        "version": version,
        **_date_published(configs),
        "keywords": card.get("tags", []),
        "inLanguage": card.get("language", []),
        **_RESPONSIBLE_AI,
        "distribution": [*_distribution(folder, configs, digests or {})],
        "recordSet": [
            record_set
            for name, files in configs.items()
            for record_set in (_splits(name, [*files]), _record_set(name, [*files], _features(files)))
        ],
    }
    path = folder / CROISSANT
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def require_validator() -> None:
    """Raise `ModuleNotFoundError` now, rather than half-way, where the extra `publish` is not installed."""
    import mlcroissant  # noqa: F401


def validate_croissant(path: Path) -> None:
    """Check a Croissant file with mlcroissant; what is wrong with it becomes one sentence."""
    try:
        import mlcroissant
    except ImportError as error:
        raise UserError(
            "checking Croissant metadata needs mlcroissant; pip install 'sharegpt4o-image[publish]'"
        ) from error
    try:
        errors = mlcroissant.Dataset(jsonld=path).metadata.ctx.issues.errors
    except Exception as error:  # mlcroissant raises whatever its parsers raise
        errors = {str(error)}
    if errors:
        details = " ".join("; ".join(sorted(errors)).split())
        raise UserError(f"{path} is not valid Croissant metadata ({details[:500]}); pack the data set again")


# ------------------------------------------------------------------ files


_Configs = dict[str, dict[str, list[Path]]]  # configuration -> split -> its Parquet files


def _read_card(folder: Path) -> tuple[dict[str, Any], _Configs]:
    """The YAML of a packed folder, and the files that it names."""
    configs: _Configs = {}
    for config, split, path in find_shards(folder):
        configs.setdefault(config, {}).setdefault(split, []).append(path)
    return metadata_load(folder / "README.md") or {}, configs


def _features(files: dict[str, list[Path]]) -> Features:
    """The columns of a configuration, which are the same in all of its files."""
    return Features.from_arrow_schema(_metadata(next(iter(files.values()))[0]).schema.to_arrow_schema())


def _metadata(shard: Path) -> pq.FileMetaData:
    try:
        return pq.read_metadata(shard)
    except (ArrowInvalid, OSError) as error:
        raise UserError(f"{shard} cannot be read as Parquet; pack or download it again") from error


def _distribution(folder: Path, configs: _Configs, digests: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """For every configuration the set of its files, then each file with its checksum."""
    for name, files in configs.items():
        yield {
            "@type": "cr:FileSet",
            "@id": _file_set(name),
            "name": _file_set(name),
            "description": f"Parquet files of the configuration {name}, all splits.",
            "encodingFormat": _PARQUET,
            "includes": [f"{name}/{split}-*.parquet" for split in files],
        }
        for path in (path for paths in files.values() for path in paths):
            yield _file_object(folder, path, digests)
    rejections = folder / "rejections.parquet"
    if rejections.exists():
        yield _file_object(folder, rejections, digests) | {"description": "Rows that were kept out, with the reasons."}


def _file_object(folder: Path, path: Path, digests: Mapping[str, str]) -> dict[str, Any]:
    name = path.relative_to(folder).as_posix()
    return {
        "@type": "cr:FileObject",
        "@id": name,
        "name": name,
        "contentUrl": name,
        "contentSize": f"{path.stat().st_size} B",
        "sha256": digests.get(name) or _sha256(path),
        "encodingFormat": _PARQUET,
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _file_set(config: str) -> str:
    return f"parquet-files-of-{config}"


# ------------------------------------------------------------------ records


def _splits(config: str, splits: list[str]) -> dict[str, Any]:
    """The names of the splits, as a set of records that those of the configuration refer to."""
    name = f"{config}_splits"
    return {
        "@type": "cr:RecordSet",
        "@id": name,
        "name": name,
        "description": f"Splits of the configuration {config}.",
        "dataType": "cr:Split",
        "key": {"@id": f"{name}/split_name"},
        "field": [{"@type": "cr:Field", "@id": f"{name}/split_name", "name": "split_name", "dataType": "sc:Text"}],
        "data": [{f"{name}/split_name": split} for split in splits],
    }


def _record_set(config: str, splits: list[str], features: Features) -> dict[str, Any]:
    return {
        "@type": "cr:RecordSet",
        "@id": config,
        "name": config,
        "description": f"Rows of the configuration {config}.",
        "key": {"@id": f"{config}/id"},
        "field": [
            _split_field(config, splits),
            *(_field(config, column, feature) for column, feature in features.items()),
        ],
    }


def _split_field(config: str, splits: list[str]) -> dict[str, Any]:
    return {
        "@type": "cr:Field",
        "@id": f"{config}/split",
        "name": "split",
        "description": "Split that the row belongs to.",
        "dataType": "sc:Text",
        "source": {
            "fileSet": {"@id": _file_set(config)},
            "extract": {"fileProperty": "fullpath"},
            "transform": {"regex": f"{config}/({'|'.join(splits)})-.+parquet$"},
        },
        "references": {"field": {"@id": f"{config}_splits/split_name"}},
    }


def _field(config: str, column: str, feature: Any) -> dict[str, Any]:
    field = {
        "@type": "cr:Field",
        "@id": f"{config}/{column}",
        "name": column,
        "description": COLUMNS.get(column, column).replace("`", ""),
    }
    source: dict[str, Any] = {"fileSet": {"@id": _file_set(config)}, "extract": {"column": column}}
    if isinstance(feature, dict):
        return field | {"subField": [_sub_field(field, source, name) for name in feature]}
    is_list = isinstance(feature, List)
    leaf = feature.feature if is_list else feature
    if isinstance(leaf, Image):
        source["transform"] = {"jsonPath": "bytes"}
    field |= {"dataType": _data_type(leaf), "source": source}
    return field | (_array(column, leaf) if is_list else {})


def _sub_field(field: dict[str, Any], source: dict[str, Any], name: str) -> dict[str, Any]:
    """A number that stands under its name in a column."""
    return {
        "@type": "cr:Field",
        "@id": f"{field['@id']}/{name}",
        "name": name,
        "dataType": "sc:Float",
        "source": source | {"transform": {"jsonPath": name}},
    }


def _array(column: str, leaf: Any) -> dict[str, Any]:
    shape = {"isArray": True, "arrayShape": "2" if column.endswith("resolution") else "-1"}
    # mlcroissant 1.1.1 opens the pictures of a list only where the older `repeated` stands beside `isArray`.
    return shape | ({"repeated": True} if isinstance(leaf, Image) else {})


def _data_type(leaf: Any) -> str:
    if isinstance(leaf, Image):
        return "sc:ImageObject"
    names = {"int32": "sc:Integer", "float64": "sc:Float"}
    return names.get(getattr(leaf, "dtype", ""), "sc:Text")  # JSON is text


# ------------------------------------------------------------------ terms and dates


def _terms(card: dict[str, Any], repo_id: str | None) -> dict[str, Any]:
    terms: dict[str, Any] = {}
    if name := card.get("license_name"):
        terms["license"] = name
    elif name := card.get("license"):
        terms["license"] = f"https://choosealicense.com/licenses/{name}/"  # as in the Hub's own Croissant files
    if repo_id:
        owner = repo_id.split("/")[0]
        terms["url"] = f"{_HUB}/datasets/{repo_id}"
        terms["creator"] = {"@type": "sc:Organization", "name": owner, "url": f"{_HUB}/{owner}"}
    return terms


def _date_published(configs: _Configs) -> dict[str, str]:
    """When the newest picture was made, as the statistics of the Parquet files tell; nothing where no row says it."""
    shards = [path for files in configs.values() for paths in files.values() for path in paths]
    dates = [date for shard in shards for date in _newest_dates(shard) if _is_date(date)]
    return {"datePublished": max(dates)} if dates else {}


def _newest_dates(shard: Path) -> Iterator[str]:
    metadata = _metadata(shard)
    for group in (metadata.row_group(index) for index in range(metadata.num_row_groups)):
        for column in (group.column(index) for index in range(group.num_columns)):
            if column.path_in_schema == "created_at" and column.statistics and column.statistics.has_min_max:
                yield str(column.statistics.max)


def _is_date(text: str) -> bool:
    try:
        return bool(datetime.fromisoformat(text))
    except ValueError:
        return False
