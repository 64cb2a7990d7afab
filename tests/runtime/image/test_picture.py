"""Reading pictures: as transformers reads them, or refused by name."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers.image_utils import load_image as load_image_of_transformers

import pictures
from lvlm_runtime.errors import LvlmError
from lvlm_runtime.image import memory
from lvlm_runtime.image.picture import load_image, picture_size, upright_size

PHOTOS = Path(__file__).resolve().parents[2] / "data" / "photos"


def picture(height: int, width: int) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(noise)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_modes_of_files_are_converted_as_transformers_does(mode: str, tmp_path: Path) -> None:
    path = tmp_path / ("a.tiff" if mode in ("CMYK", "YCbCr", "PA") else "a.png")
    source = picture(20, 30).convert("L" if mode == "LA" else "RGB")
    if mode == "PA":
        path = tmp_path / "a.png"
        source.convert("P").save(path, transparency=3)
    elif mode in ("LA", "RGBA"):
        source.putalpha(picture(20, 30).convert("L"))
        source.save(path)
    else:
        source.convert(mode).save(path)
    ours, theirs = load_image(path), load_image_of_transformers(str(path))
    assert ours.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
    np.testing.assert_array_equal(np.asarray(load_image(path.read_bytes())), np.asarray(theirs))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    exif = Image.Exif()
    exif[274] = orientation
    picture(20, 30).save(path, exif=exif)
    ours, theirs = load_image(str(path)), load_image_of_transformers(str(path))
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
    np.testing.assert_array_equal(np.asarray(load_image(Image.open(path))), np.asarray(theirs))
    picture(20, 30).save(tmp_path / "a.png", exif=exif)
    for each in (path, tmp_path / "a.png"):
        assert upright_size(each) == (theirs.height, theirs.width)


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 1), (4, 6, 3), (4, 6, 4)])
def test_arrays_are_pictures(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    first = array if array.ndim == 2 else array[:, :, 0]
    np.testing.assert_array_equal(np.asarray(load_image(array))[:, :, 0], first)


def png_header(height: int, width: int) -> bytes:
    """A PNG whose size is known and whose pixels are missing."""

    def chunk(name: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0"))


@pytest.mark.parametrize("edge", [13_000, 20_000])
def test_huge_pictures_are_refused_before_decoding(edge: int) -> None:
    message = f"has {edge * edge} pixels, at most 166666666 are decoded|larger than Pillow decodes"
    with pytest.raises(LvlmError, match=message):
        load_image(png_header(edge, edge))
    with pytest.raises(LvlmError, match=message):
        picture_size(png_header(edge, edge))


@pytest.mark.parametrize("size", [(9248, 6936), (12_000, 9000)])
def test_pictures_of_telephones_are_read(size: tuple[int, int]) -> None:
    data = io.BytesIO()
    Image.new("L", size, 128).save(data, "jpeg", quality=1)
    assert picture_size(data.getvalue()) == size[::-1]
    read = load_image(data.getvalue())
    assert (read.size, read.getpixel((5, 5))) == (size, (128, 128, 128))


@pytest.mark.parametrize("trait", pictures.READ_BY_BOTH)
def test_traits_are_read_as_transformers_reads_them(trait: str, tmp_path: Path) -> None:
    path = tmp_path / "picture"
    path.write_bytes(pictures.READ_BY_BOTH[trait]())
    ours, theirs = load_image(path), load_image_of_transformers(str(path))
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
    np.testing.assert_array_equal(np.asarray(load_image(ours)), np.asarray(theirs))
    with Image.open(path) as opened:
        assert picture_size(path) == (opened.height, opened.width)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("trait", pictures.METADATA)
def test_pixels_are_read_where_metadata_cannot_be(trait: str) -> None:
    write, _ = pictures.METADATA[trait]
    raw = write()
    # Or the trait would be none.
    with pytest.raises(Exception, match=""):  # noqa: PT011  # whatever Pillow raises
        load_image_of_transformers(Image.open(io.BytesIO(raw)))
    np.testing.assert_array_equal(
        np.asarray(load_image(raw)), np.asarray(pictures.pixels_of(trait))
    )
    assert picture_size(raw) == (40, 60)


@pytest.mark.parametrize("trait", pictures.METADATA)
def test_a_truncated_picture_stays_refused_without_its_metadata(trait: str) -> None:
    write, _ = pictures.METADATA[trait]
    raw = pictures.png_with(b"\0" * 40) if "behind" in trait else write()[:-300]
    with pytest.raises(LvlmError, match=r"damaged or truncated|its beginning is damaged"):
        load_image(raw)


def test_a_picture_that_was_turned_is_not_turned_again() -> None:
    once = load_image(pictures.READ_BY_BOTH["turned_jpeg"]())
    assert once.size == (40, 60)
    assert load_image(once).size == (40, 60)
    assert not once.info


def test_a_file_of_more_bytes_than_are_read_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MAX_BYTES", 1000)
    with pytest.raises(LvlmError, match=r"is a file of \d+ bytes, at most 1000 are read"):
        load_image((PHOTOS / "chelsea.png").read_bytes())


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(LvlmError, match=r"no picture file .*nowhere\.png"):
        load_image(tmp_path / "nowhere.png")


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LvlmError, match="is a directory, a picture file is needed"):
        load_image(tmp_path)


@pytest.mark.parametrize("content", [b"", b"no picture", b"%!PS-Adobe-3.0 EPSF-3.0\n" * 9])
def test_what_is_not_a_picture_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(LvlmError, match=r"a\.png is not a picture in a known format \(JPEG"):
        load_image(path)


@pytest.mark.parametrize("name", ["chelsea.png", "rocket.jpg"])
def test_a_truncated_file_is_refused(name: str) -> None:
    data = (PHOTOS / name).read_bytes()
    with pytest.raises(LvlmError, match="is a damaged or truncated picture"):
        load_image(data[: len(data) // 2])


def test_sixteen_bits_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.full((4, 4), 30_000, np.uint16)).save(path)
    with pytest.raises(LvlmError, match=r"Pillow mode 'I;16' .* which 8-bit RGB cannot hold"):
        load_image(path)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 20, 20), np.uint8), r"array is uint8 \[3, 20, 20\]; give uint8"),
        (np.zeros((4, 4, 3), np.float32), r"array is float32 \[4, 4, 3\]; give uint8"),
        (np.zeros((0, 4, 3), np.uint8), r"\[0, 4, 3\] is empty"),
    ],
)
def test_other_arrays_are_refused(array: np.ndarray, message: str) -> None:
    with pytest.raises(LvlmError, match=message):
        load_image(array)


def test_every_source_of_a_file_gives_its_pixels() -> None:
    path = sorted(PHOTOS.glob("*.jp*g"))[0]
    content = path.read_bytes()
    coded = base64.b64encode(content).decode()
    stream = io.BytesIO(content)
    stream.seek(7)
    sources = [
        *(path, str(path), content, stream, f"data:image/png;base64,{coded}"),
        "DATA:;base64," + coded.replace("+", "%2B").replace("/", "%2F"),
    ]
    pixels = {load_image(each).tobytes() for each in sources}
    assert len(pixels) == 1
    assert stream.tell() == 7


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "https://example.org/cat.png",
            r"https://example.org/cat.png is an address, and a picture",
        ),
        ("file:///cat.png", r"is an address, and a picture is never fetched: .* give its path"),
        ("data:image/png,abc", r"is a data URL of another form; give data:image/png;base64,"),
        ("data:image/png;base64", r"is a data URL of another form"),
        ("data:image/png;base64,ab-", r"a data URL of 3 characters is no base64 \(.*\); encode it"),
        ("data:image/png;base64,", r"the picture of 0 bytes is not a picture in a known format"),
    ],
)
def test_a_text_that_is_no_path_says_why_it_is_refused(text: str, line: str) -> None:
    with pytest.raises(LvlmError, match=line):
        load_image(text)
