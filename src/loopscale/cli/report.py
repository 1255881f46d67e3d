"""`loopscale report`: draw the page and figures of a study or a run again, from its records."""

from __future__ import annotations

from pathlib import Path

import click

from loopscale.cli.options import JSON, OPEN, PATH, finish
from loopscale.errors import UserError


@click.command()
@click.argument("folder", type=PATH)
@OPEN
@click.option("--serve", is_flag=True, help="Serve a live page on this machine: trials as they end, until Ctrl-C.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8321, show_default=True, help="For --serve; 0: a free one."
)
@JSON
def command(folder: Path, open_page: bool, serve: bool, port: int, as_json: bool) -> None:
    """Write report.html and figures/ of FOLDER: a study (`transfer`, `exponent`), finished or not, a tuning or a run."""
    if serve:
        _serve(folder, port, open_page)
        return
    from loopscale.files import check_folder
    from loopscale.report import write_exponent_report, write_run_report, write_study_page, write_tune_report

    writers = {
        "study.json": write_study_page,
        "exponent.json": write_exponent_report,
        "metrics.jsonl": write_run_report,
        "tune.json": write_tune_report,
    }
    write = next((writers[name] for name in writers if (folder / name).exists()), None)
    check_folder(folder, "give the folder of a study, a tuning or a run")
    if write is None:
        raise UserError(
            f"{folder} is neither a study, a tuning nor a run: "
            "it has no study.json, exponent.json, tune.json or metrics.jsonl"
        )
    page = write(folder)
    finish({"page": str(page)}, f"page: {page}", as_json, page if open_page else None)


def _serve(folder: Path, port: int, open_page: bool) -> None:
    from loopscale.cli.serving import make_server

    with make_server(folder, port) as server:
        address = f"http://127.0.0.1:{server.server_address[1]}/"
        click.echo(f"live page: {address} (Ctrl-C ends it)")
        if open_page:
            click.launch(address)
        server.serve_forever()
