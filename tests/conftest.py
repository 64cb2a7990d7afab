"""Fixtures and options that all test files share."""

from __future__ import annotations

import gc
import os
import shutil
import signal
from collections.abc import Generator, Iterator
from pathlib import Path

# Before torch and ONNX Runtime are imported. Threads that wait for work would otherwise spin, and of
# two workers each takes a core of its own.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

RATIOS = (0.33, 0.5, 1.0)
# What the extra `export` brings.
EXPORT_LIBRARIES = {
    *("torch", "transformers", "onnx", "onnx_ir", "onnxscript", "safetensors", "huggingface_hub"),
}


def pytest_configure() -> None:
    # Tracing a model makes objects by the million, which the collector would walk through again and
    # again: a sixth of a build's time.
    gc.set_threshold(50_000, 20, 50)
    # A shell's background jobs ignore Ctrl-C, and so would the commands that tests interrupt.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("lvlm-export")
    group.addoption(
        "--runtime-only",
        action="store_true",
        help="skip what imports torch, onnx and the like, which are not installed here",
    )
    group.addoption(
        "--demo-bundle",
        type=Path,
        metavar="DIR",
        help="the demo model's bundle at 0.33, 0.5 and 1.0, in place of one that is built here",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that use the shared bundle come first.

    Workers begin at different places of the list, so that one builds the bundle while the others run
    what needs none, in place of waiting for it.
    """
    using = {item.path for item in items if "demo_bundle" in getattr(item, "fixturenames", ())}
    items.sort(key=lambda item: item.path not in using)


def needs_the_exporter(config: pytest.Config, error: BaseException | None) -> str | None:
    """Why a test is skipped where ``--runtime-only`` is given, or None for any other error."""
    if not config.getoption("runtime_only") or not isinstance(error, ModuleNotFoundError):
        return None
    name = (error.name or "").partition(".")[0]
    return f"needs {name}" if name in EXPORT_LIBRARIES else None


class SkippableModule(pytest.Module):
    """A test file that is skipped where it imports, by itself or through others, what is not there."""

    def collect(self) -> list[pytest.Item | pytest.Collector]:
        try:
            return list(super().collect())
        except self.CollectError as error:
            reason = needs_the_exporter(self.config, error.__cause__)
            if reason is None:
                raise
            pytest.skip(f"{self.path.name} {reason}", allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module:
    return SkippableModule.from_parent(parent, path=module_path)  # type: ignore[no-any-return]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, None, None]:
    yield from or_skip(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    yield from or_skip(item)


def or_skip(item: pytest.Item) -> Generator[None, None, None]:
    """The rest of a hook; a test that imports late what is not there is skipped."""
    try:
        yield
    except ModuleNotFoundError as error:
        reason = needs_the_exporter(item.config, error)
        if reason is None:
            raise
        pytest.skip(reason)


@pytest.fixture(scope="session", autouse=True)
def one_thread_per_worker() -> Iterator[None]:
    """ONNX Runtime takes one thread where nobody says how many and several workers run.

    Its threads would wait in a loop for the next operator of graphs that are over in microseconds.
    """
    if "PYTEST_XDIST_WORKER" not in os.environ:
        yield
        return
    from lvlm_runtime.backends.onnxruntime import OrtBackend

    made = OrtBackend.__init__

    def limited(backend: OrtBackend, device: str, threads: int | None, exact: bool = False) -> None:
        made(backend, device, 1 if threads is None else threads, exact)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OrtBackend, "__init__", limited)
        yield


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of this run that all its workers see."""
    own = tmp_path_factory.getbasetemp()
    return own.parent / "shared" if "PYTEST_XDIST_WORKER" in os.environ else own / "shared"


@pytest.fixture(scope="session")
def demo_bundle(request: pytest.FixtureRequest, shared: Path) -> Path:
    """A bundle of the demo model at ratios 0.33, 0.5 and 1.0, built once by the command line.

    Read only: tests that damage a bundle take ``damaged_bundle``.
    """
    given: Path | None = request.config.getoption("demo_bundle")
    if given is not None:
        return given.absolute()
    from command_line import typed
    from helpers import IN_BOTH, made_once

    ratios = [word for ratio in RATIOS for word in ("--ratio", str(ratio))]
    with made_once(shared / "demo") as part:
        if part is not None:
            result = typed("build", *ratios, "--method", IN_BOTH, "-o", part / "demo")
            assert result.exit_code == 0, result.stderr
    return shared / "demo" / "demo"


@pytest.fixture(scope="session")
def tiny_llava(shared: Path) -> Path:
    """A directory with ``checkpoint``, the tiny LLaVA, and ``bundle``, it at 0.5, 0.33 and 1.0."""
    import tiny
    from helpers import build_tiny, made_once

    with made_once(shared / "tiny_llava") as part:
        if part is not None:
            build_tiny(tiny.llava(part / "checkpoint"), part / "bundle", 0.5, 0.33)
    return shared / "tiny_llava"


@pytest.fixture(scope="session")
def tiny_quecc(shared: Path) -> Path:
    """As ``tiny_llava``, with a projector that reads the question, FastV and ratios 0.5 and 1.0."""
    import tiny
    from helpers import build_tiny, made_once

    with made_once(shared / "tiny_quecc") as part:
        if part is not None:
            checkpoint = tiny.projected(part / "checkpoint", "quecc", 3)
            build_tiny(checkpoint, part / "bundle", 0.5, method="fastv")
    return shared / "tiny_quecc"


@pytest.fixture
def damaged_bundle(demo_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the demo bundle that a test may damage."""
    return Path(shutil.copytree(demo_bundle, tmp_path / "copy"))
