"""Whether a model's greedy answer is right, found out with as little of it as decides that.

The answer of the unreduced model, or the expected one, is a draft: the model is shown prompt and draft
at once, and as far as every token is the one that it chooses behind those before, the draft is its own
greedy answer. The first that is not is replaced by what it chooses, and from there the answer goes on
until it ends, as long as it may be, or until nothing that follows could make it right. So what is
counted is what ``lvlm-export eval`` counts, and most answers take one pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lvlm_export.study.evaluation import Question, is_right
from lvlm_runtime.prompt.encoder import PromptEncoder
from lvlm_runtime.prompt.rules import AnswerLimits, GenerationRules
from lvlm_runtime.prompt.sampling import Sampler, SamplingOptions


class AnswerCheck:
    """One question's answers.

    Args:
        question: The question.
        history: Token ids of the prompt, as many image tokens as at ratio 1.0 included.
        encoder: Turns tokens into text.
        rules: Of the checkpoint.
        limits: Longest answer and what ends it.
    """

    def __init__(
        self,
        question: Question,
        history: Sequence[int],
        encoder: PromptEncoder,
        rules: GenerationRules,
        limits: AnswerLimits,
    ) -> None:
        self.question, self.history, self.encoder = question, list(history), encoder
        self.limits = limits
        self.sampler = Sampler(SamplingOptions(), rules, limits)

    def accept(self, fed: Sequence[int], logits: NDArray[np.float32]) -> tuple[int, ...]:
        """The tokens of the greedy answer that are known now.

        Args:
            fed: Tokens that were shown behind the prompt.
            logits: ``[1 + fed, vocabulary]``, behind the prompt and behind each of them.
        """
        answer: list[int] = []
        for row in logits:
            answer.append(self.sampler.sample(row, [*self.history, *answer]))
            known = len(answer)
            if self.ended(answer) or known > len(fed) or answer[-1] != fed[known - 1]:
                break
        return tuple(answer)

    def ended(self, answer: Sequence[int]) -> bool:
        """It has its stop token, or is as long as it may be."""
        return answer[-1] in self.limits.stop_ids or len(answer) == self.limits.max_new_tokens

    def right(self, answer: Sequence[int]) -> bool | None:
        """Whether an answer that begins so is right; None where what follows decides."""
        text = self.text(answer)
        if self.ended(answer):
            return is_right(self.question, text.strip())
        return False if self._hopeless(text) else None

    def text(self, answer: Sequence[int]) -> str:
        """Its text, as ``Session.generate`` gives it but for outer space."""
        decoder, ended = self.encoder.decoder(), self.ended(answer)
        pieces = [decoder.push(token) for token in answer if token not in self.limits.stop_ids]
        return "".join([*pieces, decoder.flush() if ended else ""])

    def _hopeless(self, text: str) -> bool:
        """No text that begins so is the expected one but for case, outer space and a final stop."""
        if self.question.yes_no:
            return False
        begun = text.lstrip().casefold()
        wanted = self.question.answer.strip().rstrip(".").strip().casefold()
        if begun.startswith(wanted):
            return begun[len(wanted) :].strip(" \t\r\n.") != ""
        return not wanted.startswith(begun)
