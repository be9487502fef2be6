"""The embedded model's tokenizer: words and single digits that carry their own spaces."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dllm.eval.tasks import arithmetic, functions, lists

MASK, END, UNKNOWN = "<mask>", "<eos>", "<unk>"
# A token keeps the space before a word or after a comma, so that joining tokens gives the text.
_PIECE = r"#### |\n    |[.,:;] | ?[a-z]+|[0-9]| ?[^a-z0-9\s]|\s"
_CHAT_TEMPLATE = "{{ messages[-1]['content'] }}"
_SAMPLES = 4000


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Returns the tokenizer, its vocabulary read off the problem generators in a fixed order."""
    pieces = _splitter()
    words = {str(digit) for digit in range(10)} | {" ", "+", "-", "*", "/", "="}
    for family in (arithmetic, lists, functions):
        for problem in islice(family.problems("train", seed=0), _SAMPLES):
            for text in (problem.prompt, problem.response):
                words |= {piece for piece, _ in pieces.pre_tokenize_str(text)}
    vocabulary = {word: index for index, word in enumerate([MASK, END, UNKNOWN, *sorted(words)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pieces
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        mask_token=MASK,
        eos_token=END,
        pad_token=END,
        unk_token=UNKNOWN,
        chat_template=_CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def save_tokenizer(folder: Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json to a folder."""
    build_tokenizer().save_pretrained(folder)


def _splitter() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(_PIECE), behavior="isolated")
