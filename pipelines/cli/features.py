"""`cprfl features`: what is cached, whether it is sound, what may go."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pipelines.stages.features import Cache

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

    cache = _cached(output_dir, features)
    for item in cache.stores:
        users = ", ".join(item.experiments) or "no experiment here"
        print(f"{item.key}  {item.num_bytes / 1e6:8.1f} MB  used by {users}")
        if isinstance(item.store, FeatureStore):
            encoder, shape = item.store.description["encoder"], list(item.store.grid_shape)
            views = f"{counted(item.store.num_images, 'image')} x {counted(item.store.views, 'view')} of {shape}"
            print(f"    {encoder['model']}, {views}")
        else:
            print("    unfinished or damaged")
    for reason in cache.unknown:
        print(f"not known what is used: {reason}")
    print(f"{counted(len(cache.stores), 'store')}, {sum(item.num_bytes for item in cache.stores) / 1e6:.1f} MB")


@app.command("verify")
def verify(keys: KeysArgument = None, output_dir: OutputDirOption = "outputs", features: FeaturesOption = None) -> None:
    """Read every shard; name what is damaged, missing or foreign."""
    from pipelines.stages.features import verify as verify_stores

    sound = verify_stores(_cached(output_dir, features), keys or ())
    print("1 store is sound" if sound == 1 else f"{sound} stores are sound")


@app.command("prune")
def prune(
    keys: KeysArgument = None,
    output_dir: OutputDirOption = "outputs",
    features: FeaturesOption = None,
    unused: Annotated[bool, typer.Option("--unused", help="Also stores that no experiment here uses.")] = False,
) -> None:
    """Remove damaged shards and foreign files; the next preprocessing makes what is missing.

    What another process fills or reads now stays. An unfinished store goes only where --unused comes with its KEY.
    """
    from pipelines.stages.features import prune as prune_stores

    pruned = prune_stores(_cached(output_dir, features), keys or (), unused=unused)
    for reason in pruned.kept:
        print(f"kept {reason}")
    for name in pruned.removed:
        print(f"removed {name}")
    print(f"{len(pruned.removed)} removed")


def _cached(output_dir: str, features: str | None) -> Cache:
    from cprfl.data.filesystems import absolute
    from pipelines.stages.features import cached

    output = Path(output_dir).absolute()
    return cached(absolute(features or str(output / "cache" / "features")), output)
