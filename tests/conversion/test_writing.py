import torch

from var_hf.conversion import read_original, write_original


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
