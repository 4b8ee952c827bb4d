import os
import sys
import tempfile
from pathlib import Path
from typing import Any

here = sys.path.pop(0)  # files here have the names of this package and of some that it imports
# No telemetry, no price list and no tokenizer's table from the web: litellm brings both.
os.environ.update(TELEMETRY_ENABLED="false", CURATOR_DISABLE_RICH_DISPLAY="1", LITELLM_LOCAL_MODEL_COST_MAP="True")
import litellm  # noqa: E402

os.environ["TIKTOKEN_CACHE_DIR"] = str(Path(litellm.__file__).parent / "litellm_core_utils" / "tokenizers")
from bespokelabs import curator  # noqa: E402
from pydantic import BaseModel  # noqa: E402

sys.path.insert(0, here)
from common import BASE, CLAUDE, GPT, KEY, PROMPT, V1, run  # noqa: E402

sys.path.pop(0)
os.environ.update(OPENAI_API_KEY=KEY, ANTHROPIC_API_KEY=KEY)
# What its users do for a model that litellm's table does not have: message batches read max_tokens there.
known = {"max_tokens": 4096, "input_cost_per_token": 1e-6, "output_cost_per_token": 5e-6}
litellm.register_model(
    {CLAUDE: {**known, "litellm_provider": "anthropic"}, GPT: {**known, "litellm_provider": "openai"}}
)


class Person(BaseModel):
    name: str
    city: str


def ask(
    backend: str, model: str, base_url: str, *, prompt: str = "Say hello.", batch: bool = False, **more: Any
) -> Any:
    """The rows of the data set that a prompt becomes; the cache of an earlier run is not read."""
    pace = {"batch_check_interval": 1} if batch else {"max_requests_per_minute": 60, "max_tokens_per_minute": 10**6}
    with tempfile.TemporaryDirectory() as folder:
        llm = curator.LLM(
            model_name=model, backend=backend, batch=batch, backend_params={"base_url": base_url, **pace}, **more
        )
        return list(llm([prompt], working_dir=folder).dataset)


run(
    {
        "chat": lambda: ask("openai", GPT, V1),
        "chat typed": lambda: ask("openai", GPT, V1, prompt=PROMPT, response_format=Person),
        "files and batches": lambda: ask("openai", GPT, V1, batch=True),
        "message batches": lambda: ask("anthropic", CLAUDE, BASE, batch=True),
        "messages": lambda: ask("anthropic", CLAUDE, V1),
    }
)
