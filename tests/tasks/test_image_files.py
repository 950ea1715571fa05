"""Files of pictures: formats, depths, channels, broken ones."""

import gzip
import io
import lzma

import numpy as np
import pytest
import torch
from PIL import Image

from tasks.idx import idx_files, read_idx
from tasks.image_files import as_float, examine, find_pictures, read_picture, resized
from tests.helpers import assert_close

RGB = np.random.default_rng(0).integers(0, 256, (3, 5, 3), dtype=np.uint8)


def idx(array, code=8):
    """Content of an IDX file."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes((0, 0, code, array.ndim)) + sizes + array.tobytes()


@pytest.mark.parametrize("shape", [(2, 3, 5), (7,), (0,), (1, 1, 1)], ids=str)
@pytest.mark.parametrize("pack", [None, gzip, lzma])
def test_idx(pack, shape, tmp_path):
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    content, ending = idx(array), {None: "", gzip: ".gz", lzma: ".xz"}[pack]
    file = tmp_path / f"train-images-idx3-ubyte{ending}"
    file.write_bytes(content if pack is None else pack.compress(content))
    assert torch.equal(read_idx(file), torch.from_numpy(array))


ARRAY = np.zeros((2, 3), np.uint8)
WRONG_IDX = {
    "": (b"", r"must be an IDX file of bytes.*got \[\]"),
    "text": (b"hello world", "must be an IDX file of bytes"),
    "floats": (idx(ARRAY, 13), r"must be an IDX file of bytes.*got \[0, 0, 13, 2\]"),
    "header": (idx(ARRAY)[:9], "must be an IDX file of bytes"),
    "short": (idx(ARRAY)[:-1], r"must have 6 values for its shape \(2, 3\), got 5"),
    "long": (idx(ARRAY) + b"0", "must have 6 values .* got 7"),
}


@pytest.mark.parametrize(("content", "message"), WRONG_IDX.values(), ids=WRONG_IDX)
def test_wrong_idx(content, message, tmp_path):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ValueError, match=f"read_idx: .*x {message}"):
        read_idx(tmp_path / "x")


@pytest.mark.parametrize("pack", [gzip, lzma])
def test_cut_idx(pack, tmp_path):
    file = tmp_path / ("x.gz" if pack is gzip else "x.xz")
    file.write_bytes(pack.compress(idx(RGB))[:-9])
    with pytest.raises(ValueError, match=r"read_idx: .* cannot be read .*copy it again"):
        read_idx(file)


def test_names_of_idx_files(tmp_path):
    names = ["train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte", "t10k-images.idx3-ubyte"]
    for name in [*names, "train-images-idx3-ubyte", "readme.txt", "images-idx3-ubyte"]:
        (tmp_path / name).touch()
    found = idx_files(tmp_path)
    assert {split: set(kinds) for split, kinds in found.items()} == {
        "train": {"images", "labels"},
        "test": {"images"},
    }
    assert found["train"]["images"].name == "train-images-idx3-ubyte"  # of it, no .gz
    (tmp_path / "letters-train-images-idx3-ubyte").touch()
    with pytest.raises(ValueError, match=r"one file of train images, got letters.* and train"):
        idx_files(tmp_path)


def test_labels_alone(tmp_path):
    (tmp_path / "train-labels-idx1-ubyte").touch()
    with pytest.raises(ValueError, match="has labels without train images"):
        idx_files(tmp_path)


def saved(picture, kind="PNG", **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    file.seek(0)
    return file


GREY = RGB[..., 0]
ALPHA = np.concatenate([RGB, GREY[..., None]], -1)
PICTURES = {
    "grey": (Image.fromarray(GREY), GREY[None]),
    "colour": (Image.fromarray(RGB), RGB.transpose(2, 0, 1)),
    "alpha": (Image.fromarray(ALPHA), RGB.transpose(2, 0, 1)),
    "grey and alpha": (Image.fromarray(np.stack([GREY, 255 - GREY], -1)), GREY[None]),
    "bits": (Image.fromarray(GREY > 128), (GREY > 128)[None] * 255),
    "palette": (Image.fromarray(RGB).quantize(256), RGB.transpose(2, 0, 1)),
}


@pytest.mark.parametrize(("picture", "want"), PICTURES.values(), ids=PICTURES)
def test_pictures(picture, want):
    got = read_picture(saved(picture))
    assert got.dtype == torch.uint8
    assert torch.equal(got, torch.from_numpy(want.astype(np.uint8)))
    for channels in (1, 3):
        assert read_picture(saved(picture), channels).shape == (channels, 3, 5)
    if len(want) == 1:
        assert torch.equal(read_picture(saved(picture), 3), got.expand(3, -1, -1))


def test_palette_with_transparency():
    file = saved(Image.fromarray(RGB).quantize(256), transparency=bytes(range(256)))
    assert torch.equal(read_picture(file), torch.from_numpy(RGB.transpose(2, 0, 1)))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits(kind):
    deep = np.array([[0, 1, 255], [256, 40000, 65535]], np.uint16)
    got = read_picture(saved(Image.fromarray(deep), kind), 3)
    want = torch.from_numpy(deep.astype(np.float64) / 65535).float()
    assert_close("values", got, want.expand(3, -1, -1), 1e-7)
    assert as_float(got) is got


@pytest.mark.parametrize(
    ("pixels", "message"),
    [(np.zeros((2, 3), np.float32), "floats"), (np.full((2, 3), 70000, np.int32), "0..65535")],
)
def test_pixels_of_unknown_range(pixels, message):
    with pytest.raises(ValueError, match=message):
        read_picture(saved(Image.fromarray(pixels), "TIFF"))


def test_a_picture_is_turned_as_the_camera_was():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    got = read_picture(saved(Image.fromarray(RGB), exif=exif))
    assert torch.equal(got, torch.from_numpy(np.rot90(RGB, -1).transpose(2, 0, 1).copy()))


@pytest.mark.parametrize("shape", [(3, 5), (1, 1), (7, 2), (12, 20)], ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_resized_is_what_pillow_makes(channels, shape):
    """Bilinear with antialias; both round to bytes."""
    smooth = np.add.outer(np.arange(3), np.arange(5)).astype(np.uint8) * 30
    picture = torch.from_numpy(smooth).expand(channels, -1, -1)
    got = resized(picture, shape)
    want = np.array(Image.fromarray(smooth).resize(shape[::-1], Image.Resampling.BILINEAR))
    assert got.shape == (channels, *shape)
    assert (got[0].int() - torch.from_numpy(want).int()).abs().max() <= 1
    several = resized(picture[None].expand(4, -1, -1, -1), shape)
    assert torch.equal(several, got.expand(4, -1, -1, -1))
    floats = resized(as_float(picture), shape)
    assert (as_float(got) - floats).abs().max() < 0.51 / 255


def test_examined(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.png")
    Image.fromarray(GREY).resize((4, 2)).save(tmp_path / "b.png")
    files = find_pictures(tmp_path)
    colour, grey = examine(files, tmp_path, 0)
    assert (colour.shape, colour.channels) == ((3, 5), 3)
    assert (grey.shape, grey.channels) == ((2, 4), 1)
    values = RGB.astype(np.float64) / 255
    assert_close("mean", torch.tensor(colour.mean), torch.tensor(values.mean((0, 1))), 1e-6)
    assert_close(
        "square", torch.tensor(colour.square), torch.tensor((values**2).mean((0, 1))), 1e-6
    )
    assert len(set(grey.mean)) == 1
    assert examine(files, tmp_path, 1) == [colour, grey]
    assert colour.checksum != grey.checksum


def test_broken_pictures_are_named_and_counted(tmp_path):
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(tmp_path / "good.png")
    content = (tmp_path / "good.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.gif").write_text("no picture")
    message = (
        r"3 of the 4 images in .* cannot be read: cut.png \(.+\), "
        r"empty.jpg \(not an image in a known format\), text.gif \(not an image"
    )
    with pytest.raises(ValueError, match=message):
        examine(find_pictures(tmp_path), tmp_path, 0)


def test_what_is_no_picture_is_named(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "a.PNG")
    for name in (".hidden.png", "Thumbs.db"):
        (tmp_path / name).touch()
    (tmp_path / ".folder").mkdir()
    Image.fromarray(GREY).save(tmp_path / ".folder" / "a.png")
    assert [file.name for file in find_pictures(tmp_path)] == ["a.PNG"]
    (tmp_path / "phone.heic").touch()
    with pytest.warns(UserWarning, match=r"1 files in .* are left out.*: phone.heic"):
        assert [file.name for file in find_pictures(tmp_path)] == ["a.PNG"]
