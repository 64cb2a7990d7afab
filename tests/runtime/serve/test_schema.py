"""Requests that are made of the server's own description, right and wrong ones: no status of 5xx."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving import running

schemathesis = pytest.importorskip("schemathesis", reason="`make test-serve` brings schemathesis")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_no_request_of_the_description_is_too_much(mode: str, demo_bundle: Path) -> None:
    from hypothesis import HealthCheck, Phase, given, settings

    statuses = set()
    with running(demo_bundle) as server:
        schema = schemathesis.openapi.from_url(f"{server.address}/openapi.json")
        for found in schema.get_all_operations():
            operation = found.ok()
            strategy = operation.as_strategy(generation_mode=schemathesis.GenerationMode(mode))

            @settings(
                max_examples=300,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                derandomize=True,
                phases=[Phase.generate],
            )
            @given(case=strategy)
            def ask(case: schemathesis.Case) -> None:
                # A model that is there, or every request would end with that.
                if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
                    case.body["model"] = server.model
                response = case.call(timeout=60)
                statuses.add(response.status_code)
                assert response.status_code < 500, response.text

            # What takes nothing cannot be asked wrongly.
            if mode == "positive" or operation.method == "post":
                ask()
        assert '"failed"' not in server.log.getvalue()
    assert 400 in statuses
