"""Questions over HTTP: the answers are a session's, and what is wrong is refused as it should be."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import openai
import pytest

from lvlm_export.demo import PICTURES
from lvlm_runtime import Session
from serving import LISTING, PICTURE, QUESTION, Running, data_url, png, shown, wait_for

OTHER = PICTURES / "scene_1.png"


@pytest.fixture(scope="module")
def client(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0)


def messages(question: str = QUESTION, *pictures: Path) -> Any:
    parts = [*map(shown, pictures), {"type": "text", "text": question}]
    return [{"role": "user", "content": parts}]


@pytest.mark.parametrize("ratio", [0.33, 1.0])
def test_an_answer_is_the_sessions(
    ratio: float, client: openai.OpenAI, server: Running, session: Session
) -> None:
    own = session.generate(QUESTION, PICTURE, ratio)
    model = f"{server.model}@{ratio:g}"
    answer = client.chat.completions.create(model=model, messages=messages(QUESTION, PICTURE))
    assert answer.choices[0].message.content == own.text == "yellow"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == model
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len(own.token_ids)
    assert answer.usage.prompt_tokens == own.prompt_tokens
    assert answer.usage.to_dict()["visual_tokens"] == dict(own.visual_tokens)
    assert answer.to_dict()["ratio"] == ratio


def test_a_stream_is_the_answer_piece_by_piece(
    client: openai.OpenAI, server: Running, session: Session
) -> None:
    hot = {"temperature": 1.5, "seed": 3, "max_tokens": 12}
    own = session.generate(LISTING, PICTURE, temperature=1.5, seed=3, max_new_tokens=12)
    stream = client.chat.completions.create(
        model=server.model,
        messages=messages(LISTING, PICTURE),
        stream=True,
        stream_options={"include_usage": True},
        **hot,
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    texts = [each.choices[0].delta.content or "" for each in chunks if each.choices]
    assert "".join(texts) == own.text
    assert len([each for each in texts if each]) > 3
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-2].to_dict()["ratio"] == 0.33
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == len(own.token_ids)


def test_the_asynchronous_client_streams(server: Running, session: Session) -> None:
    async def read() -> str:
        async with openai.AsyncOpenAI(base_url=f"{server.address}/v1", api_key="none") as client:
            stream = await client.chat.completions.create(
                stream=True, **server.asked(LISTING, PICTURE)
            )
            return "".join([each.choices[0].delta.content or "" async for each in stream])

    assert asyncio.run(read()) == session.generate(LISTING, PICTURE, 0.33).text


def test_a_chat_of_several_turns_is_the_sessions(
    client: openai.OpenAI, server: Running, session: Session
) -> None:
    chat = [
        *messages(QUESTION, PICTURE),
        {"role": "assistant", "content": "yellow"},
        *messages("Is there a red circle?", OTHER),
    ]
    own = session.generate(messages=chat, ratio=0.5)
    answer = client.chat.completions.create(
        model=server.model, messages=chat, extra_body={"ratio": 0.5}
    )
    assert answer.choices[0].message.content == own.text
    assert answer.to_dict()["ratio"] == 0.5


def test_a_second_question_finds_the_picture(client: openai.OpenAI, server: Running) -> None:
    fields = {"model": f"{server.model}@1", "messages": messages(QUESTION, OTHER)}
    client.chat.completions.create(**fields)
    again = client.chat.completions.create(**fields)
    assert again.usage is not None
    assert again.usage.prompt_tokens_details is not None
    assert again.usage.prompt_tokens_details.cached_tokens > 190
    assert (
        f'lvlm_picture_cache_requests_total{{model="{server.model}",result="hit"}}'
        in server.get("/metrics").text
    )


def test_stop_texts_and_length_end_an_answer(client: openai.OpenAI, server: Running) -> None:
    fields = {"model": server.model, "messages": messages(QUESTION, PICTURE)}
    stopped = client.chat.completions.create(**fields, stop=["ell"])
    assert stopped.choices[0].message.content == "y"
    assert stopped.choices[0].finish_reason == "stop"
    short = client.chat.completions.create(**fields, max_completion_tokens=1)
    assert short.choices[0].finish_reason == "length"


def test_logprobs_are_of_the_tokens(client: openai.OpenAI, server: Running) -> None:
    answer = client.chat.completions.create(
        model=server.model, messages=messages(QUESTION, PICTURE), logprobs=True, top_logprobs=2
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert answer.usage is not None
    assert len(logprobs.content) == answer.usage.completion_tokens
    first = logprobs.content[0]
    assert first.token.strip() == "yellow"
    # Greedy: the token is the most probable one.
    assert first.logprob == first.top_logprobs[0].logprob
    assert first.top_logprobs[1].logprob < first.logprob <= 0


def test_models_are_bundles_and_bundles_with_a_ratio(
    client: openai.OpenAI, server: Running
) -> None:
    name = server.model
    listed = [each.id for each in client.models.list()]
    assert listed == [name, f"{name}@0.33", f"{name}@0.5", f"{name}@1"]
    assert client.models.retrieve(f"{name}@0.5").to_dict()["ratio"] == 0.5
    with pytest.raises(openai.NotFoundError, match=r"no model 'other'; there are .*@0.33"):
        client.models.retrieve("other")


def test_a_goal_takes_the_largest_ratio_that_meets_it(server: Running) -> None:
    """Times are set by hand: 10 ms per tenth of the visual tokens."""
    bundle = server.desk.catalogue.bundles[server.model]
    kept, bundle.times = bundle.times, type(bundle.times)()
    try:
        for ratio in bundle.ratios:
            bundle.times.add(ratio, 1, 1e18, ratio * 1e4)
        told = {
            goal: server.post(server.asked(QUESTION, PICTURE, ttft_ms=goal)).json()
            for goal in (20000, 6000, 4000)
        }
        assert {goal: each["ratio"] for goal, each in told.items()} == {
            20000: 1.0,
            6000: 0.5,
            4000: 0.33,
        }
        refused = server.post(server.asked(QUESTION, PICTURE, ttft_ms=3000))
        assert refused.status_code == 422
        error = refused.json()["error"]
        assert error["code"] == "ttft_goal_not_met"
        assert (
            f"no ratio of {server.model} meets 3000 ms: the fastest is 0.33 with 3300 ms"
            in (error["message"])
        )
    finally:
        bundle.times = kept


def test_warming_up_measures_every_ratio(server: Running) -> None:
    answer = server.post(server.asked(QUESTION, PICTURE, ttft_ms=60_000)).json()
    assert answer["ratio"] == 1.0
    bundle = server.desk.catalogue.bundles[server.model]
    expected = [bundle.times.predict(ratio, 1, 1.0) for ratio in bundle.ratios]
    assert all(each is not None and each > 0 for each in expected)


REFUSED: dict[str, tuple[dict[str, Any], int, str]] = {
    "no model": ({"model": "gpt"}, 404, "no model 'gpt'; there are"),
    "ratio": ({"ratio": 0.4}, 400, "has no ratio 0.4; it has 0.33, 0.5, 1"),
    "ratio and goal": ({"ratio": 0.5, "ttft_ms": 100}, 400, "exclude each other"),
    "two lengths": ({"max_tokens": 1, "max_completion_tokens": 1}, 400, "exclude each other"),
    "long": ({"max_tokens": 5000}, 400, "an answer of 5000 tokens is longer"),
    "n": ({"n": 2}, 400, "n: input should be 1"),
    "tools": ({"tools": []}, 400, "tools: unexpected keyword argument"),
    "json": ({"response_format": {"type": "json_object"}}, 400, "response_format.type: "),
    "top_p": ({"top_p": 0.5}, 400, "top_p"),
    "top_logprobs": ({"top_logprobs": 2}, 400, "top_logprobs has no effect without logprobs"),
    "stop": ({"stop": [""]}, 400, "stop has '', a text of 1 character or more is needed"),
    "cold": ({"temperature": 1e-300}, 400, "temperature is 1e-300; give 0 (greedy) or 0.001"),
    "penalty": ({"repetition_penalty": 1e-300}, 400, "repetition_penalty: input should be"),
    "text for a number": ({"temperature": "0"}, 400, "temperature: input should be a valid number"),
    "messages": ({"messages": []}, 400, "messages: "),
    "role": ({"messages": [{"role": "tool", "content": "x"}]}, 400, "messages.0.role: "),
    "last": (
        {"messages": [{"role": "assistant", "content": "x"}]},
        400,
        "the last message has role 'assistant'",
    ),
    "too long": (
        {"messages": [{"role": "user", "content": "circle " * 2000}]},
        400,
        "the request does not fit: with an answer of 256 there are",
    ),
    "image token": ({"messages": [{"role": "user", "content": "<image>"}]}, 400, "'<image>'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_refused_in_openais_form(case: str, server: Running) -> None:
    changed, status, words = REFUSED[case]
    response = server.post({**server.asked(), **changed})
    error = response.json()["error"]
    assert (response.status_code, words in error["message"]) == (status, True), error
    assert error["type"] == ("not_found_error" if status == 404 else "invalid_request_error")


@pytest.mark.parametrize(
    "url", ["{file}", "file://{file}", "http://127.0.0.1:{port}/health", "", "data:image/png,abc"]
)
def test_neither_files_nor_addresses_are_opened(url: str, server: Running) -> None:
    """The picture is there, and the address answers: both are refused before anyone looks."""
    port = server.address.rpartition(":")[2]
    body = server.asked(QUESTION, PICTURE)
    filled = url.format(file=PICTURE, port=port)
    body["messages"][0]["content"][0]["image_url"]["url"] = filled
    response = server.post(body)
    message = response.json()["error"]["message"]
    assert response.status_code == 400
    assert "data URL" in message
    assert str(PICTURE) not in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"no picture", "is not a picture in a known format"),
        (png(8, 8)[:40], "damaged"),
        (png(30_000, 2000), "a picture of 30000 x 2000 pixels is larger than this server takes"),
    ],
)
def test_a_picture_that_is_none_is_the_clients_fault(
    content: bytes, words: str, server: Running
) -> None:
    body = server.asked(QUESTION, PICTURE)
    body["messages"][0]["content"][0]["image_url"]["url"] = data_url(content)
    response = server.post(body)
    assert response.status_code == 400
    assert words in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"model": "\\ud800", "messages": 1}']
)
def test_a_malformed_body_is_refused(body: bytes, server: Running) -> None:
    response = server.post(body)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_a_body_without_its_header_is_told_of_it(server: Running) -> None:
    response = server.post(b"[]")
    message = response.json()["error"]["message"]
    assert message.endswith("send it with the header Content-Type: application/json")
    assert "ChatBody" not in message


def test_other_addresses_and_methods_have_the_same_form(server: Running) -> None:
    assert server.get("/v1/other").json()["error"]["type"] == "not_found_error"
    assert server.get("/v1/chat/completions").status_code == 405


def test_who_leaves_stops_the_decoding(server: Running) -> None:
    """An answer of 500 tokens is given up after the first: the next request finds the session free."""
    import httpx2 as httpx

    bundle = server.desk.catalogue.bundles[server.model]
    body = server.asked(LISTING, PICTURE, stream=True, max_tokens=500, temperature=2, seed=1)
    # No stop token: a stop text that never comes.
    before = len(server.requests())
    address = f"{server.address}/v1/chat/completions"
    with httpx.stream("POST", address, json=body, timeout=60) as response:
        lines = response.iter_lines()
        next(line for line in lines if '"content"' in line)
        job = next(iter(bundle.running))
    wait_for(lambda: not bundle.running)
    wait_for(lambda: len(server.requests()) > before)
    assert job.cancelled
    assert server.requests()[-1]["status"] == 499
    assert not server.desk.open_requests


def test_the_log_has_numbers_and_no_words(server: Running) -> None:
    secret = "Where is the xylophone?"
    server.post(server.asked(secret, PICTURE))
    server.post({**server.asked(secret, PICTURE), "tools": []})
    assert "xylophone" not in server.log.getvalue()
    assert "base64" not in server.log.getvalue()
    line = server.requests()[-1]
    assert line["status"] == 200
    assert {"ttft_ms", "total_ms", "waited_ms", "prompt_tokens", "completion_tokens"} <= set(line)


def test_metrics_count_by_ratio(server: Running) -> None:
    server.post(server.asked(LISTING, PICTURE, ratio=0.5))
    text = server.get("/metrics").text
    name = server.model
    assert f'lvlm_time_to_first_token_seconds_count{{model="{name}",ratio="0.5"}}' in text
    assert f'lvlm_time_per_output_token_seconds_count{{model="{name}",ratio="0.5"}}' in text
    for kind in ("prompt", "visual", "cached", "completion"):
        assert f'lvlm_tokens_total{{kind="{kind}",model="{name}"}}' in text
    assert f'lvlm_requests_total{{model="{name}",status="200"}}' in text
    assert f'lvlm_waiting_requests{{model="{name}"}} 0.0' in text
    assert f'lvlm_kv_bytes{{model="{name}"}} 0.0' in text
    kept = next(line for line in text.splitlines() if line.startswith("lvlm_picture_cache_bytes{"))
    assert float(kept.split()[-1]) > 0


def test_its_own_description_names_the_fields(server: Running) -> None:
    fields = server.get("/openapi.json").json()["components"]["schemas"]["ChatBody"]["properties"]
    assert {"model", "messages", "ratio", "ttft_ms"} <= set(fields)
    assert json.dumps(fields)
