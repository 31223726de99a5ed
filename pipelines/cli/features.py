"""`cprfl features`: what is cached, whether it is sound, what may go."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pipelines.stages.features import Cached

app = typer.Typer(no_args_is_help=True, help="List, verify and prune cached features.")
OutputDirOption = Annotated[str, typer.Option(help="The experiments' output folder.")]
FeaturesOption = Annotated[
    str | None, typer.Option("--features", help="Path or URI of the stores, where a feature_dir was configured.")
]
KeysArgument = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY]...", help="Names of stores; all unless given.")
]


@app.command("ls")
def ls(output_dir: OutputDirOption = "outputs", features: FeaturesOption = None) -> None:
    """Show what is cached, how large it is and which experiments use it."""
    from cprfl.data.feature_store import FeatureStore
    from cprfl.words import counted

    stores = _cached(output_dir, features, None)
    for item in stores:
        users = ", ".join(item.experiments) or "no experiment here"
        print(f"{item.key}  {item.num_bytes / 1e6:8.1f} MB  used by {users}")
        if isinstance(item.store, FeatureStore):
            encoder, shape = item.store.description["encoder"], list(item.store.grid_shape)
            views = f"{counted(item.store.num_images, 'image')} x {counted(item.store.views, 'view')} of {shape}"
            print(f"    {encoder['model']}, {views}")
        else:
            print("    unfinished or damaged")
    print(f"{counted(len(stores), 'store')}, {sum(item.num_bytes for item in stores) / 1e6:.1f} MB")


@app.command("verify")
def verify(keys: KeysArgument = None, output_dir: OutputDirOption = "outputs", features: FeaturesOption = None) -> None:
    """Read every shard; name what is damaged, missing or foreign."""
    from pipelines.stages.features import verify as verify_stores

    stores = _cached(output_dir, features, keys)
    verify_stores(stores)
    print(f"{len(stores)} stores are sound")


@app.command("prune")
def prune(
    keys: KeysArgument = None,
    output_dir: OutputDirOption = "outputs",
    features: FeaturesOption = None,
    unused: Annotated[bool, typer.Option("--unused", help="Also stores that no experiment here uses.")] = False,
) -> None:
    """Remove damaged shards and foreign files; the next preprocessing makes what is missing."""
    from pipelines.stages.features import prune as prune_stores

    removed = prune_stores(_cached(output_dir, features, keys), unused)
    for name in removed:
        print(f"removed {name}")
    print(f"{len(removed)} removed")


def _cached(output_dir: str, features: str | None, keys: list[str] | None) -> list[Cached]:
    from cprfl.data.filesystems import absolute
    from cprfl.errors import FeatureStoreError
    from pipelines.stages.features import cached

    output = Path(output_dir).absolute()
    root = absolute(features or str(output / "cache" / "features"))
    stores = cached(root, output)
    unknown = set(keys or ()) - {item.key for item in stores}
    if unknown:
        raise FeatureStoreError(f"{root}: no store {min(unknown)!r} here; `cprfl features ls` lists them")
    return [item for item in stores if not keys or item.key in keys]
