"""What ``--help`` says beside the commands' own words: groups by purpose, and an example of each."""

from __future__ import annotations

GROUPS: dict[str, tuple[str, ...]] = {
    "Decide what to build": ("plan", "choose", "tune"),
    "Build and check": ("build", "verify", "inspect", "check", "engines"),
    "Ask": ("run", "chat", "serve"),
    "Measure": ("profile", "compare", "eval", "visualize"),
    "Ship": ("sign", "verify-signature"),
    "Look up": ("list", "env"),
}
# The group of commands that a script of one's own adds.
OTHERS = "Others"

EXAMPLES: dict[str, str] = {
    "plan": "lvlm-export plan --model shape:llava-1.5-7b --device agx_orin_64gb --ttft 500ms",
    "choose": "lvlm-export choose --model llava-hf/llava-1.5-7b-hf --method vtw --data questions.jsonl",
    "tune": "lvlm-export tune --model llava-hf/llava-1.5-7b-hf --data questions.jsonl",
    "build": "lvlm-export build --model llava-hf/llava-1.5-7b-hf --ratio 0.5 --ratio 0.33 -o bundle",
    "verify": "lvlm-export verify bundle",
    "inspect": "lvlm-export inspect bundle",
    "check": "lvlm-export check bundle --target trt-10.3",
    "engines": "lvlm-export engines bundle --device orin_nano_8gb",
    "run": 'lvlm-export run bundle --ratio 0.33 --image cat.jpg "What is on the table?"',
    "chat": "lvlm-export chat bundle --image cat.jpg",
    "serve": "lvlm-export serve bundle --port 8000",
    "profile": "lvlm-export profile bundle -o report",
    "compare": "lvlm-export compare before/report.json after/report.json --fail-if ttft_ms:+5%",
    "eval": "lvlm-export eval bundle --data questions.jsonl --images pictures -o answers.jsonl",
    "visualize": "lvlm-export visualize bundle --image cat.jpg --ratio 0.33 -o patches.html",
    "sign": "lvlm-export sign bundle --key fleet.key",
    "verify-signature": "lvlm-export verify-signature bundle --key fleet.pub",
    "list": "lvlm-export list methods",
    "env": "lvlm-export env",
}
