# SPDX-License-Identifier: Apache-2.0
"""`report`, and the verbs of `evaluate` that carry scores and pictures elsewhere: `results`, `card`, `export`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from sharegpt4o_image.cli_evaluation_options import AsJson, print_result
from sharegpt4o_image.errors import UserError

ScoreFiles = Annotated[
    list[Path], typer.Argument(metavar="FOLDER_OR_FILE...", help="scores/NAME.json of `evaluate`, or folders of them.")
]


def report(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="FOLDER_OR_FILE...",
            help="Files of scores and preference reports, or folders with scores/*.json and preference*.json.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Page to write: .html or .md.")] = Path("report.html"),
    as_json: AsJson = False,
) -> None:
    """Write one page with our scores beside the paper's and other published ones."""
    from sharegpt4o_image.evaluation.report import build_report
    from sharegpt4o_image.evaluation.report_page import write_report
    from sharegpt4o_image.evaluation.score_files import read_measurements

    built = build_report(*read_measurements(sources))
    write_report(built, output)
    print_result(built.to_json(), "\n".join([*(f"Warning: {text}" for text in built.warnings), str(output)]), as_json)


def results(
    sources: ScoreFiles,
    output: Annotated[Path, typer.Option("--output", "-o", help="MODEL_DIR/.eval_results")],
    dataset_id: Annotated[
        list[str] | None, typer.Option(help="BENCHMARK=owner/name: its data set on the Hub; may be repeated.")
    ] = None,
    task_id: Annotated[
        list[str] | None, typer.Option(help="NAME=ID: task of that data set for a score; may be repeated.")
    ] = None,
    source_url: Annotated[str | None, typer.Option(help="Where the evaluation can be looked at.")] = None,
    source_name: Annotated[str | None, typer.Option(help="What that address is called.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write the overall scores of one model as the Hub's .eval_results/*.yaml, one file each."""
    from sharegpt4o_image.evaluation.eval_results import Source, entries_of, write_entries
    from sharegpt4o_image.evaluation.score_files import read_score_files

    files = read_score_files(sources)
    names = _pairs("--dataset-id", dataset_id, [file.record.benchmark for file in files])
    tasks = _pairs("--task-id", task_id, [file.record.name for file in files])
    paths = write_entries(entries_of(files, names, tasks, Source(source_url, source_name)), output)
    note = "The Hub shows a score when its data set is registered there as a benchmark with that task id."
    print_result([str(path) for path in paths], "\n".join([*map(str, paths), note]), as_json)


def _pairs(option: str, values: list[str] | None, names: list[str]) -> dict[str, str]:
    """`NAME=VALUE` by name; a name may itself hold the sign. Where there is one score, the value alone will do."""
    pairs = {}
    for value in values or ():
        name, sign, told = value.rpartition("=")
        if not sign and len(set(names)) == 1:
            name = names[0]
        if not name or not told:
            raise UserError(f"{option} {value!r} is not NAME=VALUE; name one of {', '.join(sorted(set(names)))}")
        pairs[name] = told
    return pairs


def card(
    sources: ScoreFiles,
    checkpoint: Annotated[Path, typer.Option(help="Folder of the checkpoint that was scored.")],
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="What the scores call it; default: the folder or the title.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Put scores into CHECKPOINT/README.md, if `train` or a release of ours wrote it."""
    from sharegpt4o_image.evaluation.score_files import read_score_files
    from sharegpt4o_image.evaluation.scored_card import fill_card

    filled = fill_card(read_score_files(sources), checkpoint, model)
    numbers = {"path": str(filled.path), "scores": filled.num_scores, "replaced": filled.num_replaced}
    text = f"Wrote {filled.path}: {filled.num_scores:,} scores, in place of {filled.num_replaced:,}"
    print_result(numbers, text, as_json)


def export(
    images: Annotated[Path, typer.Argument(metavar="IMAGES", help="Folder of pictures in an official layout.")],
    to: Annotated[
        Literal["lmms-eval", "torch-fidelity", "evalscope"], typer.Option(help="The tool that is to read them.")
    ],
    layout: Annotated[
        Literal["geneval", "dpg-bench", "imgedit"], typer.Option(help="The benchmark whose layout the folder has.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="New folder to write.")],
    items: Annotated[
        Path | None, typer.Option(help="Of DPG-Bench dpg_bench.csv, of ImgEdit basic_edit.json: ids and prompts.")
    ] = None,
    resolution: Annotated[int, typer.Option(help="Side of one picture of a DPG-Bench grid.", min=1)] = 384,
    order: Annotated[
        Path | None, typer.Option(help="For lmms-eval: JSON list of its data set's keys, in order.")
    ] = None,
    model: Annotated[str, typer.Option("--model", "-m", help="For lmms-eval: name of what drew them.")] = "images",
    as_json: AsJson = False,
) -> None:
    """Write the pictures of a benchmark as other evaluation tools read them."""
    from sharegpt4o_image.evaluation import exporters
    from sharegpt4o_image.evaluation.layout_pictures import read_layout

    if to == "lmms-eval" and layout != "imgedit":
        raise UserError(f"lmms-eval has no task for {layout}; of these benchmarks it has imgedit alone")
    found = read_layout(images, layout, _prompts(layout, items), resolution)
    if to == "lmms-eval":
        exported = exporters.to_lmms_eval(found, output, order, model)
    elif to == "torch-fidelity":
        exported = exporters.to_torch_fidelity(found, output)
    else:
        exported = exporters.to_evalscope(found, output)
    print_result(exported.to_json(), exported.to_text(), as_json)


def _prompts(layout: str, items: Path | None) -> dict[str, str] | None:
    from sharegpt4o_image.evaluation.dpg_questions import read_questions
    from sharegpt4o_image.evaluation.imgedit_scores import read_items

    if items is None:
        return None
    if layout == "dpg-bench":
        return {item.id: item.text for item in read_questions(items)}
    if layout == "imgedit":
        return {key: item.prompt for key, item in read_items(items).items()}
    raise UserError("--items is for dpg-bench and imgedit; a folder of geneval holds its prompts")
