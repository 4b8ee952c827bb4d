"""From a Call to the tokens of a local model's prompt, by the chat template inside its file.

The template is code from a model's author: it runs in Jinja's immutable sandbox. The texts of users are data: a
`<|im_end|>` written in them stays text and never becomes the token that ends a turn.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final, NoReturn

from policies.dialects.schema import instruction
from workers.providers.base import Call
from workers.providers.failures import failure
from workers.providers.local_model import LocalModel

# Stands for the n-th text while the template runs; private-use characters that no template contains.
_MARK: Final = re.compile("\ue000(\\d+)\ue001")


class Chat:
    """A model's way to write a conversation down."""

    def __init__(self, model: LocalModel) -> None:
        self._model = model
        self._controls = model.control_texts()
        self._template = _compile(model.chat_template)

    def prompt(self, call: Call) -> list[int]:
        """The tokens that ask the model for the answer to `call`.

        Raises:
            Rejected: The template refuses the conversation.
        """
        turns = [{"role": message.role, "content": message.content} for message in call.plain_messages()]
        system = system_text(call)
        if system:
            turns.insert(0, {"role": "system", "content": system})
        texts = [turn["content"] for turn in turns]
        marked = [{**turn, "content": f"\ue000{n}\ue001"} for n, turn in enumerate(turns)]
        return self._tokens(self._render(marked), texts)

    def _render(self, turns: list[dict[str, str]]) -> str:
        from jinja2 import TemplateError

        if self._template is None:
            return "\n\n".join(turn["content"] for turn in turns) + "\n"
        model = self._model
        values = {"bos_token": model.begin_text, "eos_token": model.end_text, "add_generation_prompt": True}
        try:
            return str(self._template.render(messages=turns, **values))
        except (TemplateError, TypeError, ValueError) as first:
            if turns[0]["role"] != "system" or len(turns) < 2:
                raise failure("bad_request", f"the model's chat template refuses the conversation: {first}") from first
            # Some families know no system role (Gemma, early Mistral): its text goes before the first user turn.
            merged = {**turns[1], "content": f"{turns[0]['content']}\n\n{turns[1]['content']}"}
            return self._render([merged, *turns[2:]])

    def _tokens(self, rendered: str, texts: list[str]) -> list[int]:
        model = self._model
        begin = model.adds_begin and not (model.begin_text and rendered.startswith(model.begin_text))
        if not any(control in text for text in texts for control in self._controls):
            whole = _MARK.sub(lambda mark: texts[int(mark[1])], rendered)
            return model.tokens(whole, control=True, begin=begin)
        tokens: list[int] = []
        for n, part in enumerate(_MARK.split(rendered)):
            is_text = n % 2 == 1
            if part:
                text = texts[int(part)] if is_text else part
                tokens += model.tokens(text, control=not is_text, begin=begin and not tokens)
        return tokens


def system_text(call: Call) -> str:
    """The job's instructions, with what a hosted model gets as a schema said in words. The same for all jobs of a kind,
    so that its share of the prompt is computed once."""
    parts = [call.system or ""]
    if call.labels:
        parts.append(
            "Answer with exactly one of these labels and nothing else: " + json.dumps(call.labels, ensure_ascii=False)
        )
    elif call.json_schema is not None:
        parts.append(instruction(call.json_schema))
    return "\n\n".join(part for part in parts if part)


def _compile(template: str | None) -> Any:
    if template is None:
        return None
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> NoReturn:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = refuse
    return environment.from_string(template)
