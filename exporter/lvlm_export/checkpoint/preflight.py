"""Everything that can be known of a checkpoint before the export, in seconds: headers and JSON."""

from __future__ import annotations

from lvlm_export.checkpoint.checkpoint import Checkpoint
from lvlm_export.checkpoint.files import READ_FILES, refuse_pointer
from lvlm_export.checkpoint.generation import read_rules
from lvlm_export.families import ModelShape
from lvlm_runtime.errors import LvlmError
from lvlm_runtime.image.preprocess import RESIZE_EXACT, PreprocessSpec


def preflight(checkpoint: Checkpoint, image_size: tuple[int, int] | None = None) -> None:
    """Check a checkpoint's parts against each other, from headers and JSON.

    Weights are read in one case: where the configuration ties the output projection to the token table
    and both are stored, the two are compared (``Checkpoint.tied_embeddings``).

    Args:
        checkpoint: The checkpoint.
        image_size: As ``Family.shape`` takes it.

    Raises:
        UsageError: An image size that does not fit the family.
        LvlmError: Two parts do not fit each other, or one is not supported.
    """
    for name in READ_FILES:
        refuse_pointer(checkpoint.directory / name)
    shape = checkpoint.shape(image_size)
    checkpoint.check_weights()
    _check_picture(shape)
    _check_image_token(checkpoint, shape)
    read_rules(checkpoint.directory, shape.text.vocab_size)
    _ = checkpoint.stop_ids


def _check_picture(shape: ModelShape) -> None:
    """What the image processor gives is what the vision tower takes."""
    edge, given = shape.vision.image_size, preprocessed_size(shape.preprocess)
    if given == shape.vision.picture:
        return
    if given is None:
        raise LvlmError(
            "the image processor gives pictures whose size follows theirs and the vision tower takes"
            f" {edge} x {edge}; set do_center_crop, or a size of height and width, in"
            " preprocessor_config.json"
        )
    raise LvlmError(
        f"the image processor gives pictures of {given[0]} x {given[1]} and the vision tower"
        f" takes {edge} x {edge}; correct preprocessor_config.json, or image_size of"
        " vision_config"
    )


def _check_image_token(checkpoint: Checkpoint, shape: ModelShape) -> None:
    """A prompt can be made, and its image token is the one that the model was trained with."""
    encoder = checkpoint.encoder
    wanted, rows = shape.image_token_id, shape.text.vocab_size
    if encoder.image_token_id != wanted:
        raise LvlmError(
            f"the image token of config.json is {wanted} and {encoder.image_token} of the tokenizer"
            f" is {encoder.image_token_id}; correct image_token_index of config.json, or the"
            f" tokenizer in {checkpoint.directory}"
        )
    if wanted >= rows:
        raise LvlmError(
            f"image token {wanted} is outside the token table of {rows} rows; enlarge the model's"
            " table (resize_token_embeddings) and save it again"
        )


def preprocessed_size(spec: PreprocessSpec) -> tuple[int, int] | None:
    """Height and width of every picture or tile after preprocessing; None where they vary."""
    if spec.center_crop is not None:
        return spec.center_crop
    if spec.height is None or (spec.resize != RESIZE_EXACT and spec.pad_to_square is None):
        return None
    return spec.height, spec.width or spec.height
