import os
import socket

import pytest

from var_hf.untrusted import NotRegularFileError, check_regular, open_regular


def test_a_regular_file_is_read_through_a_link_as_well(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to(tmp_path / "file")

    for name in ("file", "link"):
        with open_regular(tmp_path / name) as file:
            assert file.read() == b"content"


@pytest.mark.parametrize("opened", [check_regular, open_regular])
def test_what_is_no_regular_file_is_refused_at_once(opened, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))

    with pytest.raises(NotRegularFileError, match="fifo is a FIFO"):
        opened(tmp_path / "fifo")
    with pytest.raises(NotRegularFileError, match="socket is a socket"):
        opened(tmp_path / "socket")
    with pytest.raises(NotRegularFileError, match="is a character device"):
        opened("/dev/zero")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        opened(tmp_path)
    with pytest.raises(FileNotFoundError, match="There is no file"):
        opened(tmp_path / "nothing")


def test_a_path_that_becomes_a_fifo_after_the_check_is_refused_without_waiting(
    tmp_path, monkeypatch
):
    os.mkfifo(tmp_path / "fifo")
    monkeypatch.setattr("var_hf.untrusted.check_regular", lambda path: None)

    with pytest.raises(NotRegularFileError, match="is a FIFO"):
        open_regular(tmp_path / "fifo")
