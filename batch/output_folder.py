"""A folder on any filesystem that pyarrow knows: a local path, s3://, gs://, ..."""

import io
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO, TypeVar
from urllib.parse import urlsplit, urlunsplit

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs
from tenacity import (
    Retrying,
    retry_if_exception,
    stop_after_delay,
    wait_random_exponential,
)

ResultT = TypeVar("ResultT")

# An object store that fails is asked again for so long, beside the tries of its own client.
_PATIENCE_S = 120
# What it says, on writing, of a bucket that is not there.
_NO_BUCKET = "AWS Error NO_SUCH_BUCKET"
_READ_AT_ONCE = 16
# Bytes of a file on its way to an object store; larger ones wait on the disk.
_WAITS_IN_MEMORY = 16 * 2**20


class LocationUnusable(ValueError):
    """A path or URI that cannot be what it is meant to be."""


def absolute(location: str) -> str:
    """A URI as it is, a local path from the root, so that it means the same to every worker."""
    return location if "://" in location else str(Path(location).expanduser().absolute())


def shown(location: str) -> str:
    """A location for people and logs: without the keys and the options of a URI."""
    scheme, separator, rest = location.partition("://")
    if not separator:
        return location
    keys = "[^:/@]+:[^@]*@" if scheme == "s3" else "[^/@]*@"  # secrets there may have a slash
    return f"{scheme}://{re.sub(f'^{keys}', '', rest.partition('?')[0])}"


def resolve(location: str) -> tuple[fs.FileSystem, str]:
    """The filesystem and the path in it of a local path or a URI. Raises LocationUnusable."""
    uri = location
    try:
        uri = _uri(location)
        filesystem, path = fs.FileSystem.from_uri(uri)
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).replace(uri, shown(location))  # it may have keys
        raise LocationUnusable(f"cannot open {shown(location)}: {reason}") from None
    return filesystem, path


def _uri(location: str) -> str:
    location = absolute(location)
    uri = location if "://" in location else Path(location).as_uri()
    parts = urlsplit(uri)
    if parts.scheme != "s3":
        return uri
    # By default pyarrow writes the smallest object to S3 in three requests, not in one.
    query = f"{parts.query}&" if parts.query else ""
    return urlunsplit(parts._replace(query=f"{query}allow_delayed_open=true"))


class OutputFolder:
    """Names are relative, with forward slashes. A file is not there or is there whole."""

    def __init__(self, location: str) -> None:
        """Raises LocationUnusable."""
        self._filesystem, self._root = resolve(location)
        self.location = absolute(location)
        try:  # without patience: who is refused now, by wrong keys say, always will be
            kind = self._filesystem.get_file_info(self._root).type
        except OSError as error:
            raise LocationUnusable(f"cannot open {shown(location)}: {error}") from error
        if kind == fs.FileType.File:
            raise LocationUnusable(f"{shown(location)} is a file, not a folder")
        if self._is_local:
            self._make()

    def _make(self) -> None:
        try:
            self._filesystem.create_dir(self._root, recursive=True)
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise LocationUnusable(f"cannot make the folder {self.location}: {reason}") from error

    def write(self, name: str, data: bytes) -> None:
        path = self._path(name)
        if self._is_local:
            with _replacing(Path(path)) as stream:
                stream.write(data)
        else:
            self._patiently(lambda: self._upload(io.BytesIO(data), path))

    @contextmanager
    def writing(self, name: str) -> Iterator[IO[bytes]]:
        """A stream that becomes the file when it ends well."""
        path = self._path(name)
        if self._is_local:
            with _replacing(Path(path)) as stream:
                yield stream
            return
        # An object store takes what it has for the whole when a stream is closed, for whatever
        # reason.
        with SpooledTemporaryFile(_WAITS_IN_MEMORY) as whole:
            yield whole
            self._patiently(lambda: self._upload(whole, path))

    def _upload(self, whole: IO[bytes], path: str) -> None:
        whole.seek(0)
        with self._filesystem.open_output_stream(path) as stream:
            shutil.copyfileobj(whole, stream, _WAITS_IN_MEMORY)

    def read(self, name: str) -> bytes:
        """Raises FileNotFoundError."""

        def read() -> bytes:
            # An input file is read in one request, a stream in many.
            with self._filesystem.open_input_file(self._path(name)) as file:
                content: bytes = file.read()
            return content

        return self._patiently(read)

    def exists(self, name: str) -> bool:
        info = self._patiently(lambda: self._filesystem.get_file_info(self._path(name)))
        return bool(info.type == fs.FileType.File)

    def list(self, folder: str) -> list[str]:
        """The sorted file names in a folder; none where there is no such folder."""
        selector = fs.FileSelector(self._path(folder), allow_not_found=True)
        found = self._patiently(lambda: self._filesystem.get_file_info(selector))
        return sorted(info.base_name for info in found if not info.base_name.startswith("."))

    def delete(self, name: str) -> None:
        self._patiently(lambda: self._filesystem.delete_file(self._path(name)))

    def is_within(self, location: str) -> bool:
        """Whether this folder is `location` or lies in it."""
        filesystem, path = resolve(location)
        inside = f"{self._root}/".startswith(f"{path.rstrip('/')}/")
        return inside and bool(filesystem == self._filesystem)

    def write_table(self, name: str, table: pa.Table) -> None:
        self.write(name, parquet_bytes(table))

    def read_table(self, name: str) -> pa.Table:
        """Raises FileNotFoundError."""
        return pq.read_table(pa.BufferReader(self.read(name)))

    def find_table(self, name: str) -> pa.Table | None:
        """The table, if it is there."""
        try:
            return self.read_table(name)
        except FileNotFoundError:
            return None

    def read_tables(self, names: Sequence[str]) -> Iterator[pa.Table]:
        """As `read_table`, of each in order."""
        return _several_at_once(self.read_table, names)

    def find_tables(self, names: Sequence[str]) -> Iterator[pa.Table | None]:
        """As `find_table`, of each in order."""
        return _several_at_once(self.find_table, names)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    @property
    def _is_local(self) -> bool:
        return isinstance(self._filesystem, fs.LocalFileSystem)

    def _patiently(self, action: Callable[[], ResultT]) -> ResultT:
        """`action`, again and again while an object store fails; a local disk is believed."""
        if self._is_local:
            return action()
        retrying = Retrying(
            retry=retry_if_exception(_may_pass),
            wait=wait_random_exponential(multiplier=0.5, max=20),
            stop=stop_after_delay(_PATIENCE_S),
            reraise=True,
        )
        try:
            return retrying(action)
        except OSError as error:
            if _NO_BUCKET in str(error):
                raise LocationUnusable(f"{shown(self.location)}: {error}") from None
            raise


def _may_pass(error: BaseException) -> bool:
    return (
        isinstance(error, OSError)
        and not isinstance(error, FileNotFoundError)
        and _NO_BUCKET not in str(error)
    )


def _several_at_once(read: Callable[[str], ResultT], names: Sequence[str]) -> Iterator[ResultT]:
    """In the order of `names`, and not far ahead of who takes them."""
    with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
        for start in range(0, len(names), 4 * _READ_AT_ONCE):
            yield from pool.map(read, names[start : start + 4 * _READ_AT_ONCE])


def parquet_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    content: bytes = sink.getvalue().to_pybytes()
    return content


@contextmanager
def _replacing(target: Path) -> Iterator[IO[bytes]]:
    """A stream that takes the place of a local file when it ends well."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with partial.open("wb") as stream:
            yield stream
        _sync(partial)
        partial.replace(target)
        _sync(target.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _sync(path: Path) -> None:
    """Onto the disk with the file, or with the names in the folder: a commit outlives the power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
