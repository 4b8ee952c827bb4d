import sys

sys.path.pop(0)  # this file has the package's name
import dspy

sys.path.insert(0, __file__.rpartition("/")[0])
from common import CLAUDE, GPT, KEY, V1, run

chat = dspy.LM(f"openai/{GPT}", api_base=V1, api_key=KEY, cache=False)
claude = dspy.LM(f"anthropic/{CLAUDE}", api_base=V1, api_key=KEY, cache=False)


def predict(lm: dspy.LM) -> object:
    with dspy.context(lm=lm):
        return dspy.Predict("question -> answer")(question="Say hello.").answer


run(
    {
        "chat": lambda: chat("Say hello."),
        "chat predict": lambda: predict(chat),
        "messages": lambda: claude("Say hello."),
    }
)
