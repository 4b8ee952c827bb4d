import os
import subprocess
import sys
import tempfile
from pathlib import Path

from common import BASE, CLAUDE, GPT, KEY, V1, run

home = Path(tempfile.mkdtemp())
(home / "extra-openai-models.yaml").write_text(
    f"- model_id: through-waybill\n  model_name: {GPT}\n  api_base: {V1}\n  supports_schema: true\n"
)
env = {
    **os.environ,
    "LLM_USER_PATH": str(home),
    "ANTHROPIC_BASE_URL": BASE,
    "OPENAI_API_KEY": KEY,
    "ANTHROPIC_API_KEY": KEY,
}
llm = str(Path(sys.executable).parent / "llm")


def ask(*arguments: str) -> str:
    done = subprocess.run([llm, *arguments], env=env, capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise RuntimeError(done.stderr[-300:])
    return done.stdout.strip()


operations = {
    "chat stream": lambda: ask("-m", "through-waybill", "Say hello."),
    "chat": lambda: ask("-m", "through-waybill", "--no-stream", "Say hello."),
    "chat schema": lambda: ask("-m", "through-waybill", "--schema", "name, city", "Ada of London"),
}
if CLAUDE.startswith("claude"):  # the plug-in only knows names of Claude models
    operations["messages stream"] = lambda: ask("-m", "anthropic/claude-haiku-4-5-20251001", "Say hello.")
run(operations)
