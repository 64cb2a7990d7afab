"""On a machine with an NVIDIA GPU: the chain through ONNX Runtime's CUDA provider.

Deselected by default; ``make test-gpu`` runs it and prints why it skips where there is no GPU.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from lvlm_export.demo.questions import evaluation_set
from lvlm_runtime.backends.onnxruntime import why_no_cuda
from lvlm_runtime.measure import Recorder
from lvlm_runtime.session import Session

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Session, Session]:
    reason = why_no_cuda()
    if reason is not None:
        pytest.skip(f"no CUDA device: {reason}")
    from helpers import build_tiny
    from lvlm_export.demo import CHECKPOINT

    folder = tmp_path_factory.mktemp("gpu")
    options = {"target": "cuda", "precision": "fp32"}
    bundle: Path = build_tiny(CHECKPOINT, folder / "bundle", 0.33, **options).directory
    return Session.open(bundle, device="cuda"), Session.open(bundle, device="cpu")


@pytest.mark.parametrize("ratio", [1.0, 0.33])
def test_answers_equal_those_of_the_cpu(sessions: tuple[Session, Session], ratio: float) -> None:
    cuda, cpu = sessions
    assert cuda.chain.backend.device == "cuda"
    for sample in evaluation_set(50, seed=3):
        answers = [
            session.generate(sample.question, [sample.image], ratio, max_new_tokens=8).token_ids
            for session in (cuda, cpu)
        ]
        assert answers[0] == answers[1], sample.question


def test_the_cache_stays_on_the_device(sessions: tuple[Session, Session]) -> None:
    chain = sessions[0].chain
    state, _ = chain.prefill([[5, 6, 7]], None, None, 4, Recorder())
    for group in state.groups:
        assert {buffer.device_name() for buffer in group.feeds.values()} == {"cuda"}
