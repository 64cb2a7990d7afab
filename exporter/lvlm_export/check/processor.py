"""The gate's samples through transformers' own processor, tokenizer and chat template.

Chain and PyTorch reference are given the same tokens and pixels, those of the runtime, so neither can
show that a checkpoint's files were read in another way than transformers reads them. Here the same
pictures and questions go through what ``AutoProcessor`` makes of the checkpoint: the same token ids,
image tokens expanded, and the same pixel values must come out.

The image processor is transformers' Pillow backend, which the runtime's preprocessing equals to the
last bit; torchvision's resizes in another arithmetic. A video processor, which needs torchvision and
which no picture passes, is left out.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lvlm_export.check.chain_run import ParitySample
from lvlm_export.check.parity import request_of
from lvlm_export.check.reference_io import ReferenceRequest, quiet_transformers
from lvlm_export.checkpoint.checkpoint import Checkpoint
from lvlm_export.checkpoint.files import one_reason
from lvlm_export.checkpoint.processing import (
    PREPROCESSOR,
    PROCESSOR,
    image_settings,
    load_tokenizer,
    processor_settings,
)
from lvlm_export.families.shared.image_config import preprocess_spec
from lvlm_export.plan.plan import Plan
from lvlm_runtime.errors import LvlmError
from lvlm_runtime.golden import NOT_COMPARED, first_difference
from lvlm_runtime.prompt.encoder import PromptEncoder
from lvlm_runtime.prompt.messages import in_form

EQUAL = "tokens and pixels are those of transformers' processor"
# Largest difference of a pixel value, relative to the largest. Rounding to float32 in another order
# moves values by 1e-7; the smallest change of a setting that shows, one step of 255, by 4e-3.
LIMIT = 1e-5


def check_processor(
    checkpoint: Checkpoint, plan: Plan, encoder: PromptEncoder, samples: Sequence[ParitySample]
) -> str:
    """Compare samples with transformers' processor.

    Args:
        checkpoint: The checkpoint.
        plan: How a bundle of it is built.
        encoder: That of the bundle.
        samples: Requests to compare.

    Returns:
        ``EQUAL``, or what could not be compared and why, of the first such sample; ``NOT_COMPARED``
        where there are no samples.

    Raises:
        LvlmError: Tokens or pixels differ; names the file and the setting where they are known.
    """
    try:
        with quiet_transformers():
            processor = load_processor(checkpoint)
    except Exception as error:  # a checkpoint may name any class, and each has errors of its own
        return f"transformers' processor could not be made: {one_reason(error)}"
    outcomes, shape = [], plan.shape
    for sample in samples:
        request = request_of(sample, encoder, shape.layouts, shape.preprocess, shape.image_token_id)
        with quiet_transformers():
            outcomes.append(_compare(processor, encoder, checkpoint, plan, sample, request))
    if not outcomes:
        return NOT_COMPARED
    return next((outcome for outcome in outcomes if outcome != EQUAL), EQUAL)


def load_processor(checkpoint: Checkpoint) -> Any:
    """What ``AutoProcessor`` makes of a checkpoint, with the Pillow backend and without videos."""
    from transformers import AutoImageProcessor
    from transformers.models.auto.processing_auto import (
        PROCESSOR_MAPPING,
        processor_class_from_name,
    )

    directory = checkpoint.directory
    settings, tokenizer = processor_settings(directory), load_tokenizer(directory)
    pictures = AutoImageProcessor.from_pretrained(
        directory, backend="pil", trust_remote_code=False, local_files_only=True
    )
    named = (
        settings.get("processor_class")
        or image_settings(directory, checkpoint.config).get("processor_class")
        or tokenizer.init_kwargs.get("processor_class")
    )
    made = processor_class_from_name(named) if named else PROCESSOR_MAPPING[type(checkpoint.config)]
    if made is None:
        raise LvlmError(f"transformers has no class {named}")
    parts = {"image_processor": pictures, "tokenizer": tokenizer}
    arguments = [parts.get(name) for name in made.get_attributes()]
    absent = {"check_argument_for_proper_class": lambda *_: None}
    without_videos: Any = type(made.__name__, (made,), absent)
    return without_videos.from_args_and_dict(arguments, settings)


def _compare(
    processor: Any,
    encoder: PromptEncoder,
    checkpoint: Checkpoint,
    plan: Plan,
    sample: ParitySample,
    request: ReferenceRequest,
) -> str:
    """One sample; the result and the errors are ``check_processor``'s."""
    text, whole = _prompt(processor, encoder, checkpoint, sample)
    tokenizer = processor.tokenizer
    starts = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
    options: dict[str, Any] = {"add_special_tokens": not starts}
    plain = list(tokenizer(text, **options).input_ids)
    ours = list(request.runs[0])
    for run in request.runs[1:]:
        ours += [encoder.image_token_id, *run]
    # The processor writes marks around a picture, and some write what templates of others do.
    writes = bool(request.layout.marks) or not whole
    if not writes:
        _check_ids(plain, ours, checkpoint.directory)
    try:
        out = processor(images=[list(sample.images)], text=[text], return_tensors="np", **options)
        pixels, ids = out["pixel_values"], out["input_ids"][0].tolist()
    except Exception as error:  # of settings that older checkpoints lack
        pixels = processor.image_processor([list(sample.images)], return_tensors="np").pixel_values
        _check_pixels(pixels, request.pixel_values, processor, checkpoint, plan)
        missing = [name for name, value in _counting(processor).items() if value is None]
        return _not_counted(
            f"{PROCESSOR} does not set {missing[0]}" if missing else one_reason(error)
        )
    wanted = plan.shape.visual_tokens(request.layout, plan.shape.vision.tokens)
    if writes:
        spans = _spans_as_one(ids, encoder.image_token_id, wanted)
        _check_ids(spans, ours, checkpoint.directory)
    _check_pixels(pixels, request.pixel_values, processor, checkpoint, plan)
    # A trained projector gives another number of tokens than transformers' processor knows.
    if plan.shape.projector is None:
        count = ids.count(encoder.image_token_id)
        # A default of today's class says nothing of a file that an earlier one wrote without it.
        given = processor_settings(checkpoint.directory)
        absent = [name for name in _counting(processor) if name not in given]
        if count != wanted * len(sample.images) and absent:
            return _not_counted(f"{PROCESSOR} does not set {absent[0]}")
        _check_count(count, wanted * len(sample.images), processor)
    return EQUAL


def _spans_as_one(ids: Sequence[int], image_token: int, per_image: int) -> list[int]:
    """A prompt with one image token for each of the pictures that several of them are."""
    found: list[int] = []
    for token, several in itertools.groupby(ids):
        count = len(list(several))
        pictures = count // per_image if count % per_image == 0 else 1
        found += [token] * (pictures if token == image_token else count)
    return found


def _not_counted(reason: str) -> str:
    return f"transformers' processor does not count this checkpoint's image tokens: {reason}"


def _prompt(
    processor: Any, encoder: PromptEncoder, checkpoint: Checkpoint, sample: ParitySample
) -> tuple[str, bool]:
    """What the processor takes, and whether it is the whole prompt.

    It is the question in the processor's template, or in the tokenizer's where it has none of its own;
    where no file has one, in a family that knows of that, pictures and question alone.
    """
    known = (processor.chat_template, processor.tokenizer.chat_template)
    if checkpoint.family.template is not None and not any(known):
        return encoder.image_token * len(sample.images) + sample.question, False
    parts = [{"type": "image"}] * len(sample.images) + [{"type": "text", "text": sample.question}]
    message = in_form({"role": "user", "content": parts}, encoder.user, encoder.image_token)
    own = processor.chat_template is not None
    text: str = processor.apply_chat_template(
        [message],
        chat_template=None if own else processor.tokenizer.get_chat_template(),
        add_generation_prompt=True,
    )
    return text, True


def _check_ids(theirs: list[int], ours: list[int], directory: Path) -> None:
    at = first_difference(theirs, ours)
    if at is None:
        return
    raise LvlmError(
        f"the prompt is not that of transformers' processor: token {at} is"
        f" {ours[at : at + 1] or 'missing'} and not {theirs[at : at + 1] or 'there'}; look at the"
        f" tokenizer's files and the chat template in {directory}"
    )


def _check_count(theirs: int, ours: int, processor: Any) -> None:
    if theirs != ours:
        given = [f"{name} {value!r}" for name, value in _counting(processor).items()]
        raise LvlmError(
            f"transformers' processor makes {theirs} image tokens where the model gives {ours};"
            f" correct {PROCESSOR} ({', '.join(given)})"
        )


def _counting(processor: Any) -> dict[str, Any]:
    """The settings by which a processor counts image tokens, of those that it has."""
    names = (
        *("patch_size", "num_additional_image_tokens", "num_image_tokens"),
        *("vision_feature_select_strategy", "vision_aspect_ratio", "image_seq_length"),
    )
    return {name: getattr(processor, name) for name in names if hasattr(processor, name)}


def _check_pixels(
    theirs: NDArray[Any],
    ours: NDArray[np.float32],
    processor: Any,
    checkpoint: Checkpoint,
    plan: Plan,
) -> None:
    """Compare the tiles of all pictures, one after the other."""
    tiles = torch.from_numpy(ours)
    ours = checkpoint.family.processor_pixels(checkpoint.config, tiles).numpy()
    # Where pictures have several tiles, theirs have one axis more.
    axes = ours.ndim - 1
    theirs = np.asarray(theirs).reshape(-1, *np.shape(theirs)[-axes:])
    error = np.inf
    if theirs.shape == ours.shape:
        error = float(np.abs(theirs - ours).max() / max(np.abs(theirs).max(), 1e-12))
    if error <= LIMIT:
        return
    nested = isinstance(processor_settings(checkpoint.directory).get("image_processor"), dict)
    file = f"image_processor in {PROCESSOR}" if nested else PREPROCESSOR
    what = f"differ by {error:.2g} (limit {LIMIT:g})"
    if theirs.shape != ours.shape:
        what = f"have shape {ours.shape} and not {theirs.shape}"
    raise LvlmError(
        f"pixels {what} from those of transformers' {type(processor.image_processor).__name__}"
        f"{_settings_that_differ(processor, plan)}; look at {file}"
    )


def _settings_that_differ(processor: Any, plan: Plan) -> str:
    """Names of the settings that transformers' object holds otherwise than they were read here."""
    try:
        theirs = dataclasses.asdict(preprocess_spec(processor.image_processor.to_dict()))
    except LvlmError:
        return ""
    ours = dataclasses.asdict(plan.shape.preprocess)
    # The vision tower says what the features are.
    names = [name for name in ours if ours[name] != theirs[name] and name != "feature_side"]
    return f" ({', '.join(names)})" if names else ""
