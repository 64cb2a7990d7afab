"""Every bad input gets one clear line and the right status; nothing partial counts as whole."""

from __future__ import annotations

import json
import random
import shutil
import struct
import zlib
from pathlib import Path

import pytest

from command_line import PICTURE, QUESTION, error_line, typed
from lvlm_export.demo import CHECKPOINT
from lvlm_export.families import FAMILIES
from lvlm_runtime.bundle.bundle import MANIFEST, WEIGHTS, read_manifest
from lvlm_runtime.errors import LvlmError
from lvlm_runtime.session import Session


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy of the demo checkpoint that a test may damage."""
    return Path(shutil.copytree(CHECKPOINT, tmp_path / "checkpoint"))


def flip(path: Path, at: int) -> None:
    """Change one byte of a file."""
    with path.open("r+b") as stream:
        stream.seek(at)
        [byte] = stream.read(1)
        stream.seek(at)
        stream.write(bytes([byte ^ 0x10]))


def huge_png(path: Path, width: int, height: int) -> Path:
    """A PNG of a hundred bytes that claims to be enormous."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


@pytest.mark.parametrize("ratio", ["0", "1.5", "abc", "-0.3", "nan", "inf", ""])
@pytest.mark.parametrize("command", ["build", "run"])
def test_a_ratio_outside_its_range_is_a_usage_error(command: str, ratio: str) -> None:
    # The ratio is checked before anything is loaded, so no bundle has to be there.
    words = ("build",) if command == "build" else ("run", "absent", QUESTION)
    line = error_line(typed(*words, f"--ratio={ratio}"), 2)
    assert "a ratio is the share of visual tokens KEPT, a number in (0, 1]" in line


def test_a_ratio_that_the_bundle_lacks_names_those_it_has(demo_bundle: Path) -> None:
    line = error_line(typed("run", demo_bundle, "--image", PICTURE, "--ratio", "0.4", QUESTION), 2)
    assert "ratio 0.4 is not in this bundle; it has 0.33, 0.5, 1" in line


def test_a_ratio_that_the_model_cannot_reach_names_the_nearest(tmp_path: Path) -> None:
    line = error_line(typed("build", "--ratio", "0.0001", "-o", tmp_path / "b"), 2)
    assert "the nearest this model can reach is 0.005102" in line


def test_a_missing_image(demo_bundle: Path, tmp_path: Path) -> None:
    line = error_line(typed("run", demo_bundle, "--image", tmp_path / "cat.jpg", QUESTION), 1)
    assert "no picture file at" in line


def test_a_truncated_image(demo_bundle: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.png"
    cut.write_bytes(PICTURE.read_bytes()[:900])
    line = error_line(typed("run", demo_bundle, "--image", cut, QUESTION), 1)
    assert f"{cut} is a damaged or truncated picture" in line


def test_a_file_that_is_no_image(demo_bundle: Path, tmp_path: Path) -> None:
    text = tmp_path / "cat.jpg"
    text.write_text("not a picture")
    line = error_line(typed("run", demo_bundle, "--image", text, QUESTION), 1)
    assert "is not a picture in a known format" in line


def test_an_image_of_400_million_pixels(demo_bundle: Path, tmp_path: Path) -> None:
    image = huge_png(tmp_path / "huge.png", 20_000, 20_000)
    line = error_line(typed("run", demo_bundle, "--image", image, QUESTION), 1)
    assert "larger than Pillow decodes" in line


def test_a_prompt_longer_than_the_context(demo_bundle: Path) -> None:
    line = error_line(typed("run", demo_bundle, "--image", PICTURE, stdin="what " * 2000), 1)
    assert "the prompt does not fit" in line
    assert "context of 1024" in line


def test_an_answer_longer_than_the_context(demo_bundle: Path) -> None:
    words = ("run", demo_bundle, "--image", PICTURE, QUESTION, "--max-new-tokens", "1000")
    assert "--max-new-tokens" in error_line(typed(*words), 1)


def test_a_prompt_that_speaks_of_an_image_that_is_not_there(demo_bundle: Path) -> None:
    line = error_line(typed("run", demo_bundle, "What is in <image>?"), 1)
    assert "the prompt contains '<image>', which stands for a picture" in line


def test_fewer_images_than_the_prompt_has_places(demo_bundle: Path) -> None:
    session = Session.open(demo_bundle)
    ids = session.encoder.encode(QUESTION, 2)
    with pytest.raises(LvlmError, match="has 2 image placeholders and 1 images were given"):
        session.generate_ids(ids, [PICTURE])
    with pytest.raises(LvlmError, match="has 2 image placeholders and 0 images were given"):
        session.generate_ids(ids)


@pytest.mark.parametrize("token", [-1, 10**6])
def test_a_token_that_the_model_does_not_have(demo_bundle: Path, token: int) -> None:
    session = Session.open(demo_bundle)
    with pytest.raises(LvlmError, match=rf"token {token} of the prompt is not one of the model's"):
        session.generate_ids([*session.encoder.encode(QUESTION, 0), token])


def test_no_prompt(demo_bundle: Path) -> None:
    assert "the question is empty" in error_line(typed("run", demo_bundle, stdin=""), 2)
    assert "the question is empty" in error_line(typed("run", demo_bundle, " "), 2)
    assert "not UTF-8" in error_line(typed("run", demo_bundle, stdin=b"\xff\xfe"), 2)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--top-k", "5"), "top_k and top_p have no effect at temperature 0"),
        (("--temperature", "-1"), "temperature is -1.0"),
        (("--temperature", "1", "--top-p", "0"), "top_p is 0.0"),
        (("--max-new-tokens", "0"), "--max-new-tokens"),
        (("--threads", "0"), "--threads"),
        (("--backend", "caffe"), "known: auto, onnxruntime, openvino, tensorrt"),
        (("--device", "tpu"), "--device"),
        (("--nonsense",), "--nonsense"),
    ],
)
def test_an_option_outside_its_range(
    demo_bundle: Path, words: tuple[str, ...], reason: str
) -> None:
    assert reason in error_line(typed("run", demo_bundle, QUESTION, *words), 2)


@pytest.mark.parametrize("name", [WEIGHTS, "decoder.0.onnx", "tokenizer/tokenizer.json"])
@pytest.mark.parametrize("place", [0, 0.5, 1])
def test_one_flipped_byte_in_a_file(damaged_bundle: Path, name: str, place: float) -> None:
    path = damaged_bundle / name
    flip(path, int(place * (path.stat().st_size - 1)))
    for words in (
        ("run", damaged_bundle, "--image", PICTURE, QUESTION),
        ("inspect", damaged_bundle),
    ):
        line = error_line(typed(*words), 1)
        assert f"{path} is damaged: its SHA-256 is not the manifest's" in line
        assert "copy the bundle again or build it again" in line


def test_one_flipped_byte_anywhere_in_the_manifest(damaged_bundle: Path) -> None:
    path = damaged_bundle / MANIFEST
    whole, manifest = path.read_bytes(), read_manifest(damaged_bundle)
    generator = random.Random(0)
    refused = 0
    for at in [0, len(whole) - 1, *generator.sample(range(len(whole)), 60)]:
        path.write_bytes(whole)
        flip(path, at)
        result = typed("inspect", damaged_bundle)
        if result.exit_code:
            refused += 1
            error_line(result, 1)
        else:
            # White space between entries means nothing; everything else is refused.
            assert read_manifest(damaged_bundle) == manifest
    assert refused > 30


def test_a_manifest_that_is_cut_off(damaged_bundle: Path) -> None:
    path = damaged_bundle / MANIFEST
    path.write_bytes(path.read_bytes()[:2000])
    assert "is damaged" in error_line(typed("run", damaged_bundle, QUESTION), 1)


@pytest.mark.parametrize("name", [WEIGHTS, "vision.0.onnx", "tokenizer/tokenizer_config.json"])
def test_a_missing_file(damaged_bundle: Path, name: str) -> None:
    (damaged_bundle / name).unlink()
    line = error_line(typed("run", damaged_bundle, "--image", PICTURE, QUESTION), 1)
    assert f"lacks {name}" in line


def test_a_shortened_file(damaged_bundle: Path) -> None:
    path = damaged_bundle / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1])
    assert "bytes instead of" in error_line(typed("run", damaged_bundle, QUESTION), 1)


def test_a_place_that_is_no_bundle(tmp_path: Path) -> None:
    assert "no such directory" in error_line(typed("run", tmp_path / "absent", QUESTION), 1)
    assert "is not a bundle" in error_line(typed("inspect", tmp_path), 1)
    line = error_line(typed("verify", PICTURE), 1)
    assert f"{PICTURE} is a PNG picture; give a bundle, the directory that" in line
    assert "is a checkpoint and has no manifest.json" in error_line(typed("inspect", CHECKPOINT), 1)


def test_a_damaged_bundle_is_built_again_not_reused(
    demo_bundle: Path, damaged_bundle: Path
) -> None:
    from lvlm_export.bundle.present import intact_manifest

    assert intact_manifest(damaged_bundle) == read_manifest(damaged_bundle)
    flip(damaged_bundle / WEIGHTS, 4096)
    assert intact_manifest(damaged_bundle) is None


def build_fails(checkpoint: Path, target: Path) -> str:
    """The line of a build that cannot work; nothing is at its target afterwards."""
    line = error_line(typed("build", "--model", checkpoint, "--ratio", "0.5", "-o", target), 1)
    assert not target.exists()
    return line


def test_a_checkpoint_of_an_unknown_model_type(checkpoint: Path, tmp_path: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "model_type": "bert"}))
    line = build_fails(checkpoint, tmp_path / "bundle")
    assert f"unknown model_type 'bert'; known: {', '.join(FAMILIES)}" in line


def test_a_checkpoint_with_pickled_weights_only(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    line = build_fails(checkpoint, tmp_path / "bundle")
    assert "pickled weights are never read" in line


def test_truncated_safetensors(checkpoint: Path, tmp_path: Path) -> None:
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert f"{weights} is truncated or damaged" in build_fails(checkpoint, tmp_path / "bundle")


def test_weights_that_do_not_fit_the_configuration(checkpoint: Path, tmp_path: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] += 1
    (checkpoint / "config.json").write_text(json.dumps(config))
    assert "do not fit each other" in build_fails(checkpoint, tmp_path / "bundle")


@pytest.mark.parametrize(
    "content", ["{", "[]", "", '{"model_type": 3}', '{"model_type": "llava", "text_config": 3}']
)
def test_a_damaged_configuration(checkpoint: Path, tmp_path: Path, content: str) -> None:
    (checkpoint / "config.json").write_text(content)
    assert "config.json" in build_fails(checkpoint, tmp_path / "bundle")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "preprocessor_config.json"])
def test_a_checkpoint_that_lacks_a_file(checkpoint: Path, tmp_path: Path, name: str) -> None:
    (checkpoint / name).unlink()
    (checkpoint / "processor_config.json").unlink()
    assert name in build_fails(checkpoint, tmp_path / "bundle")


def test_a_model_that_is_nowhere(tmp_path: Path) -> None:
    line = build_fails(tmp_path / "absent", tmp_path / "bundle")
    assert "give a directory or a hub id (owner/name)" in line


def test_an_output_that_is_something_else(tmp_path: Path) -> None:
    directory = tmp_path / "photos"
    directory.mkdir()
    (directory / "cat.txt").write_text("mine")
    file = tmp_path / "notes.txt"
    file.write_text("mine")
    for target in (directory, file):
        line = error_line(typed("build", "--ratio", "0.5", "-o", target, "--force"), 1)
        assert f"{target} exists and is not a bundle" in line
    assert (directory / "cat.txt").read_text() == file.read_text() == "mine"


def test_a_directory_in_the_way_of_the_build_is_not_deleted(tmp_path: Path) -> None:
    precious = tmp_path / "bundle.lvlm-building"
    precious.mkdir()
    (precious / "thesis.txt").write_text("mine")
    line = build_fails(CHECKPOINT, tmp_path / "bundle")
    assert f"{precious} is in the way" in line
    assert (precious / "thesis.txt").read_text() == "mine"


def test_an_output_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    line = build_fails(CHECKPOINT, tmp_path / "file" / "bundle")
    assert str(tmp_path / "file") in line
