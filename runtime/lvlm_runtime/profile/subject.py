"""What was profiled, where and on which question: the descriptive half of a report."""

from __future__ import annotations

import dataclasses
import hashlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lvlm_profiles.devices import machine
from lvlm_profiles.devices.nvml import Gpu
from lvlm_profiles.missing import Missing
from lvlm_profiles.report.subject import Image, Machine, Model, Request
from lvlm_runtime.bundle.bundle import WEIGHTS
from lvlm_runtime.bundle.element_types import numpy_dtype
from lvlm_runtime.bundle.manifest import LayoutBudget, Manifest
from lvlm_runtime.bundle.route import cache_bytes, cache_rows
from lvlm_runtime.image import synthetic
from lvlm_runtime.image.picture import load_image
from lvlm_runtime.profile.options import ProfileOptions
from lvlm_runtime.prompt.sequence import text_runs
from lvlm_runtime.session import Picture, Session

LIBRARIES = (
    "lvlm-export",
    "numpy",
    "Pillow",
    "tokenizers",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-rtx",
)


def describe_model(manifest: Manifest) -> Model:
    """From the manifest alone; a revision stands behind an ``@`` in the model's name.

    Of a checkpoint that was a directory, only its last part: reports are passed on.
    """
    if Path(manifest.model).is_absolute():
        name, revision = Path(manifest.model).name, ""
    else:
        name, _, revision = manifest.model.partition("@")
    return Model(
        name=name,
        revision=revision or None,
        family=manifest.family,
        method=manifest.method,
        seed=manifest.seed,
        precision=manifest.precision,
        target=manifest.target,
        content_key=manifest.content_key,
        checkpoint_key=manifest.checkpoint_key,
        weights_bytes=manifest.files[WEIGHTS].size_bytes,
        built_with=dict(manifest.versions),
        graphs={name: ref.sha256 for name, ref in manifest.files.items() if name.endswith(".onnx")},
        dims=plain_types(manifest.dims),
    )


def plain_types(value: Any) -> Any:
    """A dataclass as JSON would give it back: lists for tuples."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            each.name: plain_types(getattr(value, each.name)) for each in dataclasses.fields(value)
        }
    if isinstance(value, list | tuple):
        return [plain_types(item) for item in value]
    if isinstance(value, dict):
        return {key: plain_types(item) for key, item in value.items()}
    return value


def describe_machine(session: Session, threads: int | None, gpu: Gpu | Missing) -> Machine:
    """The machine as it is now; a GPU is named only where the graphs run on it."""
    known = None if isinstance(gpu, Missing) else gpu
    backend = session.chain.backend
    libraries = {}
    for name in LIBRARIES:
        try:
            libraries[name] = version(name)
        except PackageNotFoundError:
            continue
    accelerator = None if known is None else known.name
    board = machine.board()
    if board is not None and backend.device != "cpu":
        accelerator = accelerator or f"integrated GPU of {board}"
    return Machine(
        fingerprint=machine.fingerprint(),
        processor=machine.processor(),
        board=board,
        accelerator=accelerator,
        cores=machine.cores(),
        memory_bytes=machine.memory_info().get("MemTotal", 0),
        system=machine.system(),
        driver=None if known is None else known.driver,
        power_mode=machine.power_mode(),
        clocks=machine.clocks(),
        libraries=libraries,
        backend=backend.name,
        execution=backend.device,
        threads=threads,
    )


def describe_request(session: Session, options: ProfileOptions) -> Request:
    """The question as the model sees it."""
    manifest = session.bundle.manifest
    pictures = options.pictures
    ids = session.encoder.encode(options.prompt, len(pictures))
    layout = session.layout(pictures)
    return Request(
        prompt=options.prompt,
        text_tokens=sum(map(len, text_runs(ids, manifest.text.image_token_id))),
        images=tuple(_image(image) for image in pictures),
        layout=None if layout is None else layout.name,
        tiles=0 if layout is None else layout.tiles * len(pictures),
        answer_tokens=options.answer_tokens,
    )


def _image(image: Picture) -> Image:
    shown = load_image(image)
    height, width = shown.height, shown.width
    if isinstance(image, str | Path):
        path = Path(image)
        return Image(path.name, width, height, hashlib.sha256(path.read_bytes()).hexdigest())
    return Image(synthetic.NAME, width, height, None)


def kv_cache_bytes(
    session: Session, part: LayoutBudget | None, images: int, text_tokens: int, answer_tokens: int
) -> int:
    """Key-value memory of a request, as the chain allocates it."""
    manifest, chain = session.bundle.manifest, session.chain
    dtype = numpy_dtype(manifest.precision)
    wanted = cache_rows(manifest, part, images, text_tokens, answer_tokens)
    rows = {
        stage.name: chain.runner(stage.graph).cache_rows(wanted[stage.name])
        for stage in manifest.decoder
    }
    return cache_bytes(manifest, rows, dtype.itemsize)
