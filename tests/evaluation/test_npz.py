import io
import os
import struct
import zipfile

import numpy as np
import pytest

from var_hf.evaluation.image_sources import open_source
from var_hf.evaluation.npz import DamagedArrayError, array_names, open_array, read_array
from var_hf.untrusted import NotRegularFileError


def header(shape, descr="|u1", column_major=False):
    """The head of an .npy file, whatever follows."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": descr, "fortran_order": column_major, "shape": shape}
    )
    return file.getvalue()


def archive(path, **members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return path


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_are_those_of_numpy(save, order, tmp_path):
    path = tmp_path / "a.npz"
    array = np.asarray(np.arange(24, dtype=np.float32).reshape(2, 3, 4), order=order)
    save(path, array=array, text=np.array(["a", "ü"]), none=np.zeros((0, 3)), number=np.array(7))

    assert array_names(path) == {"array", "text", "none", "number"}
    with np.load(path) as stored:
        for name in stored.files:
            np.testing.assert_array_equal(read_array(path, name, 1000), stored[name])


def test_terabytes_that_are_only_declared_are_refused(tmp_path):
    path = archive(tmp_path / "a.npz", arr_0=header((10**6, 10**3, 10**3, 3)) + bytes(100))

    with pytest.raises(
        DamagedArrayError, match=r"declares 3000000000000 bytes and the archive 100"
    ):
        open_source(path)


@pytest.mark.parametrize("name", ["mu", "sigma"])
def test_statistics_that_declare_terabytes_are_refused(name, tmp_path):
    arrays = {"mu": header((3,), "<f8") + bytes(24), "sigma": header((3, 3), "<f8") + bytes(72)}
    path = archive(tmp_path / "a.npz", **arrays | {name: header((10**6, 10**6), "<f8")})

    with pytest.raises(DamagedArrayError, match="declares 8000000000000 bytes"):
        open_source(path)


def test_an_array_larger_than_asked_for_is_refused(tmp_path):
    path = archive(tmp_path / "a.npz", mu=header((5000,), "<f8") + bytes(40_000))

    with pytest.raises(ValueError, match="has 40000 bytes; at most 39999 are read"):
        read_array(path, "mu", 39_999)


def test_an_encrypted_archive_is_refused(tmp_path):
    path = archive(tmp_path / "a.npz", arr_0=header((1, 2, 2, 3)) + bytes(12))
    content = bytearray(path.read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)

    with pytest.raises(DamagedArrayError, match="is encrypted"):
        open_source(path)


def test_pickled_objects_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", arr_0=np.array([{}, []], dtype=object))

    with pytest.raises(ValueError, match="stored as Python objects"):
        open_source(tmp_path / "a.npz")


@pytest.mark.parametrize(
    "damage",
    [
        header((-1, 2, 2, 3)),
        header((1, 2, 2, 3)).replace(b"'shape'", b"'shapf'"),
        header((1, 2, 2, 3)).replace(b"|u1", b"|q9"),
        b"\x93NUMPY\x07\x00",
        b"\x93NUMPY\x01\x00" + struct.pack("<H", 9) + b"(" * 9,
        b"",
    ],
)
def test_odd_headers_are_refused(damage, tmp_path):
    with pytest.raises(DamagedArrayError, match=r"arr_0 of .*a\.npz cannot be read"):
        open_source(archive(tmp_path / "a.npz", arr_0=damage))


def test_images_beyond_the_limits_are_refused(tmp_path):
    path = archive(tmp_path / "a.npz", arr_0=header((0, 4, 4, 3)))
    with pytest.raises(ValueError, match="holds no images"):
        open_source(path)

    path = archive(tmp_path / "a.npz", arr_0=header((2, 2, 2, 3), column_major=True) + bytes(24))
    with pytest.raises(ValueError, match="stored column by column"):
        open_source(path)


def test_a_fifo_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "a.npz")

    with pytest.raises(NotRegularFileError, match="is a FIFO"):
        open_source(tmp_path / "a.npz")


def test_a_flipped_bit_is_found(tmp_path):
    np.savez(tmp_path / "a.npz", arr=np.arange(100))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[-400] ^= 4
    (tmp_path / "a.npz").write_bytes(content)

    with (
        pytest.raises(DamagedArrayError, match="CRC"),
        open_array(tmp_path / "a.npz", "arr") as array,
    ):
        array.read(100)
