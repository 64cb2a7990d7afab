"""Trials as tasks of a local Ray: the result is that of one process. Run by ``make test-ray``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import tiny
from command_line import error_line, typed
from pictured import write_questions

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    """Two workers, so that trials are parted."""
    ray = pytest.importorskip("ray", reason="Ray is not installed; make test-ray brings it")
    ray.init(num_cpus=2, log_to_driver=False, configure_logging=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> tuple[str | Path, ...]:
    folder = tmp_path_factory.mktemp("ray")
    model = tiny.llava(folder / "model", tower="siglip")
    options = ("--ratio", "0.5", "--first", "2", "--finalists", "4", "--max-new-tokens", "4")
    return ("tune", "--model", model, "--data", write_questions(folder, 4), *options, "-o")


def test_a_search_on_ray_finds_what_one_process_finds(
    command: tuple[str | Path, ...], tmp_path: Path
) -> None:
    results, states = [], []
    for name, words in {"alone": (), "ray": ("--ray",)}.items():
        done = typed(*command, tmp_path / name, *words)
        assert done.exit_code == 0, done.stderr
        result = json.loads((tmp_path / name / "result.json").read_text())
        # Two processes share less than one, and neither's time is this one's.
        assert 0 < result.pop("effort") < 1
        assert result.pop("processor_seconds") >= 0
        assert result.pop("created")
        results.append(result)
        state = json.loads((tmp_path / name / "state.json").read_text())
        states.append((state["search"], state["held"]))
    assert results[0] == results[1]
    assert states[0] == states[1]
    assert results[0]["steps"][0]["trials"] > 16


def test_an_error_in_a_task_is_one_line(command: tuple[str | Path, ...], tmp_path: Path) -> None:
    data = Path(command[4])
    lines = [json.loads(line) for line in data.read_text().splitlines()]
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    lines[0]["image"] = lines[1]["image"] = str(broken)
    asked = tmp_path / "questions.jsonl"
    asked.write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = [asked if word == data else word for word in command]
    words += [tmp_path / "out", "--ray", "--images", data.parent, "--method", "tome"]
    assert "broken.png" in error_line(typed(*words), 1)
