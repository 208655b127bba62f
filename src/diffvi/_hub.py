"""A saved model, described for the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._exceptions import InvalidInputError
from ._version import __version__

if TYPE_CHECKING:
    from scvi.hub import HubModel

CARD = """\
# {name}

{description}

A `{cls}` of [diffvi](https://pypi.org/project/diffvi): latent diffusion on scvi-tools. It generates cells with integer counts.

## Use it

```python
import diffvi
from scvi.hub import HubModel

hub_model = HubModel.pull_from_huggingface_hub("USER/REPOSITORY")
model = diffvi.model.{cls}.load(hub_model.local_dir)  # reads plain data, runs no code
cells = model.generate(1000, seed=0)
```

## What it has learned from

```
{summary}
```
{data}
{references}
## Limits

Generated cells carry no information beyond the training cells: do not use them to raise the power of a test. Cells of types, batches or
conditions that training has not seen are extrapolations.

Made with diffvi {diffvi_version}, scvi-tools {scvi_version}, anndata {anndata_version}.
"""


def hub_model(
    model: Any,
    dir_path: str | Path,
    license_info: str,
    description: str,
    tissues: Sequence[str] = (),
    training_data: str = "",
    references: str = "",
    overwrite: bool = False,
    save_anndata: bool = False,
) -> HubModel:
    """Save a model with metadata and a model card, ready to be shared on the Hugging Face hub.

    scvi-tools' own helper for cards knows a few of its own classes alone.

    Parameters
    ----------
    model
        A trained model of diffvi.
    dir_path
        Folder to make.
    license_info
        Licence of the model, such as ``"cc-by-4.0"``.
    description
        What it is a model of, in a sentence or two.
    tissues
        Tissues of the cells, which become tags.
    training_data
        Where the training data are: a link or an accession.
    references
        Papers to cite, in markdown.
    overwrite
        Replace the model in ``dir_path``.
    save_anndata
        Save the data too. The model generates without them; they are needed to train on.

    Returns
    -------
    The :class:`scvi.hub.HubModel`; its ``push_to_huggingface_hub`` uploads the folder.

    Raises
    ------
    ImportError
        If ``huggingface_hub`` is not installed.
    InvalidInputError
        If ``model`` is not one of diffvi, ``description`` or ``license_info`` is empty, or ``tissues`` is one text.
    NotTrainedError
        If the model is not trained.
    ModelFileError
        If ``dir_path`` exists and ``overwrite`` is false, or cannot be written.

    Examples
    --------
    >>> hub = diffvi.hub_model(model, "blood", license_info="cc-by-4.0", description="Simulated cells.")
    >>> hub.metadata.model_cls_name, hub.metadata.model_parent_module
    ('LatentDiffusionSCVI', 'diffvi.model')
    """
    try:
        from huggingface_hub import ModelCard, ModelCardData
    except ImportError as error:
        raise ImportError("Sharing needs huggingface_hub: `pip install 'diffvi[hub]'`.") from error
    from scvi.hub import HubMetadata, HubModel

    from .model._mixin import LatentDiffusionMixin

    if not isinstance(model, LatentDiffusionMixin):
        raise InvalidInputError(f"`model` must be a model of diffvi; got {type(model).__name__}.")
    for argument, text in (("license_info", license_info), ("description", description)):
        if not isinstance(text, str) or not text.strip():
            raise InvalidInputError(f"`{argument}` must be a text that says something; got {text!r}.")
    if isinstance(tissues, str):
        raise InvalidInputError(f"`tissues` must be a list of names; got {tissues!r}.")
    model._require("diffusion")
    model.save(str(dir_path), overwrite=overwrite, save_anndata=save_anndata)
    cls = type(model).__name__
    versions = {"scvi_version": version("scvi-tools"), "anndata_version": version("anndata")}
    tags = ["biology", "genomics", "single-cell", "diffusion", f"model_cls_name:{cls}"]
    header = ModelCardData(
        license=license_info, library_name="scvi-tools", tags=[*tags, *(f"tissue:{name}" for name in tissues)]
    )
    card = CARD.format(
        name=Path(dir_path).resolve().name,
        description=description,
        cls=cls,
        summary=str(model).strip(),
        data=f"\nData: {training_data}\n" if training_data else "",
        references=f"\n## References\n\n{references}\n" if references else "",
        diffvi_version=__version__,
        **versions,
    )
    hub = HubModel(
        str(dir_path),
        metadata=HubMetadata(model_cls_name=cls, model_parent_module="diffvi.model", **versions),
        model_card=ModelCard(f"---\n{header.to_yaml()}\n---\n\n{card}"),
    )
    hub.save(overwrite=True)
    return hub
