"""Class names to text embeddings: an open_clip text tower, GloVe, a file, or random vectors."""

from __future__ import annotations

import json
import sys
import zipfile
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from cprfl.config import Config
from cprfl.data.files import file_digest, fingerprint
from cprfl.data.storage import DataPath, local_copy
from cprfl.data.tensor_files import read_tensors, write_tensors
from cprfl.encoders.clip.embedded import embedded_fingerprint
from cprfl.encoders.clip.factory import create_clip
from cprfl.encoders.clip.library import open_clip_module
from cprfl.encoders.clip.text_tower import TextTower
from cprfl.errors import ClassNamesError, TextEmbeddingsError, WeightsError


@dataclass(frozen=True)
class TextEmbeddings:
    """One embedding per class: ``embeddings_CM`` float32 [c, m], and where it came from."""

    class_names: tuple[str, ...]
    embeddings_CM: Tensor
    encoder: str
    template: str

    @property
    def fingerprint(self) -> str:
        """Changes with the names and with every value."""
        return fingerprint([self.class_names, self.embeddings_CM.tolist()])

    def write(self, path: Path) -> None:
        """Write as safetensors, whole or not at all."""
        metadata = {
            "class_names": json.dumps(self.class_names, ensure_ascii=False),
            "encoder": self.encoder,
            "template": self.template,
        }
        write_tensors(path, {"embeddings": self.embeddings_CM}, metadata)

    @classmethod
    def read(cls, path: Path, mend: str = "`cprfl preprocess CONFIG` makes it anew") -> TextEmbeddings:
        """Read what `write` wrote; ``mend`` is what an error says of what can be done.

        Raises:
            TextEmbeddingsError: where the file is missing or damaged.
        """
        tensors, metadata = read_tensors(path, TextEmbeddingsError, mend)
        names = tuple(json.loads(metadata["class_names"]))
        return cls(names, tensors["embeddings"], metadata["encoder"], metadata["template"])


class TextEncoderConfig(Config):
    """Settings of every text encoder.

    ``center`` subtracts the mean over the classes, the large part that all embeddings of a CLIP share; ``norm``
    then rescales every embedding to this length. Both are off in the paper.
    """

    center: bool = False
    norm: PositiveFloat | None = None

    @abstractmethod
    def encode(self, class_names: tuple[str, ...], cache_dir: Path) -> TextEmbeddings:
        """The embeddings before centring and rescaling."""

    def tower(self, cache_dir: Path) -> TextTower:
        """The frozen text tower, for methods that are trained through one.

        Raises:
            WeightsError: where there is none, or its weights cannot be had.
        """
        raise WeightsError(f"{type(self).__name__}: has no text tower; set text_encoder.name: open_clip")

    def source(self) -> str:
        """What the embeddings are made from, beside the settings: digest of a file, or of what is trained here."""
        return ""

    def find_or_embed(self, class_names: tuple[str, ...], cache_dir: Path) -> tuple[TextEmbeddings, Path]:
        """The embeddings and their file in ``cache_dir``, computed where nobody did before.

        They are found by the settings, the names and the digest of the input file, not by its path. A damaged file is
        made anew, and that is said.

        Raises:
            UserError: as `embed`.
        """
        settings = self.model_dump(mode="json", exclude={"path", "weights"})
        path = cache_dir / "text" / f"{fingerprint([settings, class_names, self.source()])}.safetensors"
        if path.exists():
            try:
                return TextEmbeddings.read(path, "it is made anew"), path
            except TextEmbeddingsError as error:
                print(error, file=sys.stderr, flush=True)
        text = self.embed(class_names, cache_dir)
        text.write(path)
        return text, path

    def embed(self, class_names: tuple[str, ...], cache_dir: Path) -> TextEmbeddings:
        """Embed the class names.

        Raises:
            TextEmbeddingsError: where a file is missing or does not hold what it should, or a value is not finite.
            ClassNamesError: where a file's class names are not the data set's.
            WeightsError: where a text tower's weights cannot be had.
        """
        encoded = self.encode(class_names, cache_dir)
        embeddings_CM = encoded.embeddings_CM.float()
        if not torch.isfinite(embeddings_CM).all():
            raise TextEmbeddingsError(f"{encoded.encoder}: text embeddings contain NaN or infinity")
        if self.center:
            embeddings_CM = embeddings_CM - embeddings_CM.mean(dim=0)
        if self.norm is not None:
            embeddings_CM = self.norm * torch.nn.functional.normalize(embeddings_CM, dim=1)
        return replace(encoded, embeddings_CM=embeddings_CM)


class OpenClipText(TextEncoderConfig):
    """The text tower of any open_clip model.

    Each template's embedding is brought to unit length; several are averaged and brought to unit length again.
    """

    name: Literal["open_clip"] = "open_clip"
    model: str
    pretrained: str = "openai"
    weights: DataPath | None = None
    templates: list[str] = Field(default=["a photo of a {}."], min_length=1)

    def tower(self, cache_dir: Path) -> TextTower:
        """See `TextEncoderConfig.tower`."""
        return TextTower(create_clip(self.model, self.pretrained, self.weights, cache_dir), self.model)

    def source(self) -> str:
        """See `TextEncoderConfig.source`."""
        if self.weights is not None:
            return _digest(self.weights, "weights file")
        return embedded_fingerprint() if self.pretrained == "embedded" else ""

    @model_validator(mode="after")
    def _templates_have_a_place_for_the_name(self) -> Self:
        without = [template for template in self.templates if "{}" not in template]
        if without:
            raise ValueError(f"template {without[0]!r} has no {{}} where the class name goes")
        return self

    def encode(self, class_names: tuple[str, ...], cache_dir: Path) -> TextEmbeddings:
        """See `TextEncoderConfig.embed`."""
        clip: Any = create_clip(self.model, self.pretrained, self.weights, cache_dir)
        tokenize = open_clip_module().get_tokenizer(self.model)
        total_CM = torch.zeros(())
        for template in self.templates:
            tokens = tokenize([template.replace("{}", name.replace("_", " ")) for name in class_names])
            with torch.no_grad():
                total_CM = total_CM + clip.encode_text(tokens, normalize=True)
        unit_CM = torch.nn.functional.normalize(total_CM, dim=1)
        source = self.weights or self.pretrained
        return TextEmbeddings(class_names, unit_CM, f"open_clip {self.model} {source}", " | ".join(self.templates))


class GloveText(TextEncoderConfig):
    """A GloVe text file (``word value value ...``); a name of several words is the mean of their vectors."""

    name: Literal["glove"] = "glove"
    path: DataPath

    def source(self) -> str:
        """See `TextEncoderConfig.source`."""
        return _digest(self.path, "GloVe file")

    def encode(self, class_names: tuple[str, ...], cache_dir: Path) -> TextEmbeddings:
        """See `TextEncoderConfig.embed`."""
        words = {name: name.lower().replace("_", " ").replace("-", " ").split() for name in class_names}
        wanted = {word for parts in words.values() for word in parts}
        vectors: dict[str, np.ndarray] = {}
        with _input_file(self.path, "GloVe file") as local, local.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                word, _, values = line.rstrip().partition(" ")
                if word in wanted:
                    try:
                        vectors[word] = np.array(values.split(), dtype=np.float32)
                    except ValueError:
                        raise TextEmbeddingsError(
                            f"{self.path}, line {number}: expected a word and numbers separated by spaces"
                        ) from None
        lost = sorted(wanted - vectors.keys())
        if lost:
            raise TextEmbeddingsError(
                f"{self.path}: no vector for {', '.join(lost)}; rename the class or use another file"
            )
        sizes = {len(vector) for vector in vectors.values()}
        if len(sizes) > 1:
            raise TextEmbeddingsError(f"{self.path}: vectors of different lengths: {sorted(sizes)}")
        means = [np.mean([vectors[word] for word in words[name]], axis=0) for name in class_names]
        return TextEmbeddings(class_names, torch.from_numpy(np.stack(means)), f"glove {Path(self.path).name}", "{}")


@contextmanager
def _input_file(path: str, what: str) -> Iterator[Path]:
    """The file on this machine for as long as the block lasts, or an error that says what is missing."""
    try:
        with local_copy(path) as local:
            yield local
    except FileNotFoundError:
        raise TextEmbeddingsError(f"{path}: {what} not found; check the path and data_root") from None


def _digest(path: str, what: str) -> str:
    with _input_file(path, what) as local:
        return file_digest(local)


class NpzText(TextEncoderConfig):
    """An ``.npz`` file with ``classes`` [c'] and embeddings [c', m] under ``key``.

    The data set's classes are looked up by name, so the file may hold more of them, in another order.
    """

    name: Literal["npz"] = "npz"
    path: DataPath
    key: str

    def source(self) -> str:
        """See `TextEncoderConfig.source`."""
        return _digest(self.path, "text embeddings")

    def encode(self, class_names: tuple[str, ...], cache_dir: Path) -> TextEmbeddings:
        """See `TextEncoderConfig.embed`."""
        try:
            with _input_file(self.path, "text embeddings") as local, local.open("rb") as file:
                arrays = dict(np.lib.npyio.NpzFile(file))
        except TextEmbeddingsError:
            raise
        except (ValueError, zipfile.BadZipFile, OSError) as error:
            raise TextEmbeddingsError(f"{self.path}: not an .npz file of plain arrays ({error})") from None
        if "classes" not in arrays or self.key not in arrays:
            absent = "classes" if "classes" not in arrays else self.key
            raise TextEmbeddingsError(f"{self.path}: holds no array {absent!r}; it has {', '.join(arrays)}")
        rows = {str(name): row for row, name in enumerate(arrays["classes"])}
        values = arrays[self.key]
        if values.ndim != 2 or len(values) != len(rows):
            raise TextEmbeddingsError(
                f"{self.path}: {self.key} has shape {values.shape}, but `classes` names {len(rows)} classes"
            )
        absent_names = [name for name in class_names if name not in rows]
        if absent_names:
            raise ClassNamesError(
                f"{self.path}: no embedding for {', '.join(map(repr, absent_names[:10]))} of the data set's classes; "
                f"the file has {', '.join(map(repr, list(rows)[:10]))}..."
            )
        chosen = torch.from_numpy(values[[rows[name] for name in class_names]].astype(np.float32))
        return TextEmbeddings(class_names, chosen, f"npz {Path(self.path).name}:{self.key}", "as stored")


class RandomText(TextEncoderConfig):
    """Unit vectors in random directions: what is left of the method without any knowledge of the names."""

    name: Literal["random"] = "random"
    dim: PositiveInt = 512
    seed: NonNegativeInt = 0

    def encode(self, class_names: tuple[str, ...], cache_dir: Path) -> TextEmbeddings:
        """See `TextEncoderConfig.embed`."""
        generator = torch.Generator().manual_seed(self.seed)
        values = torch.nn.functional.normalize(torch.randn(len(class_names), self.dim, generator=generator), dim=1)
        return TextEmbeddings(class_names, values, f"random, seed {self.seed}", "none")
