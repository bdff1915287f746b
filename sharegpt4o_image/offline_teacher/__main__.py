# SPDX-License-Identifier: Apache-2.0
"""Serve the offline teacher on a port: `python -m sharegpt4o_image.offline_teacher --port 8001`."""

from typing import Annotated

import typer
import uvicorn

from sharegpt4o_image.offline_teacher.app import create_app


def serve(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8001,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    requests_per_minute: Annotated[
        int | None, typer.Option(min=1, help="Refuse what is faster, for each route and model.")
    ] = None,
) -> None:
    """Serve the offline teacher until Ctrl-C; its base URL is http://HOST:PORT/v1."""
    uvicorn.run(create_app(requests_per_minute=requests_per_minute), host=host, port=port, log_level="info")


if __name__ == "__main__":
    typer.run(serve)
