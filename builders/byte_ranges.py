# SPDX-License-Identifier: Apache-2.0
"""A file on this machine or on the Hub -> any part of it, without the rest."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import httpx2
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_stream_backoff

from sharegpt4o_image.errors import UserError

_NUM_TRIES = 5  # of an answer that breaks off; statuses and connections are tried again by huggingface_hub
_REFUSED = (401, 403)  # what storage says of a signed address that has run out


class ByteRanges(Protocol):
    """A file that is read in parts.

    Args:
        name (`str`): the last part of its path.
        size (`int`): in bytes.
        stamp (`str`): changes when the file does.
    """

    name: str
    size: int
    stamp: str

    def read(self, offset: int, length: int) -> bytes:
        """The bytes from `offset` on; fewer than `length` only where the file ends."""


class LocalFile:
    """A file on this machine; it is open only while it is read."""

    def __init__(self, path: Path):
        self._path = path
        self.name = path.name
        with self._errors():
            status = path.stat()
        self.size = status.st_size
        self.stamp = f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"

    def read(self, offset: int, length: int) -> bytes:
        """The bytes from `offset` on."""
        with self._errors(), self._path.open("rb") as file:
            file.seek(offset)
            return file.read(length)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"{self._path} cannot be read ({error.strerror}); check the folder") from error


class HubFile:
    """A file of a data set repository, read by range requests; a token is found by `huggingface_hub` itself.

    The Hub answers with the signed address of a storage server. It is asked for once and used until it runs out: that
    is one request for each part instead of two, and the Hub limits how often an address may be asked for (5,000 times
    in five minutes with a free account, says its documentation), but the release has 139,000 pictures.

    Args:
        repo_id (`str`): `owner/name`.
        revision (`str`): the commit.
        path (`str`): within the repository.
        size (`int`): in bytes.
        content (`str`): hash of what it holds.
    """

    def __init__(self, repo_id: str, revision: str, path: str, size: int, content: str):
        self._repo_id = repo_id
        self._url = hf_hub_url(repo_id, path, repo_type="dataset", revision=revision)
        self._address: str | None = None
        self._headers: dict[str, str] = {}
        self.name = path
        self.size = size
        self.stamp = f"{repo_id} {content}"

    def read(self, offset: int, length: int) -> bytes:
        """The bytes from `offset` on."""
        length = min(length, self.size - offset)
        if length <= 0:
            return b""
        with hub_errors(self._repo_id):
            for _ in range(_NUM_TRIES):
                data = self._fetch(offset, length)
                if data is not None:
                    return data
        raise UserError(f"the Hub does not send {self.name} whole; run the command again later")

    def _fetch(self, offset: int, length: int) -> bytes | None:
        """Exactly `length` bytes, or `None` if it should be tried again."""
        address = self._address or self._find_address()
        headers = {**self._headers, "Range": f"bytes={offset}-{offset + length - 1}", "Accept-Encoding": "identity"}
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        with http_stream_backoff("GET", address, headers=headers, timeout=timeout) as response:
            if response.status_code in _REFUSED and address != self._url:
                self._address = None
                return None
            hf_raise_for_status(response)
            expected = f"bytes {offset}-{offset + length - 1}/{self.size}"
            if response.status_code != httpx2.codes.PARTIAL_CONTENT:
                raise UserError(f"the server of {self.name} does not send parts of files; download the release")
            if response.headers.get("Content-Range") != expected:
                raise UserError(f"{self.name} has another size than the Hub lists; run the command again")
            return _read_body(response, length)

    def _find_address(self) -> str:
        metadata = get_hf_file_metadata(self._url, retry_on_errors=True)
        is_elsewhere = urlsplit(metadata.location)[:2] != urlsplit(self._url)[:2]  # scheme and host
        self._headers = {} if is_elsewhere else build_hf_headers()  # the token is the Hub's alone
        self._address = metadata.location
        return metadata.location


def _read_body(response: httpx2.Response, length: int) -> bytes | None:
    """The bytes of an answer, `None` if it breaks off; never more than `length` are kept."""
    chunks, num_bytes = [], 0
    try:
        for chunk in response.iter_raw():
            chunks.append(chunk)
            num_bytes += len(chunk)
            if num_bytes > length:
                return None
    except httpx2.TransportError:
        return None
    return b"".join(chunks) if num_bytes == length else None


@contextmanager
def hub_errors(repo_id: str) -> Iterator[None]:
    """Turn what `huggingface_hub` raises into one sentence with the remedy; addresses may be signed and stay out."""
    try:
        yield
    except GatedRepoError as error:
        raise UserError(f"{repo_id} is gated; ask for access on its page and log in with `hf auth login`") from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"there is no data set {repo_id} on the Hub, or it is private; check the name or run `hf auth login`"
        ) from error
    except RemoteEntryNotFoundError as error:
        raise UserError(f"a file of {repo_id} has gone while it was read; run the command again") from error
    except HFValidationError as error:
        raise UserError(f"{repo_id} is no name of a repository; give it as owner/name") from error
    except OfflineModeIsEnabled as error:
        raise UserError(f"{repo_id} is on the Hub, but HF_HUB_OFFLINE is set; unset it, or give a folder") from error
    except HfHubHTTPError as error:
        reason = f"status {error.response.status_code}"
        raise UserError(f"the Hub does not give {repo_id} ({reason}); run the command again later") from error
    except (httpx2.HTTPError, OSError) as error:
        reason = type(error).__name__
        raise UserError(f"the Hub cannot be reached for {repo_id} ({reason}); run the command again later") from error
