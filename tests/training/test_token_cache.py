import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import make_vqvae
from image_files import write_image_folder
from safetensors.torch import load_file

from var_hf.files import FolderInUseError, lock_folder
from var_hf.images import ImageTransform, UnreadableImageError, normalize, open_images
from var_hf.training.token_cache import TokenCache, TokenDataset, encode_images, tokenizer_digest

TRANSFORM = ImageTransform(image_size=10, resize_factor=1.5, random_crop=True)


@pytest.fixture(scope="module")
def vqvae():
    return make_vqvae()


def encode(folder, target, vqvae, **changes):
    settings = {"transform": TRANSFORM, "copies": 2, "batch_size": 6, "shard_size": 5} | changes
    return encode_images(open_images(folder), vqvae, folder=target, **settings)


def contents(folder):
    return {file.name: load_file(file) for file in sorted(folder.glob("shard-*"))}


def test_the_cache_holds_the_tokens_of_every_version_of_every_image(image_folder, tmp_path, vqvae):
    cache = encode(image_folder, tmp_path / "tokens", vqvae)

    images = open_images(image_folder)
    assert len(cache) == len(images) == 14
    assert cache.class_labels.tolist() == [0] * 7 + [1] * 7
    assert cache.class_names == ["circle", "dot"]
    for index in (0, 6, 13):
        for copy in (0, 1):
            pixels = TRANSFORM(images.read(index), copy, index)
            with torch.no_grad():
                token_maps = vqvae.encode(normalize(pixels[None])).token_maps
            assert torch.equal(cache.tokens(index, copy), torch.cat(token_maps, dim=1)[0])
    assert torch.equal(cache.tokens(3, 2), cache.tokens(3, 0))  # versions go round and round
    assert not torch.equal(cache.tokens(3, 1), cache.tokens(3, 0))


def test_a_second_start_encodes_nothing_again(image_folder, tmp_path, vqvae):
    encode(image_folder, tmp_path / "tokens", vqvae)
    written = {f: f.stat().st_mtime_ns for f in (tmp_path / "tokens").iterdir()}

    encode(image_folder, tmp_path / "tokens", vqvae)

    assert {f: f.stat().st_mtime_ns for f in (tmp_path / "tokens").iterdir()} == written


ENCODE_SLOWLY = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from conftest import make_vqvae
from training.test_token_cache import encode
from var_hf import images
read = images.decode_image
def slowly(*arguments):
    time.sleep(0.15)  # leave time to be killed in
    return read(*arguments)
images.decode_image = slowly
encode(Path(sys.argv[2]), Path(sys.argv[3]), make_vqvae())
"""


@pytest.mark.slow
def test_a_killed_encoding_goes_on_without_holes_or_duplicates(tmp_path, vqvae):
    folder = write_image_folder(tmp_path / "images", count=20)
    expected = tmp_path / "expected"
    encode(folder, expected, vqvae)
    target = tmp_path / "tokens"
    tests = os.path.dirname(os.path.dirname(__file__))
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", ENCODE_SLOWLY, tests, str(folder), str(target)],
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and len(list(target.glob("shard-*"))) < 2:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = len(list(target.glob("shard-*")))
    assert 2 <= left < 8
    # What a kill between the rename of a shard and the cleaning leaves.
    (target / ".shard-00000.safetensors.abcdefgh.partial").mkdir()

    with pytest.raises(ValueError, match=f"unfinished: {8 - left} of 8 shards are missing"):
        TokenCache(target)
    cache = encode(folder, target, vqvae)

    assert len(cache) == 40
    numbers = torch.cat([shard["image_numbers"] for shard in contents(target).values()])
    assert numbers.tolist() == list(range(40))
    for name, shard in contents(expected).items():
        assert torch.equal(shard["tokens"], contents(target)[name]["tokens"])
    assert {path.name for path in target.glob(".*")} <= {".lock"}


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"copies": 3}, "copies was 2, is 3"),
        (
            {"transform": ImageTransform(10, 1.25, random_crop=True)},
            r"transform.resize_factor was 1.5, is 1.25",
        ),
        ({"shard_size": 4}, "shard_size was 5, is 4"),
    ],
)
def test_a_cache_of_other_settings_is_refused(image_folder, tmp_path, vqvae, change, difference):
    encode(image_folder, tmp_path / "tokens", vqvae)

    with pytest.raises(ValueError, match=f"was made with other settings: {difference}"):
        encode(image_folder, tmp_path / "tokens", vqvae, **change)


def test_a_cache_of_other_images_is_refused(image_folder, tmp_path, vqvae):
    encode(image_folder, tmp_path / "tokens", vqvae)
    (image_folder / "dot" / "000.png").unlink()

    with pytest.raises(
        ValueError, match=r"images was '\w{12}\.{3}', is '\w{12}\.{3}'; num_images was 14, is 13"
    ):
        encode(image_folder, tmp_path / "tokens", vqvae)


def test_a_cache_of_another_tokenizer_is_refused(image_folder, tmp_path, vqvae):
    cache = encode(image_folder, tmp_path / "tokens", vqvae)
    other = make_vqvae()
    with torch.no_grad():
        other.quantizer.codebook.weight[3, 2] += 0.25

    cache.check_tokenizer(vqvae)
    for use in (
        lambda: encode(image_folder, tmp_path / "tokens", other),
        lambda: cache.check_tokenizer(other),
    ):
        with pytest.raises(
            ValueError, match=r"other settings: tokenizer was '\w{12}\.{3}', is '\w{12}"
        ):
            use()


def test_the_digest_looks_at_what_makes_tokens_and_at_nothing_else(vqvae):
    digest = tokenizer_digest(vqvae)
    for name, same in (
        ("decoder.conv_in.weight", True),
        ("quantizer.codebook_usage", True),
        ("encoder.conv_in.weight", False),
        ("quantizer.refiners.1.bias", False),
    ):
        changed = make_vqvae()
        with torch.no_grad():
            changed.state_dict()[name].view(-1)[0] += 1
        assert (tokenizer_digest(changed) == digest) is same, name
    assert tokenizer_digest(make_vqvae(token_map_sizes=(1, 2, 4, 5))) != digest


def test_a_corrupt_image_is_left_out_named_and_counted(image_folder, tmp_path, vqvae, caplog):
    (image_folder / "circle" / "004.png").write_bytes(b"no image")

    cache = encode(image_folder, tmp_path / "tokens", vqvae)

    assert len(cache) == 13
    assert cache.skipped == [4]
    assert cache.class_labels.tolist() == [0] * 6 + [1] * 7
    assert "004.png" in caplog.text
    assert "1 of 14 images could not be read" in caplog.text


def test_strict_stops_at_a_corrupt_image(image_folder, tmp_path, vqvae):
    (image_folder / "circle" / "004.png").write_bytes(b"no image")

    with pytest.raises(UnreadableImageError, match=r"circle/004\.png"):
        encode(image_folder, tmp_path / "tokens", vqvae, strict=True)


def test_only_corrupt_images_are_an_error(tmp_path, vqvae):
    folder = write_image_folder(tmp_path / "images", count=2)
    for file in folder.rglob("*.png"):
        file.write_bytes(b"no image")

    with pytest.raises(UnreadableImageError, match="None of the 4 images could be read"):
        encode(folder, tmp_path / "tokens", vqvae)


def test_images_without_classes_are_refused(image_folder, tmp_path, vqvae):
    with pytest.raises(ValueError, match=r"have no classes .* one sub-folder per class"):
        encode(image_folder / "dot", tmp_path / "tokens", vqvae)


def test_a_tokenizer_in_half_precision_is_refused(image_folder, tmp_path):
    with pytest.raises(ValueError, match=r"torch.bfloat16.*dtype=torch.float32"):
        encode(image_folder, tmp_path / "tokens", make_vqvae().to(torch.bfloat16))


def test_a_full_disk_is_one_error_and_leaves_no_half_shard(image_folder, tmp_path, vqvae):
    """A limit on file sizes stands in for a full disk: the write fails in the same place."""
    resource = pytest.importorskip("resource", reason="file size limits are a matter of Unix")
    target = tmp_path / "tokens"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(
            OSError, match=r"shard-00000\.safetensors failed and nothing of it .*File too large$"
        ):
            encode(image_folder, target, vqvae)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)

    assert sorted(file.name for file in target.iterdir()) == [".lock", "config.json"]
    assert len(encode(image_folder, target, vqvae)) == 14


def test_a_folder_that_holds_something_else_is_left_alone(image_folder, tmp_path, vqvae):
    with pytest.raises(ValueError, match="is not empty and holds no token cache"):
        encode(image_folder, image_folder, vqvae)
    with pytest.raises(ValueError, match="holds no token cache"):
        TokenCache(tmp_path)


def test_a_damaged_shard_is_refused_and_encoded_anew_once_it_is_gone(image_folder, tmp_path, vqvae):
    target = tmp_path / "tokens"
    encode(image_folder, target, vqvae)
    shard = target / "shard-00001.safetensors"
    whole = shard.read_bytes()

    for content in (whole[:-1] + bytes([whole[-1] ^ 1]), whole[:-1], b"", whole[:20]):
        shard.write_bytes(content)
        with pytest.raises(ValueError, match=r"shard-00001\.safetensors is damaged: .*Delete it"):
            encode(image_folder, target, vqvae)
    shard.unlink()
    os.mkfifo(shard)
    with pytest.raises(ValueError, match="it is no regular file"):
        TokenCache(target)
    shard.unlink()
    encode(image_folder, target, vqvae)

    assert shard.read_bytes() == whole


@pytest.mark.parametrize("change", [{"num_images": 10**18}, {"shard_size": 0}, {"class_names": 3}])
def test_a_description_that_was_tampered_with_is_one_error(image_folder, tmp_path, vqvae, change):
    encode(image_folder, tmp_path / "tokens", vqvae)
    file = tmp_path / "tokens" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))

    with pytest.raises(ValueError, match=r"is unfinished|config\.json is damaged"):
        TokenCache(tmp_path / "tokens")


def test_one_process_encodes_at_a_time_and_any_number_reads(image_folder, tmp_path, vqvae):
    target = tmp_path / "tokens"
    lock = lock_folder(target)

    with pytest.raises(FolderInUseError, match="tokens is being written by another process"):
        encode(image_folder, target, vqvae)
    lock.release()
    cache = encode(image_folder, target, vqvae)
    lock = lock_folder(target)
    assert len(encode(image_folder, target, vqvae)) == len(cache)
    lock.release()


def test_a_cache_of_another_version_is_refused(image_folder, tmp_path, vqvae):
    target = tmp_path / "tokens"
    encode(image_folder, target, vqvae)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | {"format": 99}))

    with pytest.raises(ValueError, match="token cache format 99; this version reads 2"):
        TokenCache(target)


def test_a_sample_depends_on_epoch_and_index_alone(image_folder, tmp_path, vqvae):
    cache = encode(image_folder, tmp_path / "tokens", vqvae)
    samples = TokenDataset(cache, num_noise=7, seed=3, class_ids=[5, 2])

    first, again, later = samples[1, 9], samples[1, 9], samples[2, 9]

    assert first["class_labels"] == 2
    assert torch.equal(first["labels"], cache.tokens(9, 1))
    assert torch.equal(first["dropout_noise"], again["dropout_noise"])
    assert not torch.equal(first["dropout_noise"], later["dropout_noise"])
    assert first["dropout_noise"].shape == (7,)
    assert first["dropout_noise"].dtype == torch.float32
    other_seed = TokenDataset(cache, num_noise=7, seed=4)[1, 9]
    assert not torch.equal(first["dropout_noise"], other_seed["dropout_noise"])
