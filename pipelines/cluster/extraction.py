"""Fills feature stores on Ray Data: shards of images are decoded, encoded in a pool of actors and written.

A row of the data set is a shard. What goes into a shard and how its images are batched follows from the manifest alone,
so a shard comes out the same whichever worker makes it, and whatever was there already need not be made again.
"""

from __future__ import annotations

import json
import math
import os
import random
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import cached_property, partial, wraps
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.data
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cprfl import errors
from cprfl.data.feature_store.shards import Features, shard_name, write_shard
from cprfl.data.filesystems import is_remote
from cprfl.data.images import BadImage
from cprfl.data.storage import Folder
from cprfl.encoders.base import ImageEncoder, Transform
from cprfl.encoders.rows import decode, encode
from cprfl.errors import UserError, WeightsError
from cprfl.experiment import Experiment
from cprfl.feature_cache import ShardDone, ShardJob
from cprfl.preparation import build_encoder
from pipelines.background import in_thread
from pipelines.cluster.connection import connect, failing_with_ray
from pipelines.cluster.mistakes import mistakes_raised
from pipelines.cluster.shared import check_shared

Row = dict[str, Any]
_ENCODERS_PER_NODE = 8  # without GPUs: encoders of one thread each lose nothing where decoding takes a core
_SHARDS_AHEAD = 6  # in memory at once for each encoder: being decoded, waiting, being encoded, being written


def fill_on_ray(
    jobs: Sequence[ShardJob], experiment: Experiment, encoder: ImageEncoder, folder: Folder
) -> Iterator[ShardDone]:
    """Make shards on the cluster (`cprfl.feature_cache.Fill`).

    Raises:
        ClusterError: where the nodes of the cluster do not share the folder of the stores.
        UserError: what a worker raised that the user can mend.
    """
    connect()
    for folder_of_all in {experiment.output_dir, experiment.feature_root}:
        if not is_remote(folder_of_all):
            check_shared(Path(folder_of_all))
    rows: list[Row] = [{"error": "", "images": len(job.image_ids), **job._asdict()} for job in jobs]
    # Each call begins somewhere else: two that fill one store at the same time meet the other's shards as done.
    random.Random(f"{os.getpid()} {time.time_ns()}").shuffle(rows)
    # In a task of its own, on this node, because Ray Data writes its warnings to the driver's terminal.
    execute = ray.remote(_execute).options(
        num_cpus=0, max_retries=0, num_returns="streaming",
        scheduling_strategy=NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        ),
    )  # fmt: skip
    settings = experiment.model_dump(mode="json")
    done = iter(execute.remote(rows, settings, encoder.transform, encoder.fingerprint(), folder))
    while (row := in_thread(partial(_next, done))) is not None:  # Ray's own waiting hears no signal where it is lost
        if row["error"]:
            kind, message = json.loads(row["error"])
            raise getattr(errors, kind)(message)
        bad = [BadImage(**item) for item in json.loads(row["bad"])]
        yield ShardDone(int(row["images"]), int(row["encoded"]), bad)


def _next(done: Iterator[Any]) -> Row | None:
    """The row that is made next, none where all are."""
    with failing_with_ray():
        made = next(done, None)
        row: Row | None = None if made is None else ray.get(made)
    return row


def _execute(
    rows: list[Row], settings: dict[str, Any], transform: Transform, fingerprint: str, folder: Folder
) -> Iterator[Row]:
    experiment = Experiment.model_validate(settings)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    total = ray.cluster_resources()
    cpus, gpus = total.get("CPU", 1.0), int(total.get("GPU", 0))
    per_node = (min(math.ceil(node["Resources"].get("CPU", 0)), _ENCODERS_PER_NODE) for node in ray.nodes())
    actors = experiment.encoder.num_workers or gpus or sum(per_node)
    # Decoding takes what the encoders leave, the smallest node is enough for all three steps, and the shares differ:
    # Ray would decode inside the actors of the encoders otherwise, and keep them waiting. Together they leave room for
    # writing, which would wait until decoding pauses otherwise.
    smallest = min(node["Resources"]["CPU"] for node in ray.nodes() if node["Resources"].get("CPU"))
    share = min(1.0, smallest / 2, cpus / actors)
    threads = max(1, int(cpus / actors))
    # What is decoded ahead is so many shards, and not what the object store holds, or memory would grow with the data.
    shard_bytes = max(row["images"] for row in rows) * experiment.encoder.rows_per_image.total * 3 * transform.size**2
    ahead = _SHARDS_AHEAD * actors * shard_bytes
    context.execution_options.resource_limits = ray.data.ExecutionResources.for_limits(object_store_memory=ahead)
    skip = experiment.dataset.on_bad_image == "skip"
    done = (
        ray.data.from_items(rows, override_num_blocks=len(rows))
        .map(_decode, fn_args=(transform, experiment.encoder.views, folder, skip), num_cpus=share * 3 / 4)
        .map(
            _Encoder,
            fn_constructor_args=(settings, fingerprint, threads, folder),
            compute=ray.data.ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=2),
            num_cpus=share / 2,
            num_gpus=1 if gpus >= actors else 0,
            scheduling_strategy="SPREAD",
        )
        .map(_write, fn_args=(folder,), num_cpus=share / 4)
    )
    done.set_name(f"features-{experiment.name}")
    yield from done.iter_rows()


def _reported(stage: Callable[..., Row]) -> Callable[..., Row]:
    """Let what can be mended travel as part of the row: Ray Data drops the cause of what a stage raises."""

    @wraps(stage)
    def step(*arguments: Any, **options: Any) -> Row:
        row: Row = next(argument for argument in arguments if isinstance(argument, dict))
        if row["error"]:
            return row
        try:
            with mistakes_raised():
                return stage(*arguments, **options)
        except UserError as error:
            return row | {"error": json.dumps([type(error).__name__, str(error)])}

    return step


@_reported
def _decode(row: Row, transform: Transform, views: int, folder: Folder, skip_bad: bool) -> Row:
    """Pixels of a shard's images; none where the shard is there by now, or is not to be written."""
    done = row | {"encoded": 0, "bad": "[]", "pixels": None}
    if folder.exists(shard_name(row["number"])):
        return done
    decoded = decode(row["image_ids"], row["uris"], transform, views)
    done["bad"] = json.dumps([asdict(item) for item in decoded.bad])
    if decoded.bad and not skip_bad:
        return done
    return done | {
        "encoded": len(decoded.image_ids), "image_ids": decoded.image_ids, "pixels": decoded.pixels_NK3HW
    }  # fmt: skip


class _Encoder:
    """An actor that keeps one encoder, on a GPU if it was given one."""

    def __init__(self, settings: dict[str, Any], fingerprint: str, threads: int, folder: Folder) -> None:
        self.settings, self.fingerprint, self.threads, self.folder = settings, fingerprint, threads, folder

    @cached_property
    def encoder(self) -> ImageEncoder:
        """Built at the first shard: a mistake found here can be reported like one of an image."""
        torch.set_num_threads(self.threads)
        encoder = build_encoder(Experiment.model_validate(self.settings))
        if encoder.fingerprint() != self.fingerprint:
            raise WeightsError(
                f"encoder.model: the weights on {socket.gethostname()} differ from those where the run was started; "
                "give all nodes the same file"
            )
        return encoder.to("cuda" if torch.cuda.is_available() else "cpu")

    @_reported
    def __call__(self, row: Row) -> Row:
        """Features in place of the pixels."""
        if row["pixels"] is None or self.folder.exists(shard_name(row["number"])):  # by another run, meanwhile
            return row | {"encoded": 0, "pixels": None, "views": None, "grid": None, "global": None}
        features = encode(list(row["image_ids"]), row["pixels"], self.encoder)
        return row | {
            "pixels": None,
            "views": features.views,
            "grid": features.grid,
            "global": features.global_features,
        }


@_reported
def _write(row: Row, folder: Folder) -> Row:
    """A shard of the store; what is left of the row is small."""
    if row["grid"] is not None:
        views = row["views"]
        per_image = int(views.max(initial=0)) + 1
        ids = tuple(np.repeat(row["image_ids"], per_image).tolist()) if len(views) else ()
        bad = [BadImage(**item) for item in json.loads(row["bad"])]
        write_shard(folder, row["number"], Features(ids, views, row["grid"], row["global"]), bad)
    return {name: row[name] for name in ("images", "encoded", "bad", "error")}
