"""The training on scenes: what is learned, in which order, and that a stopped run goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from transformers import SiglipVisionConfig, SiglipVisionModel  # noqa: E402

from lvlm_export.demo.questions import SceneQuestion, questions_about  # noqa: E402
from lvlm_export.demo.scenes import COLORS, SHAPES, make_scene  # noqa: E402
from lvlm_export.demo.train.objectives import answer_loss  # noqa: E402
from lvlm_export.demo.train.scenes import gates, train  # noqa: E402
from lvlm_export.demo.train.scenes.gates import attention_gate, auc  # noqa: E402
from lvlm_export.demo.train.scenes.oracle import kept_positions, oracle_gate  # noqa: E402
from lvlm_export.demo.train.scenes.pools import SceneArrays, ScenePool, make_arrays  # noqa: E402
from lvlm_export.demo.train.scenes.recipe import GATED, POOLS, STAGES, SceneStage  # noqa: E402
from lvlm_export.demo.train.scenes.reduced import Visit, reduced_features  # noqa: E402
from lvlm_export.demo.train.scenes.stages import read_points, run_scene_stage  # noqa: E402
from lvlm_export.demo.train.scenes.text import (  # noqa: E402
    ScenePacker,
    scene_model,
    scene_processor,
)
from lvlm_export.demo.train.scenes.text_stage import TextObjective  # noqa: E402
from lvlm_export.demo.train.scenes.tower import (  # noqa: E402
    patch_centers,
    pixel_tensor,
    scene_targets,
    tower_features,
)
from lvlm_export.demo.train.scenes.tower_stage import TowerObjective  # noqa: E402

POOL = replace(POOLS["all"], chunks=2)
STAGE = SceneStage("tiny", "tower", "all", steps=6, batch_size=4, learning_rate=1e-3)


@pytest.fixture(scope="module")
def arrays() -> SceneArrays:
    return make_arrays(POOL, 0, 24)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> ScenePool:
    return ScenePool(POOL, tmp_path_factory.mktemp("pool"), chunk=24)


@pytest.fixture(scope="module")
def shipped() -> transformers.LlavaForConditionalGeneration:
    return train.shipped_model()


def tiny_tower() -> SiglipVisionModel:
    torch.manual_seed(3)
    config = SiglipVisionConfig(
        hidden_size=12,
        intermediate_size=16,
        num_hidden_layers=6,
        num_attention_heads=2,
        image_size=112,
        patch_size=8,
        vision_use_head=False,
    )
    return SiglipVisionModel(config)


def test_targets_say_what_the_picture_shows(arrays: SceneArrays) -> None:
    targets = scene_targets(arrays)
    for row in range(len(arrays.counts)):
        things = arrays.things_of(row)
        owners = arrays.owners[row]
        for patch in np.flatnonzero(owners >= 0):
            thing = things[owners[patch]]
            assert SHAPES[targets.shape[row, patch]] == thing.shape
            assert COLORS[targets.color[row, patch]] == thing.color
        assert (targets.shape[row, owners == -1] == len(SHAPES)).all()
        assert (targets.shape[row, owners == -2] == -100).all()
        marked = np.flatnonzero(targets.mark[row])
        assert sorted(owners[marked]) == list(range(len(things)))
        for patch in marked:
            thing = things[owners[patch]]
            away = (patch_centers() - torch.tensor([thing.x, thing.y])).square().sum(-1)
            assert away[patch] == away[owners == owners[patch]].min()
        present = {(thing.shape, thing.color) for thing in things}
        shapes, colors, pairs = targets.present[row].split([6, 8, 48])
        assert {SHAPES[i] for i in shapes.nonzero()} == {shape for shape, _ in present}
        assert {COLORS[i] for i in colors.nonzero()} == {color for _, color in present}
        assert {(SHAPES[i // 8], COLORS[i % 8]) for i in pairs.nonzero()} == present


def test_the_number_of_objects_is_no_target() -> None:
    """One red circle or three: the whole picture's content is the same."""
    arrays = make_arrays(POOL, 0, 1)
    things = np.zeros_like(arrays.things)
    things[0, :3] = [0, 0, 20.0, 20.0, 8.0]
    one, three = (
        scene_targets(replace(arrays, things=things, counts=np.array([n], np.int8))) for n in (1, 3)
    )
    assert torch.equal(one.present, three.present)
    assert one.present.sum() == 3


def test_batches_follow_from_the_step_alone(pool: ScenePool) -> None:
    def taken(start: int, n: int) -> list[tuple[int, list[int]]]:
        steps = pool.batches(5, 4, (2, 3), start)
        return [(chunk, rows.tolist()) for (chunk, rows), _ in zip(steps, range(n), strict=False)]

    every = taken(0, 12)
    assert taken(7, 5) == every[7:]
    for chunk, rows in every:
        counts = pool.chunk(chunk).counts[rows]
        assert ((counts == 2) | (counts == 3)).all()
    assert len({chunk for chunk, _ in every}) == 2


def test_a_run_that_was_stopped_gives_the_same_weights(pool: ScenePool, tmp_path: Path) -> None:
    def run(directory: Path, *stops: int | None) -> dict[str, torch.Tensor]:
        directory.mkdir()
        for stop in stops:
            objective = TowerObjective(tiny_tower(), pool, STAGE, seed=0)
            done = run_scene_stage(STAGE, objective, directory, save_every=1e9, stop_at=stop)
            assert done == (stop is None)
        return objective.modules["tower"][0].state_dict()

    whole, stopped = run(tmp_path / "whole", None), run(tmp_path / "stopped", 2, 5, None)
    before = tiny_tower().state_dict()
    for name, value in whole.items():
        assert torch.equal(value, stopped[name]), name
    changed = [name for name, value in whole.items() if not torch.equal(value, before[name])]
    assert any("layers.5" in name for name in changed)
    assert read_points(tmp_path / "stopped" / "tiny.jsonl")[-1]["step"] == STAGE.steps


def test_a_log_ends_where_the_state_does(pool: ScenePool, tmp_path: Path) -> None:
    """Points after the last state are logged again; a line that a kill cut off does not count."""
    log = tmp_path / "tiny.jsonl"
    log.write_text('{"step": 50, "loss": 1.0}\n{"step": 10')
    assert read_points(log) == [{"step": 50, "loss": 1.0}]
    objective = TowerObjective(tiny_tower(), pool, STAGE, seed=0)
    run_scene_stage(STAGE, objective, tmp_path, save_every=1e9, stop_at=1)
    assert read_points(log) == []


def test_the_plain_tower_is_the_tower(arrays: SceneArrays) -> None:
    tower, pixels = tiny_tower(), pixel_tensor(arrays.pixels[:2])
    with torch.no_grad():
        features, _ = reduced_features(tower, pixels, {}, lambda received, _: received)
        torch.testing.assert_close(features, tower_features(tower, pixels)[1])
        direct = tower.encoder(inputs_embeds=tower.embeddings(pixels)).last_hidden_state
        torch.testing.assert_close(features, direct)


def test_dropping_keeps_the_highest_in_raster_order(arrays: SceneArrays) -> None:
    """Kept by place, odd ones last: first evens stay, then the highest of these."""

    def score(_: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        return places - 1000.0 * (places % 2)

    with torch.no_grad():
        pixels = pixel_tensor(arrays.pixels[:2])
        features, places = reduced_features(tiny_tower(), pixels, {1: 98, 3: 10}, score)
    assert features.shape == (2, 10, 12)
    assert places.tolist() == [list(range(176, 196, 2))] * 2


def test_auc_counts_pairs() -> None:
    score = torch.tensor([0.1, 0.4, 0.2, 0.9])
    positive = torch.tensor([False, True, False, True])
    assert auc(score, positive) == 1
    assert auc(-score, positive) == 0
    assert auc(torch.tensor([0.3, 0.1, 0.2, 0.4]), positive) == 0.5


def test_an_untrained_tower_does_not_pass_the_gate(arrays: SceneArrays) -> None:
    result = attention_gate(tiny_tower(), arrays, pictures=16)
    assert len(result["auc"]) == 6
    for sites, kept in gates.SITES.items():
        facts = result[f"sites_{sites}"]
        share = list(kept.values())[-1] / 196
        assert facts["random"]["survive"] == pytest.approx(share, abs=0.1)
        assert set(facts["received"]["color"]) == set(COLORS)
    assert any("is not above 0.6" in reason for reason in result["failed"])


def test_attention_that_follows_objects_passes(
    arrays: SceneArrays, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a tower whose attention received is how much of a patch is object."""

    def seeing(tower: object, pixels: torch.Tensor, visit: Visit) -> torch.Tensor:
        hidden = torch.from_numpy(arrays.shares)[..., None]
        for layer in range(6):
            hidden = visit(layer, hidden, hidden[..., 0])
        return hidden

    monkeypatch.setattr("lvlm_export.demo.train.scenes.reduced.walk_tower", seeing)
    monkeypatch.setattr(gates, "walk_tower", seeing)
    result = attention_gate(tiny_tower(), arrays, pictures=24)
    assert result["failed"] == []
    assert result["auc"] == [1.0] * 6
    assert result["sites_2026"]["received"]["lost"] == 0


def test_a_failed_gate_stops_training_and_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = next(stage for stage in STAGES if stage.name in GATED)
    path = tmp_path / f"gate-{stage.name}.json"
    path.write_text(json.dumps({"failed": ["auc 0.5 at layer 2 is not above 0.6"]}))
    with pytest.raises(SystemExit, match="gate after tower failed: auc"):
        train.pass_gate(stage, tmp_path)
    train.pass_gate(stage, tmp_path, accepted=True)
    assert "gate after tower failed: auc 0.5 at layer 2" in capsys.readouterr().out


def test_every_word_of_an_answer_is_one_token() -> None:
    tokenizer = scene_processor().tokenizer
    words = [*SHAPES, *COLORS, *"123456", "yes", "no", "top", "left", "middle", "center", "and"]
    for word in words:
        assert len(tokenizer(f" {word}", add_special_tokens=False)["input_ids"]) == 1, word
    assert tokenizer.decode(tokenizer("Wo? 🙂")["input_ids"], skip_special_tokens=True) == "Wo? 🙂"


def test_the_language_model_begins_with_the_shipped_one(
    shipped: transformers.LlavaForConditionalGeneration,
) -> None:
    model = scene_model(shipped, seed=0)
    old = transformers.AutoTokenizer.from_pretrained(train.CHECKPOINT)
    new = scene_processor().tokenizer
    for word in ("Ġcircle", "Ġred", "?"):
        row = model.lm_head.weight[new.convert_tokens_to_ids(word)]
        assert torch.equal(row, shipped.lm_head.weight[old.convert_tokens_to_ids(word)])
    assert new.convert_tokens_to_ids("Ġpurple") not in (None, new.unk_token_id)
    assert torch.equal(
        model.model.multi_modal_projector.linear_1.weight,
        shipped.model.multi_modal_projector.linear_1.weight,
    )


@torch.no_grad()
def test_a_packed_question_is_answered_as_if_it_were_alone(
    arrays: SceneArrays, shipped: transformers.LlavaForConditionalGeneration
) -> None:
    """The loss of two packed questions is the mean of what the whole model gives for each alone."""
    model, processor = scene_model(shipped, seed=0).eval(), scene_processor()
    questions = [
        SceneQuestion("What color is the ring?", "red", "color"),
        SceneQuestion("Describe the star.", "a blue star in the top left", "description"),
    ]
    pixels = pixel_tensor(arrays.pixels[:1])
    features = tower_features(model.model.vision_tower, pixels)[1]
    packed, right = answer_loss(
        model, features, ScenePacker(processor, 196).pack([questions]), per_question=True
    )
    alone = []
    for question in questions:
        prompt = f"USER: <image>\n{question.text} ASSISTANT:"
        n = len(processor.tokenizer(prompt)["input_ids"])
        inputs = processor(
            images=[Image.fromarray(arrays.pixels[0])],
            text=f"{prompt} {question.answer}</s>",
            return_tensors="pt",
        )
        torch.testing.assert_close(inputs["pixel_values"], pixels, rtol=0, atol=1e-6)
        start = n + 195  # the placeholder became 196 tokens
        labels = inputs["input_ids"].clone()
        labels[:, :start] = -100
        alone.append(model(**inputs, labels=labels).loss)
    torch.testing.assert_close(packed, torch.stack(alone).mean(), rtol=1e-4, atol=1e-5)
    assert right.shape == (2,)


def test_text_learns_on_a_frozen_tower(
    pool: ScenePool, shipped: transformers.LlavaForConditionalGeneration, tmp_path: Path
) -> None:
    stage = replace(STAGES[2], steps=2, batch_size=2)
    objective = TextObjective(scene_model(shipped, 0), pool, stage, 0, tmp_path / "features")
    steps: Iterator[tuple[torch.Tensor, dict[str, float]]] = objective.losses(0)
    loss, facts = next(steps)
    again = TextObjective(scene_model(shipped, 0), pool, stage, 0, tmp_path / "features")
    assert torch.equal(loss, next(again.losses(0))[0])
    assert set(facts) == {kind for kind, _ in stage.kinds}
    loss.backward()
    learned = {name for name, (module, _) in objective.modules.items() if has_gradient(module)}
    assert learned == {"projector", "language_model", "lm_head"}
    assert not has_gradient(objective.model.model.vision_tower)


def test_the_oracle_gate_compares_kind_by_kind(
    shipped: transformers.LlavaForConditionalGeneration, arrays: SceneArrays
) -> None:
    """An untrained model answers nothing, with objects kept or not, and the gate says so."""
    result = oracle_gate(scene_model(shipped, 0), scene_processor(), arrays, pictures=24)
    assert result["kinds"]["all"]["questions"] == 7 * result["kinds"]["count"]["questions"] > 0
    assert any("right in description" in reason for reason in result["failed"])


def test_kept_tokens_stand_where_they_stood_and_text_goes_on_as_if_none_had_left() -> None:
    processor, questions = scene_processor(), questions_about(make_scene(3, "test").things)
    asked = [[questions["count"][0][0], questions["count"][0][0]]] * 2
    whole, few = (ScenePacker(processor, count).pack(asked) for count in (196, 3))
    places = torch.tensor([[0, 7, 195], [2, 3, 100]])
    got = kept_positions(few, places, processor.image_token_id, 196)
    visual = [rows.input_ids[0] == processor.image_token_id for rows in (whole, few)]
    before = int(visual[0].long().argmax())
    assert got[:, visual[1]].tolist() == (before + places).tolist()
    for row in got:
        text = row[few.question_index[0] >= 0]
        assert text.tolist() == whole.position_ids[0][whole.question_index[0] >= 0].tolist()
    assert got[:, :before].tolist() == whole.position_ids[:, :before].tolist()
    every = torch.arange(196).expand(2, -1)
    assert torch.equal(
        kept_positions(whole, every, processor.image_token_id, 196), whole.position_ids
    )


def has_gradient(module: torch.nn.Module) -> bool:
    return any(parameter.grad is not None for parameter in module.parameters())
