"""Export: a run's float model, quantized and entropy-coded, into one file that was read back."""

from tokgolf.artifact import container, weights
from tokgolf.artifact.checkpoint import FloatModel
from tokgolf.artifact.load import Artifact, decode_artifact
from tokgolf.config import to_dict
from tokgolf.heads import Stored, head_to_dict
from tokgolf.quantize.rows import QuantConfig, Quantized, quantize


def encode_artifact(source: FloatModel, config: QuantConfig) -> Artifact:
    """Quantize and encode a model, decode the bytes again, and return what came back.

    Raises `ArtifactError` for weights that are not finite, naming the tensor.
    """

    def quantized(stored: Stored) -> Quantized:
        values = stored.tensor.detach().float().cpu().numpy()
        return quantize(stored.name, values, stored.kind, config)

    header = {"trunk": to_dict(source.trunk), "head": head_to_dict(source.head)}
    sections = weights.encode(source.model.stored(), quantized)
    data = container.pack(header, {"tokenizer": source.tokenizer.asset(), **sections})
    return decode_artifact(data)
