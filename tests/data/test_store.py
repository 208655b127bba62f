"""What makes files safe: the parts themselves are tested in ``tests/test_streaming.py``."""

import errno
import os
import stat

import pytest

from diffvi import InvalidInputError
from diffvi.data import _store
from diffvi.data._store import PartStore, put_in_place, read_json, write_text


def test_a_file_is_flushed_before_it_is_renamed_and_its_folder_after(tmp_path, monkeypatch):
    done, replace, flush = [], os.replace, os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: done.append("flush") or flush(handle))
    monkeypatch.setattr(os, "replace", lambda *paths: done.append("rename") or replace(*paths))
    monkeypatch.setattr(_store, "_flush_folder", lambda folder: done.append(folder))
    write_text(tmp_path / "a.json", "[1]")
    assert done == ["flush", "rename", tmp_path]
    assert read_json(tmp_path / "a.json") == [1]
    (tmp_path / "aside").write_text("[2]")
    put_in_place(tmp_path / "aside", tmp_path / "a.json")
    assert done == ["flush", "rename", tmp_path] * 2
    assert read_json(tmp_path / "a.json") == [2]
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("text", [None, "", "[1"])
def test_what_is_not_whole_is_not_read(tmp_path, text):
    if text is not None:
        (tmp_path / "a.json").write_text(text)
    assert read_json(tmp_path / "a.json") is None


def test_requests_differ_in_what_only_one_of_them_has(tmp_path):
    PartStore(tmp_path / "a.zarr", 1, {"n": 1, "seed": 0, "layers": None})
    with pytest.raises(InvalidInputError, match="parts of another request, which differs in n, seed, steps; ask for"):
        PartStore(tmp_path / "a.zarr", 1, {"n": 2, "layers": None, "steps": 5})


def test_a_file_system_that_flushes_no_folders_is_no_reason_to_stop(tmp_path, monkeypatch):
    flush = os.fsync

    def on_a_share(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        flush(handle)

    monkeypatch.setattr(os, "fsync", on_a_share)
    write_text(tmp_path / "told.json", "1")
    assert (tmp_path / "told.json").read_text() == "1"
