"""What tests of scores share: a small corpus and random models, honest or not."""

import torch

from tokgolf.artifact.checkpoint import FloatModel
from tokgolf.config import TrunkConfig
from tokgolf.corpora import Corpus, Document
from tokgolf.heads import HeadShape
from tokgolf.heads.tied import TiedConfig, TiedHead
from tokgolf.model import LanguageModel, Trunk
from tokgolf.tokenizers import Tokenizer, build_tokenizer

TRUNK = TrunkConfig(layers=1, d_model=16, heads=2, kv_heads=1, mlp_hidden=16, sequence_length=16)
TEXTS = [b"def f(x):\n    return x + 1\n", b"", b"import os\n" * 9, "r\u00e9sum\u00e9".encode()]


def corpus_of(texts: list[bytes], name: str = "tiny:val") -> Corpus:
    documents = [Document(str(number), data) for number, data in enumerate(texts)]
    return Corpus(name=name, split="val", source=lambda: iter(documents))


CORPUS = corpus_of(TEXTS)


def source_of(
    model_class: type[LanguageModel] = LanguageModel,
    tokenizer: Tokenizer | None = None,
    head_class: type[TiedHead] = TiedHead,
    trunk: TrunkConfig = TRUNK,
) -> FloatModel:
    """A random model of these classes."""
    torch.manual_seed(0)
    tokenizer = tokenizer or build_tokenizer("bpe", [b"return import " * 30], 264)
    shape = HeadShape(vocab_size=tokenizer.vocab_size, d_model=16, bos_id=tokenizer.bos_id)
    config = TiedConfig()
    model = model_class(Trunk(trunk), head_class(shape, config))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.4)
    model.eval().requires_grad_(False)
    return FloatModel(tokenizer=tokenizer, model=model, trunk=trunk, head=config, state={})
