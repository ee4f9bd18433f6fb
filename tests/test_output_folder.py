from pathlib import Path

import pyarrow as pa
import pytest

from batch.output_folder import LocationUnusable, OutputFolder, shown


@pytest.fixture(params=["path", "uri"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> OutputFolder:
    root = tmp_path / "an output"
    return OutputFolder(str(root) if request.param == "path" else root.as_uri())


def test_what_is_written_is_read(folder: OutputFolder) -> None:
    folder.write("a/b.bin", b"first")
    folder.write("a/b.bin", b"second")
    assert folder.read("a/b.bin") == b"second"
    assert folder.exists("a/b.bin")
    assert folder.list("a") == ["b.bin"]


def test_what_is_not_there_is_not_there(folder: OutputFolder) -> None:
    assert not folder.exists("a")
    assert folder.list("a") == []
    with pytest.raises(FileNotFoundError):
        folder.read("a")


def test_a_write_that_fails_leaves_the_old_file(folder: OutputFolder, tmp_path: Path) -> None:
    folder.write("a", b"old")

    def write_half() -> None:
        with folder.writing("a") as stream:
            stream.write(b"n")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_half()
    assert folder.read("a") == b"old"
    assert [file.name for file in (tmp_path / "an output").iterdir()] == ["a"]


def test_tables_come_back(folder: OutputFolder) -> None:
    table = pa.table({"a": [1, None], "b": ["x", "雪"]})
    folder.write_table("t.parquet", table)
    assert folder.read_table("t.parquet") == table


def test_deleted_is_gone(folder: OutputFolder) -> None:
    folder.write("a/b", b"")
    folder.delete("a/b")
    assert folder.list("a") == []


def test_a_folder_is_known_to_every_worker_by_its_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert OutputFolder("out").location == str(tmp_path / "out")
    assert OutputFolder(f"{tmp_path.as_uri()}/out").location == f"{tmp_path.as_uri()}/out"


def test_a_folder_knows_what_it_lies_in(tmp_path: Path) -> None:
    folder = OutputFolder(str(tmp_path / "a" / "out"))
    assert folder.is_within(str(tmp_path / "a"))
    assert folder.is_within(str(tmp_path / "a" / "out"))
    assert not folder.is_within(str(tmp_path / "a" / "outer"))
    assert not folder.is_within(str(tmp_path / "a" / "prompts.parquet"))


@pytest.mark.parametrize("location", ["nothing://x", "~nobody-at-all/x", __file__])
def test_what_can_be_no_folder_is_refused(location: str) -> None:
    with pytest.raises(LocationUnusable):
        OutputFolder(location)


@pytest.mark.parametrize(
    ("location", "text"),
    [
        ("/data/out", "/data/out"),
        ("s3://bucket/out", "s3://bucket/out"),
        ("s3://key:secret@bucket/out?endpoint_override=host", "s3://bucket/out"),
        ("s3://key:sec/ret@bucket/out", "s3://bucket/out"),
        ("s3://bucket/me@home", "s3://bucket/me@home"),
        ("s3://key:secret@bucket/me@home", "s3://bucket/me@home"),
        ("hdfs://host:9000/me@home", "hdfs://host:9000/me@home"),
    ],
)
def test_no_key_is_shown(location: str, text: str) -> None:
    assert shown(location) == text


@pytest.mark.parametrize("location", ["s3://key:sec/ret@bucket", "s3://key:sec ret@bucket?a=b"])
def test_no_key_is_in_an_error(location: str) -> None:
    with pytest.raises(LocationUnusable, match="cannot open s3://bucket") as caught:
        OutputFolder(location)
    assert "sec" not in str(caught.value)
    assert "ret" not in str(caught.value)


def test_any_filesystem_of_pyarrow_will_do(tmp_path: Path) -> None:
    """pyarrow's own stand-in for an object store: no rename, no folders of its own."""
    folder = OutputFolder("mock:///run")
    folder._filesystem.create_dir("run/a")
    folder.write("a/b", b"data")
    assert folder.read("a/b") == b"data"
    assert folder.list("a") == ["b"]
