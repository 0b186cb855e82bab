"""`/v1/completions`: from prompts to their continuations, streamed or not (tgi-behaviour 2.4, 3.6, 3.7)."""

import codecs
import functools
from collections.abc import Sequence as Items

from msgspec import UNSET, UnsetType
from quart import Response

from tgi.api.call import Call, json_answer, post
from tgi.api.stream import Finished
from tgi.api.validate import make_sequences
from tgi.errors import BatchSizeExceeded, SuffixNotSupported, ValidationError
from tgi.limits import Limits
from tgi.scheduler import Sequence, Token
from tgi.text.tokenizer import Tokenizer

from . import answers, requests
from .answers import Answer, VisibleText, openai_reason, prompt_logprobs, token_name
from .requests import check_count, make_generation, prompt_top


async def completions(call: Call[requests.CompletionRequest]) -> Response:
    """Continue prompts, streamed or not."""
    body = call.body
    with call.generating():
        per_prompt = _count(body, call.engine.limits)
        call.take_permits(per_prompt * len(body.prompts))
        sequences = await _sequences(call, per_prompt)
        answer = CompletionAnswer(call, await _texts(call), sequences)
        headers = call.prompt_headers(answer.characters)
        if body.stream:
            return await call.stream(sequences, answer, headers)
        finished = await call.generate(sequences)
        headers |= call.finish(finished)
    whole = answer.whole(finished)
    headers["x-generated-tokens"] = str(sum(answer.generated))
    del headers["x-compute-time"]  # as in TGI
    return json_answer(whole, headers=headers)


def _count(body: requests.CompletionRequest, limits: Limits) -> int:
    """Return the number of sequences of each prompt (V30, V31). Raises ApiError."""
    if body.suffix:
        raise SuffixNotSupported
    prompts = len(body.prompts)
    if prompts > limits.max_client_batch_size:
        raise BatchSizeExceeded(str(limits.max_client_batch_size))
    count = check_count("n", body.n, limits)
    best_of = count if body.best_of is None else check_count("best_of", body.best_of, limits)
    if best_of < count:
        raise ValidationError(f"`best_of` must be >= `n`. Given: {best_of} and {count}")
    if best_of * prompts > limits.max_concurrent_requests:
        raise ValidationError(
            f"`n` or `best_of` times the prompts must be <= {limits.max_concurrent_requests}. "
            f"Given: {best_of * prompts}"
        )
    if best_of > count and body.stream:
        raise ValidationError("`best_of` > `n` is not supported when streaming tokens")
    return best_of


async def _sequences(call: Call[requests.CompletionRequest], per_prompt: int) -> list[Sequence]:
    """Return the sequences of all prompts, one prompt after another. Raises ValidationError."""
    body, sequences = call.body, list[Sequence]()
    for prompt in body.prompts:
        generation = make_generation(
            call,
            body,
            prompt,
            count=per_prompt,
            max_tokens=1 if body.is_prompt_only else body.max_tokens,
            top=body.logprobs,
            names=("prompt", "logprobs"),
            max_top_tokens=requests.MAX_COMPLETION_LOGPROBS,
            prompt_top=prompt_top(body, call.engine.limits, body.logprobs if body.echo else None),
            grammar=lambda: body.text_grammar,
            add_special_tokens=body.add_special_tokens is not False,
        )
        sequences += await make_sequences(call, generation)
    return sequences


async def _texts(call: Call[requests.CompletionRequest]) -> list[str]:
    """Return the prompts as text, also those that are token ids."""
    texts = []
    for prompt in call.body.prompts:
        if not isinstance(prompt, str):
            decode = functools.partial(call.engine.tokenizer.decode, prompt)
            prompt = await call.tokenized(decode, len(prompt))
        texts.append(prompt)
    return texts


class CompletionAnswer(Answer):
    """The continuations of prompts: whole, or an event for each token. Events of prompts mix."""

    def __init__(
        self, call: Call[requests.CompletionRequest], prompts: Items[str], sequences: Items[Sequence]
    ) -> None:
        """`prompts` are texts; the sequences of a prompt follow one another."""
        per_prompt, lora = len(sequences) // len(prompts), sequences[0].lora
        super().__init__(
            call,
            call.body.stream_options,
            sequences,
            prefix="cmpl",
            model=call.engine.model.served_name if lora is None else lora.name,
            per_prompt=per_prompt,
        )
        body, tokenizer = call.body, call.engine.tokenizer
        self.characters = sum(map(len, prompts))
        """Length of all prompts."""
        self.counts_tokens = not body.is_prompt_only
        self._body = body
        self._tokenizer = tokenizer
        self._per_prompt = per_prompt
        self._begun: set[int] = set()
        """Sequences that an event has reported."""
        self._echoes = {n: prompts[n // per_prompt] for n in range(len(sequences)) if body.echo}
        """Prompts that are still to be put before the texts of their sequences."""
        self._texts = [VisibleText(tokenizer, body) for _ in sequences]
        self._columns = [_LogprobColumns(tokenizer, body, text.hidden) for text in self._texts]

    def whole(self, finished: Items[Finished]) -> answers.CompletionFinal:
        """Return the body of an answer that is not streamed: of `best_of` texts of a prompt, the best `n`."""
        choices: list[answers.CompletionComplete] = []
        for first in range(0, len(finished), self._per_prompt):
            indices = list(range(first, first + self._per_prompt))
            if self._per_prompt > (wanted := self._body.n or 1):
                indices.sort(key=lambda index: finished[index].mean_logprob, reverse=True)
            for index in indices[:wanted]:
                choices.append(self._choice(len(choices), index, finished[index].tokens))
        if self.counts_tokens:
            self.generated = [len(one.tokens) for one in finished]
        return answers.CompletionFinal(*self.head, choices, self.usage())

    def events(self, index: int, token: Token) -> list[answers.CompletionFinal]:
        """Return the event of a token, with the usage of a text at its end if none is asked for (3.7)."""
        usage: answers.Usage | UnsetType | None = UNSET
        if self.options.include_usage:
            usage = self.running_usage()
        elif token.finish is not None:
            usage = answers.Usage.of([self.sequences[index]], self.generated[index])
        return [answers.CompletionFinal(*self.head, [self._choice(index, index, [token])], usage)]

    def usage_event(self) -> answers.CompletionFinal:
        """Return the event that tells the usage at the end."""
        return answers.CompletionFinal(*self.head, [], self.usage())

    def _choice(self, number: int, index: int, tokens: Items[Token]) -> answers.CompletionComplete:
        """Return the choice `number`, with what tokens add to the sequence `index`, or all of it."""
        echo, finish = self._echoes.pop(index, None), tokens[-1].finish
        tokens = [] if self._body.is_prompt_only else tokens
        text = "".join([self._texts[index].feed(token) for token in tokens])
        logprobs = None
        if self._body.logprobs is not None:
            prompt = () if echo is None else self._columns[index].begin(self.sequences[index], echo)
            generated = [(token.id, token.logprob, token.top) for token in tokens]
            logprobs = self._columns[index].of(prompt, generated)
        reason = None if finish is None else openai_reason(finish)
        choice = answers.CompletionComplete(number, (echo or "") + text, logprobs, reason)
        sequence = self.sequences[index]
        if self._body.return_token_ids:
            choice.token_ids = [token.id for token in tokens]
            if index not in self._begun:
                choice.prompt_token_ids = sequence.prompt
        self._begun.add(index)
        choice.prompt_logprobs = prompt_logprobs(sequence, self._body.prompt_logprobs, self._tokenizer)
        return choice


_Entry = tuple[int, float | None, Items[tuple[int, float]]]
"""A token, its log-probability if known, and the most likely tokens in its place."""


class _LogprobColumns:
    """Log-probabilities of a text and its prompt, in columns, as the tokens come."""

    def __init__(
        self, tokenizer: Tokenizer, body: requests.CompletionRequest, hidden: frozenset[int]
    ) -> None:
        """Generated tokens that are `hidden` are no part of the text."""
        self._tokenizer = tokenizer
        self._hidden = hidden
        self._top = int(body.logprobs or 0)
        """Number of most likely tokens to report beside the chosen one."""
        self._with_ids = bool(body.return_tokens_as_token_ids)
        self._offset = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        """Decoder of the text, of which a character may be several tokens."""

    def begin(self, sequence: Sequence, text: str) -> list[_Entry]:
        """Return the entries of the prompt, of whose first token nothing is known.

        `text` is the prompt as it is shown; the tokenizer may have put a token of its own before it.
        """
        data = b"".join(map(self._tokenizer.bytes_alone, sequence.prompt))
        self._offset = len(text) - len(data.decode(errors="replace"))
        logprobs = [None, *sequence.prompt_logprobs]
        tops = [(), *sequence.prompt_tops] if self._top else [()] * len(logprobs)
        return list(zip(sequence.prompt, logprobs, tops, strict=True))

    def of(self, prompt: Items[_Entry], generated: Items[_Entry]) -> answers.CompletionLogprobs:
        """Return the columns of the next tokens; the offset of a token is that of its first character."""
        body = answers.CompletionLogprobs([], [], [], [])
        for number, (token, logprob, top) in enumerate([*prompt, *generated]):
            text = self._text(token)
            body.tokens.append(text)
            body.token_logprobs.append(logprob)
            is_hidden = number >= len(prompt) and token in self._hidden
            data = b"" if is_hidden else self._tokenizer.bytes_alone(token)
            body.text_offset.append(max(0, self._advance(data)))
            body.top_logprobs.append(None if logprob is None else self._top_table(text, logprob, top))
        return body

    def _advance(self, data: bytes) -> int:
        """Return the offset of the character that has the first of these bytes, and move behind them."""
        ended = len(self._decoder.decode(data[:1]))
        """Number of characters that the first byte ends, its own and a broken one before it."""
        is_incomplete = bool(self._decoder.getstate()[0])
        start = self._offset + (ended if is_incomplete else max(0, ended - 1))
        self._offset += ended + len(self._decoder.decode(data[1:]))
        return start

    def _top_table(self, text: str, logprob: float, top: Items[tuple[int, float]]) -> dict[str, float | None]:
        """Return the most likely tokens by text, the more likely of equal texts, and the chosen token."""
        table: dict[str, float | None] = {}
        for token, value in top[: self._top]:
            table.setdefault(self._text(token), value)
        table.setdefault(text, logprob)
        return table

    def _text(self, token: int) -> str:
        if self._with_ids:
            return token_name(token)
        return self._tokenizer.bytes_alone(token).decode(errors="replace")


ROUTES = (
    post(
        "/v1/completions", "completions", "Continue prompts, as OpenAI's API does", completions,
        requests.CompletionRequest, answer=answers.CompletionFinal, stream=answers.CompletionFinal,
        example={"prompt": "Deep learning is", "max_tokens": 20},
    ),
)  # fmt: skip
