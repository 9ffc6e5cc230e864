import subprocess
import sys
import textwrap

import pytest
import torch

from var_hf.conversion import new_path, read_original, write_original


def test_a_written_state_dict_is_read_back_bit_for_bit(transformer, tmp_path):
    write_original(transformer, tmp_path / "var.pth")

    read = read_original(tmp_path / "var.pth")

    assert read.keys() == transformer.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in transformer.items())
    assert [path.name for path in tmp_path.iterdir()] == ["var.pth"]


def test_only_the_bytes_of_the_tensor_are_written(tmp_path):
    whole = torch.arange(100_000.0)
    parameter = torch.nn.Parameter(whole[:10])

    write_original(
        {"slice": parameter, "columns": whole.view(100, 1000)[:, :1]}, tmp_path / "x.pth"
    )

    assert (tmp_path / "x.pth").stat().st_size < 4000
    read = torch.load(tmp_path / "x.pth", weights_only=True)
    assert torch.equal(read["slice"], whole[:10])
    assert type(read["slice"]) is torch.Tensor
    assert torch.equal(read["columns"], whole.view(100, 1000)[:, :1])


@pytest.mark.parametrize("kind", ["file", "folder", "dangling link"])
def test_nothing_is_overwritten(tmp_path, kind):
    path = tmp_path / "taken"
    if kind == "file":
        path.write_text("mine")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "nowhere")

    with pytest.raises(FileExistsError, match="taken exists already"), new_path(path):
        raise AssertionError("the block must not run")
    assert [entry.name for entry in tmp_path.iterdir()] == ["taken"]


@pytest.mark.parametrize("error", [ValueError("bad"), KeyboardInterrupt(), SystemExit(1)])
def test_an_error_or_an_interrupt_leaves_nothing(tmp_path, error):
    with pytest.raises(type(error)), new_path(tmp_path / "out" / "folder") as temporary:
        temporary.mkdir()
        (temporary / "half").write_text("half a file")
        raise error

    assert list((tmp_path / "out").iterdir()) == []


def test_the_path_appears_only_at_the_end_and_with_the_usual_permissions(tmp_path):
    (tmp_path / "other").mkdir()

    with new_path(tmp_path / "folder") as temporary:
        temporary.mkdir()
        (temporary / "file").touch()
        assert not (tmp_path / "folder").exists()

    assert [entry.name for entry in (tmp_path / "folder").iterdir()] == ["file"]
    assert (tmp_path / "folder").stat().st_mode == (tmp_path / "other").stat().st_mode
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["folder", "other"]


def test_a_disk_that_refuses_more_bytes_is_one_error_and_nothing_is_left(tmp_path):
    """A limit on file sizes makes the system refuse to write, as a full disk does, at the same place."""
    script = f"""
        import resource, torch
        from safetensors.torch import save_file
        from var_hf.conversion import new_path, write_original

        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        tensors = {{"weight": torch.zeros(1_000_000), "bias": torch.zeros(7)}}
        try:
            write_original(tensors, "{tmp_path}/var.pth")
        except OSError as error:
            print(error.errno, error)
        try:
            with new_path("{tmp_path}/folder") as temporary:
                temporary.mkdir()
                save_file(tensors, temporary / "model.safetensors")
        except OSError as error:
            print(error.errno, error)
    """

    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True
    )

    lines = result.stdout.splitlines()
    assert len(lines) == 2
    assert (
        "Writing" in lines[0]
        and "var.pth failed and nothing of it was left behind: File too large" in lines[0]
    )
    assert "folder failed and nothing of it was left behind: File too large" in lines[1]
    assert list(tmp_path.iterdir()) == []
