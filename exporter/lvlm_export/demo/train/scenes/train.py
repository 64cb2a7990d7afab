"""The training of the demo model of scenes: ``python -m lvlm_export.demo.train.scenes.train``.

Runs the stages and gates of ``recipe.py``. Everything lies in ``--work-dir``: pictures, features,
states and logs. Started again it goes on where the last state was written; a stage that is done is
not run again. A gate that fails stops it with what did not hold, and the figures stay in the log.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import LlavaForConditionalGeneration

from lvlm_export.demo.train.model import save_checkpoint
from lvlm_export.demo.train.mosaics import CHECKPOINT
from lvlm_export.demo.train.scenes.gates import attention_gate
from lvlm_export.demo.train.scenes.oracle import oracle_gate
from lvlm_export.demo.train.scenes.pools import ScenePool
from lvlm_export.demo.train.scenes.recipe import GATED, POOLS, SEED, STAGES, SceneStage
from lvlm_export.demo.train.scenes.stages import SceneObjective, read_points, run_scene_stage
from lvlm_export.demo.train.scenes.text import scene_model, scene_processor
from lvlm_export.demo.train.scenes.text_stage import TextObjective
from lvlm_export.demo.train.scenes.tower_stage import TowerObjective
from lvlm_profiles.files import whole_file, write_whole

TOWER = next(stage.name for stage in reversed(STAGES) if stage.trains == "tower")
"""The stage whose tower the language model is trained on."""


def run_stages(
    work_dir: Path,
    until: str,
    save_every: float,
    stop_at: int | None = None,
    accepted: Collection[str] = (),
) -> None:
    """Run what is not done yet, up to a stage and its gate.

    Raises:
        SystemExit: A gate failed, and it is none of the ``accepted`` ones.
    """
    work_dir.mkdir(parents=True, exist_ok=True)
    for number, stage in enumerate(STAGES):
        done = work_dir / f"{stage.name}.pt"
        if not done.exists():
            before = work_dir / f"{STAGES[number - 1].name}.pt" if number else None
            objective = _objective(stage, work_dir, before)
            if not run_scene_stage(
                stage, objective, work_dir, save_every=save_every, stop_at=stop_at
            ):
                return
            weights = {name: module.state_dict() for name, (module, _) in objective.modules.items()}
            with whole_file(done) as stream:
                torch.save(weights, stream)
            (work_dir / f"{stage.name}.part.pt").unlink()
        if stage.name in GATED:
            pass_gate(stage, work_dir, stage.name in accepted)
        if stage.name == until:
            break
    if (work_dir / f"{STAGES[-1].name}.pt").exists():
        write_checkpoint(work_dir)


def pass_gate(stage: SceneStage, work_dir: Path, accepted: bool = False) -> None:
    """Measure a stage's gate once and keep it as JSON.

    Raises:
        SystemExit: It fails, and that is not ``accepted``.
    """
    path = work_dir / f"gate-{stage.name}.json"
    if not path.exists():
        result = _measure_gate(stage, work_dir)
        write_whole(path, json.dumps(result, indent=1) + "\n")
    failed = json.loads(path.read_text(encoding="utf-8"))["failed"]
    verdict = f"failed: {'; '.join(failed)}" if failed else "passed"
    if failed and not accepted:
        raise SystemExit(f"gate after {stage.name} {verdict} ({path})")
    print(f"gate after {stage.name} {verdict} ({path})", flush=True)


def shipped_model() -> LlavaForConditionalGeneration:
    """The mosaic demo's model in float32, which training begins with."""
    return LlavaForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32)


def scene_pool(name: str, work_dir: Path) -> ScenePool:
    """A pool of the recipe with its files in a working directory."""
    return ScenePool(POOLS[name], work_dir / "pools")


def scene_weights(work_dir: Path, stage: SceneStage) -> LlavaForConditionalGeneration:
    """The whole model as it is after a stage of the language model."""
    model = scene_model(shipped_model(), SEED)
    tower = torch.load(work_dir / f"{TOWER}.pt", weights_only=True)["tower"]
    model.model.vision_tower.load_state_dict(tower)
    text = torch.load(work_dir / f"{stage.name}.pt", weights_only=True)
    model.model.multi_modal_projector.load_state_dict(text["projector"])
    model.model.language_model.load_state_dict(text["language_model"])
    model.lm_head.load_state_dict(text["lm_head"])
    return model


def write_checkpoint(work_dir: Path) -> None:
    """Write ``checkpoint/`` and ``training_log.json``, with the gates' figures, below ``work_dir``."""
    save_checkpoint(scene_weights(work_dir, STAGES[-1]), scene_processor(), work_dir / "checkpoint")
    stages = []
    for stage in STAGES:
        gate = work_dir / f"gate-{stage.name}.json"
        measured = {"gate": json.loads(gate.read_text("utf-8"))} if gate.exists() else {}
        points = read_points(work_dir / f"{stage.name}.jsonl")
        stages.append({**asdict(stage), **measured, "points": points})
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    head = {**versions, "threads": torch.get_num_threads(), "seed": SEED}
    lines = ",\n".join(json.dumps(stage) for stage in stages)
    text = f'{json.dumps(head)[:-1]}, "stages": [\n{lines}\n]}}\n'
    write_whole(work_dir / "training_log.json", text)


def _objective(stage: SceneStage, work_dir: Path, before: Path | None) -> SceneObjective:
    """What a stage minimizes, with the weights of the one before it."""
    pool = scene_pool(stage.pool, work_dir)
    weights = {} if before is None else torch.load(before, weights_only=True)
    objective: SceneObjective
    if stage.trains == "tower":
        tower = shipped_model().model.vision_tower
        objective = TowerObjective(tower, pool, stage, SEED)
    else:
        model = scene_model(shipped_model(), SEED)
        tower = torch.load(work_dir / f"{TOWER}.pt", weights_only=True)["tower"]
        model.model.vision_tower.load_state_dict(tower)
        objective = TextObjective(model, pool, stage, SEED, work_dir / "features")
    for name, (module, _) in objective.modules.items():
        if name in weights:
            module.load_state_dict(weights[name])
    return objective


def _measure_gate(stage: SceneStage, work_dir: Path) -> dict[str, Any]:
    arrays = scene_pool("gates", work_dir).chunk(0)
    if stage.trains == "text":
        return oracle_gate(scene_weights(work_dir, stage), scene_processor(), arrays)
    tower = shipped_model().model.vision_tower
    tower.load_state_dict(torch.load(work_dir / f"{stage.name}.pt", weights_only=True)["tower"])
    return attention_gate(tower, arrays)


def main() -> None:
    """Train from where the work directory stands."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--work-dir", type=Path, default=Path("build/scenes"))
    parser.add_argument(
        "--until", choices=[stage.name for stage in STAGES], default=STAGES[-1].name
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of PyTorch")
    parser.add_argument("--save-every", type=float, default=180, help="seconds between two states")
    parser.add_argument(
        "--accept",
        action="append",
        choices=GATED,
        default=[],
        help="go on where the gate after this stage fails; what failed stays in the log",
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    run_stages(arguments.work_dir, arguments.until, arguments.save_every, accepted=arguments.accept)


if __name__ == "__main__":
    main()
