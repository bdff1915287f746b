# SPDX-License-Identifier: Apache-2.0
"""Published scores, as tables: those of the ShareGPT-4o-Image paper, and the few others that stand beside them.

The paper is arXiv 2506.18095 v1. Numbers are as printed; no published row has an interval.
"""

from dataclasses import dataclass

from sharegpt4o_image.evaluation.imgedit_scores import PAPER_COLUMNS

PAPER = "ShareGPT-4o-Image paper (arXiv 2506.18095)"
JANUS_4O = "Janus-4o"
PREFERENCE = "preference"


@dataclass(frozen=True)
class PublishedRow:
    """What a table says of a model.

    Args:
        model (`str`): as the table names it.
        scores (`dict`): name of the score, as in a `ScoreLine` -> value.
        note (`str`, *optional*): what to know about this row alone.
    """

    model: str
    scores: dict[str, float]
    note: str | None = None


@dataclass(frozen=True)
class PublishedGroup:
    """Rows of one source, measured in one way.

    Args:
        source (`str`): where the numbers are printed.
        rows (`tuple`): in the order of the source.
        compared (`tuple`):
            Names of the scores whose protocol is known well enough for ours, under the benchmark's plain name, to be
            compared with them.
    """

    source: str
    rows: tuple[PublishedRow, ...]
    compared: tuple[str, ...] = ()


@dataclass(frozen=True)
class PublishedTable:
    """A benchmark's published scores.

    Args:
        title (`str`): of the benchmark.
        columns (`dict`): name of the score -> heading, in the paper's order; then those that the paper lacks.
        decimals (`int`): that the paper prints.
        groups (`tuple`): the paper's own rows first.
        notes (`tuple`): what differs, or is not known, about the protocol of all published rows.
    """

    title: str
    columns: dict[str, str]
    decimals: int
    groups: tuple[PublishedGroup, ...]
    notes: tuple[str, ...]


def _rows(names: tuple[str, ...], values: dict[str, tuple[float, ...]]) -> tuple[PublishedRow, ...]:
    return tuple(PublishedRow(model, dict(zip(names, scores, strict=True))) for model, scores in values.items())


# ------------------------------------------------------------------ GenEval

_GENEVAL_COLUMNS = {
    "single_object": "Single",
    "two_object": "Two",
    "counting": "Counting",
    "colors": "Colors",
    "position": "Position",
    "color_attr": "Color attr.",
    "overall": "Overall",
}
_GENEVAL = _rows(
    tuple(_GENEVAL_COLUMNS),
    {
        "LlamaGen": (0.71, 0.34, 0.21, 0.58, 0.07, 0.04, 0.32),
        "SDv2.1": (0.98, 0.51, 0.44, 0.85, 0.07, 0.17, 0.50),
        "Emu3-Gen": (0.98, 0.71, 0.34, 0.81, 0.17, 0.21, 0.54),
        "SDXL": (0.98, 0.74, 0.39, 0.85, 0.15, 0.23, 0.55),
        "DALL-E 3": (0.96, 0.87, 0.47, 0.83, 0.43, 0.45, 0.67),
        "SD3-Medium": (0.99, 0.94, 0.72, 0.89, 0.33, 0.60, 0.74),
        "Janus-Pro-7B": (1.00, 0.85, 0.53, 0.90, 0.69, 0.58, 0.76),
        JANUS_4O: (1.00, 0.92, 0.58, 0.88, 0.70, 0.70, 0.80),
    },
)
_GENEVAL_TABLE = PublishedTable(
    title="GenEval",
    columns=_GENEVAL_COLUMNS,
    decimals=2,
    groups=(
        PublishedGroup(f"{PAPER}, Table 1", _GENEVAL, compared=tuple(_GENEVAL_COLUMNS)),
        PublishedGroup("Janus-Pro's own report", (PublishedRow("Janus-Pro-7B", {"overall": 0.80}),)),
    ),
    notes=(
        "The paper states neither seeds nor sampling nor the number of pictures per prompt of its evaluation; the "
        "official protocol draws four pictures of each of 553 prompts.",
        "The paper re-evaluated Janus-Pro-7B and got 0.76 where its own report has 0.80, so Janus-4o's 0.80 equals "
        "the number published for the model that it was trained from.",
        "Plain GenEval means OpenMMLab's Mask2Former weights, CLIP ViT-L/14 for colours and the 553 official prompts. "
        "Other detectors, and rewritten prompts, are variants whose numbers are not comparable.",
    ),
)

# ------------------------------------------------------------------ DPG-Bench

_DPG_COLUMNS = {
    "global": "Global",
    "entity": "Entity",
    "attribute": "Attribute",
    "relation": "Relation",
    "other": "Other",
    "overall": "Overall",
}
_DPG = _rows(
    tuple(_DPG_COLUMNS),
    {
        "SDv1.5": (74.63, 74.23, 75.39, 73.49, 67.81, 63.18),
        "SDXL": (83.27, 82.43, 80.91, 86.76, 80.41, 74.65),
        "PixArt-Sigma": (86.89, 82.89, 88.94, 86.59, 87.68, 80.54),
        "Emu3-Gen": (85.21, 86.68, 86.84, 90.22, 83.15, 80.60),
        "DALL-E 3": (90.97, 89.61, 88.39, 90.58, 89.83, 83.50),
        "SD3-Medium": (87.90, 91.01, 88.83, 80.70, 88.68, 84.08),
        "Janus-Pro-7B": (80.70, 89.75, 90.04, 89.85, 88.55, 84.12),
        JANUS_4O: (92.59, 90.61, 89.51, 91.77, 89.01, 85.71),
    },
)
_DPG_TABLE = PublishedTable(
    title="DPG-Bench",
    columns=_DPG_COLUMNS,
    decimals=2,
    groups=(
        PublishedGroup(f"{PAPER}, Table 2", _DPG, compared=("overall",)),
        PublishedGroup("Janus-Pro's own report", (PublishedRow("Janus-Pro-7B", {"overall": 84.19}),)),
    ),
    notes=(
        "The paper states neither seeds nor sampling of its evaluation.",
        "Plain DPG-Bench means the VQA model mPLUG-large. Another one moves the score by points: on the same pictures "
        "of DSG-1k, PaLI-17B gives 80.4, mPLUG-large 83.0 and InstructBLIP 86.8. It needs its own baselines.",
        "The official script mixes up the categories when it runs with several processes, as its documentation "
        "advises, so the published category columns may be mixtures. The overall score is not touched by it; it "
        "alone is compared.",
    ),
)

# ------------------------------------------------------------------ ImgEdit

_IMGEDIT_COLUMNS = {**PAPER_COLUMNS, "paper8": "Avg. of 8"}
_IMGEDIT_EXTRA = {"adjust": "Adjust", "overall": "Avg. of 9", "micro": "Avg. of items"}
_IMGEDIT = _rows(
    tuple(_IMGEDIT_COLUMNS),
    {
        "Instruct-Pix2Pix": (2.29, 1.49, 1.93, 1.51, 3.54, 1.67, 1.33, 1.48, 1.91),
        "AnySD": (3.12, 2.34, 2.71, 3.31, 3.27, 2.37, 1.82, 2.07, 2.62),
        "UltraEdit": (3.63, 1.71, 3.13, 3.57, 3.69, 3.31, 2.02, 2.33, 2.92),
        "Step1X-Edit": (3.90, 2.61, 3.45, 3.43, 4.44, 3.19, 1.87, 2.52, 3.17),
        "ImgEdit-E1": (3.82, 2.40, 2.80, 3.21, 4.38, 3.38, 2.55, 2.87, 3.17),
        JANUS_4O: (3.60, 2.28, 3.27, 4.13, 4.47, 3.32, 2.28, 2.74, 3.26),
    },
)
_NEITHER = "Equals neither the mean of its types nor that of all items."
_IMGEDIT_GPT_41 = (
    PublishedRow("Step1X-Edit", {"overall": 3.06}),
    PublishedRow("UltraEdit", {"overall": 2.70}),
    PublishedRow("BAGEL", {"overall": 3.20}),
    PublishedRow("UniWorld-V1", {"overall": 3.26}),
    PublishedRow("OmniGen2", {"overall": 3.44}),
    PublishedRow("Kontext", {"overall": 3.52}, _NEITHER),
    PublishedRow("GPT-Image-Edit", {"overall": 3.80}),
    PublishedRow("Ovis-U1", {"overall": 4.00}, _NEITHER),
    PublishedRow("GPT-4o", {"micro": 4.20}),
)
_IMGEDIT_TABLE = PublishedTable(
    title="ImgEdit-Bench, single turn",
    columns={**_IMGEDIT_COLUMNS, **_IMGEDIT_EXTRA},
    decimals=2,
    groups=(
        PublishedGroup(f"{PAPER}, Table 3; the judge is not named, evidently a GPT-4o", _IMGEDIT),
        PublishedGroup("ImgEdit's later table; judge GPT-4.1", _IMGEDIT_GPT_41),
    ),
    notes=(
        "Never mix tables of different judges: the table of GPT-4.1 has the same model up to 0.9 lower on a type "
        "than that of GPT-4o (Step1X-Edit, action). Compare only rows of the same judge.",
        "The paper names no judge, so no difference to its rows is shown. Its rows stand beside the first table of "
        "ImgEdit, made before the judge was changed to GPT-4.1.",
        "The paper has eight of the nine types, without adjust. Avg. of 8 (paper8) is the mean of these eight, "
        "Avg. of 9 (macro) that of all types; Avg. of items (micro) weighs every item alike. Both of the latter are "
        "called overall elsewhere.",
        "The paper does not say how edited pictures were sized; Janus draws squares of 384 pixels.",
    ),
)

# ------------------------------------------------------------------ human preference

_UNCONFIRMED = "Read from Figure 5 by a secondary summary, not confirmed. One rater; ties allowed."
_PREFERENCE_TABLE = PublishedTable(
    title="Human preference",
    columns={"votes": "Votes", "win": "Win %", "tie": "Tie %", "loss": "Loss %", "net": "Net win %"},
    decimals=0,
    groups=(
        PublishedGroup(
            f"{PAPER}, Figure 5",
            (
                PublishedRow(
                    "Janus-4o vs Janus-Pro (text to image)",
                    {"votes": 52, "win": 67, "tie": 19, "loss": 14},
                    _UNCONFIRMED,
                ),
                PublishedRow(
                    "Janus-4o vs UltraEdit (edits)", {"votes": 35, "win": 60, "tie": 25, "loss": 15}, _UNCONFIRMED
                ),
            ),
        ),
    ),
    notes=(
        "With 52 votes, 60 % wins have the 95 % interval 46 to 72 %; with 35 votes, 44 to 74 %. Such studies cannot "
        "show moderate preferences.",
        "Prompts, raters and instructions differ from the paper's, so no difference to its rows is shown.",
    ),
)

PUBLISHED = {
    "geneval": _GENEVAL_TABLE,
    "dpg-bench": _DPG_TABLE,
    "imgedit": _IMGEDIT_TABLE,
    PREFERENCE: _PREFERENCE_TABLE,
}
